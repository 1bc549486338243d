"""What a run tells while it goes: stages, steps, notes, and how long each stage took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from radial.attention.probe import Figures
from radial.errors import DeviceLost, GenerationError, first_line
from radial.generation.snapshot import Snapshot

Stage = Literal["load", "download", "encode", "denoise", "decode", "finish"]


@dataclass(frozen=True)
class Event:
    """Progress: a stage began (``step`` 0), a denoising step ended, megabytes of a download came or frames were
    finished, or there is a ``note`` for the user. ``video`` counts from 0. Of a step that was looked at, the ``recall``
    and ``attention_error`` of its sparse layers; see :class:`radial.attention.probe.Figures`."""

    stage: Stage
    step: int = 0
    steps: int = 0
    video: int = 0
    note: str = ""
    recall: float | None = None
    attention_error: float | None = None


OnEvent = Callable[[Event], None]


@contextlib.contextmanager
def device_errors(
    device: torch.device, hint: Callable[[], str], latents: Callable[[], Tensor | None] = lambda: None
) -> Iterator[None]:
    """PyTorch's errors of a device in the user's words.

    Args:
        hint: where memory ran out, and what helps.
        latents: the last good ones.

    Raises:
        DeviceLost: the device has stopped answering.
        GenerationError: its memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GenerationError(f"out of memory on {device} {hint()}", latents()) from error
    except torch.AcceleratorError as error:
        raise DeviceLost(f"{device} has stopped answering ({first_line(error)})", latents()) from error


class Watch:
    """Follows one run of a pipeline: tells the stages and steps, times them, and keeps the last good latents."""

    def __init__(self, steps: int, on_event: OnEvent, snapshot: Snapshot | None = None, windows: int = 1) -> None:
        self.steps, self.on_event = steps * windows, on_event
        self._windows, self._ended = windows, 0
        self._done = snapshot.step if snapshot else 0
        self._before = snapshot.seconds if snapshot else {}
        self.marks: dict[Stage, float] = {}
        self.latents: Tensor | None = None
        self.look: Callable[[], Figures | None] = lambda: None  # at how far the step's attention is off
        self._timesteps: list[float] = []

    def begin(self, stage: Stage) -> None:
        between = stage == "decode" and self._windows > 1 and self._ended < self.steps  # windows are decoded in between
        if stage not in self.marks and not between:
            self.marks[stage] = time.monotonic()
            self.on_event(Event(stage, 0, self.steps))

    def after_step(self, _pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """What pipelines call after every step; steps count over all windows."""
        self._ended += 1
        latents = tensors["latents"]
        if not torch.isfinite(latents).all():
            raise GenerationError(
                f"the latents stopped being numbers at step {self._ended} of {self.steps}; try float32",
                latents=self.latents,
            )
        self.latents = latents.cpu()
        self._end_step(self._ended)
        return {}

    def before_call(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """For pipelines that call nothing after a step: a new timestep says that the last step ended."""
        self.begin("denoise")
        timestep = float(kwargs["timestep"].flatten()[0]) if "timestep" in kwargs else None
        if timestep is not None and timestep not in self._timesteps:
            self._timesteps.append(timestep)
            if len(self._timesteps) > 1:
                self._end_step(len(self._timesteps) - 1)

    def _end_step(self, step: int) -> None:
        if step >= self._done:  # those before were done in an earlier run
            recall, error = self.look() or (None, None)
            self.on_event(Event("denoise", step, self.steps, recall=recall, attention_error=error))
        if step == self.steps:
            self.begin("decode")

    def timings(self) -> dict[str, float]:
        ends = [*self.marks.values(), time.monotonic()]
        return {
            stage: round(ends[i + 1] - ends[i] + self._before.get(stage, 0.0), 3) for i, stage in enumerate(self.marks)
        }
