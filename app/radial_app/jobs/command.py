"""The command line that makes a job's clip again."""

from __future__ import annotations

import contextlib
import shlex
from typing import Any

from radial.errors import RadialError, RequestError
from radial.input_files import KINDS
from radial.request import make_request
from radial.video.encoding import Encoding
from radial_app.jobs.finishing import Finishing
from radial_app.jobs.job import Job

# What other fields follow from where they are left open: said first, so that the rest is held against what follows.
_FIRST = (
    "model", *KINDS, "strength", "loras", "long_adapter", "num_frames", "num_inference_steps", "height",
    "width",
)  # fmt: skip
_ALREADY_DONE = {"prompt", "snap"}  # sizes of a resolved request are legal


def command_of(job: Job) -> str:
    """The ``radial generate`` command that makes a job's videos again: all that is unlike what the command would take.

    Where a job was made by an earlier version and has what the command cannot say, such as no shift of the noise
    schedule, that is left out.

    Raises:
        RequestError: it makes the film of a story, whose lines no command holds.
    """
    if job.finish is not None and job.finish.clips:
        return _finish_command(job.finish)
    if job.story is not None:
        raise RequestError("the lines of a story are in no command; its receipt says them all, with their times")
    request = job.request
    values = request.model_dump(mode="json")
    written: dict[str, Any] = {"prompt": request.prompt}
    for name in _FIRST:
        if values[name] != _following(written)[name]:
            written[name] = values[name]
    following = _following(written) | {"seed": None}
    rest = (name for name in values if name not in written and name not in _ALREADY_DONE)
    written |= {name: values[name] for name in rest if values[name] != following[name]}
    parts = ["radial", "generate"]
    for name, value in written.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "prompt" or value is None:
            continue
        if name in ("then", "references", "keyframes"):
            parts += [part for one in getattr(request, name) for part in (flag, str(one))]
        elif name == "loras":
            parts += [part for lora in request.loras for part in ("--lora", str(lora))]
        elif isinstance(value, bool):
            parts.append(flag if value else f"--no-{flag[2:]}")
        else:
            parts += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    if job.finish is not None:
        parts += ["--finish", ",".join(f"{name}={value}" for name, value in job.finish.what.changes().items())]
    encoding, plain = job.output.encoding, Encoding()
    for name in ("format", "codec", "crf"):
        if getattr(encoding, name) != getattr(plain, name):
            parts += [f"--{name}", str(getattr(encoding, name))]
    if not encoding.metadata:
        parts.append("--no-metadata")
    dashes = request.prompt.startswith("-")
    return shlex.join([*parts, "--", request.prompt] if dashes else [*parts[:2], request.prompt, *parts[2:]])


def _finish_command(finish: Finishing) -> str:
    parts = ["radial", "finish", *finish.clips]
    for name, value in finish.what.changes().items():
        parts += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(parts)


def _following(written: dict[str, Any]) -> dict[str, Any]:
    """What the fields are where only this is written."""
    request = make_request(**{"seed": 0} | written)
    with contextlib.suppress(RadialError):  # the model is not here any more, or needs what is still to be said
        request = request.resolve()
    return request.model_dump(mode="json")
