"""Where one scene ends and another begins, at a cut or in a dissolve from one to the other; and black bars around."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
_WINDOWS = (0.5, 1.0, 1.5, 2.0, 3.0)  # seconds, within which a dissolve may lie
_MIXTURES = 3  # frames of a dissolve, at least; fewer are a cut
_BLACK = 20.0  # mean of a frame, in 0..255
_BAR = 24  # what is no brighter anywhere and at any time can be a bar, in 0..255
_LEAST_BAR, _MOST_BARS = 0.02, 0.6  # shares of a side: of one bar at least, of both together at most
_EVERY = 8  # frames, of which bars are looked for in one
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


class Bars:
    """Tells the black bars of a letterbox or pillarbox: on two sides facing each other, alike, black all the time."""

    def __init__(self) -> None:
        self._rows: NDArray[np.uint8] | None = None
        self._columns: NDArray[np.uint8] | None = None
        self._count = 0

    def look(self, frame: Frames) -> None:
        """Take a frame in its turn into account."""
        self._count += 1
        if self._count % _EVERY != 1:
            return
        bright = frame.max(2)
        rows, columns = bright.max(1), bright.max(0)
        if self._rows is None or self._columns is None or len(rows) != len(self._rows):
            self._rows, self._columns = rows, columns
        else:
            self._rows, self._columns = np.maximum(rows, self._rows), np.maximum(columns, self._columns)

    @property
    def within(self) -> tuple[slice, slice]:
        """The rows and columns between them; all where there are none."""
        return _between(self._rows), _between(self._columns)

    @property
    def told(self) -> str:
        """How much of a frame they are; empty where there are none."""
        rows, columns = self.within
        if self._rows is None or self._columns is None or rows == columns == slice(None):
            return ""
        high, wide = len(self._rows[rows]), len(self._columns[columns])
        return f"{high}x{wide} pixels of {len(self._rows)}x{len(self._columns)} lie between them"


def _between(bright: NDArray[np.uint8] | None) -> slice:
    if bright is None or not (bright > _BAR).any():
        return slice(None)
    lit = np.flatnonzero(bright > _BAR)
    size, first, last = len(bright), int(lit[0]), len(bright) - 1 - int(lit[-1])
    alike = abs(first - last) <= 2 + _LEAST_BAR * size
    wide = min(first, last) >= max(2, _LEAST_BAR * size) and first + last <= _MOST_BARS * size
    return slice(first, size - last) if alike and wide else slice(None)
