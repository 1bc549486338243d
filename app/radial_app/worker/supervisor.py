"""Keeps a server's workers alive, and takes jobs of dead ones back."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from radial_app.jobs.store import JobStore
from radial_app.worker.overdue import GRACE_SECONDS, Overdue
from radial_app.worker.pool import WorkerPool

log = logging.getLogger("radial.server")

_TICK = 1.0


class Supervisor(threading.Thread):
    """Keeps workers alive and takes jobs of dead ones back, until told to stop."""

    def __init__(self, folder: Path, pool: WorkerPool, grace_seconds: float = GRACE_SECONDS) -> None:
        super().__init__(daemon=True, name="supervisor")
        self._folder, self._pool = folder, pool
        self._overdue = Overdue(grace_seconds)
        self._stop_it = threading.Event()
        self.problem = ""

    def run(self) -> None:
        """Look after them every second."""
        store: JobStore | None = None
        while not self._stop_it.wait(_TICK):
            try:
                store = store or JobStore(self._folder)
                self._pool.tend()
                store.recover()
                self._overdue.look(store)
                self.problem = ""
            except Exception as error:  # whatever it is: the next look may go well
                if self.problem != str(error):
                    log.error("%s", error)
                self.problem = str(error) or type(error).__name__
        if store is not None:
            store.close()

    def end(self) -> None:
        """Stop looking, and have the workers stop after their step."""
        self._stop_it.set()
        self.join()
        self._pool.stop(30)
        self._pool.kill()
        self._pool.stop_inherited(30)

    def health(self) -> str:
        """What is amiss; nothing where all is well."""
        return self.problem if self.is_alive() else "nobody looks after the workers any more"
