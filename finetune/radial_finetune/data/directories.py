"""Several folders as one set of clips: a ``dataset.toml`` that says how often each counts and how much of it is
taken."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import RequestError, first_line
from radial.files import decode_text

DATASET_FILE = "dataset.toml"
_MOST_DIRECTORIES = 1000


class Share(BaseModel):
    """How much of a run clips of one source are.

    Attributes:
        num_repeats: how often each clip comes in an epoch.
        max_clips: clips taken of a file at most, spread over it; all when left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    max_clips: Annotated[int, Field(ge=1)] | None = None


class Directory(Share):
    """A folder, table or dataset of clips, and its share. ``path`` counts from where the file lies."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]


class Directories(BaseModel):
    """The content of a ``dataset.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Annotated[tuple[Directory, ...], Field(min_length=1, max_length=_MOST_DIRECTORIES)]


def read_directories(file: Path) -> tuple[Directory, ...]:
    """The ``[[directory]]`` tables of a file.

    Raises:
        RequestError: it cannot be read, or a key or value breaks a rule; all of them are named.
    """
    try:
        values = tomllib.loads(decode_text(file.read_bytes()))
    except OSError as error:
        raise RequestError(f"cannot read {file}: {first_line(error)}") from error
    except ValueError as error:
        raise RequestError(f"{file} is not TOML: {error}") from error
    try:
        return Directories(**values).directory
    except ValidationError as error:
        raise RequestError(f"{file}: {_explain(error)}") from error


def share_of(row: dict[str, Any], where: str) -> Share:
    """The share that a row of a table names in the columns ``num_repeats`` and ``max_clips``.

    Raises:
        RequestError: a value breaks its rule.
    """
    told = {name: row[name] for name in Share.model_fields if row.get(name) not in (None, "")}
    try:
        return Share(**told)
    except ValidationError as error:
        raise RequestError(f"{where}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    told = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            told.append(f"unknown key {key!r}; a [[directory]] has {', '.join(Directory.model_fields)}")
        elif problem["type"] == "missing":
            told.append(f"{key} is missing")
        else:
            told.append(f"{key} {problem['msg'].removeprefix('Input should be ')}, not {problem['input']!r}")
    return "; ".join(told)
