"""What each family is trained to predict: the velocity that its own pipeline integrates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import CASES, WORDS

from radial import ModelError, RequestError
from radial.loading.load import load
from radial.models.table import MODELS
from radial.request import make_request
from radial_finetune import objective
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import read_clip, read_deviation, read_index
from radial_finetune.data.clips import Cut
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import find_sources
from radial_finetune.noise import NoiseLevels
from radial_finetune.objective import find_objective, velocity_loss
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config

FAMILIES = {
    "wan": "wan2.1-1.3b", "wan22-ti2v": "wan2.2-ti2v-5b", "hunyuan-video": "hunyuan-video", "mochi": "mochi",
    "hunyuan-video15": "hunyuan-video-1.5",
}  # fmt: skip


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
        noisy = hidden_states[:, : clip.shape[1]]  # beside it are others, where a model may start from an image
        noise = (noisy - (1 - sigma) * clip) / sigma
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
        velocity = (hidden_states[:, : clip.shape[1]] - clip) / sigma
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


def test_mochis_latents_are_drawn_at_every_step(data: Path, tmp_path: Path) -> None:
    """Drawn from the autoencoder's own mean and deviation, otherwise at every step, the same when the step is repeated;
    held-out clips are measured at the mean."""
    CASES["mochi"].build().save_pretrained(tmp_path / "model")
    size = {"height": 64, "width": 64, "num_frames": 13}
    loaded = load(make_request(prompt="a", model=str(tmp_path / "model"), seed=0, **size))
    own = find_objective(loaded.pipe, loaded.spec)
    pixels = torch.rand(1, 3, 13, 64, 64) * 2 - 1
    with torch.no_grad():
        latents, deviation = own.encode_drawn(pixels)
        likely = loaded.pipe.vae.encode(pixels).latent_dist
    assert deviation is not None
    drawn = likely.sample(torch.Generator().manual_seed(0))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    config = loaded.pipe.vae.config
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    assert torch.allclose(latents + deviation * noise, (drawn - mean) / std * config.scaling_factor, atol=1e-4)

    prepare(find_sources(data)[:3], tmp_path / "cache", loaded, Cut((Bucket(13, 64, 64),), 16, static_threshold=0))
    index = read_index(tmp_path / "cache")
    settings = make_config(data=str(tmp_path / "cache"), output="", steps=9, held_out=1)
    batches = Batches(settings, index, own)
    kept = {clip.key: read_clip(tmp_path / "cache", clip)[0].float() for clip in batches.train}
    seen: dict[str, list[torch.Tensor]] = {key: [] for key in kept}
    for number in range(9):
        batch = batches.read(number)
        assert torch.equal(batch.latents, Batches(settings, index, own).read(number).latents)
        nearest = min(kept, key=lambda key: float((kept[key] - batch.latents[0]).square().mean()))
        seen[nearest].append(batch.latents[0] - kept[nearest])
    for key, apart in seen.items():
        assert all(float(one.abs().max()) > 0 for one in apart)
        assert not torch.equal(apart[0], apart[1])
        clip = next(clip for clip in batches.train if clip.key == key)
        normal = torch.stack(apart) / read_deviation(tmp_path / "cache", clip)
        assert float(normal.std()) == pytest.approx(1, abs=0.1)
    (held_out,) = batches.held_out
    first = next(batches.validation((0.5,)))
    assert torch.equal(first.latents[0], read_clip(tmp_path / "cache", held_out)[0].float())


def test_captions_are_dropped_where_guidance_asks_without_them(cache: Path) -> None:
    """HunyuanVideo is told its guidance as a number: a step without a caption would teach nothing that is asked for."""
    plain = make_config(data=str(cache), output="", steps=1)
    for family, share in {"wan": 0.1, "hunyuan-video": 0.0, "hunyuan-video15": 0.1}.items():
        _, own = build(family)
        assert Batches(plain, read_index(cache), own).caption_dropout == share
        assert Batches(plain.model_copy(update={"caption_dropout": 0.3}), read_index(cache), own).caption_dropout == 0.3
