"""``radial jobs``: the queue from the command line; ``radial work``: whoever renders it."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from radial.errors import RequestError
from radial.video.finishing.steps import Finish
from radial_app.cli.terminal.options import DataDir, Pack, SnapshotSeconds
from radial_app.cli.terminal.text import json_text, looked_at, printable
from radial_app.cli.terminal.torchrun import is_other_rank
from radial_app.jobs.job import FINISHED, Job, State
from radial_app.jobs.store import JobStore

app = typer.Typer(name="jobs", help="See and change the queue of jobs.", no_args_is_help=True)

Ids = Annotated[list[str], typer.Argument(help="Ids, or their beginnings; `all` for all.", metavar="ID...")]
Id = Annotated[str, typer.Argument(help="An id, or its beginning.", metavar="ID")]
_COLOURS = {"running": "cyan", "queued": "white", "paused": "yellow", "done": "green", "failed": "red"}


@app.callback()
def _choose_folder(data_dir: DataDir = None) -> None:
    if data_dir is not None:
        os.environ["RADIAL_DATA_DIR"] = str(data_dir)


@app.command("list")
def list_jobs(
    state: Annotated[
        Literal["queued", "running", "paused", "done", "failed", "cancelled"] | None, typer.Option(help="Only these.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Only those of one batch.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List jobs: running, waiting, then finished ones, the latest first."""
    with JobStore() as store:
        store.recover()
        jobs = store.find([state] if state else (), batch, limit)
        counts = store.counts()
    if as_json:
        for job in jobs:
            print(json_text(as_dict(job)))
        return
    table = Table(box=None)
    for column in ("id", "state", "at", "left"):
        table.add_column(column, no_wrap=True)
    table.add_column("clip", overflow="fold", ratio=1)
    for job in jobs:
        request = job.request
        length = request.num_frames if job.story is None else f"a story of {len(job.story.lines)}"
        clip = f"{plain(request.prompt[:100])} ({request.model}, {request.width}x{request.height}, {length})"
        if job.finish is not None and job.beside:
            made = f"{job.finish.width}x{job.finish.height}, {job.finish.num_frames}"
            clip = f"{plain(request.prompt[:100])} (finished: {made}, {said(job.finish.what)})"
        elif job.finish is not None:
            clip += f", then {said(job.finish.what)}"
        error = f"\n[red]{escape(plain(job.error))}[/]" if job.error else ""
        colour = _COLOURS.get(job.state, "white")
        table.add_row(job.id, f"[{colour}]{job.state}[/]", where(job), clock(job.eta), f"{escape(clip)}{error}")
    console = Console()
    console.print(table)
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()) or "no jobs")


@app.command()
def show(job: Id) -> None:
    """Show a job's request, results and log, as JSON."""
    with JobStore() as store:
        found = store.get(job)
        events, receipts = store.events(found.id), store.receipts(found.id)
    log = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))} {kind}: {text}" for _, when, kind, text in events
    ]
    print(json_text(as_dict(found) | {"receipts": receipts, "log": log}, indent=2))


@app.command()
def pause(jobs: Ids) -> None:
    """Hold jobs; running ones stop after their step and keep what they have."""
    _change("paused", jobs, ("queued", "running"), ("paused",), lambda store, ids: store.pause(ids))


@app.command()
def resume(jobs: Ids) -> None:
    """Put paused jobs back into the queue."""
    _change("resumed", jobs, ("paused",), ("queued", "running"), lambda store, ids: store.resume(ids))


@app.command()
def cancel(
    jobs: Ids, keep: Annotated[bool, typer.Option("--keep/--discard", help="Decode what running jobs have.")] = False
) -> None:
    """Give jobs up."""
    _change(
        "cancelled",
        jobs,
        ("queued", "running", "paused"),
        ("cancelled",),
        lambda store, ids: store.cancel(ids, keep=keep),
    )


@app.command()
def retry(jobs: Ids) -> None:
    """Try failed or cancelled jobs again, from their last snapshot where there is one."""
    _change("queued", jobs, ("failed",), ("queued", "running"), lambda store, ids: store.retry(ids))


@app.command()
def duplicate(jobs: Ids, change: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE.")] = None) -> None:
    """Queue jobs again, with other values where you say so."""
    with JobStore() as store:
        for copy in store.duplicate(_ids(store, jobs, ()), **changes_of(change)):
            print(copy.id)


@app.command()
def edit(job: Id, change: Annotated[list[str], typer.Argument(help="KEY=VALUE.", metavar="KEY=VALUE...")]) -> None:
    """Change the request of a job that waits."""
    with JobStore() as store:
        print(store.edit(store.get(job).id, **changes_of(change)).id)


@app.command()
def move(job: Id, place: Annotated[int, typer.Argument(help="Place in the queue, from 1.", min=1)]) -> None:
    """Move a waiting job to a place of the queue."""
    with JobStore() as store:
        store.recover()
        found = store.get(job)
        _check_waits(found, "moved")
        store.move(found.id, place)
        print(found.id)


@app.command()
def priority(jobs: Ids, value: Annotated[int, typer.Option(help="Higher goes first.")] = 1) -> None:
    """Set the priority of jobs that wait."""
    with JobStore() as store:
        store.recover()
        ids = _ids(store, jobs, ("queued", "paused"))
        for id_ in ids:
            _check_waits(store.get(id_), "given a priority")
        store.prioritise(ids, value)
        for id_ in ids:
            print(id_)


@app.command()
def remove(jobs: Ids) -> None:
    """Forget jobs that do not run; their videos stay."""
    _change("removed", jobs, FINISHED, (), lambda store, ids: store.remove(ids))


@app.command()
def run(job: Id) -> None:
    """Render one job here: one that waits, is paused, or failed."""
    from radial_app.cli.terminal.run_here import render_here
    from radial_app.worker.ranks import as_first_rank, take_orders

    with JobStore() as store:
        if is_other_rank():
            take_orders(store.get(job).request.device)
            return
        store.recover()
        found = store.get(job)
        store.resume([found.id])
        store.retry([found.id])
        with as_first_rank(found.request.device) as ranks:
            render_here(store, store.get(found.id), ranks=ranks)


def work(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when no job waits.")] = False,
    snapshot_seconds: SnapshotSeconds = 30.0,
    pack: Pack = True,
    unload_seconds: Annotated[float, typer.Option(min=0, help="Without a job until the model is unloaded.")] = 300.0,
    batch: Annotated[str | None, typer.Option(help="Only the jobs of one batch.")] = None,
    slot: Annotated[str | None, typer.Option(hidden=True)] = None,
    owner: Annotated[str, typer.Option(hidden=True)] = "hand",
    data_dir: DataDir = None,
) -> None:
    """Render the jobs that wait, one after the other. Start one for each device."""
    from radial.loading.load import choose_device
    from radial_app.worker.ranks import as_first_rank, take_orders
    from radial_app.worker.worker import Worker, log_to

    if is_other_rank():
        take_orders(device, through_signals=True)
        return
    choose_device(device)
    with (
        JobStore(data_dir) as store, store.locks.slot(slot or f"by-hand-{os.getpid()}") as free, ExitStack() as stack,
    ):  # fmt: skip
        if not free:  # another worker took the place meanwhile
            return
        if slot is not None:
            store.locks.sign(slot, owner)
        ranks = stack.enter_context(as_first_rank(device))
        worker = Worker(
            store, ranks, device=ranks.device if ranks else device, until_idle=until_idle, batch=batch,
            snapshot_seconds=snapshot_seconds, unload_seconds=unload_seconds, pack=pack,
        )  # fmt: skip
        log_to(store.folder / "logs" / f"worker-{device.replace(':', '-')}.jsonl")
        logging.getLogger("radial").addHandler(logging.StreamHandler())

        interrupted = False

        def stop(number: int, _: object) -> None:
            nonlocal interrupted
            interrupted = interrupted or number == signal.SIGINT
            worker.stop.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one does not wait for the step

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        worker.run()
        if worker.broken:
            raise typer.Exit(1)
    if interrupted:
        raise typer.Exit(130)


def as_dict(job: Job) -> dict[str, Any]:
    """A job for readers of JSON."""
    story = None if job.story is None else job.story.told()
    finish = None if job.finish is None else job.finish.model_dump(mode="json")
    fields = asdict(replace(job, story=None, finish=None)) | {"story": story, "finish": finish}
    fields |= {"request": job.request.model_dump(mode="json"), "output": job.output.model_dump()}
    return fields | {"files": [file.path for file in job.files if file.done]}


def where(job: Job) -> str:
    """How far it is."""
    if job.state == "running":
        video = f", video {job.video + 1}" if job.results > 1 else ""
        if job.story is not None and job.stage != "finish":
            video = f", segment {job.story.segment_at(job.pieces) + 1} of {len(job.story.lines)}"
        looked = ""
        if job.recall is not None and job.attention_error is not None:
            looked = f", {looked_at(job.recall, job.attention_error)}"
        return f"{job.stage} {job.step}/{job.steps}{video}{looked}" if job.step else f"{job.stage}{video}"
    return ""


def said(what: Finish) -> str:
    """What is done to a clip, in the words of the command line."""
    return ", ".join(f"{name}={value}" for name, value in what.told().items())


def plain(text: str) -> str:
    """Text of users for a terminal, on one line."""
    return printable(text).replace("\n", " ")


def clock(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _ids(store: JobStore, given: list[str], states: tuple[State, ...]) -> list[str]:
    if given == ["all"]:
        return [job.id for job in store.find(states)]
    return [store.get(id_).id for id_ in given]


def _check_waits(job: Job, what: str) -> None:
    if job.state not in ("queued", "paused"):
        raise RequestError(f"job {job.id} is {job.state}: only jobs that wait can be {what}")


def changes_of(given: list[str] | None) -> dict[str, Any]:
    """Values from KEY=VALUE.

    Raises:
        RequestError: a text has no equals sign.
    """
    changes: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise RequestError(f"changes are KEY=VALUE, not {text!r}")
        try:
            changes[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            changes[name.strip().replace("-", "_")] = value
    return changes


def _change(
    what: str, given: list[str], states: tuple[State, ...], wanted: tuple[State, ...],
    act: Callable[[JobStore, list[str]], list[str]],
) -> None:  # fmt: skip
    """Do something to jobs and say which it was done to, and of the others how they stand; those that are as they were
    ``wanted`` already are no error."""
    console = Console(stderr=True)
    with JobStore() as store:
        store.recover()
        asked = _ids(store, given, states)
        changed = act(store, asked)
        others = {id_: state for id_, state in store.states(asked).items() if id_ not in changed}
    for id_ in changed:
        print(id_)
    for id_, state in others.items():
        told = f"{id_} is {state} already" if state in wanted else f"{id_} is {state}: not {what}"
        console.print(told, highlight=False)
    console.print(f"{len(changed)} {what}", highlight=False)
    if not set(others.values()) <= {*wanted}:
        raise typer.Exit(1)
