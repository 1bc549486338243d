"""What the ground of a clip does, away from its figures: flicker, drift, noise, and whether it moves as it should.

Shapes: T frames, H height, W width. Values of 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from radial_finetune.world.render import Track

_AROUND = 6  # pixels around a figure that are not ground
_BLOCKS = 4  # a side, whose mean brightness is followed
_VIVID = 40  # chroma; ground is grey


@dataclass(frozen=True)
class Ground:
    """Attributes:
    flicker: mean distance of a block's brightness from the mean of the frames before and after.
    drift: the largest distance of the frame's median brightness from that of the whole clip.
    noise: mean distance of a pixel from the median of its neighbours.
    """

    flicker: float
    drift: float
    noise: float


def look_at_ground(frames_THWC: NDArray[np.uint8], tracks: tuple[Track, ...]) -> Ground:
    """What the ground does; ``tracks`` are the figures that should be there, what is vivid is left out besides."""
    count, height, width, _ = frames_THWC.shape
    means = np.full((count, _BLOCKS, _BLOCKS), np.nan)
    medians, noises = [], []
    for t, frame in enumerate(frames_THWC):
        grey = frame.mean(-1, dtype=np.float32)
        ground = _free(frame, tracks, t)
        if ground.sum() < 0.1 * ground.size:
            continue
        medians.append(float(np.median(grey[ground])))
        middle = cv2.medianBlur(grey, 3)
        noises.append(float(np.abs(grey - middle)[ground].mean()))
        for i, j in np.ndindex(_BLOCKS, _BLOCKS):
            part = np.s_[i * height // _BLOCKS : (i + 1) * height // _BLOCKS,
                         j * width // _BLOCKS : (j + 1) * width // _BLOCKS]  # fmt: skip
            if ground[part].mean() > 0.8:
                means[t, i, j] = grey[part][ground[part]].mean()
    if len(medians) < 0.9 * count:  # a ground in colours, or hidden, is none that is steady
        return Ground(255.0, 255.0, 255.0)
    between = np.abs(means[1:-1] - (means[:-2] + means[2:]) / 2)
    flicker = float(np.nanmean(between)) if np.isfinite(between).any() else 0.0
    median = np.array(medians or [0.0])
    return Ground(flicker, float(np.abs(median - np.median(median)).max()), float(np.mean(noises or [0.0])))


def find_slip(
    frames_THWC: NDArray[np.uint8], tracks: tuple[Track, ...], way: tuple[float, float], paces: tuple[float, float]
) -> float:  # fmt: skip
    """By how many pixels a frame a ground moves otherwise than asked for, in the median over the clip.

    Args:
        way: along x or y, to which side, by its sign.
        paces: the least and the most pixels a frame; words do not say which.
    """
    apart, axis = 8, 0 if way[0] else 1  # frames, over which patterns move by less than half of their period
    slips = []
    for t in range(0, len(frames_THWC) - apart, apart):
        first, second = (frames_THWC[k].mean(-1, dtype=np.float32) for k in (t, t + apart))
        free = [_free(frames_THWC[k], tracks, k) for k in (t, t + apart)]
        costs = {}
        for by in range(-14, 15):
            moved, both = np.roll(first, by, axis=1 - axis), np.roll(free[0], by, axis=1 - axis) & free[1]
            edge = np.s_[:, 14:-14] if axis == 0 else np.s_[14:-14]
            if both[edge].any():
                costs[by] = float(np.abs(moved - second)[edge][both[edge]].mean())
        if costs:
            pace = min(costs, key=costs.__getitem__) / apart * np.sign(way[axis])
            slips.append(max(paces[0] - pace, pace - paces[1], 0.0))
    return float(np.median(slips)) if slips else 0.0


def _free(frame_HWC: NDArray[np.uint8], tracks: tuple[Track, ...], t: int) -> NDArray[np.bool_]:
    """Where a frame shows its ground."""
    rows, columns = np.mgrid[: frame_HWC.shape[0], : frame_HWC.shape[1]]
    smooth = cv2.blur(frame_HWC, (5, 5))  # noise has colours, too
    ground: NDArray[np.bool_] = (smooth.max(-1).astype(np.int16) - smooth.min(-1)) < _VIVID
    for track in tracks:
        ground &= (columns - track.x[t]) ** 2 + (rows - track.y[t]) ** 2 > (1.15 * track.radius[t] + _AROUND) ** 2
    return cv2.erode(ground.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
