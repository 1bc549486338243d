"""The loss of a transformer on noisy clips."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from radial_finetune.objective.base import Objective, Text


class Loss(Protocol):
    """What a run lowers."""

    def __call__(self, transformer: Any, x_BCFHW: Tensor, text: Text, noise_BCFHW: Tensor, sigma_B: Tensor) -> Tensor:
        """A value for each clip and latent frame: ``[B, F]``, float32."""


def velocity_loss(
    objective: Objective, transformer: Any, x_BCFHW: Tensor, text: Text, noise_BCFHW: Tensor, sigma_B: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity in float32, a value for each clip and latent frame: ``[B, F]``."""
    noisy, target = add_noise(x_BCFHW, noise_BCFHW, sigma_B)
    predicted = objective.predict(transformer, noisy.to(transformer.dtype), as_told(text, transformer), sigma_B)
    return objective.counted((predicted.float() - target.float()).square().mean((1, 3, 4)), text)


def as_told(text: Text, transformer: Any) -> Text:
    """What a transformer is told, in the numbers that it computes in."""
    dtype = transformer.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in text.items()}


def add_noise(x_BCFHW: Tensor, noise_BCFHW: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents, and the velocity from clip to noise."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1).to(x_BCFHW.dtype)
    return (1 - sigma) * x_BCFHW + sigma * noise_BCFHW, noise_BCFHW - x_BCFHW
