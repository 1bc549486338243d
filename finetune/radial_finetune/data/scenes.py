"""Where one scene ends and another begins: at a cut, or in a dissolve from one to the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
_WINDOWS = (0.5, 1.0, 1.5, 2.0, 3.0)  # seconds, within which a dissolve may lie
_MIXTURES = 3  # frames of a dissolve, at least; fewer are a cut
_BLACK = 20.0  # mean of a frame, in 0..255
_SMALL = 32  # side of the copies that dissolves are looked for in


class Scenes:
    """Tells the first frame of a new scene, by how much hue, saturation and value of a small copy change.

    A change must be three times that of the frames before it, so that fast motion is none.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._last: NDArray[np.int16] | None = None
        self._changes: list[float] = []  # the last ones of the scene so far

    def is_new(self, frame: Frames) -> bool:
        """Whether a frame, given in its turn, begins another scene than the one before it."""
        import cv2

        small = cv2.resize(frame, (min(64, frame.shape[1]), min(64, frame.shape[0])), interpolation=cv2.INTER_AREA)
        colours: NDArray[np.int16] = cv2.cvtColor(small, cv2.COLOR_RGB2HSV).astype(np.int16)
        last, self._last = self._last, colours
        if last is None:
            return False
        change = np.abs(last - colours)
        hue = change[..., 0]
        change[..., 0] = np.minimum(hue, 180 - hue)  # a circle: red lies at both ends
        usual = max(self._changes, default=self._threshold / 2)
        if (amount := float(change.mean())) > max(self._threshold, 3 * usual):
            self._changes = []
            return True
        self._changes = [*self._changes[-2:], amount]
        return False


def has_dissolve(clip: Frames, fps: float, threshold: float) -> bool:
    """Whether a clip holds a whole dissolve, or a fade from or to black: a change above the threshold, in 0..255, of
    which several frames in a row are mixtures of its two ends, with little change before and after it.

    Where something moves, a point shows what was there or what is there now, and no mixture. Brightness that all points
    share is left aside, as that of a pan over a soft ground.
    """
    import cv2

    small = np.stack([cv2.resize(f, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA) for f in clip]).astype(np.float32)
    copies = (small - small.mean((1, 2), keepdims=True)).reshape(len(small), -1)
    for seconds in _WINDOWS:
        span = max(6, round(seconds * fps))
        rest = max(2, span // 4)
        for first in range(len(copies) - span):
            last = first + span
            one, two = copies[first], copies[last]
            change = np.abs(two - one)
            if change.mean() <= threshold:
                continue
            # Before and after it, less than half of its pace. At the clip's end nothing is known of that but of black.
            still = 0.5 * rest / span * float(change.mean())
            ends = ((first, first - rest), (last, last + rest))
            if any(
                float(np.abs(copies[near] - copies[beyond]).mean()) > still
                if 0 <= beyond < len(copies)
                else float(small[near].mean()) > _BLACK
                for near, beyond in ends
            ):
                continue
            between = copies[first + 1 : last] - one
            shares = between @ (two - one) / float(np.square(two - one).sum())
            mixed = (shares > 0.15) & (shares < 0.85)
            if mixed.sum() < _MIXTURES or (np.diff(shares) < -0.1).any():
                continue
            changed = change > change.mean()
            off = np.abs(between - shares[:, None] * (two - one))[:, changed] / change[changed]
            if ((off < 0.25).mean(1) > 0.75).all():
                return True
    return False
