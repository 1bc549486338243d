"""Measures of a clip alone: what moves, how steady it is, what drifts, whether it repeats itself, stops or is cut.

They need no trained weights and go through a clip once. Each is about one fault and meant to be blind to the others;
docs/evaluate.md says what each does not see. A clip that stands still scores well on every steadiness, so motion stands
beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radial_finetune.evaluate.measures import camera, curves, frechet
from radial_finetune.evaluate.measures.cuts import find_cuts
from radial_finetune.evaluate.measures.recurrence import recurrence
from radial_finetune.evaluate.measures.stream import Frame, Stream, read
from radial_finetune.evaluate.measures.subject import Subject, positions

TITLES = {
    "motion": "motion, % of the frame's side a second",
    "subject_motion": "subject's motion, % of the frame's side a second",
    "pan": "pan, % of the frame's side a second",
    "jitter": "jitter, % of the frame's side",
    "flicker": "flicker, of 255",
    "warping_error": "warping error, of 255",
    "subject": "subject's colours, distance in Lab",
    "luminance": "luminance, of 255",
    "saturation": "saturation, of 255",
    "contrast": "contrast, of 255",
    "sharpness": "sharpness, log10",
}


@dataclass(frozen=True)
class ClipMeasures:
    """Measures of one clip; None is what could not be judged.

    A drift is the largest deviation of any second's mean from the first second's, with its sign; of a clip below two
    seconds, of any half's from the first half's. Flashes and the steps across cuts are left out of all others.

    Attributes:
        motion: of subject and pan together, in percent of the frame's shorter side a second (dynamic degree).
        subject_motion: mean length of the optical flow beyond the camera's, in the same unit.
        pan: speed of the camera's view on its smooth way, in the same unit.
        jitter: how far, root of the mean square, the camera is off its smooth way, in percent of the frame's shorter
            side.
        judder: mean deviation of motion from that of half a second around it, as a share of it. Shown twice each: 1.
        duplicates: share of frames that show the one before again.
        longest_freeze: the longest time without a change, in seconds.
        flicker: difference of a frame from the middle of its neighbours, moved to where it stands; the median over
            frames of means over pixels, in 0..255.
        flashes: how often a frame or a few are much lighter or darker than those before and after.
        warping_error: root mean square difference, in 0..255, of a frame from the next one that optical flow brings
            back to it, where both show the same; the median over frames.
        subject_drift: distance of the colours of what moves, in units of CIE Lab (a just visible one is about 2).
        subject_seen: share of frames in which enough of it stands out from the ground to be judged.
        luminance_drift, saturation_drift, contrast_drift: of means of frames, in 0..255.
        sharpness_drift: of the logarithm (base 10) of the variance of the Laplacian.
        frechet_drift: Fréchet distance of colours, contrast and texture of the frame's squares, in units of Lab.
        repetition: how much the clip comes back to itself, from 0 to 1, at lags of an eighth of it and more.
        cuts: how many times the scene changes.
        seconds: each of the curves behind these, a value a second.
    """

    motion: float
    subject_motion: float
    pan: float
    jitter: float
    judder: float | None
    duplicates: float
    longest_freeze: float
    flicker: float
    flashes: int
    warping_error: float
    subject_drift: float | None
    subject_seen: float
    luminance_drift: float
    saturation_drift: float
    contrast_drift: float
    sharpness_drift: float
    frechet_drift: float
    repetition: float
    cuts: int
    seconds: dict[str, list[float | None]]


def measure(frames: Iterable[Frame], fps: float) -> ClipMeasures:
    """Measure a clip of uint8 RGB frames, which is gone through once.

    Raises:
        RequestError: it has one frame.
    """
    found = read(frames)
    count, side = len(found.thumbnails), min(found.size)
    flashes = curves.find_flashes(np.array(found.luminance), fps)
    steps = np.stack([camera.centre_shift(matrix, *found.size) for matrix in found.cameras])
    same = curves.shown_again(np.array(found.same), np.array(found.change), np.array(found.subject), steps, fps)
    # Steps that lead nowhere: to a flash and from it, across a cut.
    apart = flashes[1:] | flashes[:-1]
    cuts = find_cuts(found.thumbnails, _led_over(found, apart, same), min(found.size), flashes)
    apart |= cuts[1:]
    cameras = _led_over(found, apart, same)
    shifts = np.stack([camera.centre_shift(matrix, *found.size) for matrix in cameras])
    pan, jitter = curves.split_shifts(shifts, same, fps)
    # All of the camera's way that is no pan, slow sways too: they would hide what comes back.
    sway = np.concatenate([np.zeros((1, 2)), np.cumsum(shifts - pan, axis=0)])
    sway = (sway - np.median(sway, axis=0)).clip(-0.1 * side, 0.1 * side)
    subject = curves.filled(np.array(found.subject), apart)
    thumbnail_scale = min(found.thumbnails[0].shape[:2]) / side
    again = np.concatenate([[False], same])
    what = Subject(found.thumbnails, positions(cameras, thumbnail_scale), flashes, again, fps)
    distances, subject_drift = what.distances()

    speed = fps / side * 100
    series = {
        "subject_motion": subject * speed,
        "pan": np.linalg.norm(pan, axis=1) * speed,
        "jitter": np.linalg.norm(jitter, axis=1) / side * 100,
        "warping_error": curves.filled(np.nan_to_num(np.array(found.warping)), apart),
        "flicker": _flicker(found, flashes, apart),
        "subject": np.repeat(distances, np.diff([*what.frames, count])),
    }
    series["motion"] = series["subject_motion"] + series["pan"]
    for name in ("luminance", "saturation", "contrast", "sharpness"):
        series[name] = curves.filled(np.array(getattr(found, name)), flashes)

    def drift(name: str) -> float:
        return curves.drift(series[name], fps)

    even = subject + np.linalg.norm(pan, axis=1)
    return ClipMeasures(
        motion=float(series["motion"].mean()), subject_motion=float(series["subject_motion"].mean()),
        pan=float(series["pan"].mean()), jitter=float(np.sqrt((jitter**2).sum(1).mean())) / side * 100,
        judder=curves.judder(even, same, fps), duplicates=float(same.mean()),
        longest_freeze=curves.longest_run(same) / fps, flicker=float(np.median(series["flicker"])),
        flashes=curves.count_runs(flashes), warping_error=float(np.median(series["warping_error"])),
        subject_drift=subject_drift, subject_seen=float((~np.isnan(what.colours[:, 0])).mean()),
        luminance_drift=drift("luminance"), saturation_drift=drift("saturation"), contrast_drift=drift("contrast"),
        sharpness_drift=drift("sharpness"), frechet_drift=_frechet(found, flashes, fps),
        repetition=recurrence(found.thumbnails, sway * thumbnail_scale, flashes),
        cuts=int(cuts.sum()), seconds={name: curves.by_second(series[name], fps) for name in TITLES},
    )  # fmt: skip


def _led_over(found: Stream, apart: NDArray[np.bool_], same: NDArray[np.bool_]) -> list[camera.Matrix]:
    """Steps of the camera, those that lead nowhere as the ones around them."""
    known = np.flatnonzero(~apart & ~same)
    if not len(known):
        return [camera.still()] * len(apart)
    nearest = [known[np.abs(known - i).argmin()] if apart[i] else i for i in range(len(apart))]
    return [found.cameras[i] for i in nearest]


def _flicker(found: Stream, flashes: NDArray[np.bool_], apart: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A value a frame; the ends have that of the frame beside them."""
    if not found.flicker:
        return np.zeros(len(flashes))
    curve = np.array([found.flicker[0], *found.flicker, found.flicker[-1]])
    return curves.filled(curve, np.concatenate([apart, [False]]) | np.concatenate([[False], apart]))


def _frechet(found: Stream, flashes: NDArray[np.bool_], fps: float) -> float:
    """The largest distance of a second from the first; seconds begin every quarter of one."""
    kept = [moment for moment, flash in zip(found.moments, flashes, strict=True) if not flash]
    window = curves.second(len(kept), fps)
    sums = [
        sum(kept[i + 1 : i + window], kept[i]) for i in range(0, len(kept) - window + 1, max(1, window // 4))
    ]  # fmt: skip
    return max(frechet.distance(sums[0], one) for one in sums)
