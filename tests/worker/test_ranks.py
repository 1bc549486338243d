"""Clips that processes make together, started by torchrun as a user does: the same frames, one voice, nothing lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import warm

from radial.video.clip import read_frames, read_receipt
from radial_app.cli import main as cli
from radial_app.jobs.job import Job, make_output
from radial_app.jobs.store import JobStore

SIZE = {"height": 48, "width": 80, "num_frames": 9}
QUICK = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
GENERATE = ["generate", "a red circle", *QUICK, "--seed", "5", "--device", "cpu"]


def start(*arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "radial_app", *arguments]
    process: subprocess.Popen[str] = warm.start(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=1800)
    return process.returncode, out, err


def wait_for_step(store: JobStore, step: int) -> Job:
    for _ in range(2400):
        for job in store.find(["running"]):
            if job.step >= step:
                return job
        time.sleep(0.05)
    raise AssertionError("it never came so far")


def run_alone(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """One command in this process, which computes as one of torchrun's does: what it printed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
    finally:
        torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    return out


def test_the_same_frames_and_one_voice(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--num-inference-steps", "2", "--guidance-end", "0.5"]
    code, out, err = finish(start(*GENERATE, *steps, "--output", "two.mp4"))
    assert (code, out) == (0, "two.mp4\n"), err
    assert err.count("done in") == 1
    run_alone(capsys, *GENERATE, *steps, "--output", "one.mp4")
    assert np.array_equal(read_frames(Path("one.mp4")), read_frames(Path("two.mp4")))
    receipts = [read_receipt(Path(name)) for name in ("one.mp4", "two.mp4")]
    assert [receipt.get("processes") for receipt in receipts] == [None, 2]
    for what in ("attention", "guidance"):
        assert receipts[0][what] == receipts[1][what]


def test_a_dead_process_is_told_of_and_the_clip_goes_on_from_its_snapshot(
    in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(*GENERATE, "--num-inference-steps", "40", "--output", "a.mp4")
    with JobStore() as store:
        job = wait_for_step(store, 2)
        next(p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1").kill()
        code, out, err = finish(process)
        assert code != 0
        assert out == ""
        # Whichever comes first: its connection ends, or torchrun ends the rest.
        said = re.search(r"error: (a process that shares the clip has died|the processes of this clip were ended)", err)
        assert said is not None, err
        assert f"`radial jobs run {job.id}` begins it anew" in err  # no snapshot was due yet
        assert not list(Path().iterdir())
        store.recover()
        assert store.get(job.id).state == "queued"

        process = start("work", "--device", "cpu", "--snapshot-seconds", "0")
        job = wait_for_step(store, 2)
        next(p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1").kill()
        code, _, err = finish(process)
        assert code != 0
        store.recover()
        assert store.get(job.id).state == "queued"
        assert run_alone(capsys, "jobs", "run", job.id) == "a.mp4\n"
        assert any("goes on from step" in text for *_, text in store.events(job.id))


def test_ctrl_c_pauses_the_clip(in_empty_folder: Path) -> None:
    process = start(*GENERATE, "--num-inference-steps", "200", "--output", "a.mp4")
    with JobStore() as store:
        job = wait_for_step(store, 2)
        children = psutil.Process(process.pid).children()
        for one in (process.pid, *(child.pid for child in children)):  # as a terminal does
            os.kill(one, signal.SIGINT)
        code, out, err = finish(process)
        assert (code != 0, out) == (True, "")
        assert f"`radial jobs run {job.id}`" in err
        assert store.get(job.id).state == "paused"


def test_a_worker_of_two_processes(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One job is stopped with what there is, one cannot be loaded, two are done: of the short one each makes one of
    guidance's passes, of the wide one, whose attention is dense, each decodes a strip. A story between them is made by
    the first process alone, as a worker of one process makes it."""
    from radial.request import make_request
    from radial.stories.film import make_film
    from radial.stories.request import make_story_request
    from radial.stories.script import read_story
    from radial.stories.state import state_folder

    def ask(**changes: object) -> Job:
        request = make_request(prompt="a red circle", seed=5, **SIZE | changes)
        return Job(id="", request=request, output=make_output(folder=str(Path.cwd()), name="{job}"))

    with JobStore() as store:
        long, short = store.add([ask(num_inference_steps=60), ask(num_inference_steps=3, batched_guidance=True)])
        wide = ask(width=256, num_inference_steps=1, attention="dense")
        told = make_story_request(
            read_story("a red circle\na red circle falls"),
            {"height": 48, "width": 80, "seed": 5, "num_inference_steps": 1}, seconds=0.5,
        )  # fmt: skip
        film = Job(id="", request=told.request, story=told, output=make_output(folder=str(Path.cwd()), name="{job}"))
        bad, film, good = store.add([ask(model="nobody/nothing"), film, wide])
        process = start("work", "--until-idle", "--device", "cpu")
        assert wait_for_step(store, 2).id == long.id
        store.cancel([long.id], keep=True)
        code, _, err = finish(process)
        assert code == 0, err
        assert (store.get(long.id).state, store.get(short.id).state) == ("cancelled", "done")
        assert len(list(Path().glob("*.mp4"))) == 4
        assert store.get(film.id).state == "done"
        assert any("the other 1 of this worker wait meanwhile" in text for *_, text in store.events(film.id))
        assert (store.get(bad.id).state, store.get(good.id).state) == ("failed", "done")
    run_alone(capsys, *GENERATE, "--num-inference-steps", "3", "--output", "short.mp4")
    assert np.array_equal(read_frames(Path("short.mp4")), read_frames(Path(f"{short.id}.mp4")))
    run_alone(capsys, *GENERATE, "--width", "256", "--num-inference-steps", "1", "--attention", "dense",
              "--output", "one.mp4")  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = make_film(told, Path("film.mp4"))
    torch.set_num_threads(threads)
    assert read_receipt(alone)["story"] == read_receipt(Path(f"{film.id}.mp4"))["story"]
    with JobStore() as store:
        growing = store.film_folder(film.id) / "film.mp4"
        assert growing.read_bytes() == (state_folder(alone) / "film.mp4").read_bytes()
    frames = [read_frames(Path(name)).astype(int) for name in ("one.mp4", f"{good.id}.mp4")]
    apart = np.abs(frames[0] - frames[1])
    assert 0 < apart.mean() < 2  # tiles, blended
    seam = apart[:, :, 128:192].mean()
    assert seam < 4


def test_what_runs_alone_says_so(in_empty_folder: Path) -> None:
    code, _, err = finish(start("render", "jobs.yaml"))
    assert code != 0
    assert "radial render runs in one process; torchrun is for" in err
