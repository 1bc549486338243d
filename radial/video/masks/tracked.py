"""A mask that is drawn on one frame of a clip, followed through the others by optical flow, and drawn to edges.

Shapes: T frames, H rows, W columns; flows are columns and rows, ``[H, W, 2]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radial.errors import RequestError
from radial.video.colour import Frame
from radial.video.control import white_parts
from radial.video.flow import dense_flow, grey

Mask = NDArray[np.bool_]
_MARGIN = 1 / 40  # of the shorter side: how far an edge is looked for on both sides of where the flow brings it
_ROUNDS = 3  # of GrabCut, for each frame
_SIDE = 480  # pixels of the shorter side at which a mask is followed at most
_MOST_BYTES = 2 << 30  # of frames that are held
_RED = np.array((127, 0, 0), np.uint8)


@dataclass(frozen=True)
class TrackedMask:
    """A drawn mask in each frame of a clip.

    Attributes:
        masks_THW: at the size at which it was followed, no larger than the clip.
        size: height and width of the clip.
        grow: pixels of the clip that it is widened by.
    """

    masks_THW: NDArray[np.bool_]
    size: tuple[int, int]
    grow: int = 0

    def frames(self) -> Iterator[Frame]:
        """The mask as a clip, white on black, uint8 ``[H, W, 3]``."""
        import cv2

        around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * self.grow + 1, 2 * self.grow + 1))
        for mask_HW in self.masks_THW:
            white = cv2.resize(mask_HW.astype(np.uint8) * 255, self.size[::-1], interpolation=cv2.INTER_LINEAR)
            white = cv2.dilate((white > 127).astype(np.uint8) * 255, around)
            yield np.repeat(white[..., None], 3, axis=2)

    def over(self, clip: Iterable[Frame]) -> Iterator[Frame]:
        """The clip, darker, and red where the mask is white."""
        for frame, mask in zip(clip, self.frames(), strict=True):
            yield frame // 2 + (mask > 0) * _RED


def track_drawing(
    clip: Iterable[Frame], drawing: Path, at: int = 0, *, grow: int = 0, edges: bool = True
) -> TrackedMask:
    """An image's white part, drawn over one frame of a clip, in each frame.

    Args:
        at: which frame.
        grow: pixels that the mask is widened by.
        edges: see :func:`track_mask`.

    Raises:
        RequestError: the image cannot be read, is black all over, or of another shape than the clip; the clip has no
            such frame, or is too long to be held.
    """
    import cv2

    small: list[Frame] = []
    size = (0, 0)
    for frame in clip:
        size = frame.shape[:2]
        share = min(1.0, _SIDE / min(size))
        wide = (round(size[1] * share), round(size[0] * share))
        small.append(frame if share == 1 else np.asarray(cv2.resize(frame, wide, interpolation=cv2.INTER_AREA)))
        if len(small) * small[-1].nbytes > _MOST_BYTES:
            raise RequestError(f"the clip is too long for a mask to follow: {len(small) - 1} frames of its size can be")
    if not 0 <= at < len(small):
        raise RequestError(f"the clip has {len(small)} frames, and none at {at}")
    drawn_HW = white_parts(drawing)
    if abs(drawn_HW.shape[1] / drawn_HW.shape[0] - size[1] / size[0]) > 0.02:
        told = f"{drawn_HW.shape[1]}x{drawn_HW.shape[0]}, and the clip {size[1]}x{size[0]}"
        raise RequestError(f"the mask is to be drawn over a frame of the clip, in its shape: {drawing.name} is {told}")
    drawn = cv2.resize(drawn_HW.astype(np.uint8) * 255, small[at].shape[1::-1], interpolation=cv2.INTER_AREA)
    if not (drawn > 127).any():
        raise RequestError(f"{drawing} is black all over: a mask is white where the clip is made anew")
    return TrackedMask(track_mask(small, drawn > 127, at, edges=edges), size, grow)


def track_mask(frames: Sequence[Frame], drawn_HW: Mask, at: int = 0, *, edges: bool = True) -> NDArray[np.bool_]:
    """Where what a mask lies on at one frame is in each: bool ``[T, H, W]``.

    Args:
        frames: the clip, uint8 ``[H, W, 3]`` each.
        drawn_HW: the mask at that frame.
        at: which frame that is.
        edges: whether its edge goes in each frame where colours part best, near where the flow brings it (Rother et al.
            2004); else the flow alone decides.
    """
    masks = np.zeros((len(frames), *drawn_HW.shape), bool)
    drawn_HW = _to_edges(frames[at], drawn_HW) if edges else drawn_HW
    masks[at] = drawn_HW
    for way in (range(at + 1, len(frames)), range(at - 1, -1, -1)):
        for index, mask in zip(way, _followed([frames[at], *(frames[i] for i in way)], drawn_HW, edges), strict=True):
            masks[index] = mask
    return masks


def _followed(frames: Sequence[Frame], mask_HW: Mask, edges: bool) -> Iterator[Mask]:
    """The mask of the first frame in each of those after it."""
    before, guess = grey(frames[0]), None
    for frame in frames[1:]:
        now = grey(frame)
        guess = dense_flow(now, before, guess)
        mask_HW = _carried(mask_HW, guess)
        if edges:
            mask_HW = _to_edges(frame, mask_HW)
        before = now
        yield mask_HW


def _carried(mask_HW: Mask, away_HW2: NDArray[np.float32]) -> Mask:
    """A mask where each pixel comes from by so much."""
    import cv2

    height, width = mask_HW.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    found = cv2.remap(
        mask_HW.astype(np.float32), columns + away_HW2[..., 0], rows + away_HW2[..., 1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.asarray(found > 0.5)


def _to_edges(frame: Frame, mask_HW: Mask) -> Mask:
    """A mask whose edge goes where colours part it best, near where it is; itself where there is too little of it."""
    import cv2

    margin = max(2, round(min(mask_HW.shape) * _MARGIN))
    around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    inner = cv2.erode(mask_HW.astype(np.uint8), around, borderValue=1)
    outer = cv2.dilate(mask_HW.astype(np.uint8), around)
    if not inner.any() or outer.all():
        return mask_HW
    rows, columns = (np.flatnonzero(outer.any(axis)) for axis in (1, 0))
    wide = 3 * margin  # of what surrounds it, enough to know its colours
    part = tuple(slice(max(0, one[0] - wide), one[-1] + wide + 1) for one in (rows, columns))
    guess = np.where(mask_HW, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    guess[inner > 0], guess[outer == 0] = cv2.GC_FGD, cv2.GC_BGD
    labels = np.ascontiguousarray(guess[part])
    if not (labels == cv2.GC_BGD).any():
        return mask_HW
    cv2.setRNGSeed(0)
    cv2.grabCut(
        np.ascontiguousarray(frame[part]), labels, None, np.zeros((1, 65)), np.zeros((1, 65)), _ROUNDS,
        cv2.GC_INIT_WITH_MASK,
    )  # fmt: skip
    refined = np.zeros_like(mask_HW)
    refined[part] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return refined
