"""Adapter files, and what they say they were made for: generation takes it over unless the user says otherwise."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

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

    return Path(str(files("radial_assets"))) / "adapters" / f"{path.removeprefix(BUNDLED_ADAPTER)}.safetensors"


def read_adapter_settings(path: Path) -> AdapterSettings | None:
    """The settings in a safetensors file's header; None where there are none, or no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            content = json.loads((file.metadata() or {}).get(METADATA_KEY, ""))
    except (OSError, SafetensorError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    known = {field.name for field in fields(AdapterSettings)}
    return AdapterSettings(**{name: value for name, value in content.items() if name in known})
