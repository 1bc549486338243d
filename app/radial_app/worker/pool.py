"""Worker processes of this machine: one for each device, started anew when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from radial.errors import OutputError
from radial.loading.devices import gpu_memory
from radial_app.jobs.store import JobStore

_LONG = 30.0  # seconds that a worker lives which did not die of how it was started
_QUICK_DEATHS = 20
_PAUSE = 60.0  # seconds between two attempts then


def own_devices() -> list[str]:
    """The devices of this machine that a worker each is for."""
    return [f"cuda:{index}" for index in range(len(gpu_memory()))] or ["cpu"]


class WorkerPool:
    """Workers as processes of their own, which outlive this one.

    Args:
        store: the queue.
        devices: one worker each, or ``per_device``.
        batch: the only batch that they render; all when left out.
        until_idle: whether they end when nothing waits.
        pack: whether they render jobs together where that pays.
    """

    def __init__(
        self, store: JobStore, devices: Sequence[str], *, per_device: int = 1, batch: str | None = None,
        until_idle: bool = True, snapshot_seconds: float = 30.0, owner: str = "render",
        pack: bool = True,
    ) -> None:  # fmt: skip
        self._store, self._owner = store, owner
        places = [
            (device, f"{device.replace(':', '-')}-{number}") for device in devices for number in range(per_device)
        ]
        self._commands = {
            slot: [
                # -P: the folder that it happens to be called in brings no modules.
                sys.executable, "-P", "-m", "radial_app", "work", "--device", device, "--slot", slot, "--owner", owner,
                "--data-dir", str(store.folder), "--snapshot-seconds", str(snapshot_seconds),
                *(["--until-idle"] if until_idle else []), *(["--batch", batch] if batch else []),
                *([] if pack else ["--no-pack"]),
            ]
            for device, slot in places
        }  # fmt: skip
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, float] = {}
        self._quick_deaths = 0

    def tend(self) -> None:
        """Start workers in all places that are free: at the beginning, and after a worker died. Jobs that kill their
        workers fail by themselves; places that other pools' workers hold are theirs.

        Raises:
            OutputError: workers die as soon as they start; after a while it tries again.
        """
        for slot, command in self._commands.items():
            process = self._processes.get(slot)
            if process is not None and process.poll() is None:
                continue
            lived = time.monotonic() - self._started.get(slot, 0.0)
            if process is not None and process.returncode:
                self._quick_deaths = 0 if lived > _LONG else self._quick_deaths + 1
            self._processes.pop(slot, None)
            if self._quick_deaths > _QUICK_DEATHS * len(self._commands) and lived < _PAUSE:
                raise OutputError(f"workers die as soon as they start; see {self._log}")
            with self._store.locks.slot(slot) as free:
                pass
            if free:
                self._processes[slot] = self._spawn(command)
                self._started[slot] = time.monotonic()

    @property
    def _log(self) -> Path:
        return self._store.folder / "logs" / "workers.txt"

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            # A session of its own: Ctrl+C in this terminal, or its end, is not theirs.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    @property
    def alive(self) -> bool:
        """Whether any of them runs."""
        return any(process.poll() is None for process in self._processes.values())

    def stop(self, seconds: float) -> bool:
        """Have them stop after the step they are at; whether all did in time."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.alive

    def kill(self) -> None:
        """End them now; what they were at goes on from its last snapshot."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def stop_inherited(self, seconds: float) -> None:
        """Have workers that an earlier pool of this owner left in these places stop after their step, or end them."""
        deadline = time.monotonic() + seconds
        for slot in self._commands:
            asked = False
            while (holder := self._store.locks.holder(slot, self._owner)) is not None:
                late = time.monotonic() > deadline
                with contextlib.suppress(ProcessLookupError):
                    if late or not asked:
                        os.kill(holder, signal.SIGKILL if late else signal.SIGTERM)
                asked = True
                time.sleep(0.1)
