"""A queue under fire: ``python benchmarks/chaos.py``.

Ten tiny jobs are rendered while their worker, and the server that keeps workers alive (``radial serve``, or ``radial
render --resume`` with ``--server render``), are killed with SIGKILL at random moments. Then every job must be done
exactly once, every file whole and readable, every clip equal to one that was rendered undisturbed, and nothing else may
lie in the folder. With ``--full-disk`` the output folder is a small file system that fills up meanwhile and is emptied
again (needs the right to mount one).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from radial.generation.pipeline import generate
from radial.request import make_request
from radial.video.clip import read_frames
from radial.video.encoding import Encoding
from radial_app.cli.render import output_of, read_all
from radial_app.jobs.results import digest_file
from radial_app.jobs.store import JobStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num-frames", type=int, default=33)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--server-kills", type=int, default=20)
    parser.add_argument("--between", type=float, nargs=2, default=(4.0, 14.0), help="seconds between two kills")
    parser.add_argument("--server", choices=["serve", "render"], default="serve")
    parser.add_argument("--full-disk", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which the run counts as hung")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options)
    print("\n".join(report))


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """Do it all in a folder; what was found, line by line.

    Raises:
        AssertionError: something was lost, torn, doubled or different.
    """
    dice = random.Random(options.seed)
    jobs = folder / "jobs.txt"
    jobs.write_text("".join(f"a red circle moves left, take {index}\n" for index in range(options.jobs)))
    fields = {"model": options.model, "num_inference_steps": options.steps, "num_frames": options.num_frames, "seed": 7}
    out, data = folder / "out", folder / "data"
    out.mkdir()
    sets = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    common = ["--data-dir", str(data), "--snapshot-seconds", "0.5", "--device", "cpu"]
    if options.server == "serve":
        command = ["serve", "--port", "0", *common]
        with JobStore(data) as store:
            output = output_of(f"{out}/{{index:03}}.mp4", None, None, None, True)
            store.add(read_all([jobs], output, sets[1::2], "chaos"))
    else:
        command = ["render", str(jobs), "--output", f"{out}/{{index:03}}.mp4", "--resume", *common, *sets,
                   "--manifest", str(folder / "manifest.json")]  # fmt: skip
    command = [sys.executable, "-m", "radial_app", *command]
    kills = ["worker"] * options.worker_kills + ["server"] * options.server_kills
    dice.shuffle(kills)
    killed = {"worker": 0, "server": 0}
    started = time.monotonic()
    with small_disk(out, options.full_disk) as fill:
        server = start(command)
        for kind in kills:
            until = time.monotonic() + dice.uniform(*options.between)
            fill(dice.random() < 0.5)
            while time.monotonic() < until:
                time.sleep(0.02)
            if is_over(data, options.jobs):
                break
            victims = [server.pid] if kind == "server" else workers_of(data)
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed[kind] += 1
            if kind == "server":
                server.wait()
                server = start(command)
        fill(False)
        while not is_over(data, options.jobs):
            assert time.monotonic() - started < options.limit, "the queue hangs"
            time.sleep(0.2)
        seconds = time.monotonic() - started
        if options.server == "serve":
            wait_until_up(data)  # one that is only starting has no workers yet that it could stop
            server.terminate()
        server.wait(timeout=60)
        assert server.returncode in (0, -signal.SIGTERM), f"the server ended with {server.returncode}"
        deadline = time.monotonic() + 30
        while workers_of(data):
            assert time.monotonic() < deadline, "workers are left"
            time.sleep(0.1)
        lines = check(out, data, options.jobs, fields, folder)
    return [f"killed {killed['worker']} workers and {killed['server']} servers in {seconds:.0f} s", *lines]


def wait_until_up(data: Path) -> None:
    """Wait until a server keeps the queue, and hears what it is told."""
    with JobStore(data) as store:
        for _ in range(600):
            with store.locks.slot("server") as free:
                pass
            if not free:
                break
            time.sleep(0.1)
    time.sleep(1)


def check(out: Path, data: Path, count: int, fields: dict[str, object], folder: Path) -> list[str]:
    """Hold what there is against what should be."""
    with JobStore(data) as store:
        found = store.find()
        states = [job.state for job in found]
        assert states == ["done"] * count, states
        files = [file for job in found for file in job.files]
        attempts = sum(
            kind == "state" and text.startswith("begun") for job in found for _, _, kind, text in store.events(job.id)
        )
        resumed = [text for job in found for _, _, kind, text in store.events(job.id) if "goes on from" in text]
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{index:03}.mp4" for index in range(1, count + 1)], names
    assert sorted(Path(file.path).name for file in files) == names
    assert all(digest_file(Path(file.path)) == file.digest for file in files)
    assert not list((data / "snapshots").iterdir()), "snapshots are left"
    for index, job in enumerate(sorted(found, key=lambda job: job.index), 1):
        (video,) = generate(make_request(prompt=job.request.prompt, **fields))
        straight = folder / "straight.mp4"
        video.write(straight, encoding=Encoding(), overwrite=True)
        same = np.array_equal(read_frames(straight), read_frames(out / f"{index:03}.mp4"))
        assert same, f"{index:03}.mp4 differs from an undisturbed clip"
    return [
        f"{count} jobs done exactly once in {attempts} attempts, {len(resumed)} of which went on inside a run",
        f"{count} files whole, equal to undisturbed ones in every pixel, and nothing beside them",
    ]


def is_over(data: Path, count: int) -> bool:
    if not (data / "jobs.db").exists():
        return False
    with JobStore(data) as store:
        return sum(store.counts().get(state, 0) for state in ("done", "failed", "cancelled")) == count


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def workers_of(data: Path) -> list[int]:
    """Processes that work on a queue."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"work" in line and str(data).encode() in line:
            found.append(int(entry.name))
    return found


@contextmanager
def small_disk(out: Path, wanted: bool) -> Iterator[object]:
    """A function that fills the output folder's file system, or empties it again."""
    filler = out.parent / "disk" / "filler"
    if not wanted:
        yield lambda full: None
        return
    disk = out.parent / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    (disk / "out").mkdir()
    out.rmdir()
    out.symlink_to(disk / "out")

    def fill(full: bool) -> None:
        if not full:
            filler.unlink(missing_ok=True)
            return
        try:
            with filler.open("ab") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            pass

    try:
        yield fill
    finally:
        shutil.rmtree(disk / "out", ignore_errors=True)
        subprocess.run(["umount", str(disk)], check=False)


if __name__ == "__main__":
    main()
