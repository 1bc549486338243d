"""A film that grows: an MP4 of fragments, playable after each part that is appended, and whole again after a crash.

Each part is encoded by itself from a key frame on, without frames that wait for later ones, so that the same parts
always make the same bytes. When the film is done, its packets are put into an ordinary MP4 with its receipt, as they
are.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from radial.errors import OutputError, RequestError
from radial.files import publish
from radial.video.colour import from_rgb, set_tags, tags_for
from radial.video.encoding import X264, Encoding, Frames
from radial.video.sound import Sound, add_sound_stream, write_sound

_CRF = 16
_TICKS = 512  # of the film's clock, a frame, at whole rates
_MOST_TICKS = 2**31 - 1  # a second


class GrowingFilm:
    """A fragmented MP4 in the making.

    Args:
        path: the file; what it holds beyond ``size`` bytes is of a part that was never finished, and goes.
        fps: frames a second.
        frames: how many are in those bytes.
        crf: quality of H.264, lower is better.

    Raises:
        OutputError: it cannot be written, or holds less than it should.
    """

    def __init__(
        self, path: Path, fps: int | Fraction, *, size: int = 0, frames: int = 0, crf: int = _CRF
    ) -> None:  # fmt: skip
        self.path, self.fps, self.frames, self._crf = path, Fraction(fps), frames, crf
        try:
            self._file = path.open("r+b" if size else "wb", buffering=0)  # nothing is left to fail when it is closed
            there = self._file.seek(0, os.SEEK_END)
            if there < size:
                raise OutputError(f"{path} is cut short: {there} bytes of {size} are left")
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self.size = size

    def append(self, frames_THWC: Frames) -> int:
        """Encode frames, uint8 RGB, and write them through to the disk: the file's size then.

        Raises:
            OutputError: there is no room, or the place is gone; the film is as it was before.
        """
        part = _encode_part(frames_THWC, self.fps, self.frames, self._crf)
        part = _set_time(part, self.frames * _clock(self.fps)[1])
        part = _boxes(part, without=(b"mfra",) if self.size == 0 else (b"ftyp", b"moov", b"mfra"))
        try:
            left = memoryview(part)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            try:
                self._file.truncate(self.size)
                self._file.seek(self.size)
            except OSError:
                pass  # what was written is cut off when the film goes on
            raise _cannot_write(self.path, error) from error
        self.size += len(part)
        self.frames += len(frames_THWC)
        return self.size

    def close(self) -> None:
        """Let go of the file; calling it twice does no harm."""
        self._file.close()


@dataclass(frozen=True)
class Film:
    """A film that was made: its growing file, its receipt, whether all of it is there, and what is heard."""

    path: Path
    receipt: dict[str, Any] = field(repr=False)
    whole: bool = True
    sound: Sound | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """That making it took, at whatever attempts."""
        return float(self.receipt["seconds"]["film"])

    def encode(self, path: Path, encoding: Encoding) -> None:
        """Write it, as an ordinary MP4 of its packets, to this very file.

        Raises:
            OSError: it cannot be written.
        """
        _remux(self.path, path, self.receipt if encoding.metadata else {}, self.sound)


def picture_at(path: Path, seconds: float) -> Any:
    """The picture of a film at a time, as an image of Pillow's; the last one before its end.

    Raises:
        OutputError: it cannot be read.
    """
    import av

    try:
        with av.open(str(path)) as film:
            stream = film.streams.video[0]
            film.seek(int(seconds / stream.time_base), stream=stream)
            found = None
            for found in film.decode(stream):
                if found.time is not None and found.time + 1e-3 >= seconds:
                    break
            if found is None:
                raise OutputError(f"{path.name} has no picture at {seconds:.2f} s")
            return found.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise OutputError(f"{path.name} cannot be read") from error


def finish_film(growing: Path, path: Path, receipt: dict[str, Any], *, overwrite: bool) -> None:
    """An ordinary MP4 of a film's packets, with its receipt.

    Raises:
        OutputError: the name is taken and ``overwrite`` is not set, or the place cannot be written.
    """
    publish(path, lambda partial: _remux(growing, partial, receipt), overwrite=overwrite)


def _remux(growing: Path, partial: Path, receipt: dict[str, Any], sound: Sound | None = None) -> None:
    import av

    with av.open(str(growing)) as film, av.open(str(partial), "w", format="mp4", options={
        "movflags": "+faststart"
    }) as whole:  # fmt: skip
        if receipt:
            whole.metadata["comment"] = json.dumps(receipt, ensure_ascii=False, sort_keys=True)
        source = film.streams.video[0]
        stream = whole.add_stream_from_template(source)
        sound_stream = None if sound is None else add_sound_stream(whole, "mp4", sound)
        for packet in film.demux(source):
            if packet.dts is not None:
                packet.stream = stream
                whole.mux(packet)
        if sound is not None:
            write_sound(whole, sound_stream, sound)


def _clock(rate: Fraction) -> tuple[int, int]:
    """Ticks a second, and a frame, of a film's clock: as fine as the container can say."""
    ticks = _TICKS
    while ticks > 1 and rate.numerator * ticks > _MOST_TICKS:
        ticks //= 2
    return rate.numerator * ticks, rate.denominator * ticks


def _encode_part(frames_THWC: Frames, fps: Fraction, first: int, crf: int) -> bytes:
    """Frames as a fragmented MP4 of their own; ``first`` is their number in the film."""
    import av

    own = {
        "movflags": "empty_moov+default_base_moof+frag_custom", "video_track_timescale": str(_clock(fps)[0]),
        "use_editlist": "0", "fragment_index": str(first + 1),
    }  # fmt: skip
    _, height, width, _ = frames_THWC.shape
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options=own) as container:
        options = {**X264, "crf": str(crf), "bf": "0"}
        stream: Any = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        tags = tags_for(height, width)
        set_tags(stream.codec_context, tags)
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = max(1, len(frames_THWC))
        for index, image in enumerate(frames_THWC):
            frame = from_rgb(image, stream.pix_fmt, tags)
            frame.pts, frame.time_base = index, 1 / fps
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return content.getvalue()


def _set_time(part: bytes, ticks: int) -> bytes:
    """A part whose only fragment begins at a time: its muxer begins every part at 0."""
    place = part.find(b"tfdt", part.find(b"moof"))
    if place < 0 or part[place + 4] != 1 or part.count(b"moof", 0, part.find(b"mdat")) != 1:
        raise OutputError("this build of FFmpeg writes fragments that a film cannot be made of")
    return part[: place + 8] + ticks.to_bytes(8, "big") + part[place + 16 :]


def _boxes(part: bytes, without: tuple[bytes, ...]) -> bytes:
    """An MP4 without boxes of some kinds: its head, which comes once a film, and the index at its end."""
    place, kept = 0, []
    while place + 8 <= len(part):
        size, kind = int.from_bytes(part[place : place + 4], "big"), part[place + 4 : place + 8]
        if size < 8:
            raise RequestError("an MP4 with a box of no size")
        if kind not in without:
            kept.append(part[place : place + size])
        place += size
    return b"".join(kept)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    problem = OutputError(f"cannot write {path}: {error.strerror or error}")
    problem.errno = error.errno  # a full disk passes, other reasons stay
    return problem
