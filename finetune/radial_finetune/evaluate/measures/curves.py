"""Values over time: flashes in them, drift, and how evenly a clip moves."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
_FLASH = 10.0  # of 255
_CODEC = 12.0  # of 255, at most, in the place that it changes most
_MOVES = 0.02  # pixels a frame, of the mean over pixels: below it nothing moves that could be uneven


def find_flashes(luminance: Curve, fps: float) -> NDArray[np.bool_]:
    """Frames that are much lighter or darker than those before and after, for an eighth of a second at most.

    Where light changes from every frame to the next, it flickers, and no frame of it is a flash.
    """
    reach = max(2, round(fps / 8))
    middle = np.median(_around(luminance, reach), axis=1)
    steps = np.abs(np.diff(luminance, append=luminance[-1]))
    usual = np.median(_around(steps, 3 * reach), axis=1)
    return np.asarray(np.abs(luminance - middle) > np.maximum(_FLASH, 3 * usual))


def _around(curve: Curve, reach: int) -> Curve:
    """The entries around each, mirrored at the ends, ``[T, 2 * reach + 1]``."""
    padded = np.pad(curve, reach, mode="reflect" if len(curve) > reach else "edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)


def shown_again(same: NDArray[np.bool_], change: Curve, subject: Curve, shifts: Curve, fps: float) -> NDArray[np.bool_]:
    """Steps that show a frame again: exactly, or as a codec leaves it, which makes changes of its own.

    Of those, what changes is far less than in the steps around, half a second to each side, and nothing moves.
    """
    reach = max(2, round(fps / 2))

    def usual(curve: Curve) -> Curve:
        return np.asarray(np.quantile(_around(curve, reach), 0.8, axis=1))

    moved = np.linalg.norm(shifts, axis=1)
    still = (subject <= 0.08 * usual(subject)) & (moved <= 0.04 * usual(moved))
    return np.asarray(same | (still & (change < _CODEC) & (change < 0.3 * usual(change))))


def count_runs(marks: NDArray[np.bool_]) -> int:
    """How many unbroken runs of marks there are."""
    return int(marks[:1].sum() + (marks[1:] & ~marks[:-1]).sum())


def longest_run(marks: NDArray[np.bool_]) -> int:
    """Length of the longest unbroken run of marks."""
    return max((sum(1 for _ in run) for marked, run in itertools.groupby(marks.tolist()) if marked), default=0)


def filled(curve: Curve, gone: NDArray[np.bool_]) -> Curve:
    """A curve ``[T]`` or ``[T, D]`` whose marked entries are led from those before to those after."""
    there = np.flatnonzero(~gone)
    if not gone.any() or not len(there):
        return curve
    places = np.arange(len(curve))
    if curve.ndim == 1:
        return np.interp(places, there, curve[there])
    return np.stack([np.interp(places, there, column[there]) for column in curve.T], axis=-1)


def second(count: int, fps: float) -> int:
    """Frames of a second, or of half of a clip that is shorter than two."""
    return max(1, min(round(fps), count // 2))


def running(curve: Curve, window: int) -> Curve:
    """Means over every span of so many entries."""
    sums = np.cumsum(np.concatenate([np.zeros((1, *curve.shape[1:])), curve]), axis=0)
    return np.asarray((sums[window:] - sums[:-window]) / window)


def drift(curve: Curve, fps: float) -> float:
    """The largest deviation of any second's mean from the first second's, with its sign."""
    means = running(curve, second(len(curve), fps))
    apart = means - means[0]
    return float(apart[np.abs(apart).argmax()])


def by_second(curve: Curve, fps: float) -> list[float | None]:
    """Means of whole seconds, without what is not judged; what is left over belongs to the last one."""
    count = max(1, int(len(curve) / fps))
    bounds = [round(i * fps) for i in range(count)] + [len(curve)]
    parts = [curve[low:high][~np.isnan(curve[low:high])] for low, high in itertools.pairwise(bounds)]
    return [round(float(part.mean()), 4) if len(part) else None for part in parts]


def split_shifts(shifts: Curve, same: NDArray[np.bool_], fps: float) -> tuple[Curve, Curve]:
    """The camera's steps ``[T - 1, 2]`` on its smooth way, and jitter: how far each frame ``[T, 2]`` is off it.

    Frames that are shown again are neither. Those between may be spaced by when they are shown, as where frames were
    lost, or evenly, as where others were put in: what leaves less jitter is so.
    """
    fresh = np.concatenate([[True], ~same])
    number = np.cumsum(fresh) - 1  # of the distinct frame that each shows
    way = np.concatenate([np.zeros((1, 2)), np.cumsum(shifts[~same], axis=0)])
    best: tuple[Curve, Curve] | None = None
    for times in (np.flatnonzero(fresh), np.arange(len(way))):
        speed, off = _smooth(way, times.astype(np.float64), fps)
        if best is None or (off**2).sum() < (best[1] ** 2).sum():
            steps = np.zeros_like(shifts)
            steps[~same] = (speed[1:] + speed[:-1]) / 2 * np.diff(times)[:, None]
            best = steps, off[number]
    assert best is not None
    return best


def _smooth(way: Curve, times: Curve, fps: float) -> tuple[Curve, Curve]:
    """Speed along the line through a second of a way around each of its points, and how far each is off the parabola
    through it. A speed that what is off would make by chance is none."""
    window = min(max(6, round(fps)), len(way))
    speed, off = np.zeros_like(way), np.zeros_like(way)
    if window < 6:
        return speed + (way[-1] - way[0]) / max(1.0, times[-1] - times[0]), off
    for i in range(len(way)):
        first = min(max(0, i - window // 2), len(way) - window)
        part, at = way[first : first + window], times[first : first + window] - times[i]
        bend = np.polynomial.polynomial.polyfit(at, part, 2)
        left = part - np.polynomial.polynomial.polyval(at, bend).T
        off[i] = left[i - first]
        speed[i] = np.polynomial.polynomial.polyfit(at, part, 1)[1]
        chance = np.sqrt((left**2).sum() / (window - 3) / ((at - at.mean()) ** 2).sum())
        if np.linalg.norm(speed[i]) < 2.5 * chance:
            speed[i] = 0
    return speed, off


def judder(motion: Curve, same: NDArray[np.bool_], fps: float) -> float | None:
    """How uneven motion is from step to step, as a share of itself; None where nothing moves.

    Half a second around each step says how much is even. Every frame shown twice gives 1, one in five shown again 0.4.
    """
    motion = np.where(same, 0.0, motion)
    if motion.mean() < _MOVES:
        return None
    reach = max(2, round(fps / 4))
    windows = [motion[max(0, i - reach) : i + reach + 1] for i in range(len(motion))]
    even = np.array([window.mean() for window in windows])
    return float(np.abs(motion - even).mean() / motion.mean())
