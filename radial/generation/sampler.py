"""The scheduler of a request: the model's own, or another that keeps the model's shift of the noise schedule; and the
guidance of pipelines that keep it in a part of their own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from radial.errors import RequestError


def scheduler_for(pipe: Any, sampler: str, flow_shift: float | None, generator: torch.Generator | None = None) -> Any:
    """The scheduler of a request's sampler and shift; the model's own where it asks for neither.

    Args:
        generator: where ``lcm`` draws the noise that it adds after each step.

    Raises:
        RequestError: the model is no flow model, which alone these samplers and shifts are for.
    """
    own = pipe.scheduler
    if sampler == "model" and flow_shift is None:
        return own
    import diffusers

    if not is_flow(own):
        what = f"sampler {sampler}" if sampler != "model" else f"flow_shift {flow_shift:g}"
        raise RequestError(
            f"{what} is for flow models, and this one denoises by its {type(own).__name__}; take sampler model and no "
            "flow_shift"
        )
    euler, unipc = diffusers.FlowMatchEulerDiscreteScheduler, diffusers.UniPCMultistepScheduler
    kind = {"euler": _flow_euler(), "lcm": _flow_euler(), "unipc": unipc}.get(sampler, type(own))
    name = "shift" if issubclass(kind, euler) else "flow_shift"
    if flow_shift is None:
        changes = {name: own.config.get("flow_shift") or own.config.get("shift") or 1.0}
    else:
        changes = {name: flow_shift, "use_dynamic_shifting": False}
    if kind is unipc:
        changes |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if sampler != "lcm":
        return kind.from_config(own.config, **changes)
    scheduler = kind.from_config(own.config, **changes, stochastic_sampling=True)
    scheduler.step = functools.wraps(scheduler.step)(functools.partial(scheduler.step, generator=generator))
    return scheduler


def guider_for(pipe: Any, scale: float) -> Any:
    """Guidance of a strength, for pipelines that keep it in a part of their own; else None."""
    guider = getattr(pipe, "guider", None)
    return None if guider is None else guider.new(guidance_scale=scale, enabled=scale > 1)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler goes from noise to a clip in straight lines, as flow models are trained."""
    flows = scheduler.config.get("prediction_type") == "flow_prediction" or scheduler.config.get("use_flow_sigmas")
    return bool(flows) or type(scheduler).__name__.startswith(("FlowMatch", "FlowEuler"))


@functools.cache
def _flow_euler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    class FlowEulerScheduler(FlowMatchEulerDiscreteScheduler):
        """Euler steps at noise levels from 1 to 1/n, shifted once, where distilled models were trained.

        diffusers' own, asked for a number of steps alone, spaces them between levels that are shifted already, and
        shifts them again.
        """

        def set_timesteps(
            self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None,
            mu: float | None = None, timesteps: Any = None,
        ) -> None:  # fmt: skip
            if sigmas is None and timesteps is None and num_inference_steps is not None:
                sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)

    return FlowEulerScheduler


@contextlib.contextmanager
def replaced(pipe: Any, **parts: Any) -> Iterator[None]:
    """Other parts of a pipeline for one run; those that are None stay out of it."""
    own = {name: getattr(pipe, name) for name, part in parts.items() if part is not None}
    try:
        for name in own:
            setattr(pipe, name, parts[name])
        yield
    finally:
        for name, part in own.items():
            setattr(pipe, name, part)
