"""Noise levels of samplers and presets."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from radial import RequestError
from radial.generation.sampler import scheduler_for
from radial.models.table import PRESETS

UNIPC = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
EULER = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
# What the distilled models were trained on (LightX2V's StepDistillScheduler, shift 5).
DISTILLED = {
    "4-step": [1000, 937.5, 833.333, 625],
    "8-step": [1000, 972.222, 937.5, 892.857, 833.333, 750, 625, 416.667],
}


@pytest.mark.parametrize("own", [UNIPC, EULER])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sampler", ["euler", "lcm"])
def test_presets_step_where_distilled_models_were_trained(preset: str, own: Any, sampler: str) -> None:
    fields = PRESETS[preset]
    scheduler = scheduler_for(SimpleNamespace(scheduler=own), sampler, float(str(fields["flow_shift"])))
    scheduler.set_timesteps(fields["num_inference_steps"])
    assert scheduler.timesteps.tolist() == pytest.approx(DISTILLED[preset], abs=0.1)
    assert scheduler.sigmas.tolist() == pytest.approx([t / 1000 for t in DISTILLED[preset]] + [0], abs=1e-4)


def test_lcm_adds_noise_of_the_clip_s_own_generator_to_the_clean_clip() -> None:
    generator, beside = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    scheduler = scheduler_for(SimpleNamespace(scheduler=UNIPC), "lcm", 5.0, generator)
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 4, 2, 3, 3)
    for index, (now, after) in enumerate(itertools.pairwise([1.0, 0.9375, 0.833333, 0.625, 0.0])):
        velocity = torch.randn(latents.shape)
        clean = latents - now * velocity
        noise = torch.randn(latents.shape, generator=beside)
        stepped = scheduler.step(velocity, scheduler.timesteps[index], latents, return_dict=False)[0]
        torch.testing.assert_close(stepped, (1 - after) * clean + after * noise, atol=1e-5, rtol=1e-5)
        latents = stepped


@pytest.mark.parametrize(
    ("own", "sampler", "name", "shift"),
    [(UNIPC, "euler", "shift", 3.0), (EULER, "unipc", "flow_shift", 7.0), (EULER, "euler", "shift", 7.0)],
)
def test_another_sampler_keeps_the_shift(own: Any, sampler: str, name: str, shift: float) -> None:
    assert scheduler_for(SimpleNamespace(scheduler=own), sampler, None).config[name] == shift
    assert scheduler_for(SimpleNamespace(scheduler=own), sampler, 2.5).config[name] == 2.5


@pytest.mark.parametrize(("sampler", "shift"), [("euler", None), ("unipc", None), ("model", 5.0)])
def test_what_is_no_flow_model_keeps_its_sampler(sampler: str, shift: float | None) -> None:
    for own in (diffusers.CogVideoXDDIMScheduler(), diffusers.EDMEulerScheduler()):
        with pytest.raises(RequestError, match=r"is for flow models, and this one denoises by its \w+Scheduler; take"):
            scheduler_for(SimpleNamespace(scheduler=own), sampler, shift)
        assert scheduler_for(SimpleNamespace(scheduler=own), "model", None) is own
