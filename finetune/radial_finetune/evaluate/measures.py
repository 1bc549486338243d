"""Measures of a clip alone: how much moves, how steady it is, what drifts, whether it repeats itself or is cut.

They need no trained weights. A clip that stands still scores well on every steadiness, so motion stands beside them.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from radial_finetune.data.clips import Frames, Scenes
from radial_finetune.evaluate.score import repetition

Curve = NDArray[np.float64]
TITLES = {
    "motion": "motion, % of the frame's side a second",
    "flicker": "flicker, of 255",
    "subject": "subject: share of the first second's colours lost",
    "luminance": "luminance, of 255",
    "saturation": "saturation, of 255",
    "contrast": "contrast, of 255",
    "sharpness": "sharpness, log10",
}


@dataclass(frozen=True)
class ClipMeasures:
    """Measures of one clip.

    Attributes:
        motion: mean length of the optical flow, in percent of the frame's shorter side a second (dynamic degree).
        flicker: mean difference of a pixel from the middle of the frames before and after it, in 0..255.
        subject_drift: share of the colours of what moves in the first second that what moves in the last has lost.
        luminance_drift, saturation_drift, contrast_drift: change of the mean from the first to the last second, in
            0..255.
        sharpness_drift: the same of the logarithm (base 10) of the variance of the Laplacian.
        repetition: how much the clip comes back to itself, from 0 to 1, at lags of an eighth of it and more.
        cuts: how many times the scene changes.
        seconds: each of the curves behind these, a value a second.
    """

    motion: float
    flicker: float
    subject_drift: float
    luminance_drift: float
    saturation_drift: float
    contrast_drift: float
    sharpness_drift: float
    repetition: float
    cuts: int
    seconds: dict[str, list[float]]


def measure(frames_THWC: Frames, fps: float) -> ClipMeasures:
    """Measure a clip of uint8 RGB frames."""
    curves = _curves(frames_THWC, fps)
    seconds = {name: _by_second(curve, fps) for name, curve in curves.items()}

    def drift(name: str) -> float:
        return seconds[name][-1] - seconds[name][0]

    scenes = Scenes(15.0)
    cuts = sum(scenes.is_new(frame) for frame in frames_THWC)
    return ClipMeasures(
        motion=float(curves["motion"].mean()), flicker=float(curves["flicker"].mean()), subject_drift=drift("subject"),
        luminance_drift=drift("luminance"), saturation_drift=drift("saturation"), contrast_drift=drift("contrast"),
        sharpness_drift=drift("sharpness"),
        repetition=repetition(_thumbnails(frames_THWC), max(4, len(frames_THWC) // 8)), cuts=cuts,
        seconds={name: [round(v, 4) for v in values] for name, values in seconds.items()},
    )  # fmt: skip


def _curves(frames_THWC: Frames, fps: float) -> dict[str, Curve]:
    """A value a frame of everything that is measured over time."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
    saturation = [float(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 1].mean()) for frame in frames_THWC]
    flow: Any = cv2.DISOpticalFlow_create(  # type: ignore[attr-defined]
        cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
    )
    side = min(frames_THWC.shape[1:3])
    moved = [0.0]
    for one, two in itertools.pairwise(grey):
        moved.append(float(np.linalg.norm(flow.calc(one, two, None), axis=-1).mean()) / side * fps * 100)
    middle = [0.0]
    for before, now, after in zip(frames_THWC, frames_THWC[1:], frames_THWC[2:], strict=False):
        middle.append(float(np.abs(now.astype(np.float32) - (before.astype(np.float32) + after) / 2).mean()))
    middle = (middle + middle[-1:])[: len(grey)]
    middle[0] = middle[min(1, len(middle) - 1)]
    moved[0] = moved[min(1, len(moved) - 1)]
    return {
        "motion": np.array(moved),
        "flicker": np.array(middle),
        "subject": _subject(frames_THWC, fps),
        "luminance": np.array([float(g.mean()) for g in grey]),
        "saturation": np.array(saturation),
        "contrast": np.array([float(g.std()) for g in grey]),
        "sharpness": np.array([math.log10(1 + float(cv2.Laplacian(g, cv2.CV_64F).var())) for g in grey]),
    }


def _subject(frames_THWC: Frames, fps: float) -> Curve:
    """How far the colours of what moves have gone from those of the first second, a value a frame.

    What moves is what differs from the median over time; its colours are a histogram of hue, saturation and value.
    """
    step = max(1, len(frames_THWC) // 32)
    still = np.median(frames_THWC[::step], axis=0).astype(np.int16)
    histograms = []
    for frame in frames_THWC:
        weight = np.abs(frame.astype(np.int16) - still).max(-1)
        mask = (weight > 24).astype(np.uint8)
        histogram = cv2.calcHist(
            [cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)], [0, 1, 2], mask, [12, 4, 4], [0, 180, 0, 256, 0, 256]
        ).ravel()
        total = histogram.sum()
        histograms.append(histogram / total if total > 0.001 * mask.size else None)
    first = [h for h in histograms[: max(1, round(fps))] if h is not None]
    if not first:
        return np.zeros(len(histograms))  # nothing moves
    reference = np.mean(first, axis=0)
    return np.array([1.0 if h is None else 1 - float(np.minimum(h, reference).sum()) for h in histograms])


def _thumbnails(frames_THWC: Frames) -> NDArray[np.float64]:
    """Frames as short vectors, ``[T, 16 * 16 * 3]`` in 0..1, without what stands still."""
    small = np.stack([cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA) for frame in frames_THWC])
    signal: NDArray[np.float64] = small.reshape(len(small), -1) / 255.0
    return signal - signal.mean(0)


def _by_second(curve: Curve, fps: float) -> list[float]:
    """Means of whole seconds; what is left over belongs to the last one."""
    count = max(1, int(len(curve) / fps))
    bounds = [round(i * fps) for i in range(count)] + [len(curve)]
    return [float(curve[low:high].mean()) for low, high in itertools.pairwise(bounds)]
