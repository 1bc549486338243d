"""What an adapter's file says it was made for: generation takes it over unless the user says otherwise."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

METADATA_KEY = "radial"


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
