"""Whether a clip comes back to itself, told from thumbnails without its light and its sways."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from radial_finetune.evaluate.measures import camera, curves
from radial_finetune.evaluate.score import repetition

_SIDE = 16
_LEAST = 3.0  # of 255, deviation over time of the pixel that changes most; less is what sways leave
_LONG, _DIRECTIONS = 1024, 64
_FARTHEST = 3.0  # times the middle distance from the mean


def recurrence(thumbnails: Sequence[NDArray[np.uint8]], sway: NDArray[np.float64], flashes: NDArray[np.bool_]) -> float:
    """How much a clip comes back to itself, 0 to 1, at lags of an eighth of it and more.

    Args:
        sway: how far each frame is off the camera's pan, ``[T, 2]`` in pixels of thumbnails.
    """
    margin = min(int(np.ceil(np.abs(sway).max() - 0.01)), min(thumbnails[0].shape[:2]) // 8)
    signal = np.stack([_vector(image, off, margin) for image, off in zip(thumbnails, sway, strict=True)])
    signal = np.concatenate([_without_light(signal[:, channel::3]) for channel in range(3)], axis=1)
    signal = curves.filled(signal, flashes)
    signal = signal - signal.mean(0)
    lengths = np.linalg.norm(signal, axis=1)
    far = _FARTHEST * np.median(lengths)
    signal *= np.minimum(1.0, far / np.maximum(lengths, 1e-9))[:, None]
    if signal.std(0).max() < _LEAST:
        return 0.0
    if len(signal) > _LONG:  # every frame is held against every other: by what most of them differ in
        _, directions = np.linalg.eigh(signal.T @ signal)
        signal = signal @ directions[:, -_DIRECTIONS:]
    return repetition(signal / 255, max(4, len(signal) // 8))


def _vector(image: NDArray[np.uint8], off: NDArray[np.float64], margin: int) -> NDArray[np.float64]:
    height, width = image.shape[:2]
    if np.abs(off).max() > 0.01:
        image = camera.follow(image, np.array([[1, 0, off[0]], [0, 1, off[1]]], np.float64), height, width)
    image = image[margin : height - margin, margin : width - margin]
    small = cv2.resize(image.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float64).ravel()


def _without_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each frame of one colour in the light of the median over time, by the half that fits it best."""
    middle = np.median(signal, axis=0)
    even = []
    for values in signal:
        gain, offset = 1.0, float(np.median(values - middle))
        for _ in range(4):
            apart = np.abs(values - gain * middle - offset)
            same = apart <= np.median(apart)
            own, other = middle[same] - middle[same].mean(), values[same] - values[same].mean()
            gain = float(np.clip((own @ other + 4 * same.sum()) / (own @ own + 4 * same.sum()), 0, 5))
            offset = float(values[same].mean() - gain * middle[same].mean())
        if gain < 0.2:  # another picture, not another light
            gain, offset = 1.0, float(np.median(values - middle))
        even.append((values - offset) / gain)
    return np.stack(even)
