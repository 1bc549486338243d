"""The sound of a clip, and how it goes into a file and comes out of one."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# By container: the encoder, and the rate it wants where it takes not every one.
_ENCODERS: dict[str, tuple[str, int | None]] = {"mp4": ("aac", None), "webm": ("libopus", 48_000)}
MOST_SECONDS = 3600
_PIECE = 1 << 14  # samples that a filter is given at a time


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples float32 ``[channels, T]`` in -1..1, one channel or two, and how many there are a second."""

    samples: NDArray[np.float32]
    rate: int

    def after(self, seconds: float, before: Sound | None = None) -> Sound:
        """The same sound behind so many seconds, of silence or of the sound ``before``."""
        count = round(seconds * self.rate)
        first = np.zeros((len(self.samples), count), np.float32)
        if before is not None:
            played = before.resampled(self.rate, len(self.samples)).samples[:, :count]
            first[:, : played.shape[1]] = played
        return Sound(np.concatenate([first, self.samples], axis=1), self.rate)

    def until(self, seconds: float) -> Sound:
        """Its first seconds."""
        return Sound(self.samples[:, : round(seconds * self.rate)], self.rate)

    def between(self, start: float, end: float | None) -> Sound:
        """What is heard from one second to before another, or its end."""
        last = None if end is None else round(end * self.rate)
        return Sound(self.samples[:, round(start * self.rate) : last], self.rate)

    def backwards(self) -> Sound:
        """From its end to its beginning."""
        return Sound(np.ascontiguousarray(self.samples[:, ::-1]), self.rate)

    def repeated(self, times: int) -> Sound:
        """So many times, one after the other."""
        return Sound(np.tile(self.samples, times), self.rate)

    def at_speed(self, speed: float) -> Sound:
        """Faster or slower, at the same pitch."""
        import av

        graph: Any = av.filter.Graph()
        layout = _layout(len(self.samples))
        clock = Fraction(1, self.rate)
        ends = [graph.add_abuffer(format="fltp", sample_rate=self.rate, layout=layout, time_base=clock)]
        while not 0.5 <= speed <= 100:  # what the filter takes at once
            ends.append(graph.add("atempo", "0.5"))
            speed /= 0.5
        planes = graph.add("aformat", "sample_fmts=fltp")  # the filter may mix channels into one row
        ends += [graph.add("atempo", f"{speed:.6f}"), planes, graph.add("abuffersink")]
        for one, other in itertools.pairwise(ends):
            one.link_to(other)
        graph.configure()
        pieces: list[NDArray[np.float32]] = []

        def pull() -> None:
            with contextlib.suppress(av.BlockingIOError, av.EOFError):
                while True:
                    pieces.append(graph.pull().to_ndarray())

        for start in range(0, self.samples.shape[1], _PIECE):
            piece = np.ascontiguousarray(self.samples[:, start : start + _PIECE])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, start, clock
            graph.push(frame)
            pull()
        graph.push(None)
        pull()
        return Sound(np.concatenate(pieces, axis=1) if pieces else self.samples, self.rate)

    def resampled(self, rate: int, channels: int) -> Sound:
        """The same sound at another rate, on one channel or two."""
        import av

        samples = self.samples
        if rate != self.rate:
            layout = _layout(len(samples))
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = self.rate, 0
            pieces = [piece.to_ndarray() for piece in (*resampler.resample(frame), *resampler.resample(None))]
            samples = np.concatenate(pieces, axis=1)
        if channels != len(samples):
            samples = samples.mean(axis=0, keepdims=True).repeat(channels, axis=0)
        return Sound(samples, rate)


def _layout(channels: int) -> str:
    return "mono" if channels == 1 else "stereo"


def add_sound_stream(container: Any, format: str, sound: Sound) -> Any:
    """A stream for a sound in a container that nothing is written to yet."""
    encoder, rate = _ENCODERS[format]
    return container.add_stream(encoder, rate=rate or sound.rate, layout=_layout(len(sound.samples)))


def write_sound(container: Any, stream: Any, sound: Sound) -> None:
    """Encode a sound into its stream."""
    import av

    layout = stream.layout.name
    resampler = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate)
    samples = np.ascontiguousarray(np.clip(sound.samples, -1, 1), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sound.rate, 0
    for piece in (*resampler.resample(frame), *resampler.resample(None), None):
        for packet in stream.encode(piece):
            container.mux(packet)


def read_sound(path: Path) -> Sound | None:
    """The sound of a video file, its first hour; None where it has none.

    Raises:
        OutputError: the file is missing or no video.
    """
    import av

    from radial.errors import OutputError

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp", layout=_layout(stream.channels), rate=stream.rate)
            pieces, count = [], 0
            for frame in container.decode(stream):
                for piece in resampler.resample(frame):
                    pieces.append(piece.to_ndarray())
                    count += pieces[-1].shape[1]
                if count > MOST_SECONDS * stream.rate:
                    break
            return Sound(np.concatenate(pieces, axis=1), stream.rate) if pieces else None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise OutputError(f"the sound of {path} cannot be read: {getattr(error, 'strerror', error)}") from error
