"""What a fine-tuning run is told: a TOML file, checked whole before anything is loaded."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radial.errors import RequestError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class FinetuneConfig(BaseModel):
    """Settings of a run. Keys are those of the TOML file; unknown ones are errors.

    Attributes:
        data: folder that ``radial finetune prepare`` wrote.
        output: folder for checkpoints and the adapter; a run in a folder that has checkpoints must resume them.
        rank, alpha: of the adapter; alpha is the rank when left out.
        layers: ``self`` tunes self-attention, ``all`` cross-attention too.
        shift: of the noise levels, sigma = shift u / (1 + (shift - 1) u); the scheduler's own when left out.
        caption_dropout: share of clips trained without their caption, so that guidance keeps working.
        attention, decay, dense_layers, block_size: as in generation; open ones take the model's preset for the length.
        held_out: clips kept for validation, the last of the data.
        max_bad_steps: steps in a row without a finite loss or gradient after which the run stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str
    output: str
    model: str = "tiny"
    rank: Annotated[int, Field(ge=1, le=1024)] = 128
    alpha: Annotated[float, Field(gt=0)] | None = None
    layers: Literal["self", "all"] = "all"
    steps: Positive = 1000
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: Count = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    timestep_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    shift: Annotated[float, Field(gt=0)] | None = None
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    attention: Literal["radial", "dense"] = "radial"
    decay: Annotated[float, Field(gt=0, le=16)] | None = None
    dense_layers: Count | None = None
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    riflex: bool = False
    gradient_checkpointing: bool = True
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    checkpoint_every: Positive = 200
    keep_checkpoints: Positive = 2
    validate_every: Count = 200
    held_out: Count = 0
    max_bad_steps: Positive = 10
    trigger: str = ""


def read_config(path: Path, changes: list[str] | None = None) -> FinetuneConfig:
    """The configuration in a TOML file, with ``key=value`` changes on top.

    Raises:
        RequestError: the file is missing or no TOML, or a key or value breaks a rule; all of them are named.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not TOML: {error}") from error
    for change in changes or []:
        key, equals, text = change.partition("=")
        if not equals:
            raise RequestError(f"--set takes key=value, not {change!r}")
        values[key.strip()] = _value(text.strip())
    return make_config(**values)


def make_config(**values: Any) -> FinetuneConfig:
    """A configuration from loose values.

    Raises:
        RequestError: one line that names every key that breaks a rule.
    """
    try:
        return FinetuneConfig(**values)
    except ValidationError as error:
        raise RequestError("; ".join(_explain(problem) for problem in error.errors())) from error


def _value(text: str) -> Any:
    """A TOML value, or the text itself: ``--set model=tiny`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = _nearest(key)
        return f"unknown key {key!r}" + (f", did you mean {near!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{key} is missing"
    return f"{key} {problem['msg'].removeprefix('Input should be ')}, not {problem['input']!r}"


def _nearest(key: str) -> str | None:
    import difflib

    found = difflib.get_close_matches(key, FinetuneConfig.model_fields, n=1, cutoff=0.5)
    return found[0] if found else None
