"""The loss of a transformer on noisy clips."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from radial.attention.packed.clips import PackedClips
from radial_finetune.noise import Weighting, loss_weights
from radial_finetune.objective.base import Objective, Text

_log = logging.getLogger(__name__)


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


def packed_loss(
    objective: Objective, transformer: Any, packed: PackedClips, clips: Sequence[tuple[Tensor, Text, Tensor, Tensor]],
    weights: Sequence[float], weighting: Weighting,
) -> Tensor:  # fmt: skip
    """The sum of the same of clips of unlike sizes, which are one call.

    Clips without a finite loss are left out, and the others computed once more without them: in a pack, gradients of
    weights have a part of every clip.

    Args:
        clips: latents, text, noise and noise level of each, batches of one.
        weights: how much each counts.
        weighting: and how much each noise level.
    """
    losses = _losses(objective, transformer, packed, clips, weights, weighting)
    finite = losses.isfinite().tolist()
    if all(finite) or not any(finite):
        return losses.sum()
    _log.warning("%d of %d clips of a step have no finite loss and are left out", finite.count(False), len(finite))
    kept = [place for place, good in enumerate(finite) if good]
    clips, weights = [clips[place] for place in kept], [weights[place] for place in kept]
    return _losses(objective, transformer, packed, clips, weights, weighting).sum()


def _losses(
    objective: Objective, transformer: Any, packed: PackedClips, clips: Sequence[tuple[Tensor, Text, Tensor, Tensor]],
    weights: Sequence[float], weighting: Weighting,
) -> Tensor:  # fmt: skip
    calls, targets = [], []
    for x_BCFHW, text, noise_BCFHW, sigma_B in clips:
        noisy, target = add_noise(x_BCFHW, noise_BCFHW, sigma_B)
        calls.append(objective.call(transformer, noisy.to(transformer.dtype), as_told(text, transformer), sigma_B))
        targets.append(target)
    losses = []
    for predicted, target, (_, text, _, sigma_B), weight in zip(packed(calls), targets, clips, weights, strict=True):
        losses_BF = objective.counted((predicted.float() - target.float()).square().mean((1, 3, 4)), text)
        losses.append(weight * (losses_BF * loss_weights(weighting, sigma_B)[:, None]).mean())
    return torch.stack(losses)


def as_told(text: Text, transformer: Any) -> Text:
    """What a transformer is told, in the numbers that it computes in."""
    dtype = transformer.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in text.items()}


def add_noise(x_BCFHW: Tensor, noise_BCFHW: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents, and the velocity from clip to noise."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1).to(x_BCFHW.dtype)
    return (1 - sigma) * x_BCFHW + sigma * noise_BCFHW, noise_BCFHW - x_BCFHW
