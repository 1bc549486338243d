"""Going on inside a denoising run: what a step leaves behind, as a file, and how a pipeline takes it up again.

Everything happens around the scheduler's ``step``, which all pipelines call once a step. A run that goes on is an
ordinary call of the pipeline: it encodes the prompt and draws its noise as the first one did, the transformer stands
still through the steps that are done, and the last of those hands over the saved latents, scheduler and random state.
What follows is bit-identical to a run that was never stopped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from radial.errors import OutputError
from radial.files import publish

# Pipelines with one scheduler that steps once a step. The others (LTX-2 with its audio, diffusion forcing with a
# scheduler a frame, Cosmos, which steps twice) start anew.
RESUMABLE = {
    "AllegroPipeline", "EasyAnimatePipeline", "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline",
    "HunyuanVideoImageToVideoPipeline", "HunyuanVideoPipeline", "Kandinsky5I2VPipeline", "Kandinsky5T2VPipeline",
    "LTXImageToVideoPipeline", "LTXPipeline", "MochiPipeline", "SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Pipeline",
    "WanImageToVideoPipeline", "WanPipeline", "WanVACEPipeline",
}  # fmt: skip
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run after a step: all that the steps to come depend on.

    Attributes:
        step, steps: steps done, and steps of the whole run.
        latents: what the scheduler's step returned.
        scheduler: the scheduler's attributes.
        generator: state of the noise generator.
        counted: attention computed so far, and what dense attention would have computed.
        attention: what the receipt says of attention so far.
        seconds: time spent on each stage so far.
        about: what the run is of; a snapshot of another run must not be taken up.
    """

    step: int
    steps: int
    latents: Tensor = field(repr=False)
    scheduler: dict[str, Any] = field(repr=False)
    generator: Tensor = field(repr=False)
    counted: tuple[float, float] = (0.0, 0.0)
    attention: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    about: str = ""

    def write(self, path: Path) -> None:
        """Write it as safetensors, in place of an earlier one.

        Raises:
            OutputError: the place cannot be written; what was there is as it was.
        """
        from safetensors.torch import save_file

        tensors = {"latents": self.latents.contiguous(), "generator": self.generator}
        plain = {
            "format": _FORMAT, "step": self.step, "steps": self.steps, "counted": self.counted,
            "attention": self.attention, "seconds": self.seconds, "about": self.about,
            "scheduler": _pack(self.scheduler, "scheduler", tensors),
        }  # fmt: skip
        metadata = {"radial": json.dumps(plain)}
        publish(path, lambda partial: save_file(tensors, partial, metadata), overwrite=True)


def read_snapshot(path: Path, about: str) -> Snapshot | None:
    """The snapshot in a file; None where there is none of this run, or where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            plain = json.loads((file.metadata() or {}).get("radial", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if plain.get("format") != _FORMAT or plain["about"] != about:
            return None
        return Snapshot(
            plain["step"], plain["steps"], tensors["latents"], _unpack(plain["scheduler"], tensors),
            tensors["generator"], tuple(plain["counted"]), plain["attention"], plain["seconds"], about,
        )  # fmt: skip
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


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


@contextmanager
def resumable_steps(
    pipe: Any, transformers: list[Any], generator: torch.Generator, on_step: OnStep | None, snapshot: Snapshot | None,
    counter: Any, so_far: Callable[[], dict[str, Any]],
) -> Iterator[None]:  # fmt: skip
    """Tell ``on_step`` of the pipeline's steps, and take up the snapshot, while the context lasts.

    Args:
        generator: the one the pipeline is called with.
        counter: has ``counted``, which goes on from the snapshot's; None where there is nothing to count.
        so_far: what else a snapshot holds, by name.
    """
    scheduler = pipe.scheduler
    if type(pipe).__name__ not in RESUMABLE:
        yield
        return
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
                _restore(scheduler, snapshot, sample.device)
                generator.set_state(snapshot.generator)
                if counter is not None:
                    counter.counted = snapshot.counted
                taken = snapshot.latents.to(sample.device)
            return (taken,) if as_tuple else SimpleNamespace(prev_sample=taken)
        result = own_step(model_output, timestep, sample, *args, **kwargs)
        latents = result[0] if as_tuple else result.prev_sample
        steps = len(scheduler.timesteps)

        def clean() -> Tensor:
            return _clean_latents(scheduler, model_output, sample, latents)

        def take() -> Snapshot:
            counted = (0.0, 0.0) if counter is None else counter.counted
            state = _state(scheduler)
            return Snapshot(done, steps, latents.cpu(), state, generator.get_state(), counted, **so_far())

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
        elif "_radial_forward" in vars(transformer):
            transformer.forward = vars(transformer).pop("_radial_forward")


def _echo(*args: Any, **kwargs: Any) -> Any:
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return SimpleNamespace(sample=hidden_states) if kwargs.get("return_dict", True) else (hidden_states,)


def _state(scheduler: Any) -> dict[str, Any]:
    """A scheduler's attributes, save its configuration; tensors as copies."""
    kept = {name: value for name, value in vars(scheduler).items() if name not in ("_internal_dict", "step")}
    return {name: _copy(value) for name, value in kept.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_copy(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _restore(scheduler: Any, snapshot: Snapshot, device: torch.device) -> None:
    """Give the scheduler its attributes back, each tensor where a fresh run would have it."""
    for name, value in snapshot.scheduler.items():
        now = getattr(scheduler, name, None)
        place = now.device if isinstance(now, Tensor) else device
        setattr(scheduler, name, _to(_copy(value), place))


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_to(entry, device) for entry in value] if isinstance(value, list) else value


def _clean_latents(scheduler: Any, model_output: Tensor, sample: Tensor, latents: Tensor) -> Tensor:
    """Where the step's velocity points to: x_0 = x_sigma - sigma v. Latents as they are, where the scheduler does not
    work with velocities or the model's output has another shape."""
    index, sigmas = getattr(scheduler, "step_index", None), getattr(scheduler, "sigmas", None)
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    if index is None or sigmas is None or prediction != "flow_prediction" or model_output.shape != sample.shape:
        return latents
    sigma = sigmas[index - 1].to(sample.device, torch.float32)  # the scheduler has moved on already
    return (sample.float() - sigma * model_output.float()).to(latents.dtype)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values for JSON, with tensors put aside by name."""
    if isinstance(value, Tensor):
        tensors[name] = value.cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"entries": {key: _pack(entry, f"{name}.{key}", tensors) for key, entry in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(entry, f"{name}.{place}", tensors) for place, entry in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # numbers of numpy
        return value.item()
    raise OutputError(f"cannot keep the scheduler's {name}: it is a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(entry, tensors) for key, entry in value["entries"].items()}
    return [_unpack(entry, tensors) for entry in value] if isinstance(value, list) else value
