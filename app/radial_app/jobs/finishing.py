"""What a job does to clips: to those that it renders, once they are there, or to others that were there before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import OutputError, RequestError
from radial.request import GenerationRequest
from radial.video.clip import read_receipt
from radial.video.encoding import Encoding
from radial.video.finishing.enlarge import check_upscaler_file
from radial.video.finishing.finish import FinishRun
from radial.video.finishing.steps import Finish, make_finish, parse_finish


class Finishing(BaseModel):
    """What is done to a job's clips.

    Attributes:
        clips: those that were there before, which the job joins and finishes, and renders none; without them it is what
            it renders that is finished, each beside itself.
        width, height, num_frames, fps: of what comes of ``clips``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Finish
    clips: tuple[str, ...] = Field(default=(), max_length=1000)
    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: float = 0.0


def finishing_of(clips: Sequence[Path], what: Finish, base: Path | None = None) -> Finishing:
    """What a job is to do to clips that are there, looked at once.

    Raises:
        RequestError: a value or a file cannot be, or nothing is to be done.
        OutputError: a clip cannot be read.
    """
    what = anchored_finish(what, base)
    check_finish(what, joins=len(clips) > 1)
    run = FinishRun.prepare(clips, what)
    run.sound(Encoding())
    return Finishing(
        what=what, clips=tuple(str(clip.absolute()) for clip in clips), width=run.width, height=run.height,
        num_frames=run.count, fps=round(float(run.rate), 3),
    )  # fmt: skip


def finishing_after(what: Finish, encoding: Encoding, base: Path | None = None) -> Finishing:
    """What a job is to do to the clips that it renders, when they are there.

    Raises:
        RequestError: a file is not there, nothing is to be done, or what is rendered is no clip.
    """
    what = anchored_finish(what, base)
    check_finish(what)
    check_finished_output(encoding, beside=False)
    return Finishing(what=what)


def read_finish(given: Any) -> Finish:
    """What is to be done, as lists of jobs and the web say it: text such as ``frames=2, scale=2``, or its fields.

    Raises:
        RequestError: it is neither, or a field breaks a rule.
    """
    if isinstance(given, str):
        return parse_finish(given)
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return make_finish(**given)
    raise RequestError(f"finish must be text such as frames=2, scale=2, or a mapping, not {given!r:.100}")


def anchored_finish(what: Finish, base: Path | None = None) -> Finish:
    """The same with its files found from wherever it is done."""
    base = base or Path.cwd()
    files = {name: getattr(what, name) for name in ("upscaler", "sound")}
    found = {
        name: str(base / Path(file).expanduser()) for name, file in files.items() if file not in (None, "keep", "none")
    }
    return what.model_copy(update=found)


def check_finish(what: Finish, *, joins: bool = False) -> None:
    """Make sure that something is to be done, with files that are there.

    Raises:
        RequestError: nothing is, or one is not.
    """
    if what == make_finish() and not joins:
        raise RequestError("nothing is to be done: say what, such as frames=2")
    if what.upscaler is not None:
        check_upscaler_file(Path(what.upscaler))
    if what.sound not in ("keep", "none") and not Path(what.sound).is_file():
        raise RequestError(f"sound: no such file: {what.sound}")


def check_no_files(what: Finish) -> None:
    """Raise RequestError where what comes over the web names files of the server."""
    if what.upscaler is not None or what.sound not in ("keep", "none"):
        raise RequestError("upscaler and sound name files: `radial finish` and job files on the server take them")


def check_finished_output(encoding: Encoding, *, beside: bool) -> None:
    """Raise RequestError where what is finished in the queue cannot be kept as something.

    Args:
        beside: whether it is what a job makes of clips that are there, and not of those that it renders.
    """
    if beside and (encoding.format != "mp4" or encoding.chosen_codec != "h264"):
        raise RequestError("what is finished in the queue becomes an MP4 of H.264: leave format and codec out")
    if encoding.format == "png":
        raise RequestError("a folder of frames is not finished: take mp4, webm or gif")


def request_of(clips: Sequence[Path], device: str = "auto") -> GenerationRequest:
    """How the first clip that tells was made; else a request that stands for it, of its name."""
    for clip in clips:
        try:
            told = read_receipt(clip)["request"]
            known = {name: value for name, value in told.items() if name in GenerationRequest.model_fields}
            return GenerationRequest.model_validate(known | {"num_videos": 1, "device": device})
        except (OutputError, ValidationError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return GenerationRequest(
        prompt=clips[0].stem[:1000], height=16, width=16, num_frames=1, fps=1, num_inference_steps=1, seed=0,
        attention="dense", device=device,
    )  # fmt: skip
