"""How near one clip is to another, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_Frame = NDArray[np.uint8]
_BAND = 256  # rows of a frame that are worked on at a time
_REACH = 5  # rows that a window sees beyond its own


def fidelity(one: Iterable[_Frame], two: Iterable[_Frame]) -> tuple[float, float]:
    """PSNR and SSIM of two clips, means over frames, of which one at a time is in memory.

    Raises:
        ValueError: they have other sizes or numbers of frames.
    """
    found = []
    for a, b in zip(one, two, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"frames of {a.shape[1]}x{a.shape[0]} and {b.shape[1]}x{b.shape[0]}")
        found.append((frame_psnr(a, b), frame_ssim(a, b)))
    means = np.mean(found, axis=0)
    return float(means[0]), float(means[1])


def frame_psnr(a_HWC: _Frame, b_HWC: _Frame) -> float:
    """Peak signal-to-noise ratio of two frames in dB, at most 100."""
    error = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in _bands(a_HWC, b_HWC, 0)) / a_HWC.size
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def frame_ssim(a_HWC: _Frame, b_HWC: _Frame) -> float:
    """Structural similarity of two frames (Wang et al. 2004, windows of 11, deviation 1.5), the mean over channels."""

    def blur(x: Any) -> Any:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    total, height = 0.0, a_HWC.shape[0]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for number, (a, b) in enumerate(_bands(a_HWC, b_HWC, _REACH)):
        first = number * _BAND
        own = slice(min(first, _REACH), min(first, _REACH) + min(_BAND, height - first))
        for channel in range(a_HWC.shape[2]):
            x, y = (part[..., channel].astype(np.float64) for part in (a, b))
            mean_x, mean_y = blur(x), blur(y)
            var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
            cov = blur(x * y) - mean_x * mean_y
            ratio = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
            total += float(ratio[own].sum())
    return total / a_HWC.size


def _bands(a_HWC: _Frame, b_HWC: _Frame, reach: int) -> Iterator[tuple[_Frame, _Frame]]:
    """Two frames in bands of rows, with so many rows beyond each: large frames take little memory."""
    for first in range(0, a_HWC.shape[0], _BAND):
        rows = slice(max(0, first - reach), first + _BAND + reach)
        yield a_HWC[rows], b_HWC[rows]
