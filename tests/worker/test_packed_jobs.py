"""Jobs that are rendered together: each stays one of its own, whatever becomes of the others."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import warm

from radial.generation.acceleration import meeting, pack_rates
from radial.generation.acceleration.pack_rates import RATES, Rate, clips_together
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.loading.memory_check import count_fitting, find_weights
from radial.loading.needs import Needs, needs_of
from radial.request import make_request
from radial.video.clip import read_frames, read_receipt
from radial_app.jobs.job import Job, Output
from radial_app.jobs.store import JobStore, snapshot_before
from radial_app.worker.pool import WorkerPool
from radial_app.worker.worker import Worker

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 4, "decay": 0.3}


@pytest.fixture
def store(data_folder: Path) -> JobStore:
    return JobStore()


@pytest.fixture
def make(store: JobStore, wan_folder: Path, tmp_path: Path) -> Callable[..., Job]:
    def add(owner: str = "", **fields: Any) -> Job:
        request = make_request(**{"prompt": "a red circle", "model": str(wan_folder), **SMALL, **fields}).resolve()
        output = Output(folder=str(tmp_path / "out"), name="{seed}")
        return store.add([Job(id="", request=request, output=output, owner=owner)])[0]

    return add


@pytest.fixture
def paying(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of up to four pay for the small model."""
    name = find_weights(make_request(prompt="a", model=str(wan_folder)).resolve())[0].name
    monkeypatch.setattr(pack_rates, "RATES", (Rate(name, "cpu", 100, 4, 2.0, "nowhere"),))


def worker(store: JobStore, **settings: Any) -> Worker:
    return Worker(store, **{"until_idle": True, "snapshot_seconds": 0.0, "device": "cpu", **settings})


def frames_of(folder: Path, seed: int) -> Any:
    return read_frames(folder / "out" / f"{seed}.mp4")


def off(one: Any, other: Any) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_each_is_a_job_of_its_own(
    store: JobStore, make: Callable[..., Job], paying: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of unlike sizes: one ends with numbers that are none, one is paused, one kept as far as it is, one is done.
    The fifth, of other settings, waits for its turn."""
    broken, paused, kept, done = (
        make(seed=1), make(seed=2), make(seed=3, num_frames=5), make(seed=4, height=48, prompt="a"),
    )  # fmt: skip
    other = make(seed=5, decay=0.5)
    first = sorted(job.id for job in (broken, paused, kept, done)).index(broken.id)
    plain, told = meeting.Meeting.call, list[tuple[str, Any]]()

    def call(self: Any, number: int, call: dict[str, Any]) -> Any:
        if number == first and len(self.together) == 4:
            call = call | {"hidden_states": call["hidden_states"] * float("nan")}
        return plain(self, number, call)

    def on_event(job: Job, event: Any) -> None:
        told.append((job.id, event))
        if isinstance(event, Event) and (event.stage, event.step) == ("denoise", 2):
            if job.id == paused.id:
                with JobStore(store.folder) as own:
                    own.pause([job.id])
            if job.id == kept.id:
                with JobStore(store.folder) as own:
                    own.cancel([job.id], keep=True)

    monkeypatch.setattr(meeting.Meeting, "call", call)
    ours = worker(store)
    ours.on_event = on_event
    ours.run()
    states = {job.id: store.get(job.id) for job in (broken, paused, kept, done, other)}
    assert [one.state for one in states.values()] == ["failed", "paused", "cancelled", "done", "done"]
    assert not any(one.pack for one in states.values())
    assert "stopped being numbers at step 1 of 4" in states[broken.id].error
    assert "stopped at step 3 of 4" in states[kept.id].error
    receipt = read_receipt(tmp_path / "out" / "4.mp4")
    assert receipt["packed"] == 4
    assert receipt["packed_with"] == sorted([broken.id, paused.id, kept.id])
    assert "packed" not in read_receipt(tmp_path / "out" / "5.mp4")
    assert [event.step for id_, event in told if id_ == done.id and getattr(event, "stage", "") == "denoise"] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert len([id_ for id_, event in told if id_ == other.id and getattr(event, "stage", "") == "encode"]) == 1
    began = [store.events(job.id)[0][3] for job in (broken, done, other)]
    assert ["together with others" in one for one in began] == [False, True, False]
    assert store.get(done.id).files[0].seconds > 0
    (alone,) = generate(done.request)
    assert off(read_frames(alone.write(tmp_path / "alone.mp4")), frames_of(tmp_path, 4)) <= 3  # rounding, encoded
    # The paused one goes on from its own snapshot, and says with whom it began.
    store.resume([paused.id])
    worker(store).run()
    assert store.get(paused.id).state == "done"
    assert any("goes on from step 3 of 4" in text for *_, text in store.events(paused.id))
    assert done.id in read_receipt(tmp_path / "out" / "2.mp4")["packed_with"]
    store.cancel([broken.id], keep=False)
    assert not list((store.folder / "snapshots").glob("*.before.*"))


RUN = """
import sys
from pathlib import Path
from radial.generation.acceleration import pack_rates
from radial_app.jobs.store import JobStore
from radial_app.worker.worker import Worker
pack_rates.RATES = (pack_rates.Rate(sys.argv[1], "cpu", 100, 4, 2.0, "nowhere"),)
Worker(JobStore(), until_idle=True, snapshot_seconds=0.0, device="cpu").run()
"""


def test_kill_9_in_the_middle_of_a_pack(
    store: JobStore, make: Callable[..., Job], wan_folder: Path, paying: None, tmp_path: Path
) -> None:
    """They go on together, each from its own snapshot of the same step, even where the kill came between two of these,
    and again after their worker was told to stop: bit for bit what is made without either."""
    steps, seldom = 8, 1e9
    fields: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "num_frames": 5}, {"seed": 3, "height": 48}]
    straight = [make(num_inference_steps=steps, **one) for one in fields]
    worker(store, snapshot_seconds=seldom).run()
    assert {store.get(job.id).state for job in straight} == {"done"}
    wanted = [frames_of(tmp_path, one["seed"]) for one in fields]
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    jobs = [make(num_inference_steps=steps, **one) for one in fields]
    name = pack_rates.RATES[0].model
    script = tmp_path / "run.py"
    script.write_text(RUN)
    first = warm.start([sys.executable, str(script), name], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not all(snapshot_before(store.snapshot_path(job.id)).exists() for job in jobs):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [store.get(job.id).state for job in jobs] == ["running"] * 3
    # As if the kill had come after the last snapshot of one job and before that of another.
    last = store.snapshot_path(jobs[1].id)
    before = snapshot_before(last)
    if before.exists() and last.exists():
        before.replace(last)
    store.prioritise([jobs[2].id], 5)  # its place in the queue is not its place in the pack
    starts: list[int] = []
    again = worker(store, snapshot_seconds=seldom)

    def on_event(job: Job, event: Any) -> None:
        if isinstance(event, Event) and "goes on from step " in event.note:
            starts.append(int(event.note.partition("goes on from step ")[2].split()[0]))
        if isinstance(event, Event) and event.stage == "denoise" and event.step > starts[0]:
            again.stop.set()

    again.on_event = on_event
    again.run()
    found = [store.get(job.id) for job in jobs]
    assert [one.state for one in found] == ["queued"] * 3
    assert len({one.pack for one in found}) == 1
    last_one = worker(store, snapshot_seconds=seldom)
    last_one.on_event = on_event
    last_one.run()
    assert [store.get(job.id).state for job in jobs] == ["done"] * 3
    assert starts[:3] == [starts[0]] * 3
    assert starts[3:] == [starts[3]] * 3
    assert starts[0] < starts[3] < steps
    for job, one, frames in zip(jobs, fields, wanted, strict=True):
        assert np.array_equal(frames_of(tmp_path, one["seed"]), frames)
        assert set(read_receipt(tmp_path / "out" / f"{one['seed']}.mp4")["packed_with"]) == {
            other.id for other in jobs if other is not job
        }
    assert not list((store.folder / "snapshots").glob("[!.]*"))  # but for what was being written


def test_who_waits_alone(
    store: JobStore, make: Callable[..., Job], paying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only neighbours in the queue share calls: of one owner, alike in settings, not too long, as many as pay and fit,
    and nothing that killed its worker twice. ``pack=False`` packs nothing."""

    def mates(*jobs: Job, **settings: Any) -> list[str]:
        ours = worker(store, **settings)
        with store.locks.alive(ours.name):
            first = store.claim(ours.name, only=jobs[0].id)
            assert first is not None
            found = ours._claim_mates(first)
        for job in (first, *found):
            store.end(job.id, "done")
        ids = [job.id for job in found]
        for job in jobs:
            store.cancel([job.id], keep=False)
        store.remove([job.id for job in jobs])
        return ids

    def pair(**fields: Any) -> list[str]:
        return mates(make(seed=1), make(seed=2, **fields))

    five = [make(seed=number) for number in range(5)]
    assert mates(*five) == [job.id for job in five[1:4]]
    assert mates(make(), make(), pack=False) == []
    assert len(pair()) == 1
    for fields in (
        {"owner": "ada"}, {"num_inference_steps": 3}, {"guidance_scale": 1.0}, {"attention": "dense"},
        {"num_videos": 2}, {"num_frames": 401}, {"attention": "adaptive", "decay": None}, {"guidance_end": 0.5},
    ):  # fmt: skip
        assert pair(**fields) == [], fields
    between = [make(), make(decay=0.9), make()]
    assert mates(*between) == []  # nobody is overtaken
    killed = [make(), make()]
    ours = worker(store)
    for _ in range(2):  # twice, without getting further
        job = store.claim("cpu-1-aaaaaa", only=killed[0].id)
        assert job is not None
        if not job.pack:
            assert store.claim_beside("cpu-1-aaaaaa", job, [store.get(killed[1].id)])
        else:
            assert ours._claim_mates(job)
            store._database.execute("UPDATE jobs SET worker = 'cpu-1-aaaaaa' WHERE id = ?", (killed[1].id,))
        store.recover()
    assert mates(*killed) == []
    # Two workers have half each.
    with store.locks.alive("cpu-2-bbbbbb"):
        assert len(mates(*(make() for _ in range(4)))) == 1


def test_workers_are_started_without_packs_where_that_is_asked(store: JobStore) -> None:
    for pack in (True, False):
        (command,) = WorkerPool(store, ["cpu"], pack=pack)._commands.values()
        assert ("--no-pack" in command) is not pack


def test_a_pack_fits_into_memory(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(prompt="a", model=str(wan_folder), **SMALL).resolve()
    spec, weights = find_weights(request)
    assert weights is not None
    one = needs_of(request, spec, weights, 4)
    both = Needs.together([one, one])
    assert (both.model, both.clip, both.decode, both.frames) == (one.model, 2 * one.clip, one.decode, 2 * one.frames)
    memory = psutil.virtual_memory()
    for count in (1, 2, 3):
        enough = Needs.together([one] * count).cpu
        monkeypatch.setattr(psutil, "virtual_memory", lambda enough=enough: memory._replace(total=enough))
        assert count_fitting([request] * 5) == count


def test_what_was_not_measured_is_not_packed() -> None:
    assert clips_together("wan2.1-14b", 1, "NVIDIA H100 80GB HBM3") == 1
    assert clips_together("wan2.1-14b", 1, "cpu") == 1
    assert RATES
    assert all(rate.measured for rate in RATES)
    assert clips_together("tiny", 1, "cpu") == 1  # measured, and little gained


def test_what_was_measured_to_pay_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = "NVIDIA H100"
    rates = (
        Rate("tiny", gpu, 320, 8, 3.0, "a"),
        Rate("tiny", gpu, 600, 4, 2.0, "b"),
        Rate("tiny", gpu, 900, 4, 1.1, "c"),
    )
    monkeypatch.setattr(pack_rates, "RATES", rates)
    found = [clips_together("tiny", tokens, f"{gpu} 80GB HBM3") for tokens in (1, 320, 321, 600, 601, 901)]
    assert found == [8, 8, 4, 4, 1, 1]
    assert clips_together("tiny", 1, "NVIDIA A100") == clips_together("wan2.1-1.3b", 1, gpu) == 1


def test_a_model_that_cannot_share_its_calls_makes_each_by_itself(
    store: JobStore, make: Callable[..., Job], paying: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And an error in the call of one clip is its own."""
    plain = meeting.PackedClips.__call__

    def call(self: Any, calls: Any) -> Any:
        if any(one["hidden_states"].shape[2] == 2 for one in calls):
            raise ValueError("a clip of two latent frames")
        return plain(self, calls)

    monkeypatch.setattr(meeting.PackedClips, "__call__", call)
    good, bad, third = make(seed=1), make(seed=2, num_frames=5), make(seed=3)
    worker(store).run()
    assert [store.get(job.id).state for job in (good, bad, third)] == ["done", "failed", "done"]
    assert "a clip of two latent frames" in store.get(bad.id).error
    assert any("could not share a call" in text for *_, text in store.events(good.id))
