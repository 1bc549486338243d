"""One attempt at a job: from the request to the files, going on from what an earlier attempt left.

Whatever renders the videos, this is where it is decided what becomes of the job: when its user stops it, when it fails,
when the GPU or the process that renders is lost, and when the disk is full or the database locked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radial.errors import Lost, OutputError, RadialError
from radial.files import discard, publish
from radial_app.jobs.finishing import Finishing
from radial_app.jobs.job import Job, State
from radial_app.jobs.results import PASSING, publish_once, settle, without_home_paths
from radial_app.jobs.store import JobStore
from radial_app.worker.rendering import FilmPlace, FinishTask, RemoteError, Renderer, Stopped, Wish

if TYPE_CHECKING:
    from radial.generation.watch import Event
    from radial.stories.film import Made
    from radial.stories.request import StoryRequest
    from radial.video.clip import Video
    from radial.video.encoding import Frames
    from radial.video.film import Film

log = logging.getLogger("radial.worker")

DISK_SECONDS = 30.0  # that a job waits for disk space
_SHOWN_SIDE = 640  # pixels of a finished frame that is shown, or about that
_TELL_SECONDS = 0.5  # between two reports of progress


def wish_of(store: JobStore, job: str, stop: threading.Event) -> Wish:
    """What the user of a running job wants of it, or that its worker is to end."""
    try:
        control = store.control_of(job)
    except OutputError as error:
        log.warning("job %s: %s", job, error)
        control = ""
    return "stop" if stop.is_set() and control not in ("pause", "cancel") else control


class Attempt:
    """One attempt at a job that was claimed.

    Args:
        renderer: makes the videos, and tells this attempt of them.
        tell: hears the pipeline's events, and of each video with the file that it became.
        stop: set when the worker is to end.
    """

    def __init__(
        self, store: JobStore, job: Job, renderer: Renderer, *, stop: threading.Event,
        tell: Callable[[Job, Any], None] = lambda job, event: None,
    ) -> None:  # fmt: skip
        self.store, self.job = store, job
        self._renderer, self._stop, self._tell = renderer, stop, tell
        self._video = 0
        self._stage = ("load", 0, 0)
        self._reported = time.monotonic()
        self._begun: tuple[float, int] | None = None
        # Parts that take so many steps each, the videos of a clip's job or the pieces of a film; which one it is at.
        self._parts, self._part = job.renders, 0
        self._notes: set[str] = set()

    def run(self) -> Exception | None:
        """Render what is left of the job's videos, and leave it finished, paused or queued.

        Returns:
            What it ended with. After a :class:`Lost` what rendered it can make nothing more; after one that is not ours
            nobody knows what state the model is in.

        Raises:
            KeyboardInterrupt: the user stopped this process; the job is paused.
        """
        log.info("job %s begins: %r", self.job.id, self.job.request.prompt[:80])
        try:
            ended_early = self._render()
        except Stopped as stopped:
            self._stopped(stopped.why)
            return None
        except KeyboardInterrupt:
            self._end("paused", "stopped with Ctrl+C", failed_attempt=False)
            raise
        except Lost as error:
            self._end("queued", str(error))
            return error
        except RadialError as error:
            if isinstance(error, OutputError) and error.errno in PASSING:
                reason = f"waits for {PASSING[error.errno]}: {error}"
                self._end("queued", reason, wait=DISK_SECONDS, failed_attempt=False)
            else:
                self._end("failed", str(error))
            return error
        except Exception as error:
            log.exception("job %s", self.job.id)
            message = str(error).splitlines()[0] if str(error) else ""
            if isinstance(error, RemoteError):
                trace = error.traceback
            else:
                trace, message = traceback.format_exc(), f"{type(error).__name__}: {message}"
            with contextlib.suppress(OutputError):
                self.store.tell(self.job.id, "error", trace)
            self._end("failed", message)
            return error
        self._end("cancelled" if ended_early else "done", ended_early)
        self.store.forget_run(self.job.id)
        return None

    def _render(self) -> str:
        """Render the videos, and finish them where that is asked for. Returns why it ended early, or nothing."""
        early = self._render_clips() if self.job.story is None else self._render_film(self.job.story)
        if not early and self.job.finish is not None:
            self._finish(self.job.finish)
        return early

    def _render_clips(self) -> str:
        """Render the videos of a clip's job, if it renders any. Returns why it ended early, or nothing."""
        for index, request in enumerate(self.job.request.singles()[: self.job.renders]):
            self._video = self._part = index
            if settle(self.store, self.job, index) is not None:
                continue
            started, self._begun = time.monotonic(), None
            rendered = self._renderer.render(request, self.store.snapshot_path(self.job.id), self)
            if self.wish() == "cancel":
                raise Stopped("cancel")
            seconds = (time.monotonic() - started + rendered.seconds_before) / rendered.together
            self._publish(rendered.video, seconds, early=rendered.finished_at is not None)
            if rendered.finished_at is not None:
                return "stopped at step {} of {}; what there was is kept".format(*rendered.finished_at)
        return ""

    def _render_film(self, story: StoryRequest) -> str:
        """Render what is left of a film. Returns why it ended early, or nothing."""
        if settle(self.store, self.job, 0) is not None:
            return ""
        self._parts = story.count()
        base = Path(self.job.base) if self.job.base else None
        film = self._renderer.render_film(story, FilmPlace(self.store.film_folder(self.job.id), base), self)
        if self.wish() == "cancel":
            raise Stopped("cancel")
        self._publish(film, film.seconds, early=not film.whole)
        if film.whole:
            return ""
        there = len(film.receipt["story"]["lines"])
        return f"stopped in segment {there} of {len(story.lines)}; what there was is kept, and trying again goes on"

    def _finish(self, finish: Finishing) -> None:
        """Finish what was rendered, each beside itself, or the clips that were there."""
        self.job = job = self.store.get(self.job.id)  # with the names of what was rendered
        for index in range(job.renders, job.results):
            self._video, self._parts, self._part, self._begun = index, 1, 0, None
            folder = self.store.finishing_folder(job.id, index)
            if settle(self.store, job, index) is None:
                started = time.monotonic()
                clips = finish.clips or (job.files[index - job.renders].path,)
                film = self._renderer.finish(
                    FinishTask(tuple(map(Path, clips)), finish.what, folder, job.finished_encoding, job.request.device),
                    self,
                )
                if self.wish() == "cancel":
                    raise Stopped("cancel")
                self._publish(film, time.monotonic() - started, early=False)
            discard(folder)
        with contextlib.suppress(OSError):  # of a story it holds more
            self.store.film_folder(job.id).rmdir()

    def _publish(self, video: Video | Film, seconds: float, *, early: bool) -> None:
        self._report("write", 0, 0)
        told = without_home_paths(video)
        file = publish_once(self.store, self.job, self._video, told, seconds, partial_clip=early)
        self.store.forget_run(self.job.id)
        self._tell(self.job, (file, video))

    def _stopped(self, why: Wish) -> None:
        if why == "stop":
            self._end("queued", "its worker was told to stop", failed_attempt=False)
        elif why == "pause":
            self._end("paused", failed_attempt=False)
        elif why == "finish":  # what is finished in part plays for nobody
            self._end("cancelled", "stopped while it was finished; trying again goes on from there")
            self.store.forget_run(self.job.id)
        else:
            self._end("cancelled")
            self.store.forget_run(self.job.id)
            self.store.forget_film(self.job.id)

    def _end(self, state: State, error: str = "", **more: Any) -> None:
        """Settle the job, however long the database is locked: what was rendered must not be rendered again."""
        while True:
            try:
                state = self.store.end(self.job.id, state, error, **more)
            except OutputError as problem:
                if problem.errno not in PASSING:
                    raise
                log.warning("job %s cannot be settled yet: %s", self.job.id, problem)
                time.sleep(1)
            else:
                log.info("job %s is %s%s", self.job.id, state, f": {error}" if error else "")
                return

    # What the renderer tells and asks

    def wish(self) -> Wish:
        """What the user of the job wants of it, or that the worker is to end."""
        return wish_of(self.store, self.job.id, self._stop)

    def on_event(self, event: Event) -> None:
        """Note how far the job is."""
        self._tell(self.job, event)
        if event.note:
            if event.note not in self._notes:
                self._notes.add(event.note)
                self._try("note", lambda: self.store.tell(self.job.id, "note", event.note))
            return
        if self.job.story is not None and event.stage != "finish":
            self._part = max(self._part, event.video)
        if event.stage in ("denoise", "finish") and event.step:
            self._begun = self._begun or (time.monotonic(), self._part * event.steps + event.step)
        self._report(event.stage, event.step, event.steps, event.recall, event.attention_error)

    def on_made(self, made: Made) -> None:
        """Note how far a film is, and show what it is at. Of the pieces that are there from before, the last one says
        all."""
        self._part = made.piece + 1
        if made.taken_up and made.piece + 1 <= self.job.pieces:
            return
        self._try("word of a piece", lambda: self.store.film_grew(self.job.id, made.piece + 1, made.size))
        if made.frame is not None:
            self.show(made.frame)

    def on_piece(self, frame: Frames) -> None:
        """A piece of a finished clip is on the disk: what comes may fail as often as what was."""
        self._try("word of a piece", lambda: self.store.got_further(self.job.id))
        step = max(1, max(frame.shape) // _SHOWN_SIDE)
        self.show(frame[::step, ::step])

    def keep(self, write: Callable[[Path], None]) -> None:
        """Keep a snapshot, from which the next attempt goes on."""

        def both() -> None:
            write(self.store.snapshot_path(self.job.id))
            self.store.got_further(self.job.id)

        self._try(f"snapshot of step {self._stage[1]}", both)

    def show(self, frame: Frames) -> None:
        """Keep a picture of what the clip is becoming, for whoever looks at the queue."""
        from PIL import Image

        picture = Image.fromarray(frame)
        self._try("preview", lambda: publish(self.store.preview_path(self.job.id), picture.save, overwrite=True))

    def _report(
        self, stage: str, step: int, steps: int, recall: float | None = None, error: float | None = None
    ) -> None:
        """Say how far it is, now and then."""
        new_stage = stage != self._stage[0]
        self._stage = (stage, step, steps or self._stage[2])
        now = time.monotonic()
        if new_stage or now - self._reported >= _TELL_SECONDS:
            self._reported = now
            eta = self._eta(step, steps)
            told = (self.job.id, stage, step, self._stage[2], self._video, eta, recall, error)
            self._try("progress", lambda: self.store.progress(*told))

    def _try(self, what: str, write: Callable[[], None]) -> None:
        """Write what a full disk or a locked database costs, and not the run."""
        try:
            write()
        except OutputError as error:
            log.warning("job %s: no %s: %s", self.job.id, what, error)

    def _eta(self, step: int, steps: int) -> float | None:
        """Seconds to the last step of the last part, by the speed of the steps so far."""
        done = self._part * steps + step
        if self._begun is None or done <= self._begun[1]:
            return None
        began, first = self._begun
        return (time.monotonic() - began) / (done - first) * (self._parts * steps - done)
