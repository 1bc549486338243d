"""How near one clip is to another, frame by frame."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from radial.encoding import Frames


def psnr(one_THWC: Frames, two_THWC: Frames) -> float:
    """Peak signal-to-noise ratio in dB, the mean over frames; 100 where a frame is the same."""
    errors = [float(((a.astype(np.float64) - b) ** 2).mean()) for a, b in zip(one_THWC, two_THWC, strict=True)]
    return float(np.mean([min(100.0, 10 * np.log10(255**2 / e)) if e else 100.0 for e in errors]))


def ssim(one_THWC: Frames, two_THWC: Frames) -> float:
    """Structural similarity (Wang et al. 2004, windows of 11 with deviation 1.5), the mean over frames and channels."""

    def blur(x: Any) -> Any:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    values = []
    for a, b in ((x.astype(np.float64), y.astype(np.float64)) for x, y in zip(one_THWC, two_THWC, strict=True)):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        cov = blur(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        ratio = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        values.append(float(ratio.mean()))
    return float(np.mean(values))
