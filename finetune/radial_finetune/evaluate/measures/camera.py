"""What the camera does from one frame to the next: a shift with a little turn and zoom, told from what moves before it.

A figure that crosses an even ground and a camera that follows a landscape give the same picture differences. They are
told apart by where the differences go away: all over the frame, or in one place of it.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Matrix = NDArray[np.float64]  # [2, 3], where a point of one frame lies in the next
_GRID = 16  # places along the shorter side
_NOISE = 1.0  # of 255: places that differ by less are the same
_SPREAD = 0.6  # of an even spread over the frame


def still() -> Matrix:
    """The camera that does not move."""
    return np.eye(2, 3)


@functools.lru_cache(maxsize=4)
def grid(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Across and down of every pixel; not to be written to."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x, y


def chain(one: Matrix, two: Matrix) -> Matrix:
    """First ``one``, then ``two``."""
    whole: Matrix = np.vstack([two, [0, 0, 1]]) @ np.vstack([one, [0, 0, 1]])
    return whole[:2]


def inverse(matrix: Matrix) -> Matrix:
    """The way back."""
    return np.asarray(cv2.invertAffineTransform(matrix))


def field(matrix: Matrix, height: int, width: int) -> NDArray[np.float32]:
    """A camera's motion as a flow ``[H, W, 2]`` in pixels."""
    x, y = grid(height, width)
    turn = matrix - still()
    flow = np.empty((height, width, 2), np.float32)
    for row in (0, 1):
        flow[..., row] = turn[row, 0] * x + turn[row, 1] * y + turn[row, 2]
    return flow


def follow(image: NDArray[np.uint8], matrix: Matrix, height: int, width: int) -> NDArray[np.uint8]:
    """The next frame as the camera of this one would have seen it."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def covered(matrix: Matrix, height: int, width: int) -> NDArray[np.bool_]:
    """Where this frame's points lie within the next."""
    flow = field(matrix, height, width)
    x, y = grid(height, width)
    x, y = x + flow[..., 0], y + flow[..., 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def centre_shift(matrix: Matrix, height: int, width: int) -> NDArray[np.float64]:
    """How far the middle of the frame moves, x and y in pixels."""
    middle = np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
    return np.asarray(matrix @ middle - middle[:2])


def shift_between(now: Grey, following: Grey) -> Matrix:
    """The camera's shift by phase correlation, or none where the frame as a whole does not follow it."""
    one, two = _details(now), _details(following)
    window = cv2.createHanningWindow((now.shape[1], now.shape[0]), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(one, two, window)
    found = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
    return found if _better(one, two, still(), found) else still()


def refined(now: Grey, following: Grey, flow: NDArray[np.float32], first: Matrix) -> Matrix:
    """A camera's shift, turn and zoom out of a flow, where they explain more of the frame than ``first`` does."""
    one, two = _details(now), _details(following)
    height, width = now.shape
    step = max(2, min(height, width) // 24)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    texture = cv2.blur(np.abs(one), (step, step))[y, x]
    inside = covered(first, height, width)[y, x] & (texture > _NOISE)
    if inside.sum() < 12:
        return first
    start = np.stack([x, y], axis=-1)[inside].astype(np.float32)
    end = start + flow[y, x][inside]
    found, _ = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=0.5, maxIters=300)
    if found is None or not 0.7 < np.hypot(found[0, 0], found[0, 1]) < 1.4:
        return first
    return found if _better(one, two, first, np.asarray(found)) else first


def _details(grey: Grey) -> NDArray[np.float32]:
    """A frame without its light and its noise: what is finer than half of its side, and no single pixel."""
    image = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0)
    return image - cv2.GaussianBlur(image, (0, 0), max(1.5, min(grey.shape) / 4))


def _better(one: NDArray[np.float32], two: NDArray[np.float32], before: Matrix, after: Matrix) -> bool:
    """Whether one camera explains the frame better than another: in most places that differ, and all over it."""
    height, width = one.shape
    seen = (covered(before, height, width) & covered(after, height, width)).astype(np.float32)
    if seen.mean() < 0.25:
        return False
    share = _places(seen)
    apart = []
    for camera in (before, after):
        moved = cv2.warpAffine(two, camera, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        apart.append(_places(np.abs(one - moved) * seen) / np.maximum(share, 1e-3))
    differ = (share > 0.5) & (np.maximum(*apart) > _NOISE)
    gained = differ & (apart[1] < 0.8 * apart[0])
    lost = differ & (apart[0] < 0.8 * apart[1])
    if gained.sum() < 3 or gained.sum() <= 2 * lost.sum():
        return False
    y, x = np.nonzero(gained)
    all_y, all_x = np.nonzero(share > 0.5)
    spread = max(float(x.std() / max(all_x.std(), 1e-3)), float(y.std() / max(all_y.std(), 1e-3)))
    return spread > _SPREAD


def _places(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over places of a coarse grid."""
    height, width = image.shape
    scale = min(1.0, _GRID / min(height, width))
    size = max(2, round(width * scale)), max(2, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
