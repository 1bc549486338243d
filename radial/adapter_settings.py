"""What an adapter's file says it was made for: generation takes it over unless the user says otherwise."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

METADATA_KEY = "radial"
_MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class AdapterSettings:
    """Attributes: what the adapter was tuned on and for; None where its file does not say.

    ``target_frames`` is the longest clip it was tuned for, ``native_frames`` the model's own.
    """

    base_model: str | None = None
    rank: int | None = None
    native_frames: int | None = None
    target_frames: int | None = None
    trigger: str = ""
    attention: str | None = None
    decay: float | None = None
    dense_layers: int | None = None
    dense_steps: int | None = None
    block_size: int | None = None
    riflex: bool = False


def read_adapter_settings(path: Path) -> AdapterSettings | None:
    """The settings in a safetensors file's header; None where there are none, or no such file."""
    header = _read_header(path)
    try:
        content = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, ""))
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    known = {field.name for field in fields(AdapterSettings)}
    return AdapterSettings(**{name: value for name, value in content.items() if name in known})


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(length)) if length <= _MAX_HEADER else None
    except (OSError, struct.error, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("__metadata__", {}), dict) else {}
