"""The worker: takes jobs from the store and renders them, one after the other, on one device.

It can be killed at any moment. What it was at goes back to the queue, and whoever takes it up goes on from the last
snapshot of the denoising run.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import secrets
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from radial.errors import OutputError, RadialError, RequestError
from radial_app.jobs import Control, Job
from radial_app.results import publish_once, settle
from radial_app.store import JobStore

if TYPE_CHECKING:
    from radial.loading import LoadedModel
    from radial.pipeline import Event
    from radial.resume import Step
    from radial.video import Video

log = logging.getLogger("radial.worker")

POLL_SECONDS = 0.5
_TELL_SECONDS = 0.5  # between two reports of progress
_DISK_SECONDS = 30.0  # that a job waits for disk space
PASSING = {errno.ENOSPC: "disk space", errno.EDQUOT: "disk space", errno.EBUSY: "the database"}


class Stopped(Exception):
    """A run ends before its clip is done: paused, cancelled, or because the worker is to stop."""

    def __init__(self, why: Literal["pause", "cancel", "stop"]) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker works.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda:N``; jobs that ask for another device wait for another worker.
        snapshot_seconds: between two snapshots of a run.
        preview_seconds: between two pictures of what a run is at.
        unload_seconds: without a job after which the model leaves the memory.
        until_idle: end when no job waits any more, instead of waiting for more.
        batch: the only one whose jobs it takes.
        disk_seconds: that a job waits for disk space before it is tried again.
    """

    device: str = "auto"
    snapshot_seconds: float = 30.0
    preview_seconds: float = 10.0
    unload_seconds: float = 300.0
    until_idle: bool = False
    batch: str | None = None
    disk_seconds: float = _DISK_SECONDS


class Worker:
    """Renders jobs of a store. ``stop`` is a flag that signal handlers may set."""

    def __init__(self, store: JobStore, settings: WorkerSettings) -> None:
        self.store, self.settings = store, settings
        self._on_event: Callable[[Job, Any], None] = lambda job, event: None
        self.name = f"{settings.device.replace(':', '-')}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = threading.Event()
        self.job = ""  # the last one begun
        self.error: Exception | None = None  # that it ended with
        self._model: LoadedModel | None = None
        self._model_key: Any = None
        self._idle_since: float | None = None

    def run(self) -> None:
        """Take jobs until told to stop, or until none waits."""
        with self.store.alive(self.name):
            log.info("worker %s begins", self.name)
            self._sweep()
            self.work_off()
            self.unload()
            log.info("worker %s ends", self.name)

    def _sweep(self) -> None:
        """Remove what workers that were killed left half-written."""
        for file in (self.store.folder / "snapshots").glob(".*.partial.*"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > 3600:
                    file.unlink()

    def work_off(self) -> None:
        """The loop of :meth:`run`, for who keeps the worker alive."""
        while not self.stop.is_set():
            if (job := self._next()) is not None:
                self._idle_since = None
                self.render(job)
            elif self.settings.until_idle and not self._waits():
                break
            else:
                self._rest()

    def run_here(self, job: Job) -> Job:
        """Render one job here and now: a new one, which no other worker ever sees waiting, or one that waits.

        Raises:
            RequestError: it does not wait any more.
        """
        with self.store.alive(self.name):
            if not job.id:
                (job,) = self.store.add([replace(job, state="running", worker=self.name, attempts=1)])
            else:
                claimed = self.store.claim(self.name, only=job.id)
                if claimed is None:
                    raise RequestError(f"job {job.id} is {self.store.get(job.id).state}: it does not wait")
                job = claimed
            self.render(job)
        return self.store.get(job.id)

    def _next(self) -> Job | None:
        try:
            self.store.recover()
            return self.store.claim(self.name, self._devices(), batch=self.settings.batch)
        except OutputError as error:  # locked by another program for long, or a full disk: later, then
            log.warning("%s", error)
            return None

    def _devices(self) -> tuple[str, ...]:
        """What jobs may ask for."""
        device = self.settings.device
        same = {"auto": (), "cuda:0": ("auto", "cuda", "cuda:0"), "cuda": ("auto", "cuda", "cuda:0")}
        return same.get(device, ("auto", device))

    def _waits(self) -> bool:
        waiting = self.store.find(["queued"], self.settings.batch)
        return any(not self._devices() or job.request.device in self._devices() for job in waiting)

    def _rest(self) -> None:
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if self._model is not None and now - self._idle_since > self.settings.unload_seconds:
            log.info("the model leaves the memory after %.0f s without a job", now - self._idle_since)
            self.unload()
        self.stop.wait(POLL_SECONDS)

    def unload(self) -> None:
        """Free the memory that the model takes."""
        if self._model is None:
            return
        import torch

        self._model = self._model_key = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def render(self, job: Job) -> None:
        """Render a job that was claimed, and leave it finished, paused or queued."""
        log.info("job %s begins: %r", job.id, job.request.prompt[:80])
        self.error, self.job = None, job.id
        try:
            partial = _Run(self, job).render()
            if partial:
                self._end(job, "cancelled", partial)
            else:
                self._end(job, "done")
            self.store.forget_run(job.id)
        except Stopped as stopped:
            if stopped.why == "stop":
                self._end(job, "queued", "its worker was told to stop", failed_attempt=False)
            elif stopped.why == "pause":
                self._end(job, "paused", failed_attempt=False)
            else:
                self._end(job, "cancelled")
                self.store.forget_run(job.id)
        except KeyboardInterrupt:
            self._end(job, "paused", "stopped with Ctrl+C", failed_attempt=False)
            raise
        except RadialError as error:
            self.error = error
            if isinstance(error, OutputError) and error.errno in PASSING:
                wait = self.settings.disk_seconds
                self._end(job, "queued", f"waits for {PASSING[error.errno]}: {error}", wait=wait, failed_attempt=False)
            else:
                self._end(job, "failed", str(error))
        except Exception as error:
            self.error = error
            log.exception("job %s", job.id)
            with contextlib.suppress(OutputError):
                self.store.tell(job.id, "error", traceback.format_exc())
            self._end(job, "failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            self.unload()  # what state it is in, nobody knows

    def _end(self, job: Job, state: Any, error: str = "", **more: Any) -> None:
        """Settle a job, however long the database is locked: what was rendered must not be rendered again."""
        log.info("job %s is %s%s", job.id, state, f": {error}" if error else "")
        while True:
            try:
                self.store.end(job.id, state, error, **more)
                return
            except OutputError as problem:
                if problem.errno not in PASSING:
                    raise
                log.warning("job %s cannot be settled yet: %s", job.id, problem)
                time.sleep(1)

    def model_for(self, job: Job) -> LoadedModel:
        """The model of a job, loaded unless it is already."""
        from radial.adapter_settings import adapter_file
        from radial.loading import load

        request = job.request.model_copy(update={"device": self._device(job)})
        files = [adapter_file(lora.path) for lora in request.loras]
        stamps = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.exists()]
        key = (job.group, request.device, stamps)
        if key != self._model_key:
            self.unload()
            self._model, self._model_key = load(request), key
        assert self._model is not None
        return self._model

    def _device(self, job: Job) -> str:
        return job.request.device if self.settings.device == "auto" else self.settings.device

    def tell(self, job: Job, event: Any) -> None:
        """Pass an event on to whoever renders in this process."""
        self._on_event(job, event)

    def listen(self, on_event: Callable[[Job, Any], None]) -> None:
        """Have a function told about the pipeline's events, and about each video with the file it became."""
        self._on_event = on_event


class _Run:
    """One attempt at a job."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self.worker, self.store, self.job = worker, worker.store, job
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
        from radial.pipeline import describe_run, generate
        from radial.resume import read_snapshot

        model = None
        for index, request in enumerate(self.job.request.singles()):
            self.video = index
            if settle(self.store, self.job, self.video) is not None:
                continue
            if model is None:
                self._say("load", 0, 0)
                model = self.worker.model_for(self.job)
                self._pipe = model.pipe
            started = time.monotonic()
            self._begun, self._kept = None, time.monotonic()
            snapshot = read_snapshot(self.store.snapshot_path(self.job.id), describe_run(request.resolve(), model))
            if snapshot is not None:
                self.store.tell(self.job.id, "note", f"goes on from step {snapshot.step} of {snapshot.steps}")
            (video,) = generate(request, model=model, on_event=self._on_event, on_step=self._on_step, snapshot=snapshot)
            self._say("write", 0, 0)
            if self.finish_at is not None:
                video.receipt["finished_at_step"] = self.finish_at
            seconds = time.monotonic() - started
            if snapshot is not None:
                seconds += sum(snapshot.seconds.values())
            file = publish_once(
                self.store, self.job, self.video, shareable(video), seconds, partial_clip=self.finish_at is not None
            )
            self.store.forget_run(self.job.id)
            self.worker.tell(self.job, (file, video))
            if self.finish_at is not None:
                return f"stopped at step {self.finish_at} of {self._stage[2]}; what there was is kept"
        return ""

    def _on_event(self, event: Event) -> None:
        self.worker.tell(self.job, event)
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
        stop = self.worker.stop.is_set()
        now = time.monotonic()
        last = step.step == step.steps  # decoding is where memory runs out: whatever comes, the steps are safe
        due = now - self._kept >= self.worker.settings.snapshot_seconds
        if due or last or stop or control == "pause":
            self._keep(step)
            self._kept = now
        if now - self._shown >= self.worker.settings.preview_seconds and not last:
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
        from radial.preview import preview_frame

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
            if self.worker.stop.is_set():
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


def shareable(video: Video) -> Video:
    """A video whose receipt does not tell the name of whose home its inputs lie in."""
    request = video.receipt["request"]
    changes = {name: _from_home(request[name]) for name in ("model", "image", "last_image", "extend")}
    loras = [lora | {"path": _from_home(lora["path"])} for lora in request["loras"]]
    return replace(video, receipt=video.receipt | {"request": request | changes | {"loras": loras}})


def _from_home(path: str | None) -> str | None:
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path is not None and home != "/" and path.startswith(f"{home}/") else path


def log_to(path: Path) -> None:
    """Write the log to a file, one JSON object a line."""
    import json

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            line = {"time": round(record.created, 3), "level": record.levelname, "name": record.name,
                    "process": record.process, "message": record.getMessage()}  # fmt: skip
            if record.exc_info:
                line["traceback"] = self.formatException(record.exc_info)
            return json.dumps(line, ensure_ascii=False)

    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(path, maxBytes=10_000_000, backupCount=3, encoding="utf-8")
    handler.setFormatter(Lines())
    root = logging.getLogger("radial")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
