"""The exceptions Radial raises for its users.

    RadialError
    ├── RequestError       (ValueError)   a value in the request breaks a rule; names the nearest legal choice
    ├── ModelError         (ValueError)   a model, checkpoint or adapter is unknown, missing, corrupt or unfit
    ├── OutputError        (OSError)      a result cannot be written where it was asked for
    └── GenerationError    (RuntimeError) generation went wrong after it began
        └── Lost                          what makes the clip is gone: this process must begin anew
            ├── DeviceLost                the GPU has stopped answering
            └── ProcessLost               another process that shares the clip has died

Each message is one line fit to be shown as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def first_line(error: Exception) -> str:
    """What another library's exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of names, and how many there are beside."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class RadialError(Exception):
    """Base of all errors that a user can act on."""


class RequestError(RadialError, ValueError):
    """A value in the request breaks a rule."""


class ModelError(RadialError, ValueError):
    """A model, checkpoint or adapter is unknown, missing, corrupt or does not fit."""


class OutputError(RadialError, OSError):
    """A result cannot be written where it was asked for."""


class GenerationError(RadialError, RuntimeError):
    """Generation went wrong after it began; ``latents`` are the last good ones, where there are any."""

    def __init__(self, message: str, latents: Tensor | None = None) -> None:
        super().__init__(message)
        self.latents = latents


class Lost(GenerationError):
    """What makes the clip is gone, and this process can make no other; what was denoised until the last snapshot is
    kept."""


class DeviceLost(Lost):
    """The GPU has stopped answering."""


class ProcessLost(Lost):
    """Another process that shares the clip has died."""


def explain_all(problems: Sequence[Any], most: int | None = None) -> str:
    """Several of pydantic's complaints in one line, the first so many of them."""
    return "; ".join(explain(problem) for problem in problems[:most])


def explain(problem: Any) -> str:
    """One of pydantic's complaints in a user's words: field, rule, value."""
    field = ".".join(str(part) for part in problem["loc"]) or "request"
    message = problem["msg"].removeprefix("Value error, ")
    message = message.removeprefix("Input should be ").partition(", unable to parse")[0]
    if problem["type"] == "extra_forbidden":
        return f"unknown field {field[:100]!r}"
    value = problem["input"]
    if problem["type"] in ("missing", "value_error") or isinstance(value, dict):
        return f"{field} {message}"
    shown = repr(value)
    return f"{field} must be {message}, not {shown if len(shown) <= 200 else f'{shown[:200]}...'}"
