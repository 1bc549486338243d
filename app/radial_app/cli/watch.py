"""``radial watch``: job files are rendered as they come into a folder."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from radial.errors import OutputError, RequestError
from radial.files import publish_text
from radial_app.cli.render import Defaults, Template, check_devices, check_place, enqueue, output_of, read_all
from radial_app.cli.terminal.batch import end_by_signal, stderr, stop_pool
from radial_app.cli.terminal.options import (
    Codec,
    Crf,
    DataDir,
    Device,
    Format,
    Metadata,
    Pack,
    PerDevice,
    SnapshotSeconds,
)
from radial_app.cli.terminal.text import printable
from radial_app.jobs.folder import data_folder
from radial_app.jobs.presets import Presets
from radial_app.jobs.store import JobStore
from radial_app.worker.pool import WorkerPool, own_devices


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that job files are dropped into.", metavar="FOLDER")],
    template: Template = None,
    defaults: Defaults = None,
    video_format: Format = None,
    codec: Codec = None,
    crf: Crf = None,
    metadata: Metadata = True,
    device: Device = None,
    jobs_per_device: PerDevice = 1,
    snapshot_seconds: SnapshotSeconds = 30.0,
    pack: Pack = True,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when all is rendered.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Render job files as they come. What is new in a file that changes is rendered; problems are told in
    NAME.errors.txt beside it."""
    from radial_app.jobs.lists.job_files import KINDS, JobFileError

    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder")
    output = output_of(template, video_format, codec, crf, metadata)
    seen: dict[Path, tuple[int, int]] = {}
    steady: dict[Path, tuple[int, int]] = {}
    with JobStore(data_dir) as store:
        store.recover()
        pool = WorkerPool(
            store, device or own_devices(), per_device=jobs_per_device, batch="watch",
            snapshot_seconds=snapshot_seconds, pack=pack,
        )  # fmt: skip
        end_by_signal()
        stderr.print(f"watching {folder}; Ctrl+C ends", highlight=False)
        try:
            while True:
                fresh = False
                for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in KINDS):
                    if path.name.endswith(".errors.txt"):
                        continue
                    try:
                        state = path.lstat()
                    except OSError:
                        continue
                    stamp = (state.st_mtime_ns, state.st_size)
                    if seen.get(path) == stamp:
                        continue
                    fresh = True
                    if steady.get(path) != stamp:  # still being written, perhaps
                        steady[path] = stamp
                        continue
                    seen[path] = stamp
                    errors = path.with_name(f"{path.name}.errors.txt")
                    try:
                        # Whoever may drop files here may not have others' read: a link, or what is no file, is none.
                        if not stat.S_ISREG(state.st_mode):
                            raise RequestError(
                                f"{path.name}: links, pipes and devices are not read here; copy the file"
                            )
                        jobs = read_all([path], output, defaults, "watch", Presets(data_folder(data_dir)))
                        for job in jobs:
                            check_place(job)
                        check_devices(jobs, device or own_devices())
                    except (RequestError, OutputError) as error:
                        problems = error.problems if isinstance(error, JobFileError) else [str(error)]
                        publish_text(errors, "\n".join(problems) + "\n")
                        stderr.print(f"[red]{escape(printable(path.name))}[/]: problems in {errors.name}")
                        continue
                    errors.unlink(missing_ok=True)
                    ours, skipped = enqueue(store, jobs, resume=True)
                    stderr.print(f"{escape(printable(path.name))}: {len(ours)} to render, {len(skipped)} made before")
                waits = store.find(["queued", "running"], "watch")
                if waits:
                    pool.tend()
                elif until_empty and not fresh:
                    return
                time.sleep(0.5)
        finally:
            stop_pool(pool)
