"""Prompts of the clips that a run makes on the way: in its settings, or in a file of their own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import RequestError, first_line

MOST_BYTES, MOST_PROMPTS = 1 << 20, 256
Positive = Annotated[int, Field(ge=1)]

# What stands behind a prompt on its line, as kohya's and musubi-tuner's files have it.
_FLAGS = {
    "w": "width", "h": "height", "f": "num_frames", "d": "seed", "s": "num_inference_steps", "g": "guidance_scale",
    "l": "guidance_scale", "n": "negative_prompt", "i": "image", "ei": "last_image",
}  # fmt: skip


class SamplePrompt(BaseModel):
    """A clip to make; what is left open is the run's.

    Attributes:
        seed: the prompt's number when left out.
        num_frames: one length, in place of those of the run.
        image, last_image: files that the clip starts from and ends on, for models that do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    negative_prompt: Annotated[str, Field(max_length=20_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    height: Positive | None = None
    width: Positive | None = None
    num_frames: Positive | None = None
    image: Annotated[str, Field(max_length=4096)] | None = None
    last_image: Annotated[str, Field(max_length=4096)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None


def parse_sample_prompt(line: str) -> SamplePrompt:
    """A prompt with what stands behind it, such as ``a fox runs --w 832 --h 480 --f 81 --d 42 --n blurry``.

    Raises:
        RequestError: one of them is not known, has no value or a wrong one.
    """
    prompt, *flags = line.split(" --")
    given: dict[str, Any] = {"prompt": prompt.strip()}
    for flag in flags:
        name, _, value = flag.strip().partition(" ")
        if name not in _FLAGS:
            told = ", ".join(f"--{short} {long}" for short, long in _FLAGS.items())
            raise RequestError(f"--{name} is not known behind a prompt: {told}")
        given[_FLAGS[name]] = value.strip()
    return _made(given, line[:80])


def read_sample_prompts(path: Path) -> tuple[SamplePrompt, ...]:
    """The prompts of a file: ``.jsonl`` has an object a line with the fields of :class:`SamplePrompt`, any other a
    prompt a line, without empty ones and those that begin with ``#``.

    Raises:
        RequestError: it cannot be read, is too large, or a line of it is wrong.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RequestError(f"{path} is larger than 1 MB; sample prompts are a line each")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is no text in UTF-8") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            found.append(_made(_object(line), "") if path.suffix == ".jsonl" else parse_sample_prompt(line))
        except RequestError as error:
            raise RequestError(f"{path}:{number}: {error}") from error
    if not found or len(found) > MOST_PROMPTS:
        raise RequestError(f"{path} has {len(found)} prompts; 1 to {MOST_PROMPTS} can be sampled")
    return tuple(found)


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"no JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise RequestError('must be an object such as {"prompt": "a fox", "seed": 3}')
    return value


def _made(given: dict[str, Any], where: str) -> SamplePrompt:
    try:
        return SamplePrompt(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"{key}: {first['msg']}" + (f" in {shlex.quote(where)}" if where else "")) from error
