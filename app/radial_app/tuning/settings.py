"""What a fine-tuning run is told: which clips it is of, and how it trains."""

from __future__ import annotations

import datetime
import json
import math
import tomllib
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from radial.errors import RequestError, first_line
from radial_app.tuning.datasets import NAME

Size = Annotated[int, Field(ge=16, le=8192)]
_OWN_KEYS = ("data", "output", "model", "sample_prompts")
_FILES = ("init_adapter",)  # of the machine that trains: nothing for whoever is on another one


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            "must be up to 64 letters, digits, dots, dashes and underscores, a letter or digit first, not "
            f"{name[:80]!r}"
        )
    return name


Name = Annotated[str, AfterValidator(_named)]


class Preparation(BaseModel):
    """What clips a run is of: a dataset, cut to these lengths and one size, the model's own where they are left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    dataset: Name
    model: str = Field("tiny", max_length=200)
    num_frames: Annotated[tuple[Annotated[int, Field(ge=1, le=4097)], ...], Field(min_length=1, max_length=8)]
    height: Size | None = None
    width: Size | None = None


class Training(BaseModel):
    """How a run trains. ``more`` are other settings of ``radial finetune run``, as lines of TOML."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    rank: Annotated[int, Field(ge=1, le=1024)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    held_out: Annotated[int, Field(ge=0, le=10_000)] = 8
    sample_every: Annotated[int, Field(ge=0)] = 200
    sample_prompts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = Field((), max_length=16)
    trigger: Annotated[str, Field(max_length=200)] = ""
    more: Annotated[str, Field(max_length=10_000)] = ""

    def values(self) -> dict[str, Any]:
        """The keys of the configuration.

        Raises:
            RequestError: ``more`` is no TOML, or says where the run lies.
        """
        try:
            more = tomllib.loads(self.more)
            as_toml(more)  # nothing that cannot be told on
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RequestError(f"the other settings are not lines of key = value: {first_line(error)}") from error
        if taken := [key for key in _OWN_KEYS if key in more]:
            raise RequestError(f"{taken[0]} is the run's own and cannot be among the other settings")
        if named := [key for key in _FILES if key in more]:
            raise RequestError(f"{named[0]} names a file of the server, which only its own command line may open")
        values = self.model_dump(exclude={"more"})
        # As objects: behind a text the trainer would read settings, pictures of the server's among them.
        values["sample_prompts"] = [{"prompt": prompt} for prompt in self.sample_prompts]
        if not self.sample_prompts:
            values["sample_every"] = 0
        return values | more


def as_toml(value: Any) -> str:
    """A value as TOML writes it: strings, numbers, truth values and lists of them as JSON does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, (datetime.date, datetime.time)):
        raise RequestError(f"{value.isoformat()} is a date or a time, which no setting is: put a text into quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"{value} is no number that a setting can have")
    return json.dumps(value)
