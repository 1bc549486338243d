"""A denoising run after a step, as a file: all that the steps to come depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from radial.errors import OutputError
from radial.files import publish

_FORMAT = 2


class Part(Protocol):
    """Something that the steps to come depend on."""

    def state(self) -> Any:
        """What is needed to go on: tensors, numbers and texts, and lists and dictionaries of them."""

    def restore(self, state: Any, device: torch.device) -> None:
        """Go on from there, with tensors on a device where they are not elsewhere by themselves."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run after a step.

    Attributes:
        step, steps: steps done, and steps of the whole run.
        latents: what the scheduler's step returned.
        parts: the states of what the run depends on, by name.
        attention: what the receipt says of attention so far.
        seconds: time spent on each stage so far.
        about: what the run is of; a snapshot of another run must not be taken up.
    """

    step: int
    steps: int
    latents: Tensor = field(repr=False)
    parts: Mapping[str, Any] = field(repr=False)
    attention: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    about: str = ""

    def write(self, path: Path) -> None:
        """Write it as safetensors, in place of an earlier one.

        Raises:
            OutputError: the place cannot be written, or a part is none that a file can hold; what was there is as it
                was.
        """
        from safetensors.torch import save_file

        tensors = {"latents": self.latents.contiguous()}
        plain = {
            "format": _FORMAT, "step": self.step, "steps": self.steps, "attention": self.attention,
            "seconds": self.seconds, "about": self.about,
            "parts": {name: _pack(state, f"parts.{name}", tensors) for name, state in self.parts.items()},
        }  # fmt: skip
        metadata = {"radial": json.dumps(plain)}
        publish(path, lambda partial: save_file(tensors, partial, metadata), overwrite=True)


def read_snapshot(path: Path, about: str) -> Snapshot | None:
    """The snapshot in a file; None where there is none of this run, or where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            plain = json.loads((file.metadata() or {}).get("radial", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if plain.get("format") == 1:
            return _read_first(plain, tensors, about)
        if plain.get("format") != _FORMAT or plain["about"] != about:
            return None
        parts = {name: _unpack(state, tensors) for name, state in plain["parts"].items()}
        return Snapshot(
            plain["step"], plain["steps"], tensors["latents"], parts, plain["attention"], plain["seconds"], about
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def describe_attention(values: Mapping[str, Any]) -> str:
    """What a run's digest says of attention beyond what it said at first."""
    return "/".join(str(values.get(name)) for name in ("sink_frames", "variant", "skip_width"))


def _read_first(plain: dict[str, Any], tensors: dict[str, Tensor], about: str) -> Snapshot | None:
    """A snapshot of the first format: its digest left out the sink, the variant and the skip width, which it tells of
    among what the receipt says."""
    digest, _, rest = about.partition("/")
    attention = plain["attention"]
    if plain["about"] != digest or ("variant" in attention and describe_attention(attention) != rest):
        return None
    parts = {
        "scheduler": _unpack(plain["scheduler"], tensors), "generator": tensors["generator"],
        "attention": {"counted": plain["counted"], "planners": {}},
    }  # fmt: skip
    return Snapshot(plain["step"], plain["steps"], tensors["latents"], parts, attention, plain["seconds"], about)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values for JSON, with tensors put aside by name."""
    if isinstance(value, Tensor):
        tensors[name] = value.cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"entries": {key: _pack(entry, f"{name}.{key}", tensors) for key, entry in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(entry, f"{name}.{place}", tensors) for place, entry in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # numbers of numpy
        return value.item()
    raise OutputError(f"cannot keep {name}: it is a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(entry, tensors) for key, entry in value["entries"].items()}
    return [_unpack(entry, tensors) for entry in value] if isinstance(value, list) else value
