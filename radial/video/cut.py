"""Clips joined, or a part taken out of one: packets are copied where that gives exactly the frames that were asked for,
else the frames are encoded again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from radial.errors import OutputError, RequestError
from radial.files import publish
from radial.video.encoding import Encoding, Frames, encode, encoding_for
from radial.video.images import fit_frame
from radial.video.reader import open_clip, rate_of
from radial.video.sound import Sound, read_sound

MAX_BYTES = 8 << 30


def join(clips: Sequence[Path], output: Path, *, overwrite: bool = False, max_bytes: int = MAX_BYTES) -> bool:
    """Write clips one after the other into one file: of the size and rate of the first, others framed in it.

    Args:
        max_bytes: of frames, where they are encoded again.

    Returns:
        whether every packet is as it was.

    Raises:
        RequestError: there are fewer than two, or they are too long to be encoded again at once.
        OutputError: one cannot be read, or the output not be written.
    """
    if len(clips) < 2:
        raise RequestError(f"joining takes two clips or more, not {len(clips)}")
    encoding = encoding_for(output)
    streams = [_look(clip) for clip in clips]
    if encoding.format != "gif" and streams[0].is_copied_to(output) and all(s.kind == streams[0].kind for s in streams):
        publish(output, lambda partial: _copy(clips, partial, encoding, 0, None), overwrite=overwrite)
        return True
    rate = streams[0].rate
    frames: list[Frames] = []
    heard: Sound | None = None
    for clip in clips:
        before = len(frames)
        more = _read(clip, rate, before, max_bytes)
        height, width = (frames or more)[0].shape[:2]
        frames += [fit_frame(frame, height, width, "pad", "black") for frame in more]
        sound = read_sound(clip)
        if sound is not None:
            heard = sound.until((len(frames) - before) / float(rate)).after(before / float(rate), heard)
    _encode(np.stack(frames), rate, heard, output, encoding, overwrite)
    return False


def trim(
    clip: Path, output: Path, start: float, end: float | None = None, *, overwrite: bool = False,
    max_bytes: int = MAX_BYTES,
) -> bool:  # fmt: skip
    """Write the frames of a clip that are shown from ``start`` to before ``end``, in seconds.

    Args:
        max_bytes: of frames, where they are encoded again.

    Returns:
        whether every packet is as it was.

    Raises:
        RequestError: no frame lies between them.
        OutputError: the clip cannot be read, or the output not be written.
    """
    encoding, stream = encoding_for(output), _look(clip)
    seconds = stream.frames / float(stream.rate)
    first = math.ceil(start * stream.rate - Fraction(1, 1000))
    last = stream.frames if end is None else min(stream.frames, math.ceil(end * stream.rate - Fraction(1, 1000)))
    if not 0 <= first < last:
        until = "its end" if end is None else f"{end:g} s"
        raise RequestError(f"no frame lies between {start:g} s and {until}: the clip has {seconds:.4g} s")
    if encoding.format != "gif" and stream.is_copied_to(output) and stream.is_cut_by_packets(first, last):
        publish(output, lambda partial: _copy([clip], partial, encoding, first, last), overwrite=overwrite)
        return True
    frames = np.stack(_read(clip, stream.rate, 0, max_bytes)[first:last])
    sound = read_sound(clip)
    if sound is not None:
        cut = slice(round(first / float(stream.rate) * sound.rate), round(last / float(stream.rate) * sound.rate))
        sound = Sound(sound.samples[:, cut], sound.rate)
    _encode(frames, stream.rate, sound, output, encoding, overwrite)
    return False


class _Packets:
    """The packets of a clip's frames, as they are decoded, each with its frame's place in the clip.

    Attributes:
        ticks: of the stream's clock, from one frame to the next.
        first: when the first frame is shown, in ticks.
    """

    def __init__(self, container: Any) -> None:
        self.stream: Any = container.streams.video[0]
        self.rate = rate_of(self.stream)
        self.ticks = 1 / (self.rate * self.stream.time_base)
        packets = [packet for packet in container.demux(self.stream) if packet.size and packet.pts is not None]
        self.first = min((packet.pts for packet in packets), default=0)
        self.numbered = [(round((packet.pts - self.first) / self.ticks), packet) for packet in packets]


class _Stream:
    """What decides whether the packets of a clip can be copied.

    Attributes:
        order: the frames by their places in the clip, as they are decoded, and whether one stands for itself.
    """

    def __init__(self, clip: Path, container: Any) -> None:
        packets = _Packets(container)
        stream, context = packets.stream, packets.stream.codec_context
        self.suffix, self.has_sound = clip.suffix.lower(), bool(container.streams.audio)
        self.rate = packets.rate
        self.kind = (context.name, stream.width, stream.height, context.pix_fmt, context.extradata, self.rate,
                     stream.time_base, self.suffix, self.has_sound)  # fmt: skip
        self.order = [(index, packet.is_keyframe) for index, packet in packets.numbered]
        self.frames = len(packets.numbered)
        self.is_even = sorted(index for index, _ in self.order) == list(range(self.frames))
        container.seek(0)
        self.is_turned = any(frame.rotation for frame in itertools.islice(container.decode(stream), 1))

    def is_copied_to(self, output: Path) -> bool:
        """Whether its packets can go into such a file by themselves."""
        return (
            self.is_even
            and not self.is_turned
            and not self.has_sound
            and self.suffix == output.suffix.lower()
            and self.suffix != ".gif"
        )

    def is_cut_by_packets(self, first: int, last: int) -> bool:
        """Whether the frames from ``first`` to before ``last`` can be decoded without any other."""
        if (first, True) not in self.order:
            return False
        wanted = [index < last for index, _ in self.order[self.order.index((first, True)) :] if index >= first]
        return wanted == sorted(wanted, reverse=True)  # nothing that comes after the last one is needed before it


def _look(clip: Path) -> _Stream:
    import av

    try:
        with av.open(str(clip)) as container:
            return _Stream(clip, container)
    except OutputError:
        raise
    except (av.FFmpegError, OSError, IndexError) as error:
        raise OutputError(f"{clip.name} is not a video that can be read") from error


def _copy(clips: Sequence[Path], partial: Path, encoding: Encoding, first: int, last: int | None) -> None:
    """Copy the packets of frames ``first`` to before ``last`` of each clip."""
    import av

    options = {"movflags": "+faststart"} if encoding.format == "mp4" else {}
    with av.open(str(partial), "w", format=encoding.format, options=options) as container:
        stream: Any = None
        offset = Fraction(0)
        for clip in clips:
            with av.open(str(clip)) as source:
                packets = _Packets(source)
                stream = stream or container.add_stream_from_template(packets.stream)
                count = 0
                for index, packet in packets.numbered:
                    if index < first or (last is not None and index >= last):
                        continue
                    shift = round(offset) - packets.first - round(first * packets.ticks)
                    packet.pts += shift
                    packet.dts = (packet.dts if packet.dts is not None else packet.pts - shift) + shift
                    packet.stream = stream
                    container.mux(packet)
                    count += 1
                offset += count * packets.ticks


def _read(clip: Path, rate: Fraction, before: int, max_bytes: int) -> list[Frames]:
    """A clip's frames at a rate; ``before`` frames are held already."""
    frames: list[Frames] = []
    with open_clip(clip) as opened:
        for frame in opened.at(float(rate)):
            frames.append(frame)
            if (before + len(frames)) * frame.nbytes > max_bytes:
                raise RequestError(
                    f"the clips are too long to be encoded again at once: {max_bytes >> 30} GB of frames are the most"
                )
    if not frames:
        raise OutputError(f"{clip.name} has no frames")
    return frames


def _encode(
    frames: Frames, rate: Fraction, sound: Sound | None, output: Path, encoding: Encoding, overwrite: bool
) -> None:  # fmt: skip
    publish(output, lambda partial: encode(frames, rate, {}, partial, encoding, sound), overwrite=overwrite)
