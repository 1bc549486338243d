"""What lies outside a mask, put back as it was given.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radial.video.colour import Frame
from radial.video.encoding import Frames

_SHARE, _LEAST, _MOST = 1 / 64, 4, 16  # of the shorter side, and pixels, that an edge takes


@dataclass(frozen=True)
class Kept:
    """The part of a clip that a mask leaves as it is.

    Attributes:
        given: the clip, uint8 ``[T, H, W, 3]``.
        mask_THW: where it is made anew.
    """

    given: Frames
    mask_THW: NDArray[np.bool_]

    def put_back(self, made: Frames) -> Frames:
        """Frames of the same shape with what was given outside the mask, to the bit; within it they come in over the
        width of the edge, so that no seam shows."""
        frames = self.given.copy()
        for index, mask_HW in enumerate(self.mask_THW):
            if mask_HW.any():
                frames[index] = _within(frames[index], made[index], soft_edge(mask_HW, self.width))
        return frames

    @property
    def width(self) -> int:
        """Pixels within the mask over which one goes into the other; thin parts have less, and are made anew, too."""
        return int(np.clip(round(min(self.given.shape[1:3]) * _SHARE), _LEAST, _MOST))

    def told(self) -> dict[str, Any]:
        """For receipts: the share of pixels that are as they were given, and the width of the edge."""
        return {"share": round(1 - float(self.mask_THW.mean()), 4), "soft_edge": self.width}


def soft_edge(mask_HW: NDArray[np.bool_], width: int) -> NDArray[np.float32]:
    """How much each pixel is made anew, float32 ``[H, W]``: 0 outside a mask, and rising to 1 over ``width`` pixels
    within it; where the mask is thinner than two of these, over half of what there is."""
    import cv2

    deep_HW = cv2.distanceTransform(mask_HW.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4 * width + 1, 4 * width + 1))
    reach_HW = np.minimum(width + 1, (cv2.dilate(deep_HW, around) + 1) / 2)
    share_HW = np.clip(deep_HW / reach_HW, 0, 1)
    return np.asarray(share_HW * share_HW * (3 - 2 * share_HW), np.float32)


def _within(given: Frame, made: Frame, weight_HW: NDArray[np.float32]) -> Frame:
    before, after = given.astype(np.float32), made.astype(np.float32)
    return np.asarray((before + weight_HW[..., None] * (after - before)).round(), np.uint8)
