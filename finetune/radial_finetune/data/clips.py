"""Training clips out of videos and pictures: decoded by time, cut at scene changes, fitted to buckets, without what
stands still."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from radial.errors import ModelError, OutputError, RequestError
from radial.video.images import read_image
from radial.video.reader import open_clip, rate_note
from radial_finetune.data.buckets import Bucket, nearest_size
from radial_finetune.data.scenes import Bars, Scenes, has_dissolve
from radial_finetune.data.sources import Source

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Cut:
    """How clips are taken from a file.

    Attributes:
        buckets: the sizes to cut to. A file goes to the frame size nearest to its own shape, each of its scenes to the
            longest clips that it fills. Pictures go to the sizes of one frame, or where there is none to one frame of
            the others.
        crop: which part of a frame of another shape is kept.
        cut_threshold: mean change of hue, saturation and value from one frame to the next, in 0..255, that can be a new
            scene. It must also be three times that of the frames before, so that fast motion is none.
        static_threshold: mean change of a pixel in a second, in 0..255, below which nothing moves; 0 keeps all, also
            clips of a source whose rate is so low that most of their frames are shown again.
        ground: the colour under see-through parts.
        max_clips: clips taken of a file at most, where its source says nothing else.
        seed: decides which.
        crop_bars: whether black bars around a video are cut off before anything else, for which its file is read once
            more; else they are told.
    """

    buckets: tuple[Bucket, ...]
    fps: float
    crop: Literal["centre", "random"] = "centre"
    cut_threshold: float = 15.0
    static_threshold: float = 1.0
    # Not in the repr, by which earlier caches know what they have: :meth:`also` tells these.
    ground: str = field(default="black", repr=False)
    max_clips: int | None = field(default=None, repr=False)
    seed: int = field(default=0, repr=False)
    crop_bars: bool = field(default=False, repr=False)

    @property
    def picture_sizes(self) -> set[tuple[int, int]]:
        """Heights and widths that pictures are fitted to."""
        single = {(b.height, b.width) for b in self.buckets if b.num_frames == 1}
        return single or {(b.height, b.width) for b in self.buckets}

    def most_of(self, source: Source) -> int | None:
        """Clips taken of a source at most."""
        return source.share.max_clips or self.max_clips

    def also(self, source: Source) -> str:
        """What decides on a source's clips beside the repr; empty where nothing was chosen."""
        told = "" if self.ground == "black" else f" on {self.ground}"
        told += " without bars" if self.crop_bars else ""
        most = self.most_of(source)
        return told if most is None else f"{told} at most {most} by {self.seed}"


_LONGEST_STILL = 10.0  # seconds that a frame is shown at most: beyond lies a gap between time stamps
_MOST_REPEATED = (
    0.6  # of a clip's frames that a file of a low rate shows again, as one of 5 a second that is read at 16
)
_TOLD_REPEATED = 0.1  # of a file's frames that are shown again, from which on it is told
_HELD_BYTES = 256 << 20  # of clips that wait until it is known how many there are


def read_clips(
    source: Source, cut: Cut, dropped: Counter[str], notes: list[str] | None = None,
    goes_on: Callable[[], bool] = lambda: True,
) -> Iterator[Frames]:  # fmt: skip
    """Clips ``[T, H, W, 3]`` of one video, or the one of a picture; ``dropped`` counts what was left out and why,
    ``notes`` takes what was done to read it. Of single frames, one comes of each scene.

    Args:
        goes_on: asked now and then where a file is read without a clip that could be handed on.

    Raises:
        ModelError: the file is corrupt, or neither a video nor a picture.
    """
    notes = [] if notes is None else notes
    if source.unused:
        dropped[source.unused] += 1
    elif source.is_picture:
        yield _read_picture(source, cut, notes)
    elif (most := cut.most_of(source)) is not None:
        yield from _spread(source, cut, most, dropped, notes, goes_on)
    else:
        yield from _read_video(source, cut, dropped, notes)


def _read_picture(source: Source, cut: Cut, notes: list[str]) -> Frames:
    try:
        content = source.content() if callable(source.content) else source.content
        image, told = read_image(content, cut.ground, source.name)
    except (RequestError, OSError) as error:
        raise ModelError(str(error)) from error
    frame = np.asarray(image)
    size = nearest_size(frame.shape[0], frame.shape[1], cut.picture_sizes)
    notes += told
    _note_enlarged(source, frame, size, notes)
    return _fit(frame, size, _place(source, 0, cut.crop))[None]


def _spread(
    source: Source, cut: Cut, most: int, dropped: Counter[str], notes: list[str], goes_on: Callable[[], bool]
) -> Iterator[Frames]:
    """Of a video's clips as many as are wanted, one of each part of it, drawn by the seed. A file that has more is read
    twice: how many there are is known at its end, and they would not all fit into memory."""
    held: list[Frames] | None = []
    count = 0
    for clip in _read_video(source, cut, dropped, notes):
        if not goes_on():
            return
        count += 1
        if held is not None:
            held.append(clip)
            if count > most or sum(one.nbytes for one in held) > _HELD_BYTES:
                held = None
    if held is not None:
        yield from held
        return
    if count > most:
        dropped["beyond max_clips"] += count - most
    taken = min(count, most)
    rng = random.Random(f"{cut.seed} {source.name}")
    chosen = [rng.randrange(part * count // taken, (part + 1) * count // taken) for part in range(taken)]
    again = _read_video(source, cut, Counter(), [])
    yield from (clip for number, clip in enumerate(itertools.islice(again, chosen[-1] + 1)) if number in set(chosen))


def _read_video(source: Source, cut: Cut, dropped: Counter[str], notes: list[str]) -> Iterator[Frames]:
    scene: list[Frames] = []
    scenes = Scenes(cut.cut_threshold)
    lengths: list[int] = []
    last: Frames | None = None
    size, place, number = (0, 0), (0.5, 0.5), 0
    bars = Bars()
    within = _find_bars(source, cut, notes) if cut.crop_bars else None
    shown: Frames | None = None
    for whole in resample(source, cut.fps, notes, cut.ground):
        if within is None:
            frame = whole
            bars.look(whole)
        else:  # a frame that is shown again stays the same one
            frame = last if last is not None and whole is shown else whole[within]
            shown = whole
        if not lengths:
            size = nearest_size(frame.shape[0], frame.shape[1], ((b.height, b.width) for b in cut.buckets))
            lengths = sorted({b.num_frames for b in cut.buckets if (b.height, b.width) == size}, reverse=True)
            _note_enlarged(source, frame, size, notes)
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
    yield from _split(scene, lengths, cut, dropped)
    if bars.told:
        notes.append(f"{source.name} has black bars around it: {bars.told}; --crop-bars cuts them off")


def _find_bars(source: Source, cut: Cut, notes: list[str]) -> tuple[slice, slice]:
    """The rows and columns of a video's frames that lie between black bars."""
    bars = Bars()
    for frame in resample(source, cut.fps, ground=cut.ground):
        bars.look(frame)
    if bars.told:
        notes.append(f"{source.name}: its black bars are cut off; {bars.told}")
    return bars.within


def resample(source: Source, fps: float, notes: list[str] | None = None, ground: str = "black") -> Iterator[Frames]:
    """Frames at a constant rate: at each instant the one that is shown then, so that speed stays as it is. ``notes``
    takes what was done: fields made whole, HDR, pixels that are not square, another rate, frames that are shown again,
    gaps between time stamps.

    Raises:
        ModelError: the file is corrupt or no video.
    """
    try:
        content = source.content() if callable(source.content) else source.content
        with open_clip(content, source.name, ground) as clip:
            last, shown, gaps, count, again = None, 0, False, 0, 0
            for frame in clip.at(fps):
                shown = shown + 1 if frame is last else 1
                last = frame
                if shown <= _LONGEST_STILL * fps:
                    count, again = count + 1, again + (shown > 1)
                    yield frame
                else:
                    gaps = True
            if notes is not None:
                notes += [*clip.notes, *filter(None, [rate_note(clip, fps)])]
                if again > _TOLD_REPEATED * count:
                    notes.append(f"{clip.name}: {again / count:.0%} of its frames are shown again at {fps:g} a second")
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
            elif has_dissolve(clip, cut.fps, cut.cut_threshold):
                dropped["dissolve"] += 1
            else:
                yield clip
    if scene:
        dropped["too short"] += 1


def _motion(clip: Frames, fps: float) -> float:
    """Mean change of a pixel from one second to the next, or over the whole of a shorter clip."""
    later = max(1, min(round(fps), len(clip) - 1))
    return float(np.abs(clip[later:].astype(np.int16) - clip[:-later]).mean()) if len(clip) > 1 else 0.0


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


def _note_enlarged(source: Source, frame: Frames, size: tuple[int, int], notes: list[str]) -> None:
    if max(size[0] / frame.shape[0], size[1] / frame.shape[1]) > 1:
        notes.append(
            f"{source.name} is enlarged: it has {frame.shape[0]}x{frame.shape[1]} pixels, and {size[0]}x{size[1]} are "
            "made of it"
        )
