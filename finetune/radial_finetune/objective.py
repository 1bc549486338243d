"""What a model is trained to predict. Rectified flow as Wan has it: velocity from data to noise.

    x_sigma = (1 - sigma) x + sigma e,  target = e - x,  timestep = 1000 sigma

Shapes: B batch, C channels, F latent frames, H, W latent height and width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from radial.errors import ModelError


def check_objective(pipe: Any) -> None:
    """Raise ModelError for a model whose training conventions are not known here."""
    kind = type(pipe.transformer).__name__
    if kind != "WanTransformer3DModel" or pipe.config.get("expand_timesteps"):
        raise ModelError(f"fine-tuning knows the objective of WanTransformer3DModel, not yet of {kind}")


def normalise_latents(vae: Any, latents_BCFHW: Tensor) -> Tensor:
    """Latents as the transformer sees them: per channel, (z - mean) / std of the autoencoder's configuration."""
    mean, std = (
        torch.tensor(values, dtype=latents_BCFHW.dtype, device=latents_BCFHW.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents_BCFHW - mean) / std


def draw_sigmas(
    count: int, sampling: Literal["uniform", "logit_normal"], shift: float, generator: torch.Generator
) -> Tensor:
    """Noise levels in (0, 1), shifted towards noise: sigma = shift u / (1 + (shift - 1) u)."""
    u = torch.rand(count, generator=generator)
    if sampling == "logit_normal":
        u = torch.randn(count, generator=generator).sigmoid()
    return shift_sigmas(u, shift)


def shift_sigmas(u: Tensor, shift: float) -> Tensor:
    """The map by which schedulers shift noise levels. Their tables hold it already: never apply it twice."""
    return shift * u / (1 + (shift - 1) * u)


def add_noise(x_BCFHW: Tensor, noise_BCFHW: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity to predict."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1).to(x_BCFHW.dtype)
    return (1 - sigma) * x_BCFHW + sigma * noise_BCFHW, noise_BCFHW - x_BCFHW


def flow_loss(transformer: Any, x_BCFHW: Tensor, text: Tensor, noise_BCFHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity, in float32, a value a batch entry."""
    noisy, target = add_noise(x_BCFHW, noise_BCFHW, sigma_B)
    predicted = transformer(
        hidden_states=noisy.to(transformer.dtype),
        timestep=(1000 * sigma_B).to(x_BCFHW.device),
        encoder_hidden_states=text.to(transformer.dtype),
        return_dict=False,
    )[0]
    return (predicted.float() - target.float()).square().mean((1, 2, 3, 4))
