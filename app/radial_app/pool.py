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
from radial_app.store import JobStore


def own_devices() -> list[str]:
    """The devices of this machine that a worker each is for."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


class WorkerPool:
    """Workers as processes of their own, which outlive this one.

    Args:
        store: the queue.
        devices: one worker each, or ``per_device``.
        batch: the only batch that they render; all when left out.
        until_idle: whether they end when nothing waits.
    """

    def __init__(
        self, store: JobStore, devices: Sequence[str], *, per_device: int = 1, batch: str | None = None,
        until_idle: bool = True, snapshot_seconds: float = 30.0,
    ) -> None:  # fmt: skip
        self._store = store
        places = [
            (device, f"{device.replace(':', '-')}-{number}") for device in devices for number in range(per_device)
        ]
        self._commands = {
            slot: [
                sys.executable, "-m", "radial_app", "work", "--device", device, "--slot", slot,
                "--data-dir", str(store.folder), "--snapshot-seconds", str(snapshot_seconds),
                *(["--until-idle"] if until_idle else []), *(["--batch", batch] if batch else []),
            ]
            for device, slot in places
        }  # fmt: skip
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._deaths = 0

    def tend(self) -> None:
        """Start workers in all places that are free: at the beginning, and after a worker died. Jobs that kill their
        workers fail by themselves; places that other pools' workers hold are theirs.

        Raises:
            OutputError: workers keep dying.
        """
        for slot, command in self._commands.items():
            process = self._processes.get(slot)
            if process is not None and process.poll() is None:
                continue
            if process is not None and process.returncode:
                self._deaths += 1
                if self._deaths > 100 * len(self._commands):
                    raise OutputError(f"workers keep dying; see {self._log}")
            self._processes.pop(slot, None)
            with self._store.slot(slot) as free:
                pass
            if free:
                self._processes[slot] = self._spawn(command)

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
        """Have workers that an earlier pool left in these places stop after their step, or end them."""
        deadline = time.monotonic() + seconds
        for slot in self._commands:
            asked = False
            while (holder := self._store.slot_holder(slot)) is not None:
                late = time.monotonic() > deadline
                with contextlib.suppress(ProcessLookupError):
                    if late or not asked:
                        os.kill(holder, signal.SIGKILL if late else signal.SIGTERM)
                asked = True
                time.sleep(0.1)
