"""First frames of new scenes, told from thumbnails that the camera's motion is taken out of."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from radial_finetune.evaluate.measures import camera

_THRESHOLD = 15.0  # of 255, mean change of hue, saturation and value
_BLOCK = 4  # pixels of a thumbnail: what moves by less changes little


def find_cuts(
    thumbnails: Sequence[NDArray[np.uint8]],
    cameras: Sequence[camera.Matrix],
    side: int,
    flashes: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Whether each frame is the first of a new scene. A change must be three times that of the frames before it, so
    that fast motion is none; frames that flash are passed over.

    Args:
        side: shorter side, in pixels, of the frames that the cameras' steps are told of.
    """
    cuts = np.zeros(len(thumbnails), np.bool_)
    height, width = thumbnails[0].shape[:2]
    scale = min(height, width) / side
    changes: list[float] = []
    begin = int(np.argmin(flashes))
    last, way = thumbnails[begin], camera.still()
    for i in range(begin + 1, len(thumbnails)):
        step = cameras[i - 1].copy()
        step[:, 2] *= scale
        way = camera.chain(way, step)
        if flashes[i]:
            continue
        amount = _change(last, thumbnails[i], way)
        usual = max(changes, default=_THRESHOLD / 2)
        if amount > max(_THRESHOLD, 3 * usual):
            cuts[i], changes = True, []
        else:
            changes = [*changes[-2:], amount]
        last, way = thumbnails[i], camera.still()
    return cuts


def _change(last: NDArray[np.uint8], now: NDArray[np.uint8], way: camera.Matrix) -> float:
    height, width = last.shape[:2]
    inside = camera.covered(way, height, width)
    if inside.mean() < 0.25:
        return 255.0
    parts = []
    for image in (last, camera.follow(now, way, height, width)):
        size = max(1, width // _BLOCK), max(1, height // _BLOCK)
        even = cv2.resize(np.where(inside[..., None], image, 0).astype(np.uint8), size, interpolation=cv2.INTER_AREA)
        parts.append(cv2.cvtColor(even, cv2.COLOR_RGB2HSV).astype(np.int16))
    change = np.abs(parts[0] - parts[1])
    change[..., 0] = np.minimum(change[..., 0], 180 - change[..., 0])  # a circle: red lies at both ends
    return float(change.mean() / inside.mean())
