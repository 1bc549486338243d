"""What visitors may have done to clips, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from radial.errors import RequestError
from radial.video.finishing.finish import work_of
from radial.video.finishing.latents import check_latent_upsampler
from radial.video.finishing.sources import Sources
from radial.video.finishing.steps import Finish, make_finish
from radial.video.sound import MOST_SECONDS
from radial_app.jobs.job import Job
from radial_app.server.uploads import Inputs

_WIDEST = 4  # times as wide as high, and as high as wide
_OF_AN_UPSCALER = 4.0  # times as wide and high, where nobody says


class FinishBody(BaseModel):
    """What is done to a video, as ``radial finish`` does it, into a file of its own: the video stays as it is.
    ``upscaler`` is a name of ``/v1/upscalers``; ``sound`` is ``keep``, ``none``, or an upload's or a video's id."""

    model_config = ConfigDict(extra="forbid")

    start: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    end: Annotated[float, Field(gt=0, le=1e6)] | None = None
    reverse: bool = False
    aspect: Annotated[str, Field(max_length=11)] | None = None
    reframe: Literal["crop", "pad"] = "crop"
    scale: Annotated[float, Field(ge=0.25, le=4)] | None = None
    size: Annotated[str, Field(max_length=11)] | None = None
    upscaler: Annotated[str, Field(max_length=200)] | None = None
    frames: Literal[1, 2, 4] = 1
    speed: Annotated[float, Field(ge=0.05, le=20)] = 1.0
    fps: Annotated[int, Field(ge=1, le=120)] | None = None
    loop: Annotated[int, Field(ge=1, le=20)] = 1
    sound: Annotated[str, Field(max_length=100)] = "keep"

    def finish(self, **files: Any) -> Finish:
        """The same with files in place of names.

        Raises:
            RequestError: the values do not go together.
        """
        return make_finish(**self.model_dump(exclude={"index", "join"}) | files)


# The same as a field of another body, said in full where that is described.
FinishField = Annotated[
    FinishBody | None, WithJsonSchema({"anyOf": [FinishBody.model_json_schema(), {"type": "null"}]})
]


class FinishRequest(FinishBody):
    """The same of a video that is there: which of its files, and the videos that are joined to it first."""

    index: Annotated[int, Field(ge=0, le=999)] = 0
    join: Annotated[list[str], Field(max_length=49)] = []


@dataclass(frozen=True)
class Bounds:
    """The most that is taken: pixels of all frames that are read and made, of one, of one where what moves is looked
    for, bytes on the disk, and seconds of what is made; and what is said of more."""

    pixels: int
    frame: int
    moved: int
    disk: int
    says: str
    seconds: float = MOST_SECONDS


WHILE_YOU_WAIT = Bounds(400_000_000, 1 << 24, 1 << 22, 1 << 30, "are made while you wait: queue it, or ask for less")
IN_THE_QUEUE = Bounds(40_000_000_000, 1 << 25, 1 << 24, 1 << 33, "are made for one job: ask for less")


def check_work(sources: Sources, what: Finish, bounds: Bounds) -> None:
    """Make sure that clips are finished within what a server may take for it.

    Raises:
        RequestError: it takes too much.
    """
    if what.shape is not None and not 1 / _WIDEST <= what.shape[0] / what.shape[1] <= _WIDEST:
        raise RequestError(f"aspect must lie between 1:{_WIDEST} and {_WIDEST}:1, not {what.aspect}")
    work = work_of(sources, what)
    for value, most, unit, of in (
        (work.pixels, bounds.pixels, 1e6, "million pixels"),
        (work.frame, bounds.frame if what.frames == 1 else bounds.moved, 1e6,
         f"million pixels a frame{' with more frames' if what.frames > 1 else ''}"),
        (work.disk, bounds.disk, 1e6, "MB of frames that are turned around"),
        (work.seconds, bounds.seconds, 1, "seconds"),
    ):  # fmt: skip
        if value > most:
            raise RequestError(f"{value / unit:,.1f} {of} are more than the {most / unit:,.1f} that {bounds.says}")


def check_after(job: Job, what: Finish) -> None:
    """Make sure of the same before the clip is rendered.

    Raises:
        RequestError: it takes too much, or none of it will be there.
    """
    if what.upscaler is not None and what.scale is None and what.size is None:
        what = what.model_copy(update={"scale": _OF_AN_UPSCALER})
    size = job.request.clip_height, job.request.clip_width
    check_work(Sources((), Fraction(job.request.fps or 1), *size, (job.frames,)), what, IN_THE_QUEUE)


def upscalers(data: Path) -> dict[str, Path]:
    """The upscalers that a server's operator put into its data folder, by name: files, and folders with an upsampler of
    latents."""
    there = sorted((data / "upscalers").glob("[!.]*"))
    return {one.name: one for one in there if _is_upscaler(one)}


def _is_upscaler(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".safetensors" and path.is_file()
    try:
        check_latent_upsampler(path)
    except RequestError:
        return False
    return True


def read_order(body: FinishBody, inputs: Inputs, data: Path) -> Finish:
    """What is to be done, from a visitor's words; upscalers lie in a server's ``data``.

    Raises:
        RequestError: a file is not there, or is none of the visitor's.
    """
    files = {}
    if body.upscaler is not None:
        if body.upscaler not in (offered := upscalers(data)):
            there = ", ".join(offered) or "none: its operator puts them into the folder upscalers of its data"
            raise RequestError(f"upscaler must be one of this server, not {body.upscaler[:200]!r}; there is {there}")
        files["upscaler"] = str(offered[body.upscaler])
    if body.sound not in ("keep", "none"):
        files["sound"] = inputs.clip(body.sound)
    return body.finish(**files)
