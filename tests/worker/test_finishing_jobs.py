"""Finishing through the queue: beside what was rendered or of clips that are there, held, stopped, killed, and on from
the last piece to the same file, while the clip itself stays as it is."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radial import RequestError
from radial.generation.watch import Event
from radial.request import make_request
from radial.video.clip import Video, read_frames, read_receipt
from radial.video.encoding import Encoding, Frames
from radial.video.finishing.finish import finish
from radial.video.finishing.pieces import finish_in_pieces
from radial.video.finishing.steps import make_finish
from radial.video.reader import open_clip
from radial.video.sound import Sound, read_sound
from radial_app.jobs.finishing import finishing_after, finishing_of, request_of
from radial_app.jobs.job import Job, Output
from radial_app.jobs.results import proxy_path
from radial_app.jobs.store import JobStore
from radial_app.worker.worker import Worker

TONE = Sound(np.sin(np.arange(48_000) / 20, dtype=np.float32)[None] / 2, 48_000)
WANTED = make_finish(frames=4, scale=1.5, speed=0.5, sound="keep")


@pytest.fixture
def store(data_folder: Path) -> JobStore:
    return JobStore()


def moving(count: int) -> Frames:
    base = np.random.default_rng(3).normal(size=(64, 64 + count, 3)).cumsum(1) * 4 + 128
    return np.stack([base[:, t : t + 64].clip(0, 255).astype(np.uint8) for t in range(count)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    request = make_request(prompt="a fox", seed=3, num_videos=2).resolve()
    return Video(moving(16), 16, {"radial": "1", "request": request.model_dump(mode="json")}, TONE).write(path)


@pytest.fixture(scope="module")
def straight(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What it becomes where nothing comes between."""
    folder = tmp_path_factory.mktemp("straight")
    film, _ = finish_in_pieces([clip], WANTED, folder / "pieces")
    film.encode(folder / "out.mp4", Encoding())
    return (folder / "out.mp4").read_bytes()


@pytest.fixture
def add(store: JobStore, clip: Path, tmp_path: Path) -> Callable[..., Job]:
    def put(**more: Any) -> Job:
        output = Output(folder=str(tmp_path / "out"), name="finished")
        job = Job(id="", request=request_of([clip]), finish=finishing_of([clip], WANTED), output=output)
        return store.add([replace(job, **more)])[0]

    return put


def run(store: JobStore, act: Callable[[Job, Event], None] = lambda job, event: None) -> list[int]:
    """A worker that ends with the queue; ``act`` hears of what it tells. The frames that it told of."""
    frames = []

    def on_event(job: Job, event: Any) -> None:
        if isinstance(event, Event):
            frames.append(event.step)
            act(job, event)

    worker = Worker(store, until_idle=True)
    worker.on_event = on_event
    worker.run()
    return frames


def at(frame: int, do: Callable[[Job], Any]) -> Callable[[Job, Event], None]:
    def act(job: Job, event: Event) -> None:
        if event.stage == "finish" and event.step == frame:
            do(job)

    return act


@pytest.fixture(autouse=True)
def look_at_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radial_app.worker.rendering._LOOK_SECONDS", 0.0)


def test_kill_9_in_the_middle_and_on_to_the_same_file(
    store: JobStore, add: Callable[..., Job], clip: Path, straight: bytes, tmp_path: Path
) -> None:
    before = clip.read_bytes()
    job = add()
    assert (job.request.prompt, job.request.num_videos, job.results, job.frames) == ("a fox", 1, 1, 64)
    kill = (
        "import os, signal, sys, radial_app.worker.attempt as a\n"
        "plain = a.Attempt.on_event\n"
        "def on_event(self, event):\n"
        "    plain(self, event)\n"
        "    if (event.stage, event.step) == ('finish', 60):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "a.Attempt.on_event = on_event\n"
        "sys.argv = ['radial', 'work', '--until-idle', '--device', 'cpu']\n"
        "from radial_app.cli.main import main; main()"
    )
    first = subprocess.run([sys.executable, "-c", kill], stderr=subprocess.PIPE, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr
    found = store.get(job.id)
    assert (found.state, found.stage, found.attempts) == ("running", "finish", 1)

    frames = run(store)  # whoever looks next puts it back
    assert frames[0] == 48, "two pieces of 24 frames are kept"
    assert frames[-1] == 64
    found = store.get(job.id)
    assert (found.state, Path(found.files[0].path)) == ("done", tmp_path / "out" / "finished.mp4")
    made = Path(found.files[0].path)
    assert made.read_bytes() == straight
    assert [file.name for file in made.parent.iterdir()] == ["finished.mp4"]
    assert not store.film_folder(job.id).exists()
    assert clip.read_bytes() == before
    done = store.receipts(job.id)[0]
    assert done == read_receipt(made)
    assert {name: done["finishing"][0][name] for name in ("clips", "frames", "scale", "speed")} == {
        "clips": ["clip.mp4"], "frames": 4, "scale": 1.5, "speed": 0.5,
    }  # fmt: skip
    assert read_frames(made).shape == (64, 96, 96, 3)
    heard = read_sound(made)
    assert heard is not None
    assert heard.samples.shape[1] / heard.rate == pytest.approx(2.0, abs=0.06)


def test_the_same_pictures_as_in_one_pass(clip: Path, straight: bytes, tmp_path: Path) -> None:
    (tmp_path / "pieces.mp4").write_bytes(straight)
    finish([clip], tmp_path / "pass.mp4", WANTED)
    one, other = (read_frames(tmp_path / name).astype(np.float64) for name in ("pieces.mp4", "pass.mp4"))
    assert 10 * np.log10(255**2 / np.mean((one - other) ** 2)) > 40
    with open_clip(tmp_path / "pieces.mp4") as made, open_clip(tmp_path / "pass.mp4") as passed:
        assert made.fps == passed.fps == 32


@pytest.mark.parametrize("fields", [{"reverse": True, "scale": 2}, {"reverse": True, "scale": 0.5, "loop": 2}])
def test_what_is_turned_around_goes_on_from_its_pieces(fields: dict[str, Any], clip: Path, tmp_path: Path) -> None:
    what = make_finish(frames=2, fps=48, speed=Fraction(24_000, 1001 * 24), **fields)
    whole, _ = finish_in_pieces([clip], what, tmp_path / "whole")

    def stop(done: int, _total: int) -> None:
        if done == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish_in_pieces([clip], what, tmp_path / "parts", on_frame=stop)
    told: list[int] = []
    film, _ = finish_in_pieces([clip], what, tmp_path / "parts", on_frame=lambda done, _: told.append(done))
    assert told[:2] == [24, 25]
    assert film.path.read_bytes() == whole.path.read_bytes()
    changed = what.model_copy(update={"fps": 12})
    told.clear()
    finish_in_pieces([clip], changed, tmp_path / "parts", on_frame=lambda done, _: told.append(done))
    assert told[0] == 0, "pieces of something else are none of its own"
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["film.mp4", "finished.json"]


def test_held_stopped_given_up_and_tried_again(store: JobStore, add: Callable[..., Job], straight: bytes) -> None:
    job = add()
    run(store, at(30, lambda job: store.pause([job.id])))
    assert store.get(job.id).state == "paused"
    store.resume([job.id])
    assert run(store, at(50, lambda job: store.cancel([job.id], keep=True)))[0] == 24
    found = store.get(job.id)
    assert (found.state, found.files, "goes on from there" in found.error) == ("cancelled", (), True)
    store.retry([job.id])
    assert run(store)[0] == 48
    found = store.get(job.id)
    assert (found.state, Path(found.files[0].path).read_bytes() == straight) == ("done", True)

    other = add()
    assert store.goes_on_from(other.finish.clips) == other.id  # type: ignore[union-attr]
    run(store, at(30, lambda job: store.cancel([job.id], keep=False)))
    assert store.get(other.id).state == "cancelled"
    assert not store.film_folder(other.id).exists()
    (copy,) = store.duplicate([other.id])
    assert copy.finish == other.finish
    with pytest.raises(RequestError, match="this job finishes a clip and renders none"):
        store.duplicate([other.id], seed=7)


def test_the_clip_itself_is_never_replaced(store: JobStore, add: Callable[..., Job], clip: Path) -> None:
    before = clip.read_bytes()
    job = add(output=Output(folder=str(clip.parent), name="clip", overwrite=True))
    run(store)
    assert Path(store.get(job.id).files[0].path) == clip.with_stem("clip-2")
    assert clip.read_bytes() == before
    clip.with_stem("clip-2").unlink()


def test_after_a_render_beside_each_of_its_videos(store: JobStore, wan_folder: Path, tmp_path: Path) -> None:
    request = make_request(model=str(wan_folder), prompt="x", height=32, width=32, num_frames=9, fps=16, seed=4,
                           num_inference_steps=2, num_videos=2).resolve()  # fmt: skip
    what = finishing_after(make_finish(frames=2, aspect="1:1", scale=1.03), Encoding())
    output = Output(folder=str(tmp_path / "out"), name="{seed}")
    (job,) = store.add([Job(id="", request=request, finish=what, output=output)])
    run(store, at(5, lambda job: store.pause([job.id])))
    found = store.get(job.id)
    assert (found.state, [Path(file.path).name for file in found.files]) == ("paused", ["4.mp4", "5.mp4"])
    masters = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    store.resume([job.id])
    assert all(step <= 18 for step in run(store)), "nothing is rendered again"
    found = store.get(job.id)
    names = ["4.mp4", "5.mp4", "4-finished.mp4", "5-finished.mp4"]
    assert (found.state, [Path(file.path).name for file in found.files]) == ("done", names)
    assert [file.seed for file in found.files] == [4, 5, 4, 5]
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in masters.items())
    made = Path(found.files[2].path)
    assert read_frames(made).shape == (18, 33, 33, 3)
    assert read_frames(proxy_path(made)).shape == (18, 34, 34, 3), "browsers play even sides alone"
    assert [one.get("finishing", [{}])[0].get("frames") for one in store.receipts(job.id)] == [None, None, 2, 2]
    seconds = store.seconds_of(request)
    assert seconds in {file.seconds for file in found.files[:2]}, "what takes as long is rendered, not finished"
