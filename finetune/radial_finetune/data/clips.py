"""Training clips out of videos: decoded by time, cut at scene changes, fitted to buckets, without what stands still."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from radial.errors import ModelError, OutputError
from radial.video.reader import open_clip, rate_note
from radial_finetune.data.sources import Source

Frames = NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class Bucket:
    """A size that clips are cut to, so that they can share a batch."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Cut:
    """How clips are taken from a file.

    Attributes:
        buckets: the sizes to cut to. A file goes to the frame size nearest to its own shape, each of its scenes to the
            longest clips that it fills.
        crop: which part of a frame of another shape is kept.
        cut_threshold: mean change of hue, saturation and value from one frame to the next, in 0..255, that can be a new
            scene. It must also be three times that of the frames before, so that fast motion is none.
        static_threshold: mean change of a pixel in a second, in 0..255, below which nothing moves; 0 keeps all, also
            clips of a source whose rate is so low that most of their frames are shown again.
    """

    buckets: tuple[Bucket, ...]
    fps: float
    crop: Literal["centre", "random"] = "centre"
    cut_threshold: float = 15.0
    static_threshold: float = 1.0


_LONGEST_STILL = 10.0  # seconds that a frame is shown at most: beyond lies a gap between time stamps
_MOST_REPEATED = (
    0.6  # of a clip's frames that a file of a low rate shows again, as one of 5 a second that is read at 16
)


def read_clips(source: Source, cut: Cut, dropped: Counter[str], notes: list[str] | None = None) -> Iterator[Frames]:
    """Clips ``[T, H, W, 3]`` of one video; ``dropped`` counts what was left out and why, ``notes`` takes what was done
    to read it. Of single frames, one comes of each scene.

    Raises:
        ModelError: the file is corrupt or no video.
    """
    scene: list[Frames] = []
    scenes = Scenes(cut.cut_threshold)
    lengths: list[int] = []
    last: Frames | None = None
    size, place, number = (0, 0), (0.5, 0.5), 0
    for frame in resample(source, cut.fps, notes):
        if not lengths:
            size = _nearest_size(frame, cut.buckets)
            lengths = sorted({b.num_frames for b in cut.buckets if (b.height, b.width) == size}, reverse=True)
        fresh = scenes.is_new(frame)
        if lengths == [1] and number and not fresh:
            continue
        if fresh:
            for clip in _split(scene, lengths, cut, dropped):
                number += 1
                yield clip
            scene = []
        if not scene:
            place = _place(source, number, cut.crop)
        scene.append(scene[-1] if scene and frame is last else _fit(frame, size, place))
        last = frame
        if len(scene) == lengths[0]:
            for clip in _split(scene, lengths, cut, dropped):
                number += 1
                yield clip
            scene = []
    for clip in _split(scene, lengths, cut, dropped):
        yield clip


def resample(source: Source, fps: float, notes: list[str] | None = None) -> Iterator[Frames]:
    """Frames at a constant rate: at each instant the one that is shown then, so that speed stays as it is. ``notes``
    takes what was done: fields made whole, HDR, pixels that are not square, another rate, gaps between time stamps.

    Raises:
        ModelError: the file is corrupt or no video.
    """
    try:
        content = source.content() if callable(source.content) else source.content
        with open_clip(content, source.name) as clip:
            last, shown, gaps = None, 0, False
            for frame in clip.at(fps):
                shown = shown + 1 if frame is last else 1
                last = frame
                if shown <= _LONGEST_STILL * fps:
                    yield frame
                else:
                    gaps = True
            if notes is not None:
                notes += [*clip.notes, *filter(None, [rate_note(clip, fps)])]
                if gaps:
                    notes.append(
                        f"{clip.name} shows a frame for more than {_LONGEST_STILL:g} s: the rest of the gap is left out"
                    )
    except (OutputError, OSError) as error:
        raise ModelError(str(error)) from error


def _split(scene: list[Frames], lengths: list[int], cut: Cut, dropped: Counter[str]) -> Iterator[Frames]:
    """A scene as clips, the longest first; what is left over is too short."""
    for length in lengths:
        while len(scene) >= length:
            repeated = sum(one is two for one, two in itertools.pairwise(scene[:length])) / max(1, length - 1)
            clip, scene = np.stack(scene[:length]), scene[length:]
            if length == 1:
                yield clip
                return  # the frames around it show the same
            if _motion(clip, cut.fps) < cut.static_threshold:
                dropped["static"] += 1
            elif cut.static_threshold and repeated > _MOST_REPEATED:
                dropped["mostly repeated frames"] += 1
            else:
                yield clip
    if scene:
        dropped["too short"] += 1


def _motion(clip: Frames, fps: float) -> float:
    """Mean change of a pixel from one second to the next, or over the whole of a shorter clip."""
    later = max(1, min(round(fps), len(clip) - 1))
    return float(np.abs(clip[later:].astype(np.int16) - clip[:-later]).mean()) if len(clip) > 1 else 0.0


def _nearest_size(frame: Frames, buckets: tuple[Bucket, ...]) -> tuple[int, int]:
    """Height and width of the buckets nearest in shape; of several, the largest that need not be scaled up."""
    height, width, _ = frame.shape

    def badness(size: tuple[int, int]) -> tuple[float, bool, int]:
        too_large = size[0] * size[1] > height * width
        shape = round(abs(math.log(size[1] / size[0] * height / width)), 2)
        return shape, too_large, size[0] * size[1] * (1 if too_large else -1)

    return min({(b.height, b.width) for b in buckets}, key=badness)


def _place(source: Source, number: int, crop: str) -> tuple[float, float]:
    """Where the kept part lies in what there is to spare, from 0 to 1: the same for all frames of a clip."""
    if crop == "centre":
        return 0.5, 0.5
    rng = random.Random(f"{source.name} {source.caption} {number}")
    return rng.random(), rng.random()


def _fit(frame: Frames, size: tuple[int, int], place: tuple[float, float]) -> Frames:
    """Scaled until it covers the size, then cut at the longer sides."""
    import cv2

    height, width = size
    scale = max(height / frame.shape[0], width / frame.shape[1])
    whole = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(frame, whole, interpolation=method)
    top, left = int((whole[1] - height) * place[0]), int((whole[0] - width) * place[1])
    return np.ascontiguousarray(resized[top : top + height, left : left + width]).astype(np.uint8)


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
