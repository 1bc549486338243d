"""The sound of a clip, and how it goes into a file and comes out of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# By container: the encoder, and the rate it wants where it takes not every one.
_ENCODERS: dict[str, tuple[str, int | None]] = {"mp4": ("aac", None), "webm": ("libopus", 48_000)}
_MOST_SECONDS = 3600


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples float32 ``[channels, T]`` in -1..1, one channel or two, and how many there are a second."""

    samples: NDArray[np.float32]
    rate: int

    def after(self, seconds: float) -> Sound:
        """The same sound behind so much silence."""
        silence = np.zeros((len(self.samples), round(seconds * self.rate)), np.float32)
        return Sound(np.concatenate([silence, self.samples], axis=1), self.rate)


def add_sound_stream(container: Any, format: str, sound: Sound) -> Any:
    """A stream for a sound in a container that nothing is written to yet."""
    encoder, rate = _ENCODERS[format]
    layout = "mono" if len(sound.samples) == 1 else "stereo"
    return container.add_stream(encoder, rate=rate or sound.rate, layout=layout)


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
            layout = "mono" if stream.channels == 1 else "stereo"
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=stream.rate)
            pieces, count = [], 0
            for frame in container.decode(stream):
                for piece in resampler.resample(frame):
                    pieces.append(piece.to_ndarray())
                    count += pieces[-1].shape[1]
                if count > _MOST_SECONDS * stream.rate:
                    break
            return Sound(np.concatenate(pieces, axis=1), stream.rate) if pieces else None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise OutputError(f"the sound of {path} cannot be read: {getattr(error, 'strerror', error)}") from error
