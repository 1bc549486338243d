"""Clips that users bring, read as players show them: upright, in square pixels, in their colours, by time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from radial.errors import OutputError
from radial.video.colour import Frame, has_alpha, is_hdr, on_ground, tags_of, to_rgb

# Containers of clips; not those that name other files, which would be opened in turn.
_SAFE = {
    "format_whitelist": "mov,matroska,avi,gif,apng,ogg,mpegts,mpeg,flv,asf,mpegvideo,h264,hevc,ivf",
    "protocol_whitelist": "file",
}  # fmt: skip
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave alpha out
_SAME_RATE = 0.005  # rates that differ by less are one
_LONGEST = 3600.0  # seconds that one frame is shown
Shown = TypeVar("Shown")


@dataclass
class Clip:
    """An open video file.

    Attributes:
        ground: the colour under see-through parts.
        notes: what was done to show it, known once its first frame is read.
    """

    name: str
    container: Any = field(repr=False)
    ground: str = "black"
    notes: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float | None:
        """Frames a second, on average; None where the file does not say."""
        stream = self.container.streams.video[0]
        rate = stream.average_rate or stream.base_rate
        return float(rate) if rate else None

    @property
    def comment(self) -> str:
        """What the file's comment says; empty where it has none."""
        return next((text for name, text in self.container.metadata.items() if name.lower() == "comment"), "")

    def frames(self) -> Iterator[tuple[float, Frame]]:
        """All frames, each with the second that it is shown from, counted from the first.

        Raises:
            OutputError: the file is corrupt.
        """
        import av

        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        ours = self.comment.startswith("{") and '"radial"' in self.comment
        start: float | None = None
        try:
            for frame in self._whole_frames(stream):
                if frame.time is None and start is not None:
                    continue
                start = (frame.time or 0.0) if start is None else start
                yield (frame.time or 0.0) - start, self._shown(frame, stream, ours)
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            raise OutputError(f"{self.name} cannot be read as a video: {error}") from error

    def at(self, fps: float) -> Iterator[Frame]:
        """Frames at a constant rate: at each instant the one that is shown then, so that speed stays as it is; of a
        file of that rate each once.

        Raises:
            OutputError: the file is corrupt, or shows a frame for more than an hour.
        """
        shown: Frame | None = None
        instant, moment, own = 0, 0.0, self.fps
        # Containers round times, those of Matroska to thousandths.
        slack = 0.75 * float(self.container.streams.video[0].time_base or 0)
        pace = fps if own is None or abs(own / fps - 1) > _SAME_RATE else own
        before = 0.0
        for moment, frame in self.frames():
            self._check_time(moment - before)
            before = moment
            while shown is not None and instant / pace < moment - slack - 1e-6:
                yield shown
                instant += 1
            shown = frame
        self._check_time(1 / (own or fps))
        end = moment + 1 / (own or fps)
        while shown is not None and instant / pace < end - slack - 1e-6:
            yield shown
            instant += 1

    def _check_time(self, seconds: float) -> None:
        if seconds > _LONGEST:
            raise OutputError(
                f"{self.name} shows one frame for {seconds:,.0f} s, and an hour is the most: its time stamps are off"
            )

    def _whole_frames(self, stream: Any) -> Iterator[Any]:
        """Decoded frames; two fields that are woven into one are made whole."""
        import av

        graph: Any = None
        for frame in self._decoded(stream):
            if graph is None and frame.interlaced_frame:
                graph = av.filter.Graph()
                ends = graph.add_buffer(template=stream), graph.add("bwdif", "send_frame"), graph.add("buffersink")
                ends[0].link_to(ends[1])
                ends[1].link_to(ends[2])
                graph.configure()
                self._note("is interlaced: its fields are made whole frames")
            if graph is None:
                yield frame
                continue
            graph.push(frame)
            yield from _pulled(graph)
        if graph is not None:
            graph.push(None)
            yield from _pulled(graph)

    def _decoded(self, stream: Any) -> Iterator[Any]:
        import av

        name = stream.codec_context.name
        if stream.metadata.get("alpha_mode") != "1" or name not in _WITH_ALPHA:
            yield from self.container.decode(stream)
            return
        decoder = av.CodecContext.create(_WITH_ALPHA[name], "r")
        decoder.extradata = stream.codec_context.extradata
        for packet in self.container.demux(stream):
            yield from decoder.decode(packet)

    def _shown(self, frame: Any, stream: Any, ours: bool) -> Frame:
        import cv2

        tags = tags_of(frame, old=ours)
        if is_hdr(tags):
            self._note("is HDR: its colours are brought to the range of plain screens")
        pixels = to_rgb(frame, tags)
        if has_alpha(frame):
            pixels, seen_through = on_ground(pixels, frame, self.ground)
            if seen_through:
                self._note(f"is see-through in parts: what lies under them is {self.ground}")
        aspect = stream.sample_aspect_ratio
        if aspect and aspect != 1:
            width = max(1, round(pixels.shape[1] * float(aspect)))
            pixels = cv2.resize(pixels, (width, len(pixels)), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
            self._note(f"has pixels that are not square: shown {width}x{len(pixels)}")
        turned: Frame = np.rot90(pixels, round(frame.rotation / 90))
        return turned

    def _note(self, told: str) -> None:
        note = f"{self.name} {told}"
        if note not in self.notes:
            self.notes.append(note)


@contextlib.contextmanager
def open_clip(file: Path | bytes, name: str | None = None, ground: str = "black") -> Iterator[Clip]:
    """A video file, or the content of one, open for reading.

    Args:
        name: what to call it in messages.
        ground: the colour under its see-through parts.

    Raises:
        OutputError: the file is missing, is no video, or holds no pictures.
    """
    import av

    if isinstance(file, Path) and file.is_dir():
        raise OutputError(
            f"{file} is a folder, and a video file is taken here, such as MP4, WebM, MOV, MKV, AVI or GIF"
        )
    if isinstance(file, Path) and not file.is_file():
        raise OutputError(f"no such file: {file}")
    name = name or str(file if isinstance(file, Path) else "the clip")
    try:
        container = av.open(str(file) if isinstance(file, Path) else io.BytesIO(file), container_options=_SAFE)
    except (av.FFmpegError, UnicodeDecodeError, ValueError, OSError) as error:
        raise OutputError(f"{name} is not a video that can be read: {getattr(error, 'strerror', error)}") from error
    with container:
        if not container.streams.video:
            raise OutputError(f"{name} has no pictures")
        yield Clip(name, container, ground)


def decode_frames(path: Path) -> Generator[Frame, None, None]:
    """The frames of a video file, or of a folder of them, one after the other.

    Raises:
        OutputError: the file is missing or is no video.
    """
    from PIL import Image

    if path.is_dir():
        try:
            for file in sorted(path.glob("*.png")):
                yield np.asarray(Image.open(file).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise OutputError(f"cannot read the frames in {path}: {error}") from error
        return
    with open_clip(path) as clip:
        for _, frame in clip.frames():
            yield frame


def read_comment(path: Path) -> str:
    """What the file's comment says; empty where it has none.

    Raises:
        OutputError: the file is missing or no video.
    """
    from PIL import Image

    if path.is_dir():
        first = next(iter(sorted(path.glob("*.png"))), None)
        if first is None:
            raise OutputError(f"{path} is a folder without frames")
        path = first
    if path.suffix.lower() in (".png", ".gif"):
        try:
            with Image.open(path, formats=("PNG", "GIF")) as image:
                comment = image.info.get("comment", "")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if not path.is_file():
                raise OutputError(f"no such file: {path}") from error
            raise OutputError(f"{path} is not a video that can be read") from error
        return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    with open_clip(path) as clip:
        return clip.comment


def rate_of(stream: Any) -> Fraction:
    """Frames a second of a video stream, on average, as a fraction that files can say; 16 where it does not tell.

    Raises:
        OutputError: there are fewer than one in 1000 seconds.
    """
    own = Fraction(stream.average_rate or stream.base_rate or 16)
    if own * 1000 < 1:
        raise OutputError(
            f"{Path(stream.container.name).name} has one frame in {float(1 / own):,.0f} s, and clips that are written "
            "have one in 1,000 at least: write it at another rate first"
        )
    return own.limit_denominator(1001)


def at_rate(frames: Iterable[Shown], own: float, fps: float) -> Iterator[Shown]:
    """Frames of one rate, or what makes them, at another: at each instant the one that is shown then."""
    instant = 0
    for index, frame in enumerate(frames):
        while instant * own < (index + 1) * fps - 1e-6:
            yield frame
            instant += 1


def rate_note(clip: Clip, fps: float) -> str | None:
    """What to say where a clip is read at another rate than its own."""
    if clip.fps is None or abs(clip.fps / fps - 1) <= _SAME_RATE:
        return None
    return f"{clip.name} has {clip.fps:.4g} frames a second and is read at {fps:g}: its speed stays as it is"


def _pulled(graph: Any) -> Iterator[Any]:
    import av

    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
