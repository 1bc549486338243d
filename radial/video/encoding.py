"""How frames become a file: containers, codecs, and where each keeps the receipt."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from radial.errors import OutputError, RequestError
from radial.video.colour import Frame, from_rgb, set_tags, tags_for
from radial.video.sound import Sound, add_sound_stream, write_sound

Frames = NDArray[np.uint8]

# On small frames x264's macroblock tree reads memory it never wrote, and its threads race: without either, the same
# frames always make the same file.
X264 = {"preset": "medium", "x264-params": "mbtree=0:threads=1:lookahead-threads=1"}
# By codec: the encoder, its quality where none is asked for (about alike to the eye), and its options.
_ENCODERS: dict[str, tuple[str, int, dict[str, str]]] = {
    "h264": ("libx264", 16, X264),
    "h265": (
        "libx265",
        18,
        {"preset": "medium", "tag": "hvc1", "x265-params": "log-level=error:pools=none:frame-threads=1"},
    ),
    "av1": ("libsvtav1", 24, {"preset": "6", "svtav1-params": "lp=1"}),
    "vp9": ("libvpx-vp9", 24, {"b": "0", "cpu-used": "2"}),
}
_CODECS: dict[str, tuple[str, ...]] = {"mp4": ("h264", "h265", "av1"), "webm": ("vp9", "av1"), "gif": (), "png": ()}


class Encoding(BaseModel):
    """What kind of file a clip becomes.

    Attributes:
        format: ``mp4``, ``webm``, ``gif``, or ``png`` for a folder of frames.
        codec: of mp4 and webm; h264 and vp9 when left out.
        crf: quality of mp4 and webm, lower is better; the codec's own value when left out.
        metadata: whether the file carries its receipt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mp4", "webm", "gif", "png"] = "mp4"
    codec: Literal["h264", "h265", "av1", "vp9"] | None = None
    crf: Annotated[int, Field(ge=0, le=63)] | None = None
    metadata: bool = True

    @model_validator(mode="after")
    def _goes_together(self) -> Encoding:
        able = _CODECS[self.format]
        if self.codec is not None and self.codec not in able:
            homes = " or ".join(name for name, codecs in _CODECS.items() if self.codec in codecs)
            raise ValueError(f"codec {self.codec} goes into {homes}, not {self.format}")
        if self.crf is not None and not able:
            raise ValueError(f"crf is for mp4 and webm; {self.format} keeps what it is given")
        if self.crf is not None and self.crf > 51 and self.chosen_codec in ("h264", "h265"):
            raise ValueError(f"crf must be at most 51 for {self.chosen_codec}, not {self.crf}")
        return self

    @property
    def chosen_codec(self) -> str | None:
        """The codec with its default filled in."""
        return self.codec or next(iter(_CODECS[self.format]), None)

    @property
    def suffix(self) -> str:
        """Of the file; frames lie in a folder without one."""
        return "" if self.format == "png" else f".{self.format}"


def encoding_for(path: Path) -> Encoding:
    """The format a file's name asks for.

    Raises:
        RequestError: it is none of ours.
    """
    name = path.suffix.lower().removeprefix(".")
    if name not in ("mp4", "webm", "gif"):
        raise RequestError(f"output must end in .mp4, .webm or .gif, not {path.name!r}")
    return Encoding.model_validate({"format": name})


def encode(
    frames: Iterable[Frame],
    fps: int | Fraction,
    receipt: dict[str, Any],
    path: Path,
    encoding: Encoding,
    sound: Sound | None = None,
) -> None:
    """Write frames, each uint8 ``[H, W, 3]``, to a file, or to a folder for ``png``; sound goes into mp4 and webm.

    One frame at a time is held, but for ``gif``.

    Raises:
        OutputError: there is no frame, or the format cannot hold them.
        OSError: it cannot be written.
    """
    comment = json.dumps(receipt, ensure_ascii=False, sort_keys=True) if receipt and encoding.metadata else ""
    if encoding.format == "gif":
        _encode_gif(frames, fps, comment, path)
    elif encoding.format == "png":
        _encode_pngs(frames, comment, path)
    else:
        _encode_stream(iter(frames), fps, comment, path, encoding, sound)


def _encode_stream(
    frames: Iterator[Frame], fps: int | Fraction, comment: str, path: Path, encoding: Encoding, sound: Sound | None
) -> None:  # fmt: skip
    import av

    first = list(itertools.islice(frames, 8))
    if not first:
        raise OutputError(f"there are no frames for {path.name}")
    height, width, _ = first[0].shape
    os.environ.setdefault("SVT_LOG", "1")  # errors alone
    codec = encoding.chosen_codec or "h264"
    if codec == "h265" and min(height, width) < 32:  # its encoder crashes
        raise OutputError(f"h265 needs sides of 32 pixels or more, not {width}x{height}; use h264")
    encoder, crf, options = _ENCODERS[codec]
    container_options = {"movflags": "+faststart"} if encoding.format == "mp4" else {}
    options = {"crf": str(crf if encoding.crf is None else encoding.crf), **options}
    if codec == "h265" and len(first) < 8:  # x265 makes up times for clips shorter than its reordering
        options["x265-params"] += ":bframes=0"
    tag = options.pop("tag", None)
    with av.open(str(path), "w", format=encoding.format, options=container_options) as container:
        if comment:
            container.metadata["comment"] = comment
        stream: Any = container.add_stream(encoder, rate=Fraction(fps), options=options)
        sound_stream = None if sound is None else add_sound_stream(container, encoding.format, sound)
        stream.height, stream.width = height, width
        if codec == "av1":  # its encoder takes even sides of 64 and more alone
            stream.height, stream.width = max(64, height + height % 2), max(64, width + width % 2)
        # Chroma at half size needs even sides: keep it whole rather than lose a row.
        stream.pix_fmt = "yuv444p" if codec in ("h264", "h265") and (height % 2 or width % 2) else "yuv420p"
        tags = tags_for(stream.height, stream.width)
        set_tags(stream.codec_context, tags)
        if tag:
            stream.codec_context.codec_tag = tag
        stream.codec_context.thread_count = 1
        for index, image in enumerate(itertools.chain(first, frames)):
            frame = from_rgb(_pad(image[None], stream.height, stream.width)[0], stream.pix_fmt, tags)
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        if sound is not None:
            write_sound(container, sound_stream, sound)


def is_playable(codec: str | None, height: int, width: int) -> bool:
    """Whether browsers play it: they have no h265, nor h264 with chroma at full size."""
    return codec in ("av1", "vp9", None) or (codec == "h264" and height % 2 == 0 and width % 2 == 0)


def even_sides(frames: Frames) -> Frames:
    """Frames with a last row or column repeated where a side is odd, for players that need even ones."""
    _, height, width, _ = frames.shape
    return _pad(frames, height + height % 2, width + width % 2)


def _pad(frames: Frames, height: int, width: int) -> Frames:
    below, beside = height - frames.shape[1], width - frames.shape[2]
    if below == 0 and beside == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, below), (0, beside), (0, 0)), mode="edge")


def _encode_gif(frames: Iterable[Frame], fps: int | Fraction, comment: str, path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(256, method=Image.Quantize.FASTOCTREE) for frame in frames]
    # A GIF counts in hundredths of a second; the rest is carried on, so that the clip keeps its length.
    ends = [round(100 * (index + 1) / fps) for index in range(len(images))]
    delays = [10 * max(1, end - before) for before, end in zip([0, *ends], ends, strict=False)]
    extra: dict[str, Any] = {"comment": comment.encode()} if comment else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=delays, loop=0, optimize=False, **extra)


def _encode_pngs(frames: Iterable[Frame], comment: str, path: Path) -> None:
    from PIL import Image, PngImagePlugin

    path.mkdir()
    for index, frame in enumerate(frames):
        info = PngImagePlugin.PngInfo()
        if comment and index == 0:
            info.add_itxt("comment", comment)
        Image.fromarray(frame).save(path / f"{index:05d}.png", pnginfo=info)
