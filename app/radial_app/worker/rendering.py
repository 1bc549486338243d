"""One video by a loaded model, with whoever listens to it: the same on this machine and on a cluster's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from radial.errors import Lost
from radial_app.jobs.job import Control
from radial_app.worker.model_cache import ModelCache

if TYPE_CHECKING:
    from radial.generation.ranks import Ranks
    from radial.generation.resume import Step
    from radial.generation.snapshot import Snapshot
    from radial.generation.watch import Event
    from radial.request import GenerationRequest
    from radial.stories.film import Made
    from radial.stories.request import StoryRequest
    from radial.video.clip import Video
    from radial.video.encoding import Encoding, Frames
    from radial.video.film import Film
    from radial.video.finishing.steps import Finish

_LOOK_SECONDS = 0.2  # between two looks at what is wished while a clip is finished
PREVIEW_SECONDS = 10.0  # between two pictures of what a run is at
BESIDE = "packed_with"  # in receipts and snapshots: the jobs that a clip was made together with
Wish = Control | Literal["stop"]  # what a user wants of a running job, or that its worker is to end


class Stopped(Exception):
    """A video ends before it is done: paused, cancelled, or because the worker is to stop."""

    def __init__(self, why: Wish) -> None:
        super().__init__(why)
        self.why = why


class RemoteError(Exception):
    """An error on another machine that nobody expected, in its words, and its traceback there."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True)
class Rendered:
    """A finished video.

    Attributes:
        seconds_before: that earlier attempts spent on it.
        finished_at: the step after which its user ended it, and how many there would have been.
        together: how many clips the time was spent on, itself among them.
    """

    video: Video
    seconds_before: float = 0.0
    finished_at: tuple[int, int] | None = None
    together: int = 1


@dataclass(frozen=True)
class FilmPlace:
    """Where a film grows, and the folder of the film that it goes on from, where it does."""

    folder: Path
    base: Path | None = None


@dataclass(frozen=True)
class FinishTask:
    """Clips, what is done to them, the folder where that grows, what it is kept as, and the device of an upscaler."""

    clips: tuple[Path, ...]
    what: Finish
    folder: Path
    encoding: Encoding
    device: str


class Listener(Protocol):
    """Who hears of a video while it is rendered, and knows what its user wants."""

    def wish(self) -> Wish:
        """What is wanted of it now."""

    def on_event(self, event: Event) -> None:
        """A stage began, a step ended, or there is a note."""

    def keep(self, write: Callable[[Path], None]) -> None:
        """A snapshot, by what writes it to a path."""

    def show(self, frame: Frames) -> None:
        """What the clip is becoming."""


class FilmListener(Listener, Protocol):
    """Who hears of a film, too."""

    def on_made(self, made: Made) -> None:
        """A piece is in the film."""


class FinishListener(Listener, Protocol):
    """Who hears of a clip that is finished, too."""

    def on_piece(self, frame: Frames) -> None:
        """A piece of it is on the disk, which ends with a frame."""


class Renderer(Protocol):
    """Where videos are rendered."""

    def finish(self, task: FinishTask, listener: FinishListener) -> Film:
        """Finish clips, or what is left of it: pieces that lie in the folder stay.

        Raises:
            Stopped: the listener wished so.
            RadialError: it failed, or clips are not finished here.
        """

    def render_film(self, story: StoryRequest, place: FilmPlace, listener: FilmListener) -> Film:
        """Render the film of a story, or what is left of it: what was made of it before stays.

        Raises:
            Stopped: the listener wished so.
            RadialError: it failed, or films are not rendered here.
        """

    def render(self, request: GenerationRequest, snapshot: Path, listener: Listener) -> Rendered:
        """Render one video, from the snapshot at a path where there is one.

        Raises:
            Stopped: the listener wished so.
            RadialError: it failed. After a Lost the renderer can make nothing more.
        """


class LocalRenderer:
    """Renders videos in this process, with the other ranks where there are any."""

    def __init__(self, models: ModelCache, snapshot_seconds: float, ranks: Ranks | None = None) -> None:
        self._models, self._snapshot_seconds, self._ranks = models, snapshot_seconds, ranks

    def render(self, request: GenerationRequest, snapshot: Path, listener: Listener) -> Rendered:
        """Render one video; see :class:`Renderer`."""
        from radial.generation.conditions.enhance import enhanced
        from radial.generation.pipeline import describe_run, generate
        from radial.generation.snapshot import read_snapshot
        from radial.generation.watch import Event

        if self._ranks is not None:
            self._ranks.check(request)
        steering = Steering(listener, self._snapshot_seconds)
        request = enhanced(request, steering.on_event)
        model = self._models.get(request, steering.on_load, steering.on_download)
        steering.pipe = model.pipe
        taken_up = read_snapshot(snapshot, describe_run(request.resolve(), model))
        if taken_up is not None:
            listener.on_event(Event("load", note=f"goes on from step {taken_up.step} of {taken_up.steps}"))
        if self._ranks is not None:
            self._ranks.order(("generate", request, taken_up))
        (video,) = generate(
            request, model=model, on_event=steering.on_event, on_step=steering.on_step, snapshot=taken_up,
            ranks=self._ranks,
        )  # fmt: skip
        return finished(video, steering, taken_up)

    def render_film(self, story: StoryRequest, place: FilmPlace, listener: FilmListener) -> Film:
        """Render the film of a story; see :class:`Renderer`."""
        from radial.stories.film import grow_film
        from radial.stories.state import FilmState

        steering, state = Steering(listener, self._snapshot_seconds), FilmState(place.folder)

        def is_enough() -> bool:
            wish = listener.wish()
            if wish in ("pause", "cancel", "stop"):
                raise Stopped(wish)
            return wish == "finish"

        with state.locked(), self._own_models(listener) as models:
            model = models.get(story.request, steering.on_load, steering.on_download)
            base = None if place.base is None else FilmState(place.base)
            return grow_film(
                story, state, model, base=base, anew=True, on_event=listener.on_event, on_made=listener.on_made,
                is_enough=is_enough,
            )  # fmt: skip

    def finish(self, task: FinishTask, listener: FinishListener) -> Film:
        """Finish clips; see :class:`Renderer`. An upscaler takes the place of the model where both have no room."""
        import torch

        from radial.generation.watch import Event, device_errors
        from radial.loading.devices import find_device
        from radial.video.finishing.pieces import finish_in_pieces

        own = self._models.device
        device = find_device(task.device if own == "auto" else own) if task.what.upscaler else "cpu"
        looked = 0.0

        def look() -> None:
            nonlocal looked
            if time.monotonic() - looked < _LOOK_SECONDS:
                return
            looked = time.monotonic()
            if wish := listener.wish():
                raise Stopped(wish)

        def on_frame(done: int, total: int) -> None:
            listener.on_event(Event("finish", done, total))

        def make() -> tuple[Film, tuple[str, ...]]:
            return finish_in_pieces(
                task.clips, task.what, task.folder, encoding=task.encoding, device=device, on_frame=on_frame,
                on_piece=listener.on_piece, look=look,
            )  # fmt: skip

        with device_errors(torch.device(device), lambda: "while a clip was finished; what is finished is kept"):
            try:
                film, notes = make()
            except torch.OutOfMemoryError:
                if not self._models.holds:
                    raise
                self.drop()
                film, notes = make()
        for note in notes:
            listener.on_event(Event("finish", note=note))
        return film

    @contextlib.contextmanager
    def _own_models(self, listener: Listener) -> Iterator[ModelCache]:
        """The models of this process alone: where several share clips, the others wait meanwhile, with free GPUs."""
        if self._ranks is None:
            yield self._models
            return
        from radial.generation.watch import Event

        note = f"a story is made by one process: the other {self._ranks.size - 1} of this worker wait meanwhile"
        listener.on_event(Event("load", note=note))
        self.drop()
        own = ModelCache(self._ranks.device)
        try:
            yield own
        except Lost:  # what lost its GPU frees nothing
            raise
        except BaseException:
            own.drop()
            raise
        own.drop()

    def drop(self) -> None:
        """Free the memory that the model takes, in all processes."""
        if self._ranks is not None and self._models.holds:
            self._ranks.order(("drop",))
        self._models.drop()


def finished(video: Video, steering: Steering, taken_up: Snapshot | None, beside: Iterable[str] = ()) -> Rendered:
    """A video with what its receipt says of how it was made.

    Args:
        taken_up: the snapshot that it went on from.
        beside: the jobs that it shared calls with.
    """
    parts = {} if taken_up is None else taken_up.parts
    if steering.finished_at is not None:
        video.receipt["finished_at_step"] = steering.finished_at[0]
    if others := sorted({*parts.get(BESIDE, ()), *beside}):
        video.receipt.setdefault("packed", len(others) + 1)
        video.receipt[BESIDE] = others
    before = 0.0 if taken_up is None else sum(taken_up.seconds.values())
    return Rendered(video, before, steering.finished_at)


class Steering:
    """Keeps snapshots and pictures when it is time, and ends a run where somebody wishes so."""

    def __init__(self, listener: Listener, snapshot_seconds: float) -> None:
        self._listener, self._snapshot_seconds = listener, snapshot_seconds
        self.pipe: Any = None
        self._kept = self._shown = time.monotonic()
        self._resumable = False
        self.finished_at: tuple[int, int] | None = None

    def on_load(self) -> None:
        """Before a model is loaded."""
        from radial.generation.watch import Event

        self.on_event(Event("load"))

    def on_download(self, done: int, total: int) -> None:
        """While one is downloaded."""
        from radial.generation.watch import Event

        self.on_event(Event("download", done >> 20, total >> 20))

    def on_event(self, event: Event) -> None:
        """Between two stages, and in pipelines that begin anew whenever they stop between two steps."""
        self._listener.on_event(event)
        wish = "" if event.note else self._listener.wish()
        if wish == "cancel" and not (event.stage == "denoise" and self._resumable):
            raise Stopped("cancel")
        if event.stage == "denoise" and event.step and not self._resumable and wish in ("pause", "stop"):
            raise Stopped(wish)

    def on_step(self, step: Step) -> Literal["go on", "finish"]:
        """Between two steps of pipelines that can go on."""
        self._resumable = True
        wish, is_due = self.decide(step)
        now, last = time.monotonic(), step.step == step.steps
        if is_due:
            snapshot = step.snapshot()
            if snapshot.latents.isfinite().all():  # else the pipeline is about to say so
                self.keep(snapshot)
        if now - self._shown >= PREVIEW_SECONDS and not last:
            from radial.generation.preview import preview_frame

            self._shown = now
            if (frame := preview_frame(self.pipe, step.clean_latents())) is not None:
                self._listener.show(frame)
        if wish in ("pause", "cancel", "stop"):
            raise Stopped(wish)
        if wish == "finish" and not last and step.can_finish:
            self.finished_at = (step.step, step.steps)
            return "finish"
        return "go on"

    def decide(self, step: Step) -> tuple[Wish, bool]:
        """After a step: what the user wishes, and whether it is time for a snapshot."""
        wish, now = self._listener.wish(), time.monotonic()
        last = step.step == step.steps  # decoding is where memory runs out: whatever comes, the steps are safe
        is_due = now - self._kept >= self._snapshot_seconds or last or wish in ("pause", "stop")
        if is_due:
            self._kept = now
        return wish, is_due

    def keep(self, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        self._listener.keep(snapshot.write)
