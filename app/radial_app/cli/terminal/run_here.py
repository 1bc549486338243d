"""A job rendered in this process, with its progress in the terminal."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from radial.errors import GenerationError, Lost, OutputError
from radial_app.cli.terminal.progress import Progress
from radial_app.cli.terminal.text import json_text, printable
from radial_app.jobs.job import Job, ResultFile
from radial_app.jobs.store import JobStore
from radial_app.worker.ranks import last_words
from radial_app.worker.worker import Worker, log_to

if TYPE_CHECKING:
    from radial.generation.ranks import Ranks


def render_here(
    store: JobStore, job: Job, *, ranks: Ranks | None = None, quiet: bool = False, as_json: bool = False
) -> Job:
    """Render a job here, with the other ranks where there are any, and print the paths of its videos, or a JSON object
    each.

    Raises:
        RadialError: it failed.
        typer.Exit: somebody paused or cancelled it.
        KeyboardInterrupt: the user stopped it; it is paused.
    """
    stderr = Console(stderr=True)
    if not logging.getLogger("radial").handlers:
        log_to(store.folder / "logs" / "generate.jsonl")
    started = time.monotonic()
    with Progress(stderr, hidden=quiet or as_json) as progress:

        def on_event(_job: Job, event: Any) -> None:
            nonlocal started
            if not isinstance(event, tuple):
                progress.on_event(event)
                return
            file, video = event
            progress.end()
            _print_result(file, video, time.monotonic() - started, stderr, quiet=quiet, as_json=as_json)
            started = time.monotonic()  # each file is told with its own time

        progress.begin("load")
        worker = Worker(store, ranks, device=ranks.device if ranks else "auto")
        worker.on_event = on_event

        def say_what_is_kept() -> None:
            stderr.show_cursor()
            stderr.print("[bold red]error:[/] the processes of this clip were ended, as when one of them dies; "
                         f"{_goes_on(store, worker.job)}", soft_wrap=True)  # fmt: skip

        try:
            with contextlib.ExitStack() as stack:
                asked: list[bool] = []
                if ranks:
                    stack.enter_context(last_words(say_what_is_kept))
                else:
                    asked = stack.enter_context(_stopping(store, worker, progress, stderr))
                job = worker.run_here(job)
            if asked and job.state == "paused":
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not quiet:
                stderr.print(_goes_on(store, worker.job), highlight=False)
            raise
    if worker.error is None:
        if job.state != "done":
            stderr.print(printable(f"job {job.id} is {job.state}{f': {job.error}' if job.error else ''}"), markup=False)
            raise typer.Exit(1)
        return job
    kept = store.snapshot_path(job.id).exists()
    if isinstance(worker.error, Lost) or (kept and isinstance(worker.error, (GenerationError, OutputError))):
        raise type(worker.error)(f"{worker.error}; {_goes_on(store, job.id)}") from worker.error
    raise worker.error


@contextlib.contextmanager
def _stopping(store: JobStore, worker: Worker, progress: Progress, stderr: Console) -> Iterator[list[bool]]:
    """While the context lasts, the first Ctrl+C lets the step end that is computed, so that it is kept; the second
    stops at once. What is yielded is true once the first came."""
    asked: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def pause() -> None:
        with JobStore(store.folder) as own:  # not that of the main thread, which may be in the middle of something
            own.pause([worker.job])

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        if progress.stage != "denoise":
            raise KeyboardInterrupt
        asked.append(True)
        stderr.print("stopping after this step; Ctrl+C again stops at once", highlight=False)
        threading.Thread(target=pause, daemon=True).start()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _goes_on(store: JobStore, job: str) -> str:
    kept = store.snapshot_path(job).exists()
    return f"`radial jobs run {job}` {'goes on from the last step kept' if kept else 'begins it anew'}"


def _print_result(file: ResultFile, video: Any, seconds: float, stderr: Console, *, quiet: bool, as_json: bool) -> None:
    path = _as_given(file.path)
    if as_json:
        result = {"path": path, "seconds": round(seconds, 2), "receipt": video.receipt}
        print(json_text(result), flush=True)
        return
    if not quiet:
        share, cache = video.receipt.get("attention", {}).get("computed_share"), video.receipt.get("cache")
        if "finishing" in video.receipt:  # what it says of attention is of the clip that was finished
            share, cache = None, None
        computed = "" if share is None else f", {share:.0%} of attention computed"
        left_out = f", {cache['skipped']:.0%} of the transformer's calls left out by {cache['method']}" if cache else ""
        told = f"in {seconds:.1f} s{computed}{left_out}"
        stderr.print(f"[bold green]done[/] {told}", highlight=False)
    print(path, flush=True)


def _as_given(path: str) -> str:
    """The path from here, where it lies below."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
