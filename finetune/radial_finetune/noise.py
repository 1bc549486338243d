"""At which noise levels a run trains, and how much each counts.

Shapes: B batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from radial.errors import RequestError
from radial.models.spec import ModelSpec

_NEAR = 0.005  # of a noise level: how far a window may end from where experts take turns
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


@dataclass(frozen=True)
class Windows:
    """The noise levels of a sampler of few steps, as diffusers' Euler sampler has them: from each to the next is a
    window, which one step crosses.

    Attributes:
        num_steps: how many.
        shift: of the levels, as of :class:`NoiseLevels`.
        span: noise levels that the trained transformer is for; its windows are those that start there.

    Raises:
        RequestError: a window starts within the span and ends outside it.
    """

    num_steps: int
    shift: float
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        across = [one for one in self._own() if self._rising()[one] < self.span[0] - _NEAR]
        if across or not self._own():
            turn = self.span[0] or self.span[1]
            found = [turn * (1 - u) / (u * (1 - turn)) for u in (k / self.num_steps for k in range(1, self.num_steps))]
            nearest = min(found, key=lambda shift: abs(math.log(shift / self.shift)))
            raise RequestError(
                f"at a shift of {self.shift:g} a step of {self.num_steps} goes across {turn:g}, where the model's two "
                f"experts take turns; shift = {0.999 * nearest:.4g} has a step end there"
            )

    def levels(self, parts: int = 1) -> Tensor:
        """The noise levels from 1 to 0, each window cut into so many parts: float32, ``[num_steps * parts + 1]``."""
        even = torch.linspace(1, 0, self.num_steps * parts + 1, dtype=torch.float64)
        return shift_sigmas(even, self.shift).float()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """So many noise levels to train at, float32: every window alike, half of them at its start, where the sampler
        asks, the others anywhere within."""
        return self.quantiles(torch.rand(count, generator=generator, dtype=torch.float64))

    def quantiles(self, quantiles: Tensor) -> Tensor:
        """The noise levels at quantiles, from 0 to 1, of what :meth:`draw` draws."""
        own, rising = self._own(), self._rising().double()
        place = quantiles.double() * len(own)
        number = place.long().clamp(max=len(own) - 1)
        which = number + own[0]
        return torch.lerp(rising[which], rising[which + 1], (2 * (place - number)).clamp(max=1.0)).float()

    def starting_at(self, sigma_B: Tensor) -> Tensor:
        """The windows that noise levels lie in, by number, 0 the first that is crossed: a window has its start, and not
        its end."""
        rising = self._rising().to(sigma_B.device)
        return self.num_steps - torch.searchsorted(rising, sigma_B.contiguous()).clamp(1, self.num_steps)

    def _rising(self) -> Tensor:
        return self.levels().flip(0)

    def _own(self) -> range:
        """The windows of the span, counted from the clip up."""
        low, high = self.span
        starts = self._rising()[1:].tolist()
        own = [k for k, start in enumerate(starts) if low <= start and (start < high or high == 1.0)]
        return range(own[0], own[-1] + 1) if own else range(0)


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
