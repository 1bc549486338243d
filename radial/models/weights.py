"""What weights a checkpoint has, by its files' headers alone: here or still on the hub."""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radial.errors import ModelError, first_line
from radial.models.checkpoint import NOT_DRIVEN, read_config

_MAX_HEADER = 8 << 20  # bytes; that of the largest models takes a few hundred thousand
_MAX_SIDE = 1 << 31
_MAX_NAME = 512  # characters; what names mean is asked of patterns, which take longer for longer ones


@dataclass(frozen=True)
class Weight:
    """A tensor of a file.

    Attributes:
        packed: its bytes, in a format that it keeps in memory; None where it becomes of the run's dtype.
        dtype: as safetensors name it; nothing where that is not known.
    """

    name: str
    shape: tuple[int, ...]
    packed: int | None = None
    dtype: str = ""

    def bytes(self, each: int) -> int:
        """What it takes with so many bytes a number."""
        return math.prod(self.shape) * each if self.packed is None else self.packed


@dataclass(frozen=True)
class Weights:
    """The tensors of each component, and the transformer's configuration."""

    components: Mapping[str, tuple[Weight, ...]]
    transformer: Mapping[str, Any]


def weights_in(folder: Path, own: Mapping[str, Path] | None = None) -> Weights:
    """The weights of the checkpoint in a folder, those of some components from files of their ``own``.

    Raises:
        ModelError: a file cannot be read.
    """
    components = {}
    for component in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in NOT_DRIVEN):
        files = sorted(component.glob("*.safetensors"))
        if component.name in (own or {}):
            files = [(own or {})[component.name]]
        if found := tuple(weight for file in files for weight in read_weights(file)):
            components[component.name] = found
    return Weights(components, read_config(folder / "transformer"))


def weights_on_hub(source: str, files: Iterable[str], own: Mapping[str, Path] | None = None) -> Weights:
    """The weights of a hub model's files, of which only the headers are fetched; those of some components from files
    of their ``own``.

    Raises:
        ModelError: the hub cannot be reached, or has no such files.
    """
    import huggingface_hub

    components: dict[str, tuple[Weight, ...]] = {}
    try:
        config = read_config(Path(huggingface_hub.hf_hub_download(source, "transformer/config.json")).parent)
        for file in files:
            if not file.endswith(".safetensors"):
                continue
            found = huggingface_hub.parse_safetensors_file_metadata(source, file).tensors
            component = file.partition("/")[0]
            weights = tuple(Weight(name, tuple(tensor.shape)) for name, tensor in found.items())
            components[component] = (*components.get(component, ()), *weights)
    except ModelError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise ModelError(f"the weights of {source} cannot be looked at: {first_line(error)}") from error
    components |= {name: read_weights(file) for name, file in (own or {}).items()}
    return Weights(components, config)


def read_weights(file: Path) -> tuple[Weight, ...]:
    """The weights of a file of safetensors or GGUF.

    Raises:
        ModelError: it is neither, or cannot be read.
    """
    try:
        return _read(file, file.stat().st_mtime_ns)
    except ModelError:
        raise
    except Exception as error:  # whatever is in a file that is none, and its readers raise many kinds
        kind = "GGUF" if file.suffix == ".gguf" else "safetensors"
        raise ModelError(f"cannot load {file.parent.name}/{file.name}: it is no {kind} file") from error


@functools.lru_cache(maxsize=512)
def _read(file: Path, changed: int) -> tuple[Weight, ...]:
    """The weights of a file that was last changed then."""
    if file.suffix == ".gguf":
        return tuple(
            Weight(_name(tensor.name), _shape(tensor.shape[::-1].tolist()), int(tensor.n_bytes))
            for tensor in open_gguf(file).tensors
        )
    return tuple(
        Weight(_name(name), _shape(entry["shape"]), dtype=str(entry["dtype"]))
        for name, entry in read_header(file).items()
        if name != "__metadata__"
    )


def read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: its tensors by name, and ``__metadata__``.

    Raises:
        OSError, ValueError, RecursionError, struct.error: it is none, or larger than any model's.
    """
    with file.open("rb") as content:
        (size,) = struct.unpack("<Q", content.read(8))
        if size > _MAX_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        header = json.loads(content.read(size))
    if not isinstance(header, dict):
        raise ValueError("no object")
    return header


def _name(name: str) -> str:
    if len(name) > _MAX_NAME:
        raise ValueError("no name")
    return name


def _shape(sizes: list[int]) -> tuple[int, ...]:
    if len(sizes) > 8 or not all(type(size) is int and 0 <= size < _MAX_SIDE for size in sizes):
        raise ValueError("no shape")
    return tuple(sizes)


def open_gguf(file: Path) -> Any:
    """A reader of a GGUF file.

    Raises:
        ModelError: the package that reads it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(f"{file.name} needs the package gguf: pip install 'radial-video[gguf]'") from error
    return gguf.GGUFReader(file)
