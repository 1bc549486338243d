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

# Pipelines with one scheduler that steps once a step. The others (LTX-2 with its audio, diffusion forcing with a
# scheduler a frame, Cosmos, which steps twice) start anew.
RESUMABLE = {
    "AllegroPipeline", "EasyAnimatePipeline", "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline",
    "HunyuanVideoImageToVideoPipeline", "HunyuanVideoPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2VPipeline",
    "LTXImageToVideoPipeline", "LTXPipeline", "MochiPipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Pipeline",
    "WanImageToVideoPipeline", "WanPipeline", "WanVACEPipeline",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Step:
    """A denoising step that just ended, for whoever follows the run.

    Attributes:
        step, steps: steps done, and of the whole run.
        clean_latents: what the finished clip's latents look like from here.
        snapshot: takes all that is needed to go on from here.
    """

    step: int
    steps: int
    clean_latents: Callable[[], Tensor] = field(repr=False)
    snapshot: Callable[[], Snapshot] = field(repr=False)


OnStep = Callable[[Step], Literal["go on", "finish"]]
"""Told about every step. ``finish`` decodes what the clip looks like now; what it raises ends the run."""


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
    so_far: Callable[[], dict[str, Any]],
) -> Iterator[None]:  # fmt: skip
    """Tell ``on_step`` of the pipeline's steps, and take up the snapshot, while the context lasts.

    Args:
        parts: what the steps to come depend on beside latents and scheduler, by name.
        so_far: what else a snapshot says, by name.
    """
    scheduler = pipe.scheduler
    if type(pipe).__name__ not in RESUMABLE:
        yield
        return
    parts = {"scheduler": SchedulerPart(scheduler), **parts}
    own_step = scheduler.step
    done = 0

    @functools.wraps(own_step)  # pipelines read the signature to see what a scheduler takes
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        as_tuple = not kwargs.get("return_dict", True)
        if snapshot is not None and done <= snapshot.step:
            taken = sample
            if done == snapshot.step:
                _stand_still(transformers, False)
                for name, part in parts.items():
                    if name in snapshot.parts:
                        part.restore(snapshot.parts[name], sample.device)
                taken = snapshot.latents.to(sample.device)
            return (taken,) if as_tuple else SimpleNamespace(prev_sample=taken)
        result = own_step(model_output, timestep, sample, *args, **kwargs)
        latents = result[0] if as_tuple else result.prev_sample
        steps = len(scheduler.timesteps)

        def clean() -> Tensor:
            return _clean_latents(scheduler, model_output, sample, latents)

        def take() -> Snapshot:
            states = {name: part.state() for name, part in parts.items()}
            return Snapshot(done, steps, latents.cpu(), states, **so_far())

        if on_step is not None and on_step(Step(done, steps, clean, take)) == "finish" and done < steps:
            pipe._interrupt = True  # pipelines skip the steps that are left and decode
            finished = clean().to(latents.dtype)
            return (finished,) if as_tuple else SimpleNamespace(prev_sample=finished)
        return result

    scheduler.step = step
    try:
        _stand_still(transformers, snapshot is not None and snapshot.step > 0)
        yield
    finally:
        _stand_still(transformers, False)
        del scheduler.step


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
    return SimpleNamespace(sample=hidden_states) if kwargs.get("return_dict", True) else (hidden_states,)


def _clean_latents(scheduler: Any, model_output: Tensor, sample: Tensor, latents: Tensor) -> Tensor:
    """Where the step's velocity points to: x_0 = x_sigma - sigma v. Latents as they are, where the scheduler does not
    work with velocities or the model's output has another shape."""
    index, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    if index is None or sigmas is None or prediction != "flow_prediction" or model_output.shape != sample.shape:
        return latents
    sigma = sigmas[index - 1].to(sample.device, torch.float32)  # the scheduler has moved on already
    return (sample.float() - sigma * model_output.float()).to(latents.dtype)
