"""The worker: what it leaves behind however a job ends, and that what goes on is what would have been."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from PIL import Image

from radial import OutputError, Video
from radial.files import rename_to_free_name
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.loading.load import load
from radial.request import make_request
from radial.video.clip import read_frames, read_receipt
from radial_app.cli.receipts import request_of
from radial_app.jobs import results
from radial_app.jobs.job import Job, Output, ResultFile, make_output
from radial_app.jobs.results import digest_file, proxy_path
from radial_app.jobs.store import MAX_ATTEMPTS, JobStore
from radial_app.worker import attempt, rendering
from radial_app.worker.attempt import Attempt
from radial_app.worker.worker import Worker

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 4, "seed": 3}


@pytest.fixture
def store(data_folder: Path) -> JobStore:
    return JobStore()


@pytest.fixture
def make(store: JobStore, wan_folder: Path, tmp_path: Path) -> Callable[..., Job]:
    def add(output: Output | None = None, **fields: Any) -> Job:
        request = make_request(**{"prompt": "a red circle", "model": str(wan_folder), **SMALL, **fields}).resolve()
        output = output or Output(folder=str(tmp_path / "out"), name="{seed}")
        return store.add([Job(id="", request=request, output=output)])[0]

    return add


def worker(store: JobStore, **settings: Any) -> Worker:
    return Worker(store, **{"until_idle": True, "snapshot_seconds": 0.0, **settings})


def at_step(store: JobStore, step: int, act: Callable[[Job], None]) -> Callable[[Job, Any], None]:
    """Does something when a job reaches a step, once."""
    done: list[str] = []

    def on_event(job: Job, event: Any) -> None:
        if isinstance(event, Event) and event.stage == "denoise" and event.step == step - 1 and job.id not in done:
            done.append(job.id)
            act(job)

    return on_event


def test_jobs_one_after_the_other_with_one_model(
    store: JobStore, make: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    monkeypatch.setattr(
        "radial.loading.load.load", lambda request, told, **more: loads.append(request) or load(request, told, **more)
    )
    first, second = make(seed=1, num_videos=2), make(seed=5)
    worker(store).run()
    assert len(loads) == 1
    assert [store.get(job.id).state for job in (first, second)] == ["done", "done"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.mp4", "2.mp4", "5.mp4"]
    found = store.get(first.id)
    assert [file.seed for file in found.files] == [1, 2]
    assert all(file.done and file.digest == digest_file(Path(file.path)) for file in found.files)
    (straight,) = generate(second.request)
    again = straight.write(tmp_path / "straight.mp4")
    assert np.array_equal(read_frames(again), read_frames(tmp_path / "out" / "5.mp4"))
    assert not list((store.folder / "snapshots").iterdir())
    assert not list((store.folder / "workers").glob("*.lock"))


def test_pause_and_resume(store: JobStore, make: Callable[..., Job], tmp_path: Path) -> None:
    job = make()
    first = worker(store)
    first.on_event = at_step(store, 2, lambda job: store.pause([job.id]) and None)
    first.run()
    assert store.get(job.id).state == "paused"
    assert store.snapshot_path(job.id).exists()
    store.resume([job.id])
    steps: list[int] = []
    second = worker(store)
    second.on_event = lambda job, event: steps.append(event.step) if isinstance(event, Event) else None
    second.run()
    assert store.get(job.id).state == "done"
    assert 1 not in steps
    assert any("goes on from step 2 of 4" in text for _, _, _, text in store.events(job.id))
    (straight,) = generate(job.request)
    straight.write(tmp_path / "straight.mp4")
    assert np.array_equal(read_frames(tmp_path / "out" / "3.mp4"), read_frames(tmp_path / "straight.mp4"))


def test_cancel_discards_and_finish_keeps(store: JobStore, make: Callable[..., Job], tmp_path: Path) -> None:
    gone, kept = make(seed=1), make(seed=2)
    ours = worker(store)
    stages: list[str] = []
    cancel = at_step(store, 2, lambda job: store.cancel([job.id], keep=job.id == kept.id) and None)

    def on_event(job: Job, event: Any) -> None:
        cancel(job, event)
        stages.extend([event.stage] if job.id == kept.id and isinstance(event, Event) and event.step == 0 else [])

    ours.on_event = on_event
    ours.run()
    assert stages == ["load", "encode", "denoise", "decode"] or stages == ["encode", "denoise", "decode"]
    assert {"denoise", "decode"} <= set(read_receipt(tmp_path / "out" / "2.mp4")["seconds"])
    assert [store.get(job.id).state for job in (gone, kept)] == ["cancelled", "cancelled"]
    assert os.listdir(tmp_path / "out") == ["2.mp4"]
    assert "stopped at step 2 of 4" in store.get(kept.id).error
    assert read_receipt(tmp_path / "out" / "2.mp4")["finished_at_step"] == 2
    assert not list((store.folder / "snapshots").iterdir())
    store.retry([kept.id])  # the whole of it, after all
    worker(store).run()
    assert store.get(kept.id).state == "done"
    assert sorted(os.listdir(tmp_path / "out")) == ["2-2.mp4", "2.mp4"]
    assert "finished_at_step" not in read_receipt(tmp_path / "out" / "2-2.mp4")


def test_a_gpu_that_stops_answering_sends_the_job_back_and_ends_the_worker(
    store: JobStore, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UniPCMultistepScheduler

    job, next_one = make(num_inference_steps=6), make(seed=9)
    plain, calls = UniPCMultistepScheduler.step, []

    def step(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")
        return plain(self, *args, **options)

    monkeypatch.setattr(UniPCMultistepScheduler, "step", step)
    ours = worker(store)
    ours.run()
    found = store.get(job.id)
    assert found.state == "queued"
    assert found.error == "cpu has stopped answering (CUDA error: unspecified launch failure)"
    assert store.get(next_one.id).state == "queued"  # not with this process
    worker(store).run()
    assert [store.get(one.id).state for one in (job, next_one)] == ["done", "done"]
    assert any("goes on from step 3 of 6" in text for _, _, _, text in store.events(job.id))


def test_a_job_that_costs_every_worker_its_gpu_fails(
    store: JobStore, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UniPCMultistepScheduler

    poison, good = make(), make(seed=9)
    store.prioritise([poison.id], 5)

    def step(self: Any, *args: Any, **options: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as broken:
        broken.setattr(UniPCMultistepScheduler, "step", step)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            assert store.get(poison.id).state == "queued"
            worker(store).run()
            assert store.get(poison.id).attempts == attempt
    found = store.get(poison.id)
    assert (found.state, store.get(good.id).state) == ("failed", "queued")
    assert found.error.endswith(f"{MAX_ATTEMPTS} times in a row")
    worker(store).run()  # the next one's turn, at last
    assert store.get(good.id).state == "done"
    store.retry([poison.id])
    assert store.get(poison.id).attempts == 0


def test_a_picture_while_it_renders(store: JobStore, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "PREVIEW_SECONDS", 0.0)
    job = make(num_inference_steps=6)
    seen: list[tuple[int, ...]] = []

    def look(job: Job) -> None:
        with Image.open(store.preview_path(job.id)) as image:
            seen.append((image.width, image.height))

    ours = worker(store)
    ours.on_event = at_step(store, 4, look)
    ours.run()
    assert store.get(job.id).state == "done", store.get(job.id).error
    assert seen == [(32, 32)]
    assert not store.preview_path(job.id).exists()


def test_a_worker_that_is_told_to_stop(store: JobStore, make: Callable[..., Job]) -> None:
    job = make()
    ours = worker(store)
    ours.on_event = at_step(store, 2, lambda job: ours.stop.set())
    ours.run()
    found = store.get(job.id)
    assert (found.state, found.attempts) == ("queued", 0)
    assert store.snapshot_path(job.id).exists()
    worker(store).run()
    assert store.get(job.id).state == "done"


def test_errors_end_the_job_not_the_worker(
    store: JobStore, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, wan_folder: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKLWan

    missing = make(loras=[{"path": "/none.safetensors"}], seed=1)
    no_memory, bug, good = make(seed=2), make(seed=3), make(seed=4)
    plain, calls = AutoencoderKLWan.decode, []

    def decode(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) <= 3:  # whole, in tiles, on the CPU
            raise torch.OutOfMemoryError("out of memory")
        if len(calls) == 4:
            raise TypeError("a bug")
        return plain(*args, **kwargs)

    monkeypatch.setattr(AutoencoderKLWan, "decode", decode)
    worker(store).run()
    found = [store.get(job.id) for job in (missing, no_memory, bug, good)]
    assert [job.state for job in found] == ["failed", "failed", "failed", "done"]
    assert "no LoRA file" in found[0].error
    assert "in stage decode" in found[1].error
    assert found[2].error == "TypeError: a bug"
    assert "Traceback" in "".join(text for _, _, _, text in store.events(bug.id))
    store.retry([no_memory.id])
    begun: list[int] = []
    again = worker(store)
    again.on_event = lambda job, event: begun.append(event.step) if isinstance(event, Event) else None
    again.run()
    assert store.get(no_memory.id).state == "done"
    assert max(begun) == 4
    assert not {1, 2, 3} & set(begun)  # the steps were kept


def test_a_full_disk_makes_a_job_wait(
    store: JobStore, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make()
    full = [True, True]
    plain = Video.encode

    def encode(self: Video, path: Path, encoding: Any) -> None:
        if full:
            full.pop()
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, path, encoding)

    monkeypatch.setattr(Video, "encode", encode)
    monkeypatch.setattr(attempt, "DISK_SECONDS", 0.2)
    worker(store).run()
    assert full == []
    found = store.get(job.id)
    assert (found.state, found.attempts) == ("done", 1)
    assert os.listdir(tmp_path / "out") == ["3.mp4"]
    assert sum("waits for disk space" in text for _, _, _, text in store.events(job.id)) == 2


def test_a_place_that_cannot_be_written(store: JobStore, make: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = make(Output(folder=str(tmp_path / "file" / "out"), name="a"))
    worker(store).run()
    found = store.get(job.id)
    assert found.state == "failed"
    assert "cannot write" in found.error
    assert store.snapshot_path(job.id).exists()


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("moment", ["encoded", "recorded", "named", "settled"])
def test_a_file_gets_its_name_once_whenever_the_worker_dies(
    store: JobStore, make: Callable[..., Job], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    with monkeypatch.context() as dying:
        if moment == "encoded":
            dying.setattr(results, "digest_file", lambda path: (_ for _ in ()).throw(Killed))
        elif moment == "recorded":
            dying.setattr(results, "rename_to_free_name", lambda *_: (_ for _ in ()).throw(Killed))
        elif moment == "named":

            def named(partial: Path, path: Path) -> None:
                rename_to_free_name(partial, path)
                raise Killed

            dying.setattr(results, "rename_to_free_name", named)
        else:
            dying.setattr(Attempt, "_end", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            worker(store).run()
    assert store.get(job.id).state == "running"
    assert [found.id for found in store.recover()] == [job.id]
    decoded: list[Any] = []
    last = worker(store)
    last.on_event = lambda job, event: decoded.append(event) if isinstance(event, Event) else None
    last.run()
    found = store.get(job.id)
    assert found.state == "done"
    assert os.listdir(tmp_path / "out") == ["3.mp4"]
    assert [(file.path, file.done) for file in found.files] == [(str(tmp_path / "out" / "3.mp4"), True)]
    assert digest_file(tmp_path / "out" / "3.mp4") == found.files[0].digest
    assert bool(decoded) == (moment == "encoded")


def test_without_hard_links_a_name_that_was_claimed_is_filled(
    store: JobStore, make: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()

    def no_links(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    plain = os.replace

    def killed(partial: Any, path: Any) -> None:
        if Path(path).suffix == ".mp4":
            raise Killed
        plain(partial, path)

    with monkeypatch.context() as dying:
        dying.setattr(os, "link", no_links)
        dying.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            Worker(store, until_idle=True).run()
    assert (tmp_path / "out" / "3.mp4").stat().st_size == 0
    store.recover()
    worker(store).run()
    assert os.listdir(tmp_path / "out") == ["3.mp4"]
    assert digest_file(tmp_path / "out" / "3.mp4") == store.get(job.id).files[0].digest


def test_a_locked_database_makes_a_job_wait(
    store: JobStore, make: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    plain, failures = JobStore.record_file, [1]

    def locked(self: JobStore, *arguments: Any) -> None:
        if failures:
            failures.pop()
            problem = OutputError("the jobs are locked by another program")
            problem.errno = errno.EBUSY
            raise problem
        plain(self, *arguments)

    monkeypatch.setattr(JobStore, "record_file", locked)
    monkeypatch.setattr(attempt, "DISK_SECONDS", 0.1)
    worker(store).run()
    assert store.get(job.id).state == "done"
    assert os.listdir(tmp_path / "out") == ["3.mp4"]


def test_receipts_do_not_tell_whose_home_it_was(
    store: JobStore, make: Callable[..., Job], wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(wan_folder.parent))
    make()
    worker(store).run()
    assert read_receipt(tmp_path / "out" / "3.mp4")["request"]["model"] == f"~/{wan_folder.name}"
    assert request_of(tmp_path / "out" / "3.mp4")[0].model == str(wan_folder)


def test_folders_of_other_things_are_not_replaced(store: JobStore, make: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "out" / "photos").mkdir(parents=True)
    (tmp_path / "out" / "photos" / "holiday.jpg").write_text("x")
    job = make(make_output(folder=str(tmp_path / "out"), name="photos", encoding={"format": "png"}, overwrite=True))
    worker(store).run()
    assert "is not only frames" in store.get(job.id).error
    assert os.listdir(tmp_path / "out" / "photos") == ["holiday.jpg"]
    (tmp_path / "out" / "photos" / "holiday.jpg").rename(tmp_path / "out" / "photos" / "00000.png")
    store.retry([job.id])
    worker(store).run()
    assert len(os.listdir(tmp_path / "out" / "photos")) == 9


def test_names_that_are_taken_get_a_number(store: JobStore, make: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "3.mp4").write_text("someone else's")
    first, second = make(), make()
    worker(store).run()
    assert sorted(os.listdir(tmp_path / "out")) == ["3-2.mp4", "3-3.mp4", "3.mp4"]
    assert (tmp_path / "out" / "3.mp4").read_text() == "someone else's"
    assert Path(store.get(first.id).files[0].path).name == "3-2.mp4"
    over = make(Output(folder=str(tmp_path / "out"), name="{seed}", overwrite=True))
    worker(store).run()
    assert Path(store.get(over.id).files[0].path).name == "3.mp4"
    assert read_receipt(tmp_path / "out" / "3.mp4")["request"]["seed"] == 3
    del second


@pytest.mark.parametrize("fields", [{"format": "png"}, {"codec": "h265"}, {"format": "gif", "metadata": False}])
def test_formats_and_proxies(store: JobStore, make: Callable[..., Job], tmp_path: Path, fields: dict[str, Any]) -> None:
    job = make(make_output(folder=str(tmp_path / "out"), name="a", encoding=fields))
    worker(store).run()
    (file,) = store.get(job.id).files
    assert read_frames(Path(file.path)).shape == (9, 32, 32, 3)
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == (["a.mp4", "a.proxy.mp4"] if "codec" in fields else [Path(file.path).name])
    (receipt,) = store.receipts(job.id)  # also where the file has none
    assert receipt["request"]["seed"] == 3
    if "codec" in fields:
        assert read_frames(proxy_path(Path(file.path))).shape == (9, 32, 32, 3)


def test_a_worker_with_nothing_to_do_unloads(store: JobStore, make: Callable[..., Job]) -> None:
    make()
    ours = worker(store, until_idle=False, unload_seconds=0.0)
    ours.on_event = lambda job, event: None
    plain_rest = ours._rest
    rests: list[bool] = []

    def rest() -> None:
        plain_rest()
        rests.append(not ours._models.holds)
        if len(rests) > 1:
            ours.stop.set()

    ours._rest = rest  # type: ignore[method-assign]
    ours.run()
    assert rests[-1]


def test_kill_9_in_the_middle_and_on_from_there(store: JobStore, make: Callable[..., Job], tmp_path: Path) -> None:
    job = make(num_inference_steps=60)
    command = [sys.executable, "-m", "radial_app", "work", "--until-idle", "--snapshot-seconds", "0"]
    first = warm.start(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 1800
    while store.get(job.id).step < 5:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert store.get(job.id).state == "running"
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert store.get(job.id).state == "done"
    assert any("goes on from step" in text for _, _, _, text in store.events(job.id))
    (straight,) = generate(job.request)
    straight.write(tmp_path / "straight.mp4")
    assert np.array_equal(read_frames(tmp_path / "out" / "3.mp4"), read_frames(tmp_path / "straight.mp4"))
    assert isinstance(store.get(job.id).files[0], ResultFile)
