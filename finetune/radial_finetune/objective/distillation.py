"""Clips in few steps: an adapter learns in one step, without guidance, what the model does in several with it.

Piecewise rectified flow (PeRFlow, Yan et al. 2024, arXiv 2405.07510; magic-research/piecewise-rectified-flow): the
noise levels of the few-step sampler cut the way from noise to clip into windows. From a noised clip at a window's start
the frozen model goes to its end; within the window the adapter learns the straight velocity from one to the other. Here
half of the noise levels are the windows' starts, the only ones at which the sampler of these steps asks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radial_finetune.noise import Windows
from radial_finetune.objective.base import Objective, Text
from radial_finetune.objective.loss import add_noise, as_told


@dataclass(frozen=True)
class StepDistillation:
    """A :class:`Loss` of steps across windows.

    Attributes:
        teacher_steps: Euler steps that the frozen model takes across a window.
        guidance_scale, negative: how it is guided; an entry of text for words to avoid, empty where it needs none.
        teaching: makes the transformer the frozen model while the context lasts.
    """

    objective: Objective
    windows: Windows
    teacher_steps: int
    guidance_scale: float
    negative: Text
    teaching: Callable[[Any], AbstractContextManager[None]]

    def __call__(self, transformer: Any, x_BCFHW: Tensor, text: Text, noise_BCFHW: Tensor, sigma_B: Tensor) -> Tensor:
        """Mean squared error of the velocity at a noise level to the end of its window, ``[B, F]``."""
        window_B, levels = self.windows.starting_at(sigma_B), self.windows.levels().to(sigma_B.device)
        start_B, end_B = levels[window_B], levels[window_B + 1]
        begun, _ = add_noise(x_BCFHW, noise_BCFHW, start_B)
        ended = self.cross(transformer, begun, text, window_B)
        velocity = (begun - ended) / _wide(start_B - end_B)
        noisy = begun - _wide(start_B - sigma_B) * velocity
        predicted = self.objective.predict(
            transformer, noisy.to(transformer.dtype), as_told(text, transformer), sigma_B
        )
        return self.objective.counted((predicted.float() - velocity).square().mean((1, 3, 4)), text)

    @torch.no_grad()
    def cross(self, transformer: Any, x_BCFHW: Tensor, text: Text, window_B: Tensor) -> Tensor:
        """Where the frozen model goes from the start of windows to their end, float32."""
        levels = self.windows.levels(self.teacher_steps).to(x_BCFHW.device)
        told, avoided = as_told(text, transformer), as_told(self.negative, transformer)
        with self.teaching(transformer):
            for step in range(self.teacher_steps):
                place_B = window_B * self.teacher_steps + step
                sigma_B, next_B = levels[place_B], levels[place_B + 1]
                velocity = self.objective.predict_guided(
                    transformer, x_BCFHW.to(transformer.dtype), told, avoided, sigma_B, self.guidance_scale
                )
                x_BCFHW = x_BCFHW + _wide(next_B - sigma_B) * velocity
        return x_BCFHW


def _wide(values_B: Tensor) -> Tensor:
    return values_B.view(-1, 1, 1, 1, 1)
