"""Workers that do not do what was asked of them: a step may take many minutes, a process may be stopped or hang."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Collection

import psutil

from radial_app.jobs.store import JobStore

log = logging.getLogger("radial.server")

GRACE_SECONDS = 60.0
_PROCESS = re.compile(r".+-(\d+)-[0-9a-f]{6}")  # in a worker's name


class Overdue:
    """Ends workers whose job was to be paused or given up a while ago, and has it settle as asked.

    Args:
        seconds: that a worker has, from one sign of progress to the next.
        jobs: the only ones that are looked at; all when left out.
    """

    def __init__(
        self, seconds: float = GRACE_SECONDS, clock: Callable[[], float] = time.monotonic,
        jobs: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        self._seconds, self._clock, self._jobs = seconds, clock, jobs
        self._since: dict[tuple[str, str, str, str, int], float] = {}

    def look(self, store: JobStore) -> None:
        """Look once; whoever keeps workers does so again and again.

        Raises:
            OutputError: the database cannot be read.
        """
        now = self._clock()
        asked = [key for key in store.asked() if self._jobs is None or key[0] in self._jobs]
        self._since = {key: self._since.get(key, now) for key in asked}
        for (job, worker, control, stage, _), since in self._since.items():
            # What is decoded or written soon ends, and is all that was made; whoever keeps a clip waits for its step.
            kept = control == "finish" or (control == "pause" and stage in ("decode", "write"))
            if now - since < self._seconds or kept:
                continue
            why = f"its worker was ended: it had not stopped {self._seconds:.0f} s after it was asked to"
            if _end(store, worker):
                log.warning("job %s: %s", job, why)
                _wait_for_end(store, worker)
                store.recover(reasons={worker: why})


def _end(store: JobStore, worker: str) -> bool:
    """Kill a worker's process, where it is one of this machine and holds that worker's lock; whether it was."""
    match = _PROCESS.fullmatch(worker)
    if match is None:
        return False
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(match[1]))
        lock = str(store.locks.lock_path(worker))
        if process.pid != os.getpid() and any(file.path == lock for file in process.open_files()):
            process.kill()  # a stopped one, too
            return True
    return False


def _wait_for_end(store: JobStore, worker: str) -> None:
    for _ in range(100):
        with store.locks.if_dead(worker) as dead:
            if dead:
                return
        time.sleep(0.05)
