"""What each family is trained to predict: the velocity that its own pipeline integrates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import CASES, WORDS

from radial import ModelError, RequestError
from radial.models.table import MODELS
from radial_finetune import objective
from radial_finetune.noise import NoiseLevels
from radial_finetune.objective import find_objective, velocity_loss

FAMILIES = {"wan": "wan2.1-1.3b", "wan22-ti2v": "wan2.2-ti2v-5b", "hunyuan-video": "hunyuan-video", "mochi": "mochi"}


def build(family: str) -> tuple[Any, objective.Objective]:
    pipe = CASES[family].build()
    pipe.set_progress_bar_config(disable=True)
    return pipe, find_objective(pipe, replace(MODELS[FAMILIES[family]], max_sequence_length=WORDS))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_velocity_takes_the_pipeline_from_noise_to_the_clip(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transformer is made to answer with the velocity that training asks of it; the pipeline's own sampling then
    ends on the latents that training began with. A wrong sign, timestep or scale would end elsewhere."""
    pipe, own = build(family)
    if family == "mochi":
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)  # as its checkpoint has it
    case = CASES[family]
    arguments = case.call(pipe) | {"num_inference_steps": 4, "output_type": "latent"}
    torch.manual_seed(0)
    clip = torch.randn(tuple(pipe(**arguments).frames.shape))  # of the shape that this pipeline's latents have
    transformer = pipe.transformer
    seen: list[float] = []

    def exact(hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        """Solve x_sigma = (1 - sigma) x + sigma e for e, and answer in the family's convention."""
        level = float(timestep.flatten()[0]) / 1000
        sigma = 1 - level if family == "mochi" else level
        seen.append(sigma)
        noise = (hidden_states - (1 - sigma) * clip) / sigma
        velocity = noise - clip
        return (-velocity if family == "mochi" else velocity,)

    monkeypatch.setattr(transformer, "forward", exact)
    found = pipe(**arguments).frames
    assert seen[0] > 0.9 > seen[-1]
    error = (found.float() - clip).abs().max()
    assert error < 0.02, error  # samplers cut timesteps to whole numbers

    # And training, given that transformer, finds no loss.
    text = own.stack_text([own.encode_text(["a red circle"])[0]])
    sigma = torch.tensor([0.3, 0.8])
    twice = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in text.items()}
    noise = torch.randn(2, *clip.shape[1:])

    def answer(hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        level = timestep.flatten(1)[:, 0] if timestep.ndim == 2 else timestep
        level = level.view(-1, 1, 1, 1, 1) / 1000
        sigma = 1 - level if family == "mochi" else level
        velocity = (hidden_states - clip) / sigma
        return (-velocity if family == "mochi" else velocity,)

    monkeypatch.setattr(transformer, "forward", answer)
    loss = velocity_loss(own, transformer, clip.expand(2, *clip.shape[1:]), twice, noise, sigma)
    assert loss.shape == (2, clip.shape[2])
    assert float(loss.max()) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_and_text_are_the_pipelines_own(family: str) -> None:
    """Encoded clips decode, by the pipeline, to what they were; and a real transformer takes real text."""
    pipe, own = build(family)
    pixels = torch.rand(1, 3, 2 * own.spec.stride[0] + 1, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = own.encode_latents(pixels)
        raw = pipe.vae.encode(pixels).latent_dist.mode()
        assert torch.allclose(own.decode_latents(latents), pipe.vae.decode(raw).sample, atol=1e-4)
    # As each pipeline's last lines undo it.
    config = pipe.vae.config
    if family.startswith("wan"):
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        assert torch.allclose(latents * std + mean, raw, atol=1e-4)
    elif family == "mochi":
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        assert torch.allclose(latents * std / config.scaling_factor + mean, raw, atol=1e-4)
    else:
        assert torch.allclose(latents / config.scaling_factor, raw, atol=1e-5)
    texts = own.encode_text(["a red circle", "a blue square rises slowly on a black background"])
    with torch.no_grad():
        noise = torch.randn(2, *latents.shape[1:])
        loss = velocity_loss(
            own, pipe.transformer, latents.expand_as(noise), own.stack_text(texts), noise, torch.tensor([0.2, 0.9])
        )
    assert loss.shape == (2, latents.shape[2])
    assert torch.isfinite(loss).all()


def test_models_that_are_not_trained_here_are_refused() -> None:
    pipe = CASES["wan"].build()
    pipe.transformer.register_to_config(in_channels=52)  # channels of another kind of model
    with pytest.raises(ModelError, match="follows something else besides text and an image"):
        find_objective(pipe, MODELS["wan2.1-14b"])
    with pytest.raises(ModelError, match=r"knows the objectives of WanTransformer3DModel, .*, not of LTXVideo"):
        find_objective(CASES["ltx"].build(), MODELS["ltx-video"])


def test_experts_are_chosen_where_there_are_two(wan: Any, wan22: Any) -> None:
    assert objective.expert_span(wan, None) == ("transformer", (0.0, 1.0))
    assert objective.expert_span(wan22, "high") == ("transformer", (0.875, 1.0))
    assert objective.expert_span(wan22, "low") == ("transformer_2", (0.0, 0.875))
    with pytest.raises(RequestError, match="tune one at a time"):
        objective.expert_span(wan22, None)
    with pytest.raises(RequestError, match="is for models with two transformers"):
        objective.expert_span(wan, "low")
    drawn = NoiseLevels("uniform", 5.0).draw(40_000, torch.Generator().manual_seed(0))
    assert float((drawn < 0.875).float().mean()) == pytest.approx(1 - 0.417, abs=0.01)
