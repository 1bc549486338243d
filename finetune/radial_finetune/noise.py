"""At which noise levels a run trains, and how much each counts.

Shapes: B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from radial.models.spec import ModelSpec

Sampling = Literal["uniform", "logit_normal"]
Weighting = Literal["none", "sigma_sqrt", "cosmap"]


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution of noise levels.

    Attributes:
        sampling: how numbers u in 0..1 are drawn: all alike, or as a normal number's sigmoid (arXiv 2403.03206).
        shift: towards noise, sigma = shift u / (1 + (shift - 1) u).
        span: the noise levels that are drawn; of the distribution, only the part between them is used.
        logit_mean, logit_std: of the normal number.
    """

    sampling: Sampling
    shift: float
    span: tuple[float, float] = (0.0, 1.0)
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """So many noise levels, float32."""
        return self.quantiles(torch.rand(count, generator=generator, dtype=torch.float64))

    def quantiles(self, quantiles: Tensor) -> Tensor:
        """The noise levels at quantiles, from 0 to 1, of what :meth:`draw` draws."""
        low, high = (self._place_of(sigma) for sigma in self.span)
        place = low + (high - low) * quantiles.double()
        if self.sampling == "logit_normal":
            place = (self.logit_mean + self.logit_std * torch.special.ndtri(place)).sigmoid()
        return shift_sigmas(place, self.shift).float()

    def _place_of(self, sigma: float) -> float:
        """How much of the distribution lies below a noise level."""
        u = sigma / (self.shift - (self.shift - 1) * sigma)
        if self.sampling == "uniform" or u in (0.0, 1.0):
            return u
        return 0.5 * (1 + math.erf((math.log(u / (1 - u)) - self.logit_mean) / self.logit_std / math.sqrt(2)))


def shift_sigmas(u: Tensor, shift: float) -> Tensor:
    """The map by which schedulers shift noise levels, u to shift u / (1 + (shift - 1) u). Their tables hold it already:
    never apply it twice."""
    return shift * u / (1 + (shift - 1) * u)


def noise_shift(
    scheduler: dict[str, object], spec: ModelSpec, chosen: float | None, num_frames: int, *, by_length: bool,
    size: tuple[int, int] = (0, 0), from_image: bool = False,
) -> float:  # fmt: skip
    """How far noise levels are shifted: as chosen, else as the authors do for this height and width in pixels, else as
    the checkpoint's scheduler does, whose configuration is given.

    By length, the shift grows with the square root of the latent frames beyond the native ones, as Open-Sora 2's does:
    a longer clip says more of itself at the same noise.
    """
    own = spec.shift_for(*size, from_image=from_image)
    shift = chosen or own or float(str(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0))
    if not by_length:
        return shift
    stride = spec.stride[0]
    latent, native = ((frames - 1) // stride + 1 for frames in (num_frames, spec.native_frames))
    return shift * math.sqrt(max(1.0, latent / native))


def loss_weights(weighting: Weighting, sigma_B: Tensor) -> Tensor:
    """How much the loss at each noise level counts, as diffusers' trainers weigh it: ``[B]``, float32."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    weights_B: Tensor = compute_loss_weighting_for_sd3(weighting, sigma_B.float())
    return weights_B
