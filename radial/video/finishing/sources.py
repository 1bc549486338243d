"""The clips that are finished: their frames, one at a time, and their sound."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from radial.errors import OutputError, RequestError
from radial.video.colour import Frame
from radial.video.finishing.later import Later, once
from radial.video.images import fit_frame
from radial.video.reader import open_clip, rate_of
from radial.video.sound import MOST_SECONDS, Sound, read_sound


@dataclass(frozen=True)
class Sources:
    """Clips one after the other, at the size and rate of the first.

    Attributes:
        rate: frames a second.
        counts: frames of each clip, as its file says.
    """

    paths: tuple[Path, ...]
    rate: Fraction
    height: int
    width: int
    counts: tuple[int, ...]

    @classmethod
    def look(cls, paths: Sequence[Path]) -> Sources:
        """Open each for a moment.

        Raises:
            OutputError: one is missing or no video.
        """
        rate, size, counts = Fraction(0), (0, 0), []
        for path in paths:
            with open_clip(path) as clip:
                stream = clip.container.streams.video[0]
                rate = rate or rate_of(stream)
                first = next((frame for _, frame in clip.frames()), None)
                if first is None:
                    raise OutputError(f"{path.name} has no frames")
                size = size if any(size) else first.shape[:2]
                length = stream.duration and float(stream.duration * stream.time_base)
                seconds = length or (clip.container.duration or 0) / 1e6
                counts.append(max(1, round(seconds * rate)) if seconds else stream.frames or 1)
        return cls(tuple(paths), rate, *size, tuple(counts))

    @property
    def count(self) -> int:
        """Frames of all."""
        return sum(self.counts)

    def frames(self, start: float = 0.0, end: float | None = None) -> Iterator[Later]:
        """Those that are shown from ``start`` to before ``end``, in seconds."""
        first, last = self.cut(start, end)
        yield from itertools.islice(self._all(), first, last)

    def cut(self, start: float, end: float | None) -> tuple[int, int | None]:
        """The first frame that is shown between two seconds, and the first that is no more.

        Raises:
            RequestError: none is.
        """
        slack = Fraction(1, 1000)
        first = max(0, -int(-(Fraction(start) * self.rate - slack) // 1))
        last = None if end is None else -int(-(Fraction(end) * self.rate - slack) // 1)
        if first >= self.count or (last is not None and last <= first):
            until = "its end" if end is None else f"{end:g} s"
            raise RequestError(
                f"no frame lies between {start:g} s and {until}: the clip has {float(self.count / self.rate):.4g} s"
            )
        return first, last

    def _all(self) -> Iterator[Later]:
        for path in self.paths:
            with open_clip(path) as clip:
                for frame in clip.at(float(self.rate)):
                    yield once(fit_frame, frame, self.height, self.width, "pad", "black")

    def sound(self, start: float = 0.0, end: float | None = None) -> tuple[Sound | None, tuple[str, ...]]:
        """What is heard between two seconds, and which clips have no sound."""
        heard: Sound | None = None
        notes, before = [], 0.0
        for path, count in zip(self.paths, self.counts, strict=True):
            sound = read_sound(path)
            if sound is None:
                notes.append(f"there is no sound in {path.name}")
            else:
                if count / float(self.rate) > MOST_SECONDS + 1:
                    notes.append(f"the sound of {path.name} is kept for its first hour")
                heard = sound.until(count / float(self.rate)).after(before, heard)
            before += count / float(self.rate)
        return heard and heard.between(start, end), tuple(notes)


def backwards(frames: Iterable[Later], folder: Path) -> Iterator[Later]:
    """Frames from the last to the first, kept on the disk meanwhile, in a file that nobody sees and that is gone with
    this process."""
    with tempfile.TemporaryFile(dir=folder) as kept:
        shape: tuple[int, ...] = ()
        count = 0
        for later in frames:
            frame = later()
            shape = frame.shape
            kept.write(np.ascontiguousarray(frame).tobytes())
            count += 1
        size = int(np.prod(shape))
        for index in reversed(range(count)):
            kept.seek(index * size)
            yield once(_picture, kept.read(size), shape)


def _picture(content: bytes, shape: tuple[int, ...]) -> Frame:
    return np.frombuffer(content, np.uint8).reshape(shape)
