"""Who lives: file locks that workers hold, and that the operating system takes back however they die."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from radial.errors import OutputError
from radial.files import publish_text


class WorkerLocks:
    """Locks in the ``workers`` folder of a queue: one a worker, and one for each place that a device has for one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def alive(self, worker: str) -> Iterator[None]:
        """Count as living while the context lasts."""
        lock = FileLock(self.lock_path(worker))
        try:
            lock.acquire(timeout=10)  # somebody may just look whether it is held
            yield
        except Timeout as error:
            raise OutputError(f"cannot lock {self.lock_path(worker)}") from error
        finally:
            self.lock_path(worker).unlink(missing_ok=True)
            lock.release()

    @contextlib.contextmanager
    def if_dead(self, worker: str) -> Iterator[bool]:
        """Whether a worker is dead; nobody else can find out meanwhile."""
        lock = FileLock(self.lock_path(worker))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self.lock_path(worker).unlink(missing_ok=True)
            lock.release()

    def lock_path(self, worker: str) -> Path:
        """The file that a living worker holds."""
        return self._folder / f"{worker}.lock"

    @contextlib.contextmanager
    def slot(self, name: str) -> Iterator[bool]:
        """Take one of a device's places for workers while the context lasts; whether it was free."""
        lock = FileLock(self._folder / f"{name}.slot")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise OutputError(f"cannot lock {lock.lock_file}: {error.strerror}") from error
        try:
            yield True
        finally:
            lock.release()

    def sign(self, name: str, owner: str) -> None:
        """Note who holds a place: this process, for its owner."""
        publish_text(self._folder / f"{name}.pid", f"{os.getpid()} {owner}")

    def holder(self, name: str, owner: str) -> int | None:
        """The process that holds a place for an owner, if any does."""
        with self.slot(name) as free:
            if free:
                return None
        try:
            pid, of = (self._folder / f"{name}.pid").read_text().split()
            return int(pid) if of == owner else None
        except (OSError, ValueError):
            return None

    def living(self) -> list[str]:
        """Workers that live."""
        names = [path.stem for path in sorted(self._folder.glob("*.lock"))]
        living = []
        for name in names:
            with self.if_dead(name) as dead:
                living += [] if dead else [name]
        return living
