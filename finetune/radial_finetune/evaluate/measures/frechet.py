"""Fréchet distance between spans of a clip, on features of its blocks that are made by hand.

Each frame is cut into squares of an eighth of its shorter side. A square's features are its mean L, a and b (CIE Lab),
the deviation of its L, and the mean change of L from pixel to pixel across and down: colour, contrast and texture, all
in units of L. It sees that a clip's looks drift; it sees nothing of what is shown, and new content is drift to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_SQUARES = 8
_FEATURES = 6
_LEAST = 0.25  # variance that every feature is given: what a rounding of pixels makes


@dataclass(frozen=True)
class Moments:
    """Sums over the squares of a frame: their number, of features, and of their products."""

    count: float
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.first + other.first, self.second + other.second)

    def normal(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and covariance."""
        mean = self.first / self.count
        return mean, self.second / self.count - np.outer(mean, mean) + _LEAST * np.eye(_FEATURES)


def moments(image_HWC: NDArray[np.uint8]) -> Moments:
    """Sums of one frame."""
    lab = cv2.cvtColor(image_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = lab[..., 0]
    across, down = np.zeros_like(light), np.zeros_like(light)
    across[:, 1:] = np.abs(np.diff(light, axis=1))
    down[1:] = np.abs(np.diff(light, axis=0))
    height, width = light.shape
    side = max(1, min(height, width) // _SQUARES)
    size = max(1, width // side), max(1, height // side)

    def squares(image: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float64)

    mean = squares(lab)
    spread = np.sqrt(np.maximum(squares(light**2) - mean[..., 0] ** 2, 0))
    features = np.concatenate([mean, np.stack([spread, squares(across), squares(down)], axis=-1)], axis=-1)
    flat = features.reshape(-1, _FEATURES)
    return Moments(float(len(flat)), flat.sum(0), flat.T @ flat)


def distance(one: Moments, two: Moments) -> float:
    """Root of the Fréchet distance of two normal distributions, in units of L."""
    (mean, spread), (other_mean, other_spread) = one.normal(), two.normal()
    values = np.linalg.eigvals(spread @ other_spread).real  # those of a product of positive matrices are positive
    squared = ((mean - other_mean) ** 2).sum() + np.trace(spread + other_spread) - 2 * np.sqrt(values.clip(0)).sum()
    return float(np.sqrt(max(0.0, squared)))
