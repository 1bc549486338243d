"""One pass over a clip: what each frame and each step from one to the next is, in numbers and a thumbnail.

Three frames at most are in memory, each of them small, and one as it came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from radial.errors import RequestError
from radial_finetune.evaluate.measures import camera, flow
from radial_finetune.evaluate.measures.frechet import Moments, moments

Frame = NDArray[np.uint8]
_SIDE = 240  # pixels of the shorter side that motion is found in
_LEAST_SIDE = 32
_THUMBNAIL = 48


@dataclass
class Stream:
    """What one pass found; lists of frames have T entries, of steps T - 1.

    Attributes:
        size: height and width, in pixels, of the frames that motion was found in.
        thumbnails: small RGB copies.
        luminance, contrast, saturation: means and deviation of frames, in 0..255.
        sharpness: logarithm (base 10) of the variance of the Laplacian.
        moments: for Fréchet distances.
        cameras: steps of the camera.
        subject: mean flow beyond the camera's of each step, in pixels.
        warping: what flow leaves unexplained of each step, in 0..255.
        flicker: of all frames but the first and the last, in 0..255.
        same: whether a step shows exactly the frame before it again.
        change: of each step, in the place that changes most, in 0..255.
    """

    size: tuple[int, int] = (0, 0)
    thumbnails: list[Frame] = field(default_factory=list)
    luminance: list[float] = field(default_factory=list)
    contrast: list[float] = field(default_factory=list)
    saturation: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    moments: list[Moments] = field(default_factory=list)
    cameras: list[camera.Matrix] = field(default_factory=list)
    subject: list[float] = field(default_factory=list)
    warping: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    change: list[float] = field(default_factory=list)


def read(frames: Iterable[Frame]) -> Stream:
    """Go through a clip of uint8 RGB frames once.

    Raises:
        RequestError: there are fewer than two frames.
    """
    found = Stream()
    flows = flow.Flows()
    before: Frame | None = None
    now: Frame | None = None
    last: flow.Pair | None = None
    for frame in frames:
        if now is None:
            found.size = working_size(frame)
        following = small(frame, found.size)
        _look(found, frame, following)
        if now is not None:
            pair = flows.between(now, following)
            found.cameras.append(pair.camera)
            found.subject.append(flow.subject_motion(now, following, pair))
            found.warping.append(flow.warping_error(now, following, pair))
            found.same.append(flow.is_same(now, following))
            found.change.append(flow.change(now, following))
            if before is not None and last is not None:
                found.flicker.append(flow.flicker(before, now, following, last, pair))
            last = pair
        before, now = now, following
    if not found.cameras:
        raise RequestError("a clip of one frame has no motion: what moves is measured from one frame to the next")
    return found


def small(frame: Frame, size: tuple[int, int]) -> Frame:
    """A frame at a height and width, means of its pixels."""
    height, width = size
    if frame.shape[:2] == size:
        return np.ascontiguousarray(frame)
    method = cv2.INTER_AREA if height < frame.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(frame, (width, height), interpolation=method), np.uint8)


def working_size(frame: Frame) -> tuple[int, int]:
    """Height and width, in pixels, that motion is found in."""
    return _scaled(frame, _SIDE, _LEAST_SIDE)


def _scaled(frame: Frame, most: int, least: int = 1) -> tuple[int, int]:
    side = min(frame.shape[:2])
    scale = min(max(side, least), most) / side
    return max(least, round(frame.shape[0] * scale)), max(least, round(frame.shape[1] * scale))


def _look(found: Stream, frame: Frame, following: Frame) -> None:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    edges = cv2.Laplacian(grey, cv2.CV_32F)
    deviation = float(cv2.meanStdDev(edges)[1].item())
    found.sharpness.append(math.log10(1 + deviation**2))
    mean, spread = cv2.meanStdDev(grey)
    found.luminance.append(float(mean.item()))
    found.contrast.append(float(spread.item()))
    found.saturation.append(float(cv2.cvtColor(following, cv2.COLOR_RGB2HSV)[..., 1].mean()))
    found.thumbnails.append(small(following, _scaled(following, _THUMBNAIL)))
    found.moments.append(moments(following))
