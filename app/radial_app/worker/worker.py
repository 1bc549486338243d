"""The worker: takes jobs from the store and renders them, one after the other, on one device.

It can be killed at any moment. What it was at goes back to the queue, and whoever takes it up goes on from the last
snapshot of the denoising run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radial.errors import Lost, OutputError, RadialError, RequestError
from radial_app.jobs.job import Job
from radial_app.jobs.store import LONGEST_WAIT, JobStore
from radial_app.tuning.runs import Tuning
from radial_app.worker.attempt import Attempt
from radial_app.worker.model_cache import ModelCache
from radial_app.worker.packs import find_mates, render_together
from radial_app.worker.rendering import LocalRenderer

if TYPE_CHECKING:
    from radial.generation.ranks import Ranks

log = logging.getLogger("radial.worker")

POLL_SECONDS = 0.5
_LOOK_AGAIN = 2.0  # seconds after which a deferred job may be due
_LOOK_AHEAD = 64  # jobs that are looked at for those to be rendered together


class Worker:
    """Renders jobs of a store. ``stop`` is a flag that signal handlers may set.

    Args:
        device: ``auto``, ``cpu`` or ``cuda:N``; jobs that ask for another device wait for another worker.
        snapshot_seconds: between two snapshots of a run.
        unload_seconds: without a job after which the model leaves the memory.
        until_idle: end when no job waits any more, instead of waiting for more.
        batch: the only one whose jobs it takes.
        pack: whether it renders jobs together where that pays.
    """

    def __init__(
        self, store: JobStore, ranks: Ranks | None = None, *, device: str = "auto", snapshot_seconds: float = 30.0,
        unload_seconds: float = 300.0, until_idle: bool = False, batch: str | None = None, pack: bool = True,
    ) -> None:  # fmt: skip
        self.store, self.ranks = store, ranks
        self._device, self._unload_seconds, self._until_idle, self._batch = device, unload_seconds, until_idle, batch
        self._snapshot_seconds, self._pack = snapshot_seconds, pack and ranks is None
        # Hears the pipeline's events, and of each video with the file that it became.
        self.on_event: Callable[[Job, Any], None] = lambda job, event: None
        self.name = f"{device.replace(':', '-')}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = threading.Event()
        self.job = ""  # the last one begun
        self.error: Exception | None = None  # that it ended with
        self._models = ModelCache(device, ranks)
        self._renderer = LocalRenderer(self._models, snapshot_seconds, ranks)
        self._idle_since: float | None = None
        self._found_nothing: tuple[Any, float] = (None, 0.0)

    def run(self) -> None:
        """Take jobs until told to stop, or until none waits."""
        with self.store.locks.alive(self.name):
            log.info("worker %s begins", self.name)
            self._sweep()
            self.work_off()
            if not self.broken:
                self.unload()
            log.info("worker %s ends", self.name)

    @property
    def broken(self) -> bool:
        """Whether this process can render nothing more: whoever keeps it must start another."""
        return isinstance(self.error, Lost) or (self.ranks is not None and self.ranks.broken)

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
                self.render(job, self._claim_mates(job))
            elif self._until_idle and not self._waits():
                break
            else:
                self._rest()

    def run_here(self, job: Job) -> Job:
        """Render one job here and now: a new one, which no other worker ever sees waiting, or one that waits.

        Raises:
            RequestError: it does not wait any more.
        """
        with self.store.locks.alive(self.name):
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
            if self._lent_to_training():
                return None
            # Where nobody has changed a job since nothing was found, only a deferred one may have become due.
            looked, now = self.store.version(), time.monotonic()
            if looked == self._found_nothing[0] and now < self._found_nothing[1]:
                return None
            job = self.store.claim(self.name, self._devices(), batch=self._batch)
            if job is None:
                self._found_nothing = (looked, now + _LOOK_AGAIN)
            return job
        except OutputError as error:  # locked by another program for long, or a full disk: later, then
            log.warning("%s", error)
            return None

    def _claim_mates(self, job: Job) -> list[Job]:
        """The jobs that are to be rendered together with one, claimed too."""
        if not self._pack:
            return []
        try:
            now = time.time()
            waiting = [
                one for one in self.store.find(["queued"], self._batch, limit=None if job.pack else _LOOK_AHEAD)
                if self._takes(one) and not now < one.deferred_until <= now + LONGEST_WAIT
            ]  # fmt: skip
            device = job.request.device if self._device == "auto" else self._device
            mates = find_mates(self.store, job, waiting, device)
            return self.store.claim_beside(self.name, job, mates) if mates else []
        except RadialError as error:  # what is amiss with the job is told where it is rendered
            log.warning("job %s is rendered alone: %s", job.id, error)
            return []

    def _takes(self, job: Job) -> bool:
        """Whether it can render a job."""
        return not job.problem and (not self._devices() or job.request.device in self._devices())

    def _lent_to_training(self) -> bool:
        """Whether a fine-tuning run needs the GPU: jobs wait meanwhile, and the model leaves the memory."""
        if not self._device.startswith("cuda") or Tuning(self.store.folder).at_work() is None:
            return False
        self.unload()
        return True

    def _devices(self) -> tuple[str, ...]:
        """What jobs may ask for."""
        same = {"auto": (), "cuda:0": ("auto", "cuda", "cuda:0"), "cuda": ("auto", "cuda", "cuda:0")}
        return same.get(self._device, ("auto", self._device))

    def _waits(self) -> bool:
        return any(map(self._takes, self.store.find(["queued"], self._batch)))

    def _rest(self) -> None:
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if self._models.holds and now - self._idle_since > self._unload_seconds:
            log.info("the model leaves the memory after %.0f s without a job", now - self._idle_since)
            self.unload()
        self.stop.wait(POLL_SECONDS)

    def unload(self) -> None:
        """Free the memory that the model takes."""
        self._renderer.drop()

    def render(self, job: Job, mates: Sequence[Job] = ()) -> None:
        """Render a job that was claimed, and others together with it, and leave them finished, paused or queued."""
        self.error, self.job = None, job.id
        if mates:
            jobs = [self.store.get(job.id), *mates]
            self.error = render_together(
                self.store, jobs, self._models, self._snapshot_seconds, self.stop, self.on_event
            )
        else:
            self.error = Attempt(self.store, job, self._renderer, stop=self.stop, tell=self.on_event).run()
        if self.broken:
            self.stop.set()
        elif self.error is not None and not isinstance(self.error, RadialError):
            self.unload()


def log_to(path: Path) -> None:
    """Write the log to a file, one JSON object a line."""

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            line = {"time": round(record.created, 3), "level": record.levelname, "name": record.name,
                    "process": record.process, "message": record.getMessage()}  # fmt: skip
            if record.exc_info:
                line["traceback"] = self.formatException(record.exc_info)
            return json.dumps(line, ensure_ascii=False)

    handler = RotatingFileHandler(path, maxBytes=10_000_000, backupCount=3, encoding="utf-8")
    handler.setFormatter(Lines())
    root = logging.getLogger("radial")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
