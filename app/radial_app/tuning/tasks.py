"""Long tasks of a server that run as processes of their own. They outlive it, and whoever looks finds them again.

A task's process holds a file lock that it inherits, so that it counts as living exactly as long as it does, however it
and the server that started it end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from radial.errors import OutputError, RequestError
from radial.files import publish_text

_LOG_END = 16_384  # bytes


class Task:
    """A command of ours, its log, and what was told about it, in a folder.

    Attributes:
        folder: holds ``task.json``, ``task.lock`` and ``output.log``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, arguments: Sequence[str], **told: Any) -> None:
        """Run ``radial`` with these arguments; ``told`` is kept beside it.

        Raises:
            RequestError: it runs already.
            OutputError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock(fcntl.LOCK_EX) as lock:
                if lock is None:
                    raise RequestError(f"{self.folder.name} is at work already")
                # The whole width: an error is one line.
                environment = os.environ | {"COLUMNS": "2000", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
                with (self.folder / "output.log").open("wb") as log:
                    process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "radial_app", *arguments], cwd=self.folder, env=environment,
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,),
                    )  # fmt: skip
                self._tell(told | {"pid": process.pid, "started": time.time(), "stopping": False})
        except OSError as error:
            raise OutputError(f"cannot start a task in {self.folder}: {error.strerror}") from error

    @property
    def told(self) -> dict[str, Any]:
        """What was told when it was started, and ``pid``, ``started``, ``stopping``; empty before."""
        return read_json(self.folder / "task.json")

    @property
    def living(self) -> bool:
        """Whether its process runs."""
        with self._lock(fcntl.LOCK_SH) as lock:
            return lock is None

    def stop(self) -> bool:
        """Ask it to stop as Ctrl+C would; whether it was running."""
        told = self.told
        if not self.living or "pid" not in told:
            return False
        self._tell(told | {"stopping": True})
        with contextlib.suppress(ProcessLookupError):
            os.kill(told["pid"], signal.SIGINT)
        return True

    def wait(self, seconds: float) -> bool:
        """Whether it ended in that time."""
        deadline = time.monotonic() + seconds
        while (running := self.living) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not running

    def log(self) -> list[str]:
        """The last lines that it printed."""
        try:
            with (self.folder / "output.log").open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_END))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def last_words(self) -> str:
        """The last line that it printed: where it failed, why."""
        log = self.log()
        return log[-1] if log else "it ended without a word"

    def _tell(self, told: dict[str, Any]) -> None:
        publish_text(self.folder / "task.json", json.dumps(told))

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[int | None]:
        """The lock's descriptor while the context lasts; None where the process, or a start of it, holds it."""
        path = self.folder / "task.lock"
        if kind == fcntl.LOCK_SH and not path.exists():
            yield -1
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + (0.5 if kind == fcntl.LOCK_EX else 0.0)  # somebody may just look
            while True:
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        yield None
                        return
                    time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file that another process writes; empty where there is none yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def run_command(arguments: Sequence[str]) -> str:
    """What a short command of ours prints.

    Raises:
        RequestError: it fails, in its own words.
    """
    environment = os.environ | {"COLUMNS": "2000", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "radial_app", *arguments], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise RequestError(last.removeprefix("error: "))
    return done.stdout
