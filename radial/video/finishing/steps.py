"""What is done to a clip, as its user says it."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from radial.errors import RequestError, explain_all

MAX_SIDE = 8192
Seconds = Annotated[float, Field(ge=0, le=1e6)]


class Finish(BaseModel):
    """What is done to a clip, in this order.

    Attributes:
        start, end: only what is shown from one second to before another.
        reverse: from its end to its beginning.
        aspect: another shape, such as ``9:16``: ``reframe`` cuts what is too wide or high off, or pads with black.
        scale: more or fewer pixels, this many times as wide and high; or ``size``, as ``1920x1080``.
        upscaler: a file whose model makes them, or a folder with an upsampler of latents; else Lanczos.
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

    def changes(self) -> dict[str, Any]:
        """What is asked for: the values that are not those of fields left out."""
        return {name: value for name, value in self.model_dump().items() if value != Finish.model_fields[name].default}

    def told(self) -> dict[str, Any]:
        """The same for receipts: files by their names."""
        told = self.changes()
        return told | {name: Path(told[name]).name for name in ("upscaler", "sound") if name in told}

    def rate(self, own: Fraction) -> Fraction:
        """Frames a second of what a clip of a rate becomes."""
        faster = Fraction(self.speed).limit_denominator(1000)
        return Fraction(self.fps) if self.fps else own * self.frames * faster if self.frames > 1 else own

    def target(self, height: int, width: int, by_model: float = 1) -> tuple[int, int]:
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


def parse_finish(text: str) -> Finish:
    """What is to be done, from text such as ``frames=2, scale=2``.

    Raises:
        RequestError: a part is no such setting, or breaks a rule.
    """
    fields: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, equals, value = (one.strip() for one in part.partition("="))
        if name == "reverse" and not equals:
            value = "true"
        elif not equals or not value:
            raise RequestError(f"finish is a list such as frames=2, scale=2, not {part!r}")
        if name not in Finish.model_fields:
            raise RequestError(f"finish has no {name!r}; known are {', '.join(Finish.model_fields)}")
        fields[name] = int(value) if name == "frames" and value.isdecimal() else value
    return make_finish(**fields)
