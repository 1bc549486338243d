"""One attempt at a job: from the request to the files, going on from what an earlier attempt left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from radial.errors import OutputError
from radial_app.jobs.job import Control, Job
from radial_app.jobs.results import publish_once, settle
from radial_app.jobs.store import JobStore

if TYPE_CHECKING:
    from radial.generation.pipeline import Event
    from radial.generation.ranks import Ranks
    from radial.generation.resume import Step
    from radial.loading.load import LoadedModel
    from radial.models.hub import OnProgress
    from radial.video.clip import Video

log = logging.getLogger("radial.worker")

_TELL_SECONDS = 0.5  # between two reports of progress


class Stopped(Exception):
    """A run ends before its clip is done: paused, cancelled, or because the worker is to stop."""

    def __init__(self, why: Literal["pause", "cancel", "stop"]) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Pace:
    """Seconds between two snapshots of a run, and between two pictures of what it is at."""

    snapshot_seconds: float = 30.0
    preview_seconds: float = 10.0


class Attempt:
    """One attempt at a job.

    Args:
        load: gives the job's model, and tells of its download.
        tell: hears the pipeline's events, and of each video with the file that it became.
        stop: set when the worker is to end.
        ranks: the processes that render with this one, which is rank 0.
    """

    def __init__(
        self, store: JobStore, job: Job, pace: Pace, *, load: Callable[[Job, OnProgress], LoadedModel],
        tell: Callable[[Job, Any], None], stop: threading.Event, ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        self.store, self.job, self.pace, self.ranks = store, job, pace, ranks
        self._load, self._tell, self._stop = load, tell, stop
        self.video = 0
        self.finish_at: int | None = None
        self._stage = ("load", 0, 0)
        self._told = self._kept = self._shown = time.monotonic()
        self._pipe: Any = None
        self._begun: tuple[float, int] | None = None
        self._notes: set[str] = set()
        self._resumable = False

    def render(self) -> str:
        """Render what is left of the job's videos. Returns why it ended early, or nothing.

        Raises:
            Stopped: by its user or with its worker.
        """
        from radial.generation.pipeline import describe_run, generate
        from radial.generation.resume import read_snapshot

        model = None
        for index, request in enumerate(self.job.request.singles()):
            self.video = index
            if settle(self.store, self.job, self.video) is not None:
                continue
            if model is None:
                self._say("load", 0, 0)
                model = self._load(self.job, self._on_download)
                self._pipe = model.pipe
            started = time.monotonic()
            self._begun, self._kept = None, time.monotonic()
            snapshot = read_snapshot(self.store.snapshot_path(self.job.id), describe_run(request.resolve(), model))
            if snapshot is not None:
                self.store.tell(self.job.id, "note", f"goes on from step {snapshot.step} of {snapshot.steps}")
            if self.ranks is not None:
                self.ranks.order(("generate", request, snapshot))
            (video,) = generate(
                request,
                model=model,
                on_event=self._on_event,
                on_step=self._on_step,
                snapshot=snapshot,
                ranks=self.ranks,
            )
            self._say("write", 0, 0)
            if self.finish_at is not None:
                video.receipt["finished_at_step"] = self.finish_at
            seconds = time.monotonic() - started
            if snapshot is not None:
                seconds += sum(snapshot.seconds.values())
            file = publish_once(
                self.store,
                self.job,
                self.video,
                without_home_paths(video),
                seconds,
                partial_clip=self.finish_at is not None,
            )
            self.store.forget_run(self.job.id)
            self._tell(self.job, (file, video))
            if self.finish_at is not None:
                return f"stopped at step {self.finish_at} of {self._stage[2]}; what there was is kept"
        return ""

    def _on_download(self, done: int, total: int) -> None:
        from radial.generation.pipeline import Event

        self._on_event(Event("download", done >> 20, total >> 20))

    def _on_event(self, event: Event) -> None:
        self._tell(self.job, event)
        if event.note:
            if event.note not in self._notes:
                self._notes.add(event.note)
                self.store.tell(self.job.id, "note", event.note)
            return
        if event.stage == "denoise" and event.step:
            self._begun = self._begun or (time.monotonic(), event.step)
        self._say(event.stage, event.step, event.steps)

    def _on_step(self, step: Step) -> Literal["go on", "finish"]:
        """Between two steps: keep a snapshot when it is time, and do what the user wants."""
        self._resumable = True
        control = self._control()
        stop = self._stop.is_set()
        now = time.monotonic()
        last = step.step == step.steps  # decoding is where memory runs out: whatever comes, the steps are safe
        due = now - self._kept >= self.pace.snapshot_seconds
        if due or last or stop or control == "pause":
            self._keep(step)
            self._kept = now
        if now - self._shown >= self.pace.preview_seconds and not last:
            self._shown = now
            self._show(step)
        if control in ("pause", "cancel"):
            raise Stopped(control)
        if stop:
            raise Stopped("stop")
        if control == "finish" and not last:
            self.finish_at = step.step
            return "finish"
        return "go on"

    def _keep(self, step: Step) -> None:
        snapshot = step.snapshot()
        if not snapshot.latents.isfinite().all():  # the pipeline is about to say so
            return
        try:
            snapshot.write(self.store.snapshot_path(self.job.id))
            self.store.got_further(self.job.id)
        except OutputError as error:  # a full disk costs the snapshot, not the run
            log.warning("job %s: no snapshot of step %d: %s", self.job.id, step.step, error)

    def _show(self, step: Step) -> None:
        """A picture of what the clip is becoming, for whoever looks at the queue."""
        from PIL import Image

        from radial.files import publish
        from radial.generation.preview import preview_frame

        frame = preview_frame(self._pipe, step.clean_latents())
        if frame is None:
            return
        try:
            publish(self.store.preview_path(self.job.id), Image.fromarray(frame).save, overwrite=True)
        except OutputError as error:
            log.warning("job %s: no preview: %s", self.job.id, error)

    def _say(self, stage: str, step: int, steps: int) -> None:
        """Report progress, now and then; stop where the user says so."""
        new_stage = stage != self._stage[0]
        self._stage = (stage, step, steps or self._stage[2])
        now = time.monotonic()
        if not new_stage and now - self._told < _TELL_SECONDS:
            return
        self._told = now
        control = self._control()
        if control == "cancel" and not (stage == "denoise" and self._resumable):
            raise Stopped("cancel")
        if stage == "denoise" and step and not self._resumable:  # a pipeline that begins anew, whenever it stops
            if control == "pause":
                raise Stopped("pause")
            if self._stop.is_set():
                raise Stopped("stop")
        try:
            self.store.progress(self.job.id, stage, step, self._stage[2], self.video, self._eta(step, steps))
        except OutputError as error:
            log.warning("job %s: progress not told: %s", self.job.id, error)

    def _eta(self, step: int, steps: int) -> float | None:
        """Seconds to the last step of the last video, by the speed of the steps so far."""
        if self._begun is None or step <= self._begun[1]:
            return None
        began, first = self._begun
        each = (time.monotonic() - began) / (step - first)
        videos_left = self.job.request.num_videos - self.video - 1
        return each * (steps - step + videos_left * steps)

    def _control(self) -> Control:
        try:
            return self.store.control_of(self.job.id)
        except OutputError as error:
            log.warning("job %s: %s", self.job.id, error)
            return ""


def without_home_paths(video: Video) -> Video:
    """A video whose receipt does not tell the name of whose home its inputs lie in."""
    request = video.receipt["request"]
    changes = {name: _from_home(request[name]) for name in ("model", "image", "last_image", "extend")}
    loras = [lora | {"path": _from_home(lora["path"])} for lora in request["loras"]]
    return replace(video, receipt=video.receipt | {"request": request | changes | {"loras": loras}})


def _from_home(path: str | None) -> str | None:
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path is not None and home != "/" and path.startswith(f"{home}/") else path
