"""Adapter files, and what they say they were made for: generation takes it over unless the user says otherwise."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from radial.errors import ModelError, first_line
from radial.plans.settings import BlockSize, Decay, DenseCount, Kind, SinkFrames

METADATA_KEY = "radial"
BUNDLED_ADAPTER = "bundled:"


@dataclass(frozen=True)
class AdapterSettings:
    """Attributes: what the adapter was tuned on and for; None where its file does not say.

    ``target_frames`` is the longest clip it was tuned for, ``native_frames`` the model's own; ``expert`` which of a
    model's two transformers it belongs to, ``high`` or ``low`` noise; ``flow_shift`` the schedule it was tuned on.
    """

    base_model: str | None = None
    rank: int | None = None
    alpha: float | None = None
    native_frames: int | None = None
    target_frames: int | None = None
    trigger: str = ""
    expert: str | None = None
    attention: str | None = None
    decay: float | None = None
    sink_frames: int | None = None
    dense_layers: int | None = None
    dense_steps: int | None = None
    block_size: int | None = None
    riflex: bool = False
    flow_shift: float | None = None


def adapter_file(path: str) -> Path:
    """The file of an adapter; ``bundled:NAME`` is one that comes with the package."""
    if not path.startswith(BUNDLED_ADAPTER):
        return Path(path)
    from importlib.resources import files

    name = path.removeprefix(BUNDLED_ADAPTER)
    if not re.fullmatch(r"[\w-]+", name):
        raise ModelError(f"{path!r} names no adapter that comes with the package")
    return Path(str(files("radial_assets"))) / "adapters" / f"{name}.safetensors"


def check_adapter_file(path: Path) -> None:
    """Make sure that there is an adapter's file, before a model is loaded for it.

    Raises:
        ModelError: it is missing, pickled or broken, or says of itself what cannot be.
    """
    from safetensors import SafetensorError, safe_open

    from radial.models.weights import read_header

    if path.suffix != ".safetensors":
        raise ModelError(f"LoRA {path.name} is not a safetensors file; safetensors only")
    if not path.is_file():
        raise ModelError(f"no LoRA file {path}")
    try:
        read_header(path)
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"LoRA {path.name} is broken: {first_line(error)}") from error
    read_adapter_settings(path)


def read_adapter_settings(path: Path) -> AdapterSettings | None:
    """The settings in a safetensors file's header; None where there are none, or no such file.

    Raises:
        ModelError: a setting is none that can be.
    """
    from radial.models.weights import read_header

    try:
        content = json.loads(read_header(path).get("__metadata__", {}).get(METADATA_KEY, ""))
    except RecursionError as error:
        raise ModelError(f"{path.name} says of itself what cannot be read") from error
    except (OSError, ValueError, TypeError, AttributeError, struct.error):
        return None
    if not isinstance(content, dict):
        return None
    known = {field.name for field in fields(AdapterSettings)}
    for name, value in content.items():
        if name in known and value is not None and not _RULES[name](value):
            raise ModelError(f"{path.name} says {name} = {repr(value)[:80]} of itself, which cannot be")
    return AdapterSettings(**{name: value for name, value in content.items() if name in known})


def _is_count(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_number(most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and 0 < value <= most


def _is_a(kind: Any) -> Callable[[Any], bool]:
    """What a request would take."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))

    def rule(value: Any) -> bool:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError:
            return False
        return not isinstance(value, bool)

    return rule


_RULES: dict[str, Callable[[Any], bool]] = {
    "base_model": lambda value: isinstance(value, str) and len(value) <= 2000,
    "rank": _is_count(1, 65_536),
    "alpha": _is_number(1e6),
    "native_frames": _is_count(1, 4097),
    "target_frames": _is_count(1, 4097),
    "trigger": lambda value: isinstance(value, str) and len(value) <= 2000,
    "expert": lambda value: value in ("high", "low"),
    "attention": _is_a(Kind),
    "decay": _is_a(Decay),
    "sink_frames": _is_a(SinkFrames),
    "dense_layers": _is_a(DenseCount),
    "dense_steps": _is_a(DenseCount),
    "block_size": _is_a(BlockSize),
    "riflex": lambda value: isinstance(value, bool),
    "flow_shift": _is_number(100),
}
