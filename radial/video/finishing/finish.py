"""A clip finished: in one pass, a frame at a time, into a file of its own beside it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from radial.errors import OutputError, RequestError, explain_all
from radial.files import check_output, discard, publish
from radial.version import __version__
from radial.video.clip import read_receipt
from radial.video.colour import Frame
from radial.video.encoding import Encoding, encode, encoding_for
from radial.video.finishing.between import add_frames
from radial.video.finishing.enlarge import Enlarge, load_upscaler, resized
from radial.video.finishing.sources import Sources, backwards
from radial.video.images import fit_frame
from radial.video.reader import at_rate
from radial.video.sound import Sound, read_sound

MAX_SIDE = 8192
Seconds = Annotated[float, Field(ge=0, le=1e6)]


class Finish(BaseModel):
    """What is done to a clip, in this order.

    Attributes:
        start, end: only what is shown from one second to before another.
        reverse: from its end to its beginning.
        aspect: another shape, such as ``9:16``: ``reframe`` cuts what is too wide or high off, or pads with black.
        scale: more or fewer pixels, this many times as wide and high; or ``size``, as ``1920x1080``.
        upscaler: a file whose model makes them; else Lanczos.
        frames: 2 or 4 times as many, by what moves where.
        speed: faster or slower.
        fps: frames a second of the file; what is there more often is left out, what is there less is shown again.
        loop: how many times it is shown.
        sound: ``keep`` it, ``none``, or a file whose sound comes in its place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)

    start: Seconds = 0.0
    end: Annotated[float, Field(gt=0, le=1e6)] | None = None
    reverse: bool = False
    aspect: str | None = None
    reframe: Literal["crop", "pad"] = "crop"
    scale: Annotated[float, Field(gt=0, le=8)] | None = None
    size: str | None = None
    upscaler: str | None = None
    frames: Literal[1, 2, 4] = 1
    speed: Annotated[float, Field(ge=0.05, le=20)] = 1.0
    fps: Annotated[int, Field(ge=1, le=240)] | None = None
    loop: Annotated[int, Field(ge=1, le=1000)] = 1
    sound: str = "keep"

    @field_validator("aspect")
    @classmethod
    def _two_numbers(cls, aspect: str | None) -> str | None:
        if aspect is not None and _numbers(aspect, ":") is None:
            raise ValueError(f"must be WIDTH:HEIGHT, such as 9:16, not {aspect!r}")
        return aspect

    @field_validator("size")
    @classmethod
    def _width_and_height(cls, size: str | None) -> str | None:
        if size is not None and _numbers(size, "x") is None:
            raise ValueError(f"must be WIDTHxHEIGHT, such as 1920x1080, not {size!r}")
        return size

    @model_validator(mode="after")
    def _says_things_once(self) -> Finish:
        if self.size is not None and self.scale is not None:
            raise ValueError("size and scale say the same: give one of them")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end:g} is not after start {self.start:g}")
        return self

    def rate(self, own: Fraction) -> Fraction:
        """Frames a second of what a clip of a rate becomes."""
        faster = Fraction(self.speed).limit_denominator(1000)
        return Fraction(self.fps) if self.fps else own * self.frames * faster if self.frames > 1 else own

    def target(self, height: int, width: int, by_model: int = 1) -> tuple[int, int]:
        """Height and width of what a clip of a size becomes.

        Raises:
            RequestError: it is too large.
        """
        height, width = self.reframed(height, width)
        if (size := _numbers(self.size or "", "x")) is not None:
            width, height = size
        else:
            scale = self.scale or (by_model if self.upscaler else 1)
            height, width = max(2, round(height * scale)), max(2, round(width * scale))
        return _held(height, width)

    @property
    def shape(self) -> tuple[int, int] | None:
        """The ``aspect``, across and down; None where the clip keeps its own."""
        return _numbers(self.aspect or "", ":")

    def reframed(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what a clip of a size becomes before it is made larger or smaller.

        Raises:
            RequestError: it is too large.
        """
        return (height, width) if self.shape is None else _held(*_reframed(height, width, self.shape, self.reframe))


def make_finish(**fields: Any) -> Finish:
    """What is to be done, from loose values.

    Raises:
        RequestError: one line that names each field, the value and the rule.
    """
    try:
        return Finish(**fields)
    except ValidationError as error:
        raise RequestError(explain_all(error.errors())) from error


def finish(
    clips: Sequence[Path], output: Path, what: Finish, *, encoding: Encoding | None = None, overwrite: bool = False,
    device: str = "cpu", on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ...]:  # fmt: skip
    """Write a clip, or several one after the other, finished, under a temporary name first; the clips stay as they are.

    A run that was killed leaves nothing but a hidden file, which the next one for the same output removes.

    Args:
        device: where an upscaler computes.
        on_frame: told how many frames are written, and about how many there will be.

    Returns:
        what the user should hear.

    Raises:
        RequestError: a value or a file cannot be, or the output is one of the clips.
        OutputError: a clip cannot be read, or the output not be written.
    """
    encoding = encoding or encoding_for(output)
    if any(output.exists() and output.samefile(clip) for clip in clips if clip.exists()):
        raise RequestError(f"{output} is the clip itself, which is kept as it is: give another output")
    check_output(output, encoding.suffix, overwrite=overwrite)
    sources = Sources.look(clips)
    sources.cut(what.start, what.end)
    enlarge, by_model = load_upscaler(Path(what.upscaler), device) if what.upscaler else (None, 1)
    height, width = what.target(sources.height, sources.width, by_model)
    rate, count = what.rate(sources.rate), _count(sources, what)
    sound, notes = _sound(sources, what, encoding, count / float(rate))
    receipt = _receipt(clips, what)

    def counted(frames: Iterable[Frame]) -> Iterator[Frame]:
        for index, frame in enumerate(frames, 1):
            yield frame
            on_frame(index, max(count, index))

    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"), blocking=False)
    try:
        with lock:
            for left in output.parent.glob(f".{_literally(output.stem)}.*.partial{output.suffix}"):
                discard(left)
            frames = counted(_frames(sources, what, enlarge, height, width, output.parent))
            publish(
                output, lambda partial: encode(frames, rate, receipt, partial, encoding, sound), overwrite=overwrite
            )  # fmt: skip
            discard(Path(lock.lock_file))
    except Timeout as error:
        raise OutputError(f"{output} is being written by another command") from error
    return notes


@dataclass(frozen=True)
class Work:
    """About how much finishing takes.

    Attributes:
        pixels: of all frames that are read, and of all that are made of them, but for the tiles of upscalers.
        frame: pixels of the largest frame: as it is read, in another shape, or as it becomes.
        disk: bytes that lie on the disk meanwhile.
        seconds: that what is made lasts.
    """

    pixels: int
    frame: int
    disk: int
    seconds: float


def work_of(clips: Sequence[Path], what: Finish) -> Work:
    """About how much it takes to finish clips.

    Raises:
        RequestError: it cannot be.
        OutputError: a clip cannot be read.
    """
    sources = Sources.look(clips)
    first, last = sources.cut(what.start, what.end)
    last = min(sources.count, last or sources.count)  # what comes before the first is read, too
    own = sources.height * sources.width
    shaped, made = (math.prod(way(sources.height, sources.width)) for way in (what.reframed, what.target))
    count, used = _count(sources, what), last - first
    read = last * own + (used * shaped if what.shape else 0)
    return Work(
        pixels=what.loop * read + max(count, what.loop * used * what.frames) * made, frame=max(own, shaped, made),
        disk=3 * used * made if what.reverse else 0, seconds=count / float(what.rate(sources.rate)),
    )  # fmt: skip


def _frames(
    sources: Sources, what: Finish, enlarge: Enlarge | None, height: int, width: int, folder: Path
) -> Iterator[Frame]:  # fmt: skip
    """The frames of the file, as often as it is shown."""
    return itertools.chain.from_iterable(_once(sources, what, enlarge, height, width, folder) for _ in range(what.loop))


def _once(
    sources: Sources, what: Finish, enlarge: Enlarge | None, height: int, width: int, folder: Path
) -> Iterator[Frame]:  # fmt: skip
    frames = sources.frames(what.start, what.end)
    if what.shape is not None:
        size = what.reframed(sources.height, sources.width)
        frames = (fit_frame(frame, *size, what.reframe, "black") for frame in frames)
    frames = (resized(frame if enlarge is None else enlarge(frame), height, width) for frame in frames)
    if what.reverse:  # what lies on the disk meanwhile is as small as it becomes
        frames = backwards(frames, folder)
    if what.frames > 1:
        frames = add_frames(frames, what.frames)
    shown = float(sources.rate * what.frames) * what.speed
    rate = float(what.rate(sources.rate))
    return frames if abs(shown / rate - 1) < 1e-6 else at_rate(frames, shown, rate)


def _count(sources: Sources, what: Finish) -> int:
    """About how many frames there will be."""
    first, last = sources.cut(what.start, what.end)
    seconds = (min(sources.count, last or sources.count) - first) / float(sources.rate) / what.speed
    return max(1, round(seconds * float(what.rate(sources.rate)))) * what.loop


def _sound(
    sources: Sources, what: Finish, encoding: Encoding, seconds: float
) -> tuple[Sound | None, tuple[str, ...]]:  # fmt: skip
    if what.sound == "none":
        return None, ()
    if encoding.format not in ("mp4", "webm"):
        if what.sound != "keep":
            raise RequestError(f"{encoding.format} holds no sound: take mp4 or webm")
        return None, ()
    if what.sound != "keep":
        path = Path(what.sound)
        if not path.is_file():
            raise RequestError(f"sound: no such file: {path}")
        sound = read_sound(path)
        if sound is None:
            raise RequestError(f"there is no sound in {path}")
        heard = sound.samples.shape[1] / sound.rate
        short = heard < seconds - 0.05
        told = (f"{path.name} has {heard:.1f} s of sound, and the clip {seconds:.1f} s: its end is silent",)
        return sound.until(seconds), told if short else ()
    sound, notes = sources.sound(what.start, what.end)
    if sound is None or not sound.samples.size:
        return None, notes
    sound = sound.backwards() if what.reverse else sound
    sound = sound if what.speed == 1 else sound.at_speed(what.speed)
    return sound.repeated(what.loop), notes


def _receipt(clips: Sequence[Path], what: Finish) -> dict[str, Any]:
    """That of the first clip that carries one, and what was done to it; none where none does."""
    for clip in clips:
        try:
            receipt = read_receipt(clip)
        except OutputError:
            continue
        told = {name: value for name, value in what.model_dump().items() if value != Finish.model_fields[name].default}
        told |= {name: Path(told[name]).name for name in ("upscaler", "sound") if name in told}
        done = {"radial": __version__, "clips": [path.name for path in clips], **told}
        before = receipt.get("finishing")
        return receipt | {"finishing": [*(before if isinstance(before, list) else ()), done]}
    return {}


def _reframed(height: int, width: int, shape: tuple[int, int], way: str) -> tuple[int, int]:
    """A size of another shape, in even sides: within the clip where it is cut, around it where it is padded."""
    across, down = shape
    wider = across * height > down * width  # than the clip
    keeps_width = wider if way == "crop" else not wider
    new = (round(width * down / across), width) if keeps_width else (height, round(height * across / down))
    return max(2, new[0] - new[0] % 2), max(2, new[1] - new[1] % 2)


def _held(height: int, width: int) -> tuple[int, int]:
    if max(height, width) > MAX_SIDE:
        raise RequestError(f"{width}x{height} is too large: {MAX_SIDE} pixels a side are the most")
    return height, width


def _numbers(text: str, between: str) -> tuple[int, int] | None:
    match = re.fullmatch(rf"(\d{{1,5}}){between}(\d{{1,5}})", text.strip().lower())
    found = (int(match[1]), int(match[2])) if match else None
    return found if found and all(found) else None


def _literally(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)
