"""Frames between frames: what is seen moves along its optical flow, from both sides, and what one side hides comes from
the other.

Shapes: H rows, W columns; flows are columns and rows a pixel goes by, ``[H, W, 2]``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radial.video.colour import Frame
from radial.video.finishing.later import Later, once
from radial.video.flow import dense_flow, grey

Flow = NDArray[np.float32]
_ROUNDS = 4  # of looking for where a pixel in between comes from
_CUT = 40.0  # grey levels by which both sides differ, brought together, where there is a cut between them
_TRUST = 1.5  # pixels by which there and back may miss each other
_LEAST = 0.1  # of a side's share, however little it is trusted: where both miss, both are seen


def add_frames(frames: Iterable[Later], factor: int) -> Iterator[Later]:
    """A clip at ``factor`` times its rate: ``factor - 1`` frames between each two, and the last one as often, so that
    it lasts as long. Across a cut nothing moves: the nearer frame is shown."""
    before: Later | None = None
    for frame in frames:
        if before is not None:
            yield before
            pair = once(_pair, before, frame)
            yield from (functools.partial(_at, pair, index / factor) for index in range(1, factor))
        before = frame
    for _ in range(factor if before is not None else 0):
        assert before is not None
        yield before


def _pair(first: Later, second: Later) -> Pair:
    return Pair(first(), second())


def _at(pair: Callable[[], Pair], share: float) -> Frame:
    return pair().at(share)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two frames that follow each other."""

    first: Frame
    second: Frame

    def __post_init__(self) -> None:
        one, other = grey(self.first), grey(self.second)
        there, back = dense_flow(one, other), dense_flow(other, one)
        object.__setattr__(self, "_flows", (there, back))
        object.__setattr__(self, "_misses", (_misses(there, back), _misses(back, there)))

    def at(self, share: float) -> Frame:
        """The frame at a share of the way from the first to the second, between 0 and 1."""
        (there, back), (there_misses, back_misses) = self._flows, self._misses  # type: ignore[attr-defined]
        from_first, from_second = _sources(there, share), _sources(back, 1 - share)
        sides = _moved(self.first, from_first), _moved(self.second, from_second)
        if float(np.abs(sides[0] - sides[1]).mean()) > _CUT:
            return self.first if share < 0.5 else self.second
        trusts = [
            weight * np.exp(-((_moved(misses, sources) / _TRUST) ** 2)) + _LEAST * weight
            for weight, misses, sources in (
                (1 - share, there_misses, from_first), (share, back_misses, from_second),
            )
        ]  # fmt: skip
        first = (trusts[0] / (trusts[0] + trusts[1]))[..., None]
        return (sides[0] * first + sides[1] * (1 - first) + 0.5).clip(0, 255).astype(np.uint8)


def _sources(flow: Flow, share: float) -> Flow:
    """By how much each pixel of the frame at a share of a flow is away from where it comes from: the pixel that the
    flow brings here."""
    away = -share * flow
    for _ in range(_ROUNDS):
        away = -share * _moved(flow, away)
    return away.astype(np.float32)


def _misses(there: Flow, back: Flow) -> NDArray[np.float32]:
    """Pixels by which each pixel, gone there and back, misses where it was: many where the other frame hides it."""
    away = there + _moved(back, there)
    return np.sqrt((away**2).sum(-1)).astype(np.float32)


def _moved(picture: NDArray[np.float32] | Frame, away: Flow) -> NDArray[np.float32]:
    """What a picture has at so many pixels away from each; beyond its border what is at it."""
    import cv2

    height, width = away.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    found = cv2.remap(
        picture.astype(np.float32), columns + away[..., 0], rows + away[..., 1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.asarray(found, np.float32)
