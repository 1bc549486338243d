"""Going on inside a denoising run: what a step leaves behind, as a file, and how a pipeline takes it up again.

Everything happens around the scheduler's ``step``, which all pipelines call once a step. A run that goes on is an
ordinary call of the pipeline: it encodes the prompt and draws its noise as the first one did, the transformer stands
still through the steps that are done, and the last of those hands over the saved latents, scheduler and random state.
What follows is bit-identical to a run that was never stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from accelerate.utils import recursively_apply, send_to_device
from torch import Tensor

from radial.generation.snapshot import Part, Snapshot

# Pipelines with a scheduler that steps once a step, and maybe one for sound that steps after it. The others (LTX-2,
# whose sound has none of its own that is known, diffusion forcing with a scheduler a frame, Cosmos, which steps twice)
# start anew.
RESUMABLE = {
    "AllegroPipeline", "AnyFlowPipeline", "EasyAnimatePipeline", "HunyuanVideo15ImageToVideoPipeline",
    "HunyuanVideo15Pipeline",
    "HunyuanVideoFramepackPipeline", "HunyuanVideoImageToVideoPipeline", "HunyuanVideoPipeline",
    "Kandinsky5I2VPipeline", "Kandinsky5T2VPipeline",
    "LTXConditionPipeline",
    "LTXImageToVideoPipeline", "LTXPipeline", "MiniMaxH3Pipeline", "MochiPipeline", "SkyReelsV2ImageToVideoPipeline",
    "SkyReelsV2Pipeline", "WanAnimatePipeline", "WanImageToVideoPipeline", "WanPipeline", "WanVACEPipeline",
    "WanVideoToVideoPipeline",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Step:
    """A denoising step that just ended, for whoever follows the run.

    Attributes:
        step, steps: steps done, and of the whole run.
        clean_latents: what the finished clip's latents look like from here.
        snapshot: takes all that is needed to go on from here.
        can_finish: whether the clip can end here: one of several windows in its last one alone.
    """

    step: int
    steps: int
    clean_latents: Callable[[], Tensor] = field(repr=False)
    snapshot: Callable[[], Snapshot] = field(repr=False)
    can_finish: bool = True


OnStep = Callable[[Step], Literal["go on", "finish"]]
"""Told about every step. ``finish`` decodes what the clip looks like now, where it can; what it raises ends the run."""


class SchedulerPart:
    """A scheduler's attributes, save its configuration."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def state(self) -> dict[str, Any]:
        """Copies of them."""
        kept = {name: x for name, x in vars(self._scheduler).items() if name not in ("_internal_dict", "step")}
        return {name: recursively_apply(torch.clone, value) for name, value in kept.items()}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Set them, each tensor where a fresh run would have it."""
        for name, value in state.items():
            now = getattr(self._scheduler, name, None)
            place = now.device if isinstance(now, Tensor) else device
            setattr(self._scheduler, name, send_to_device(recursively_apply(torch.clone, value), place))


class GeneratorPart:
    """Where the noise is drawn from."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state(self) -> Tensor:
        """Its random state."""
        return self._generator.get_state()

    def restore(self, state: Tensor, device: torch.device) -> None:
        """Draw on from a state."""
        self._generator.set_state(state)


@contextmanager
def resumable_steps(
    pipe: Any, transformers: list[Any], parts: Mapping[str, Part], on_step: OnStep | None, snapshot: Snapshot | None,
    so_far: Callable[[], dict[str, Any]], windows: int = 1,
) -> Iterator[None]:  # fmt: skip
    """Tell ``on_step`` of the pipeline's steps, and take up the snapshot, while the context lasts.

    Args:
        parts: what the steps to come depend on beside latents and scheduler, by name.
        so_far: what else a snapshot says, by name.
        windows: how many times the pipeline goes through all steps.
    """
    if type(pipe).__name__ not in RESUMABLE:
        yield
        return
    schedulers = [pipe.scheduler]
    parts = {"scheduler": SchedulerPart(pipe.scheduler), **parts}
    sound = _SoundPart()
    if (other := getattr(pipe, "audio_scheduler", None)) is not None:
        schedulers.append(other)
        parts |= {"audio_scheduler": SchedulerPart(other), "audio_latents": sound}
    ended = _WindowsPart([] if snapshot is None else list(snapshot.parts.get("windows", ())), windows)
    if windows > 1:
        parts |= {"windows": ended}
    steps = _Steps(pipe, transformers, schedulers, parts, sound, ended, on_step, snapshot, so_far)
    own_steps = [scheduler.step for scheduler in schedulers]
    for index, (scheduler, own_step) in enumerate(zip(schedulers, own_steps, strict=True)):
        # Wrapped, as pipelines read the signature to see what a scheduler takes.
        scheduler.step = functools.wraps(own_step)(functools.partial(steps.step, index, own_step))
    try:
        _stand_still(transformers, snapshot is not None and snapshot.step > 0)
        yield
    finally:
        _stand_still(transformers, False)
        for scheduler in schedulers:
            del scheduler.step


class _SoundPart:
    """The latents of a clip's sound, which have a scheduler of their own."""

    latents: Tensor

    def state(self) -> Tensor:
        return self.latents.cpu()

    def restore(self, state: Tensor, device: torch.device) -> None:
        self.latents = state.to(device)


@dataclass(eq=False)
class _WindowsPart:
    """What each window of a clip that is done ended with: the pipeline makes frames of it, and goes on from these."""

    latents: list[Tensor]
    count: int

    def state(self) -> list[Tensor]:
        return list(self.latents)

    def restore(self, state: list[Tensor], device: torch.device) -> None:
        self.latents = list(state)


class _Steps:
    """A run's steps, of one scheduler or, where sound is denoised with the clip, of two: the clip's and the sound's.

    A step ends with the last scheduler's. ``sound`` holds what the second one made of the sound.
    """

    def __init__(
        self, pipe: Any, transformers: list[Any], schedulers: list[Any], parts: Mapping[str, Part], sound: _SoundPart,
        windows: _WindowsPart, on_step: OnStep | None, snapshot: Snapshot | None, so_far: Callable[[], dict[str, Any]],
    ) -> None:  # fmt: skip
        self._pipe, self._transformers, self._schedulers, self._parts = pipe, transformers, schedulers, parts
        self._sound, self._on_step, self._snapshot, self._so_far = sound, on_step, snapshot, so_far
        self._windows = windows
        self._done = 0
        self._latents: list[Tensor] = []  # what each scheduler's step returned
        self._clean: list[Callable[[], Tensor]] = []
        self._finished: list[Tensor] | None = None  # latents that the run ends with before its last step

    def step(
        self, index: int, own_step: Callable[..., Any], model_output: Tensor, timestep: Any, sample: Tensor,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """In place of a scheduler's step."""
        if index == 0:
            self._done += 1
            self._latents, self._clean = [], []
        as_tuple = not kwargs.get("return_dict", True)
        known = self._known(index, sample)
        if known is not None:
            return (known,) if as_tuple else SimpleNamespace(prev_sample=known)
        # Pipelines with two write a step's outcome over what it began with, before the other one's.
        began = sample if len(self._schedulers) == 1 else sample.clone()
        result = own_step(model_output, timestep, sample, *args, **kwargs)
        latents = result[0] if as_tuple else result.prev_sample
        self._latents.append(latents)
        self._clean.append(functools.partial(_clean_latents, self._schedulers[index], model_output, began, latents))
        if index == 1:
            self._sound.latents = latents
        if self._windows.count > 1 and self._done % self._a_window == 0:
            self._windows.latents.append(latents.to("cpu", copy=True))  # files hold no tensor twice
        if index + 1 < len(self._schedulers) or self._ended() == "go on":
            return result
        finished = self._finish()[index]
        return (finished,) if as_tuple else SimpleNamespace(prev_sample=finished)

    def _known(self, index: int, sample: Tensor) -> Tensor | None:
        """The outcome of a step that an earlier run did, or that is left out; None for one that is to be done."""
        if self._finished is not None:
            return self._finished[index]
        snapshot = self._snapshot
        if snapshot is None or self._done > snapshot.step:
            return None
        if self._done < snapshot.step:
            window, left = divmod(self._done, self._a_window)
            return (
                self._windows.latents[window - 1].to(sample.device) if self._windows.count > 1 and not left else sample
            )
        if index == 1:
            return self._sound.latents
        _stand_still(self._transformers, False)
        for name, part in self._parts.items():
            if name in snapshot.parts:
                part.restore(snapshot.parts[name], sample.device)
        return snapshot.latents.to(sample.device)

    @property
    def _a_window(self) -> int:
        """Steps of a window."""
        # Of those that the scheduler has, making a clip over leaves the first ones out.
        return getattr(self._pipe, "_num_timesteps", None) or len(self._schedulers[0].timesteps)

    def _ended(self) -> Literal["go on", "finish"]:
        """Tell that a step ended: whether the run goes on."""
        steps = self._a_window * self._windows.count

        def take() -> Snapshot:
            states = {name: part.state() for name, part in self._parts.items()}
            return Snapshot(self._done, steps, self._latents[0].cpu(), states, **self._so_far())

        if self._on_step is None:
            return "go on"
        can_finish = self._done > steps - self._a_window
        wish = self._on_step(Step(self._done, steps, self._clean[0], take, can_finish))
        return wish if can_finish and self._done < steps else "go on"

    def _finish(self) -> list[Tensor]:
        """End the run with what the finished clip looks like now."""
        self._pipe._interrupt = True  # pipelines skip the steps that are left and decode
        self._finished = [clean().to(x.dtype) for clean, x in zip(self._clean, self._latents, strict=True)]
        if len(self._schedulers) > 1:  # which has no such way out: its transformer has nothing more to do
            _stand_still(self._transformers, True)
        return self._finished


def _stand_still(transformers: list[Any], still: bool) -> None:
    """Whether transformers hand back what they are given, for steps whose outcome is known."""
    for transformer in transformers:
        if still:
            transformer._radial_forward = transformer.forward
            transformer.forward = _echo
        elif stands_still(transformer):
            transformer.forward = vars(transformer).pop("_radial_forward")


def stands_still(transformer: Any) -> bool:
    """Whether a transformer hands back what it is given."""
    return "_radial_forward" in vars(transformer)


def _echo(*args: Any, **kwargs: Any) -> Any:
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    if kwargs.get("return_dict", True):
        return SimpleNamespace(sample=hidden_states)
    sound = kwargs.get("audio_hidden_states")
    return (hidden_states,) if sound is None else (hidden_states, sound)


def _clean_latents(scheduler: Any, model_output: Tensor, sample: Tensor, latents: Tensor) -> Tensor:
    """Where the step's velocity points to: x_0 = x_sigma - sigma v, or + where it leads from noise to the clip. Latents
    as they are, where the scheduler does not work with velocities or the model's output has another shape."""
    index, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    if index is None or sigmas is None or prediction != "flow_prediction" or model_output.shape != sample.shape:
        return latents
    sigma = sigmas[index - 1].to(sample.device, torch.float32)  # the scheduler has moved on already
    towards = 1 if type(scheduler).__name__ == "MiniMaxH3Scheduler" else -1
    return (sample.float() + towards * sigma * model_output.float()).to(latents.dtype)
