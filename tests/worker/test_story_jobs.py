"""A story is a job like any other: held, stopped, killed and full disks; it goes on bit for bit from its last piece."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from radial import OutputError, RequestError
from radial.generation.watch import Event
from radial.stories.engine import StoryEngine
from radial.stories.film import make_film
from radial.stories.request import StoryRequest, make_story_request
from radial.stories.script import read_story
from radial.stories.state import FilmState, state_folder
from radial.video.clip import read_frames, read_receipt
from radial.video.film import GrowingFilm
from radial_app.cli import main as cli
from radial_app.jobs.job import Job, Output
from radial_app.jobs.store import JobStore
from radial_app.worker.ray_backend import _RayRenderer
from radial_app.worker.rendering import FilmPlace
from radial_app.worker.worker import Worker

STORY = "anna: a red star rises\n0.6s anna: spins\n# cut\nben: a blue ring falls"


@pytest.fixture
def store(data_folder: Path) -> JobStore:
    return JobStore()


@pytest.fixture(scope="module")
def story(wan_folder: Path) -> StoryRequest:
    fields = {"model": str(wan_folder), "height": 32, "width": 32, "fps": 16, "seed": 4, "num_inference_steps": 2}
    memory = {"chunk_frames": 1, "window_frames": 2}
    return make_story_request(read_story(STORY), fields, seconds=0.3, memory=memory, causal=True)


@pytest.fixture(scope="module")
def straight(story: StoryRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The film that it becomes where nothing comes between."""
    film = make_film(story, tmp_path_factory.mktemp("straight") / "film.mp4")
    return (state_folder(film) / "film.mp4").read_bytes()


@pytest.fixture
def add(store: JobStore, story: StoryRequest, tmp_path: Path) -> Callable[..., Job]:
    def put(wanted: StoryRequest = story, **more: Any) -> Job:
        output = Output(folder=str(tmp_path / "out"), name="{seed}")
        return store.add([Job(id="", request=wanted.request, story=wanted, output=output, **more)])[0]

    return put


def run(store: JobStore, act: Callable[[Job, Event], None] = lambda job, event: None) -> list[Event]:
    """A worker that ends with the queue; ``act`` hears of every step. What it told."""
    told: list[Event] = []

    def on_event(job: Job, event: Any) -> None:
        if isinstance(event, Event):
            told.append(event)
            act(job, event)

    worker = Worker(store, until_idle=True)
    worker.on_event = on_event
    worker.run()
    return told


def at(piece: int, do: Callable[[Job], Any]) -> Callable[[Job, Event], None]:
    """Does something at the first step of a piece, once."""
    done: list[int] = []

    def act(job: Job, event: Event) -> None:
        if event.stage == "denoise" and event.step == 1 and event.video == piece and not done:
            done.append(piece)
            do(job)

    return act


def pieces_of(told: list[Event]) -> set[int]:
    return {event.video for event in told if event.stage == "denoise"}


def test_kill_9_in_the_middle_and_on_from_there(
    store: JobStore, add: Callable[..., Job], story: StoryRequest, straight: bytes, tmp_path: Path
) -> None:
    job = add()
    script = tmp_path / "kill.py"
    script.write_text(
        "import os, signal, sys, radial_app.worker.attempt as a\n"
        "plain = a.Attempt.on_event\n"
        "def on_event(self, event):\n"
        "    plain(self, event)\n"
        "    if event.stage == 'denoise' and (event.video, event.step) == (2, 1):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "a.Attempt.on_event = on_event\n"
        "sys.argv = ['radial', 'work', '--until-idle', '--device', 'cpu']\n"
        "from radial_app.cli.main import main; main()"
    )
    first = subprocess.run([sys.executable, str(script)], stderr=subprocess.PIPE, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr
    found = store.get(job.id)
    assert (found.state, found.pieces) == ("running", 2)
    growing = store.film_folder(job.id) / "film.mp4"
    assert len(read_frames(growing)) == story.ends(2)[-1]
    assert growing.read_bytes() == straight[: found.film_bytes]

    told = run(store)  # whoever looks next puts it back
    assert pieces_of(told) == set(range(2, story.count()))
    found = store.get(job.id)
    assert (found.state, found.pieces, found.film_bytes) == ("done", story.count(), len(straight))
    assert growing.read_bytes() == straight
    receipt = read_receipt(tmp_path / "out" / "4.mp4")
    lines = receipt["story"]["lines"]
    assert [line["prompt"] for line in lines] == [line.prompt for line in story.lines]
    assert [line["end"] for line in lines] == [end / 16 for end in story.ends(story.count())]
    assert store.receipts(job.id) == [receipt]
    assert len(read_frames(tmp_path / "out" / "4.mp4")) == story.ends(story.count())[-1]


def test_held_stopped_and_on_to_its_end(
    store: JobStore, add: Callable[..., Job], story: StoryRequest, straight: bytes, tmp_path: Path
) -> None:
    job = add()
    run(store, at(1, lambda job: store.pause([job.id])))
    assert (store.get(job.id).state, store.get(job.id).pieces) == ("paused", 1)
    store.resume([job.id])
    told = run(store, at(2, lambda job: store.cancel([job.id], keep=True)))
    assert pieces_of(told) == {1, 2}
    found, film = store.get(job.id), tmp_path / "out" / "4.mp4"
    took = [piece.seconds for piece in FilmState(store.film_folder(job.id)).pieces()]
    assert len(took) == 2
    assert min(took) > 0
    assert read_receipt(film)["seconds"]["film"] == pytest.approx(sum(took), abs=2e-3), "at both attempts"
    assert found.files[0].seconds == pytest.approx(sum(took), abs=1e-2)
    assert (found.state, found.pieces, found.files[0].partial) == ("cancelled", 2, True)
    assert "stopped in segment 2 of 3; what there was is kept" in found.error
    assert len(read_frames(film)) == story.ends(2)[-1]
    assert len(read_receipt(film)["story"]["lines"]) == 2

    store.retry([job.id])
    told = run(store)
    assert pieces_of(told) == set(range(2, story.count()))
    found = store.get(job.id)
    assert (found.state, found.files[0].path, found.files[0].partial) == ("done", str(film), False)
    assert [file.name for file in film.parent.iterdir()] == ["4.mp4"], "the whole film has the name of its part"
    assert (store.film_folder(job.id) / "film.mp4").read_bytes() == straight

    # What it goes on from stays until it is given up or removed.
    other = add(replace(story, request=story.request.with_values(seed=5)))
    run(store, at(1, lambda job: store.cancel([job.id], keep=False)))
    assert (store.get(other.id).state, store.get(other.id).pieces, store.get(other.id).film_bytes) == (
        "cancelled",
        0,
        0,
    )
    assert not store.film_folder(other.id).exists()
    assert store.remove([job.id]) == [job.id]
    assert not store.film_folder(job.id).exists()


def test_stopped_before_anything_is_there_it_ends_with_its_first_piece(
    store: JobStore, add: Callable[..., Job], story: StoryRequest, tmp_path: Path
) -> None:
    job = add()
    run(store, at(0, lambda job: store.cancel([job.id], keep=True)))
    assert (store.get(job.id).state, store.get(job.id).pieces) == ("cancelled", 1)
    assert len(read_frames(tmp_path / "out" / "4.mp4")) == story.ends(1)[-1]


def test_a_full_disk_holds_a_film_and_costs_nothing_of_it(
    store: JobStore, add: Callable[..., Job], straight: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add()
    plain = GrowingFilm.append

    def full(film: GrowingFilm, frames: Any) -> int:
        if film.frames > 9:
            problem = OutputError("cannot write film.mp4: No space left on device")
            problem.errno = errno.ENOSPC
            raise problem
        return plain(film, frames)

    with monkeypatch.context() as patched:
        patched.setattr(GrowingFilm, "append", full)
        patched.setattr(Worker, "_waits", lambda worker: False)  # a deferred job waits half a minute
        run(store)
    found = store.get(job.id)
    assert (found.state, found.pieces > 0, found.attempts) == ("queued", True, 0)
    assert "waits for disk space" in found.error
    growing = store.film_folder(job.id) / "film.mp4"
    assert growing.read_bytes() == straight[: found.film_bytes]
    Worker(store).run_here(found)
    assert store.get(job.id).state == "done"
    assert growing.read_bytes() == straight


def test_a_lost_gpu_sends_a_film_back_and_no_memory_fails_it(
    store: JobStore, add: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, plain, calls = add(), StoryEngine.make, []

    def break_at_second(error: Exception) -> Callable[..., Any]:
        def make(engine: StoryEngine, piece: int, *args: Any) -> Any:
            calls.append(piece)
            if piece == 1:
                raise error
            return plain(engine, piece, *args)

        return make

    monkeypatch.setattr(StoryEngine, "make", break_at_second(torch.AcceleratorError("CUDA error: launch failure\nx")))
    worker = Worker(store, until_idle=True)
    worker.run()
    found = store.get(job.id)
    assert (worker.broken, found.state, found.pieces) == (True, "queued", 1)
    assert found.error == "cpu has stopped answering (CUDA error: launch failure)"
    monkeypatch.setattr(StoryEngine, "make", break_at_second(torch.OutOfMemoryError("CUDA out of memory")))
    worker = Worker(store, until_idle=True)
    worker.run()
    found = store.get(job.id)
    assert (worker.broken, found.state, found.pieces, calls) == (False, "failed", 1, [0, 1, 1])
    assert found.error.startswith("out of memory on cpu while a part was made; what is finished plays")


def test_a_film_goes_on_from_another_one(
    store: JobStore, add: Callable[..., Job], story: StoryRequest, tmp_path: Path
) -> None:
    first = add()
    run(store)
    lines = (*story.lines[:2], replace(story.lines[2], seed=9), *read_story("anna: rises", {"anna": None}))
    changed = story.with_lines(lines)
    second = add(changed, base=str(store.film_folder(first.id)))
    assert store.goes_on_from([], first.id) == second.id
    told = run(store)
    kept = len(story.ends(story.count())[:2])
    assert changed.segment_at(min(pieces_of(told))) == kept
    assert store.get(second.id).state == "done"
    before, now = ((store.film_folder(job.id) / "film.mp4").read_bytes() for job in (first, second))
    assert now[: len(before) // 2] == before[: len(before) // 2]
    assert now[: len(before)] != before
    straight = make_film(changed, tmp_path / "straight.mp4")
    assert (state_folder(straight) / "film.mp4").read_bytes() == now, "as if it had been made in one go"

    # So does a command: beside a film that came out of the queue nothing lies to go on from, and its job has it.
    film, more = tmp_path / "out" / "4.mp4", tmp_path / "more.txt"
    more.write_text("anna: rises")
    with pytest.raises(SystemExit) as stop:
        cli.main(["story", str(more), "--continue", str(film), "--quiet"])
    assert not stop.value.code
    assert [line["prompt"] for line in read_receipt(film)["story"]["lines"]][-1] == "anna: rises"
    assert (state_folder(film) / "film.mp4").read_bytes().startswith(before)

    # Where it would not be as it was made, nothing of it is made anew in silence.
    other = changed.with_lines((*lines, lines[-1]))
    third = add(replace(other, request=other.request.with_values(num_inference_steps=3)),
                base=str(store.film_folder(second.id)))  # fmt: skip
    run(store)
    assert store.get(third.id).state == "failed"
    assert "num_inference_steps was 2 and is 3: not as it was" in store.get(third.id).error


def test_a_cluster_makes_no_stories(
    store: JobStore, add: Callable[..., Job], story: StoryRequest, tmp_path: Path
) -> None:
    waits = add(batch="mixed", priority=5)
    (clip,) = store.add([Job(id="", request=story.request, output=Output(folder=str(tmp_path)), batch="mixed")])
    taken = [store.claim("ray-1", batch="mixed", clips_alone=True) for _ in range(2)]
    assert [one and one.id for one in taken] == [clip.id, None]
    assert (store.get(waits.id).state, store.get(waits.id).attempts) == ("queued", 0), "it waits for who can make it"
    found = store.claim("other", batch="mixed")
    assert found is not None
    assert found.id == waits.id
    renderer, nobody = _RayRenderer(lambda: None), Any
    with pytest.raises(RequestError, match="on one machine, not on a cluster"):
        renderer.render_film(story, FilmPlace(tmp_path), nobody)  # type: ignore[arg-type]
