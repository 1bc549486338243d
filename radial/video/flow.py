"""Optical flow between frames, by dense inverse search (Kroeger et al. 2016), without weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from radial.video.colour import Frame


def grey(frame: Frame) -> NDArray[Any]:
    """The grey levels of a frame, uint8 ``[H, W]``."""
    import cv2

    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY))


def dense_flow(
    from_HW: NDArray[Any], to_HW: NDArray[Any], guess_HW2: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Where each pixel of one grey frame, uint8, goes to in another: float32 ``[H, W, 2]``, columns and rows.

    Args:
        guess_HW2: a flow to begin from.
    """
    import cv2

    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    small = min(from_HW.shape[:2])
    if small < 32:  # patches of 8 pixels find nothing in less
        return np.zeros((*from_HW.shape[:2], 2), np.float32)
    return np.asarray(search.calc(from_HW, to_HW, None if guess_HW2 is None else guess_HW2.copy()), np.float32)
