"""How much of a model's velocity changes where one layer at a time attends sparsely, at each part of a run.

That a layer's own output differs says little: what counts is what becomes of it. So every planner is tried in every
layer alone, on what the transformer is given in a dense run, and its whole output is held against the dense one. (The
gradient of that difference is zero at dense attention, so that one backward pass does not tell it.)

Shapes: K parts of a run, L layers, M planners.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from radial.attention.families.find import find_family
from radial.attention.install import RadialAttention, apply, transformers_of
from radial.errors import GenerationError, RequestError
from radial.files import check_output
from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel, load
from radial.plans.measured.policy_file import MAX_DENSITIES, About, PolicyFile
from radial.plans.planner import AdaptivePlanner
from radial.plans.policy import DENSE
from radial.profiling.progress import Progress
from radial.request import GenerationRequest
from radial.version import __version__

DENSITIES = (0.15, 0.3, 0.5)
PARTS = 5
_TIMED = 3  # calls, of which the median counts
OnProgress = Callable[[int, int], None]


def profile(
    request: GenerationRequest, prompts: Sequence[str], output: Path, *, densities: Sequence[float] = DENSITIES,
    parts: int = PARTS, overwrite: bool = False, model: LoadedModel | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> PolicyFile:  # fmt: skip
    """Measure a model on some prompts, and write the file that policies are made of.

    Where it was stopped, it goes on with what is kept beside ``output``; numbers that are there are not measured again.

    Args:
        request: of the clips, its prompt but an example; adaptive attention's settings are those that it resolves to.
        densities: of the planners to try.
        parts: of a run, at the middle step of each of which is measured; at most as many as there are steps.
        model: loaded before.
        on_progress: told numbers measured, and of the whole.

    Raises:
        RequestError: a value is out of place, or another profile's numbers are in the way.
        ModelError: the model cannot be loaded.
        OutputError: the output cannot be written.
    """
    kind = {"attention": "adaptive", "policy": None, "target_share": None, "target_speed": None}
    once = {"seed": max(0, request.seed), "num_videos": 1, "cache": "off", "batched_guidance": False}
    request = request.with_values(**kind, **once).resolve()
    steps = request.computed_steps
    if not prompts:
        raise RequestError("prompts must be one at least")
    if not 1 <= parts <= steps:
        raise RequestError(f"parts must be 1 to {steps}, the steps of the run, not {parts}")
    densities = tuple(sorted(set(densities)))
    if not 1 <= len(densities) <= MAX_DENSITIES or densities[0] < 0.02 or densities[-1] > 0.95:
        raise RequestError(f"densities must be 1 to {MAX_DENSITIES} from 0.02 to 0.95, not {densities}")
    check_output(output, ".safetensors", overwrite=overwrite)
    model = model or load(request)
    transformers = transformers_of(model.pipe)
    layers = len(find_family(transformers[0]).self_attentions(transformers[0]))
    settings = request.attention_settings
    about = About(
        model=Path(model.spec.name).name, grid=_grid(request, model), height=request.clip_height,
        width=request.clip_width, num_frames=request.clip_frames, num_inference_steps=steps, densities=densities,
        block_size=settings.block_size, far_field=settings.far_field, token_order=settings.token_order,
        sink_frames=settings.sink_frames, prompts=len(prompts), weights=model.fingerprint, loras=model.loras,
        device=_device_name(model.device), radial=__version__,
    )  # fmt: skip
    kept = Progress(output.with_name(f"{output.name}.progress"), _digest(request, about, prompts, parts))
    total = len(prompts) * parts * layers * len(densities)
    on_progress(len(kept.errors), total)
    chosen = _Chosen()
    planners = [AdaptivePlanner(density, settings.block_size, settings.sink_frames) for density in densities]
    with apply(
        model.pipe, planners=planners, policy=chosen, block_size=settings.block_size, far_field=settings.far_field,
        token_order=settings.token_order, eight_bit=request.precision == "eight_bit",
    ) as installed:  # fmt: skip
        middles = _middles(parts, steps)
        for number, prompt in enumerate(prompts):
            looks = _Looks(installed, chosen, kept, number, middles, layers, len(densities), model.device)
            looks.on_progress = lambda: on_progress(len(kept.errors), total)
            if not looks.left:
                continue
            dense = request.with_values(prompt=prompt, attention="dense", far_field="drop", token_order="raster")
            with looks.at(transformers), contextlib.suppress(_EnoughError):
                for _ in generate(dense, model=model):
                    pass
            if looks.left:
                raise GenerationError(f"the run of {prompt[:60]!r} had no step {looks.left[0]}")
    shape = (len(prompts), parts, layers, len(densities))
    error = np.array([kept.errors[place] for place in np.ndindex(shape)], np.float32).reshape(shape).mean(0)
    clip = request.grid(model.spec)
    shares = [1.0, *(settings.share_computed(settings.sketch(clip, density).density) for density in densities)]
    found = PolicyFile(about, error, np.array(shares, np.float32), np.array(kept.seconds, np.float32))
    found.write(output, overwrite=overwrite)
    kept.path.unlink(missing_ok=True)
    return found


class _Chosen:
    """A policy: dense, but for one layer, or for all."""

    planner, layer = DENSE, -1

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        return self.planner if self.layer in (layer, -1) else DENSE


class _EnoughError(Exception):
    """All that is wanted of a run was seen."""


class _Looks:
    """What is measured of one prompt's run.

    Attributes:
        left: steps that are still to be measured.
    """

    def __init__(
        self, installed: RadialAttention, chosen: _Chosen, kept: Progress, prompt: int, middles: Sequence[int],
        layers: int, planners: int, device: torch.device,
    ) -> None:  # fmt: skip
        self._installed, self._chosen, self._kept, self._prompt = installed, chosen, kept, prompt
        self._middles, self._layers, self._planners, self._device = middles, layers, planners, device
        self.left = [step for part, step in enumerate(middles) if list(self._wanted(part)) or not kept.seconds]
        self.on_progress: Callable[[], None] = lambda: None

    def _wanted(self, part: int) -> Iterator[tuple[int, int, int, int]]:
        for layer, planner in np.ndindex(self._layers, self._planners):
            if (place := (self._prompt, part, layer, planner)) not in self._kept.errors:
                yield place

    @contextlib.contextmanager
    def at(self, transformers: Sequence[nn.Module]) -> Iterator[None]:
        """Measure in the calls of transformers, which compute densely what they hand back."""
        own = [transformer.forward for transformer in transformers]
        try:
            for transformer, forward in zip(transformers, own, strict=True):
                transformer.forward = self._measuring(forward)
            yield
        finally:
            for transformer, forward in zip(transformers, own, strict=True):
                transformer.forward = forward

    def _measuring(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            def compute(planner: int, layer: int = -1) -> Any:
                self._chosen.planner, self._chosen.layer = planner, layer
                try:
                    return forward(*args, **kwargs)
                finally:
                    self._chosen.planner, self._chosen.layer = DENSE, -1

            real = compute(DENSE)
            step = self._installed.context.step
            if step in self.left:  # the first call of a step: with the prompt, where there is one without it
                self.left.remove(step)
                self._measure(self._middles.index(step), velocity_of(real), compute)
                if not self.left:
                    raise _EnoughError
            return real

        return call

    def _measure(self, part: int, real: Tensor, compute: Callable[..., Any]) -> None:
        if not self._kept.seconds:
            self._kept.add_seconds([self._seconds(compute, one) for one in range(self._planners + 1)])
        for place in list(self._wanted(part)):
            _, _, layer, planner = place
            ours = velocity_of(compute(planner + 1, layer))
            error = float((ours - real).square().sum() / real.square().sum())
            self._kept.add(place, error)
            self.on_progress()

    def _seconds(self, compute: Callable[..., Any], planner: int) -> float:
        """Of a call with all layers alike; of a CPU those of all its cores, which other programs do not change."""
        on_gpu = self._device.type == "cuda"
        clock, taken = time.perf_counter if on_gpu else time.process_time, []
        for _ in range(_TIMED):
            began = clock()
            compute(planner)
            if on_gpu:
                torch.cuda.synchronize(self._device)
            taken.append(clock() - began)
        return statistics.median(taken)


def velocity_of(output: Any) -> Tensor:
    """What a transformer's call predicts of the clip."""
    found = output[0] if isinstance(output, (tuple, list)) else output.sample
    return found.float()


def _middles(parts: int, steps: int) -> list[int]:
    """The middle step of each part, as :class:`~radial.plans.policy.TablePolicy` has them."""
    found = []
    for part in range(parts):
        own = [step for step in range(steps) if step * parts // steps == part]
        found.append(own[len(own) // 2])
    return found


def _grid(request: GenerationRequest, model: LoadedModel) -> tuple[int, int, int]:
    grid = request.grid(model.spec)
    return grid.frames, grid.height, grid.width


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _digest(request: GenerationRequest, about: About, prompts: Sequence[str], parts: int) -> str:
    """Tells a profile: numbers of another one are not taken up."""
    left_out = {"prompt", "device", "memory"} | request.later_fields()
    told = [about.model_dump(mode="json"), request.model_dump(mode="json", exclude=left_out), list(prompts), parts]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]
