"""Optical flow between two frames, the camera's part of it, and what each of them leaves unexplained.

Shapes: H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from radial_finetune.evaluate.measures import camera

Image = NDArray[np.uint8]
Flow = NDArray[np.float32]  # [H, W, 2], in pixels
_LEAST = 0.03  # pixels
_BLOCK = 8


@dataclass(frozen=True)
class Pair:
    """How one frame goes over into the next.

    Attributes:
        camera: where the camera moves a point of the frame.
        onward, back: flow to the next frame, and from it.
        seen: where a point of the frame is in the next as well.
    """

    camera: camera.Matrix
    onward: Flow
    back: Flow
    seen: NDArray[np.bool_]


class Flows:
    """Dense inverse search flow (Kroeger et al. 2016), begun from the camera's own motion."""

    def __init__(self) -> None:
        self._search: Any = cv2.DISOpticalFlow_create(  # type: ignore[attr-defined]
            cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
        )
        self._search.setFinestScale(0)  # frames are small: half of their pixels would be too coarse

    def between(self, now: Image, following: Image) -> Pair:
        """Flow and camera between two RGB frames."""
        one, two = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (now, following))
        height, width = one.shape
        if np.array_equal(one, two):
            none = np.zeros((height, width, 2), np.float32)
            return Pair(camera.still(), none, none, np.ones((height, width), np.bool_))
        moved = camera.shift_between(one, two)
        onward = self.calculate(one, two, camera.field(moved, height, width))
        moved = camera.refined(one, two, onward, moved)
        back = self.calculate(two, one, camera.field(camera.inverse(moved), height, width))
        return Pair(moved, onward, back, visible(onward, back))

    def calculate(self, one: Image, two: Image, first: Flow | None = None) -> Flow:
        """Flow from one grey frame to another, in pixels."""
        return np.asarray(self._search.calc(one, two, None if first is None else first.copy()), np.float32)


def bring(image: Image, flow: Flow) -> Image:
    """The frame that a flow leads to, moved back along it."""
    height, width = flow.shape[:2]
    x, y = camera.grid(height, width)
    moved = cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def visible(onward: Flow, back: Flow) -> NDArray[np.bool_]:
    """Where the way there and back leads to the same point, within the frame (Sundaram et al. 2010)."""
    height, width = onward.shape[:2]
    x, y = camera.grid(height, width)
    x, y = x + onward[..., 0], y + onward[..., 1]
    returned = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    apart = ((onward + returned) ** 2).sum(-1)
    lengths = (onward**2).sum(-1) + (returned**2).sum(-1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return np.asarray(inside & (apart < 0.01 * lengths + 0.5))


def warping_error(now: Image, following: Image, pair: Pair) -> float:
    """Root of the mean square difference, in 0..255, between a frame and the next one brought back to it by flow."""
    if not pair.seen.any():
        return float("nan")
    apart = now.astype(np.float32) - bring(following, pair.onward)
    return float(np.sqrt((apart[pair.seen] ** 2).mean()))


def subject_motion(now: Image, following: Image, pair: Pair) -> float:
    """Mean length, in pixels, of the flow beyond the camera's.

    It counts only where it explains the next frame better than the camera alone does: flow out of noise explains none.
    """
    height, width = now.shape[:2]
    beyond = np.linalg.norm(pair.onward - camera.field(pair.camera, height, width), axis=-1)
    reach = max(3, min(height, width) // 8)
    inside = camera.covered(pair.camera, height, width)
    left = []
    for image in (camera.follow(following, pair.camera, height, width), bring(following, pair.onward)):
        apart = (now.astype(np.float32) - image) * inside[..., None]
        apart = cv2.GaussianBlur(apart, (0, 0), 1.0)  # without noise
        apart -= cv2.blur(apart, (2 * reach, 2 * reach))  # what is lighter as a whole has not moved
        left.append(cv2.blur(np.abs(apart).mean(-1), (reach, reach)))
    counts = (beyond > _LEAST) & (left[1] < 0.8 * left[0]) & inside
    return float(np.where(counts, beyond, 0.0).mean())


def flicker(before: Image, now: Image, following: Image, last: Pair, pair: Pair) -> float:
    """Mean difference, in 0..255, of a frame from the middle of those around it, moved to where it stands.

    Each place takes the best of three motions, none, the camera's and the flow, so that what one of them gets wrong is
    not taken for flicker.
    """
    height, width = now.shape[:2]
    back = camera.inverse(last.camera)
    ways = [
        (before, following),
        (camera.follow(before, back, height, width), camera.follow(following, pair.camera, height, width)),
        (bring(before, last.back), bring(following, pair.onward)),
    ]
    here = now.astype(np.float32)
    size = max(1, width // _BLOCK), max(1, height // _BLOCK)
    apart = [
        cv2.resize(np.abs(here - (one.astype(np.float32) + two) / 2).mean(-1), size, interpolation=cv2.INTER_AREA)
        for one, two in ways
    ]
    inside = camera.covered(back, height, width) & camera.covered(pair.camera, height, width)
    inside &= pair.seen & visible(last.back, last.onward)  # what is hidden before or after cannot be foretold
    share = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
    best = np.min(apart, axis=0)
    return float(best[share].mean() if share.any() else best.mean())


def change(now: Image, following: Image) -> float:
    """How much the place that changes most does, in 0..255, where noise is evened out."""
    apart = cv2.GaussianBlur(following.astype(np.float32) - now, (0, 0), 1.5)
    size = max(1, now.shape[1] // _BLOCK), max(1, now.shape[0] // _BLOCK)
    return float(np.abs(cv2.resize(apart, size, interpolation=cv2.INTER_AREA)).max())


def is_same(now: Image, following: Image) -> bool:
    """Whether a frame is shown again: no place of it changes by as much as one of 255."""
    apart = cv2.absdiff(now, following).max(-1).astype(np.float32)
    size = max(1, now.shape[1] // _BLOCK), max(1, now.shape[0] // _BLOCK)
    return float(cv2.resize(apart, size, interpolation=cv2.INTER_AREA).max()) < 1.0
