"""``radial render``: files of jobs from beginning to end."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from radial.errors import OutputError, RequestError
from radial.files import check_output, existing_folder, publish_text
from radial.loading.memory_check import check_all_fit
from radial.video.encoding import encoding_for
from radial_app.cli.jobs import changes_of, clock, plain
from radial_app.cli.terminal.batch import BatchView, show_batch, stderr
from radial_app.cli.terminal.options import (
    Codec,
    Crf,
    DataDir,
    Device,
    Force,
    Format,
    Metadata,
    Pack,
    PerDevice,
    SnapshotSeconds,
)
from radial_app.jobs.estimates import Estimate, estimate
from radial_app.jobs.folder import data_folder
from radial_app.jobs.job import DEFAULT_NAME, OUTPUT_FOLDER, Job, Output, load_key, make_output
from radial_app.jobs.presets import Presets
from radial_app.jobs.results import free_name
from radial_app.jobs.store import JobStore, new_id
from radial_app.worker.pool import WorkerPool, own_devices

JobFiles = Annotated[
    list[Path], typer.Argument(help="Files of jobs: .txt, .csv, .jsonl or .yaml; - for stdin.", metavar="JOBS...")
]
Template = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", help="Names of the videos, such as '{index:03}-{slug}-{seed}.mp4'.", metavar="TEMPLATE"
    ),
]
_MOST_SHOWN = 50  # jobs of a dry run
Defaults = Annotated[
    list[str] | None, typer.Option("--set", help="Value of a field that jobs leave open.", metavar="KEY=VALUE")
]


def render(
    files: JobFiles,
    template: Template = None,
    defaults: Defaults = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be made.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what was made before, go on with what was begun.")
    ] = False,
    video_format: Format = None,
    codec: Codec = None,
    crf: Crf = None,
    metadata: Metadata = True,
    device: Device = None,
    jobs_per_device: PerDevice = 1,
    snapshot_seconds: SnapshotSeconds = 30.0,
    pack: Pack = True,
    manifest: Annotated[Path | None, typer.Option(help="JSON file that lists the results.", metavar="FILE")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Render on a Ray cluster: its address, or `local`.", metavar="ADDRESS")
    ] = None,
    force: Force = False,
    data_dir: DataDir = None,
) -> None:
    """Render all jobs of files. Exit codes: 0 all made, 1 some failed, 2 errors in a file, 130 Ctrl+C."""
    output = output_of(template, video_format, codec, crf, metadata)
    batch = f"{'stdin' if str(files[0]) == '-' else files[0].stem}-{new_id()}"
    jobs = read_all(files, output, defaults, batch, Presets(data_folder(data_dir)))
    with JobStore(data_dir) as store:
        store.recover()
        if dry_run:
            _show_jobs(jobs, store, resume=resume)
            return
        for job in jobs:
            check_place(job)
        if manifest is not None:
            check_output(manifest, ".json", overwrite=True)
        devices = device or own_devices()
        if ray is None:
            check_devices(jobs, devices)
        elif one := next((job for job in jobs if job.story is not None or job.finish is not None), None):
            what = "a clip is finished" if one.story is None else "a story is made"
            raise RequestError(
                f"{one.source}: {what} on one machine, not on a cluster: leave --ray out, or put "
                "it into a file of its own"
            )
        if ray is None and not force:
            check_all_fit(job.request for job in jobs)
        ours, skipped = enqueue(store, jobs, resume=resume)
        if skipped:
            stderr.print(f"{len(skipped)} were made before", highlight=False)
        try:
            if ray is not None:
                from radial_app.worker.ray_backend import render_on_cluster

                render_on_cluster(
                    store, ray, batch, lambda: BatchView(store, ours), snapshot_seconds=snapshot_seconds,
                    per_device=jobs_per_device,
                )  # fmt: skip
            elif ours:
                pool = WorkerPool(
                    store, devices, per_device=jobs_per_device, batch=batch,
                    snapshot_seconds=snapshot_seconds, pack=pack,
                )  # fmt: skip
                show_batch(store, ours, pool)
        except KeyboardInterrupt:
            store.pause(ours)
            stderr.print("stopped; the same command with --resume goes on", highlight=False)
            raise
        except Exception:
            store.pause(ours)
            raise
        there = store.states([*skipped, *ours])  # somebody may have removed some
        results = [store.get(id_) for id_ in there]
    if not ours and manifest is None:  # nothing to do, nothing to list
        _show_summary(results, None)
        return
    path = manifest or free_name(Path(output.folder) / f"{batch}.json")
    publish_text(path, json.dumps(manifest_of(batch, results), indent=2, ensure_ascii=False) + "\n")
    _show_summary(results, path)
    if any(job.state != "done" for job in results):
        raise typer.Exit(1)


def output_of(
    template: str | None, video_format: Any, codec: Any, crf: int | None, metadata: bool, folder: Path = OUTPUT_FOLDER
) -> Output:
    """Where results go by a template: its leading folders are theirs, its suffix says the format; without a suffix and
    a brace it is a folder."""
    if template is not None and "{" not in template and not Path(template).suffix and video_format != "png":
        folder, template = Path(template), None
    name = template or DEFAULT_NAME
    suffix = Path(name).suffix
    if suffix and "{" not in suffix and video_format != "png":
        named = encoding_for(Path(name)).format
        if video_format not in (None, named):
            raise RequestError(f"the output {name!r} is not for --format {video_format}")
        video_format, name = named, name.removesuffix(suffix)
    parts = Path(name).parts
    fixed = 0
    while fixed < len(parts) - 1 and "{" not in parts[fixed]:
        fixed += 1
    place = Path(*parts[:fixed]) if fixed else folder
    encoding = {"format": video_format or "mp4", "codec": codec, "crf": crf, "metadata": metadata}
    return make_output(folder=str(place.absolute()), name=str(Path(*parts[fixed:])), encoding=encoding)


def read_all(
    files: list[Path], output: Output, defaults: list[str] | None, batch: str, presets: Presets | None = None
) -> list[Job]:  # fmt: skip
    """The jobs of several files, those that need the same model and adapters after each other; ``presets`` are settings
    that they may name.

    Raises:
        JobFileError: with the problems of all files.
    """
    from radial_app.jobs.lists.job_files import JobFileError, check_fields, read_jobs

    check_fields(changes_of(defaults), "--set")
    jobs: list[Job] = []
    problems: list[str] = []
    counts: dict[str, int] = {}
    warnings: list[str] = []
    for file in files:
        text = None
        if str(file) == "-":  # prompts a line, or objects
            text = sys.stdin.read()
            file = Path("stdin.jsonl" if text.lstrip().startswith('{"') else "stdin.txt")
        try:
            jobs += read_jobs(
                file, output=output, defaults=changes_of(defaults), batch=batch, counts=counts, warnings=warnings,
                text=text, presets=presets,
            )  # fmt: skip
        except JobFileError as error:
            problems += error.problems
    for warning in warnings:
        stderr.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)
    if problems:
        raise JobFileError(problems)
    jobs = [replace(job, index=index) for index, job in enumerate(jobs, 1)]
    order: dict[str, int] = {}  # jobs that load the same one after the other save loading
    return sorted(jobs, key=lambda job: order.setdefault(load_key(job.request), len(order)))


def enqueue(store: JobStore, jobs: list[Job], *, resume: bool) -> tuple[list[str], list[str]]:
    """Put jobs into the queue. With ``resume``, jobs of before that were made are skipped, and others taken up again.
    Returns the ids to wait for, and those skipped."""
    if not resume:
        return [job.id for job in store.add(jobs)], []
    known, skipped, fresh = [], [], []
    for job in jobs:
        made = store.finished_with(job.digest)
        if made is not None:
            skipped.append(made.id)
        elif (begun := store.begun_with(job.digest)) is not None and begun.id not in known:
            known.append(begun.id)
        else:
            fresh.append(job)
    store.resume(known)
    store.retry(known)
    store.assign(known, jobs[0].batch)
    return [*known, *(job.id for job in store.add(fresh))], skipped


def check_place(job: Job) -> None:
    """Raise where a result could not be written, before anything is rendered."""
    folder = existing_folder(Path(job.output.folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {job.output.folder}")


def check_devices(jobs: list[Job], devices: list[str]) -> None:
    """Raise for a job that none of the workers will take."""
    served = {"auto", *devices, *(["cuda", "cuda:0"] if {"cuda", "cuda:0"} & set(devices) else [])}
    for job in jobs:
        if job.request.device not in served:
            raise RequestError(
                f"{job.source}: device {job.request.device} is not rendered on; there is {', '.join(devices)}"
            )


def manifest_of(batch: str, jobs: list[Job]) -> dict[str, Any]:
    """What became of a batch, for other programs."""
    return {
        "batch": batch,
        "jobs": [
            {
                "id": job.id, "source": job.source, "state": job.state, "error": job.error or None,
                "files": [{"path": file.path, "sha256": file.digest, "seed": file.seed, "seconds": file.seconds}
                          for file in job.files if file.done],
                "request": job.request.model_dump(mode="json"),
            }
            for job in jobs
        ],
    }  # fmt: skip


def _show_jobs(jobs: list[Job], store: JobStore, *, resume: bool) -> None:
    table = Table(box=None)
    for column in ("#", "clip", "steps", "attention", "time", "memory"):
        table.add_column(column, no_wrap=True)
    for column in ("file", "prompt"):
        table.add_column(column, overflow="fold", ratio=1)
    known: dict[str, Estimate] = {}
    total, unknown = 0.0, 0
    names: set[Path] = set()
    for job in jobs:
        request = job.request
        size = f"{request.width}x{request.height}, {request.num_frames}"
        if job.story is not None:
            size = f"{request.width}x{request.height}, a story of {len(job.story.lines)}"
        own = {"prompt", "then", "negative_prompt", "seed", "num_videos", "fps"}
        key = request.model_dump_json(exclude=own) + size
        if key not in known:
            known[key] = estimate(request, store)
        found = known[key]
        made = resume and store.finished_with(job.digest) is not None
        seconds = None if found.seconds is None else found.seconds * request.num_videos
        if not made:
            total, unknown = total + (seconds or 0), unknown + (seconds is None)
        if job.index > _MOST_SHOWN:
            continue
        name = job.output.path(job.name_values(request, 0))
        if not made and not job.output.overwrite:
            name = free_name(name, names)
        names.add(name)
        table.add_row(
            str(job.index), size, str(request.num_inference_steps),
            f"{found.density:.0%}" if found.density is not None else "?",
            "made" if made else clock(seconds) or "?",
            _size(None if found.needs is None else found.needs.vram("full")),
            str(name.relative_to(job.output.folder)), escape(plain(request.prompt[:60])),
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    if len(jobs) > _MOST_SHOWN:
        kinds = Counter(
            (job.request.model, f"{job.request.width}x{job.request.height}, {job.request.num_frames}") for job in jobs
        )
        for (model, size), count in kinds.most_common(10):
            stderr.print(f"{count} of {model} in {size}", highlight=False)
        stderr.print(f"the first {_MOST_SHOWN} of {len(jobs)} are shown", highlight=False)
    told = f"about {clock(total)}" if unknown < len(jobs) else "nothing of the kind was made here before"
    more = f", and {unknown} of a kind not made here before" if 0 < unknown < len(jobs) else ""
    stderr.print(f"{len(jobs)} jobs into {jobs[0].output.folder}; {told}{more}", highlight=False)


def _size(count: int | None) -> str:
    if not count:
        return "?"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _show_summary(jobs: list[Job], manifest: Path | None) -> None:
    table = Table(box=None)
    for column in ("#", "state", "seconds", "file", "error"):
        table.add_column(column, overflow="fold")
    for job in sorted(jobs, key=lambda job: job.index):
        seconds = sum(file.seconds for file in job.files)
        names = "\n".join(Path(file.path).name for file in job.files if file.done)
        table.add_row(str(job.index), job.state, f"{seconds:.1f}" if seconds else "", names, escape(job.error))
    stderr.print(table)
    counts = Counter(job.state for job in jobs)
    listed = f"; listed in {manifest}" if manifest else ""
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    stderr.print(f"{told}{listed}", highlight=False, markup=False)
