"""Tile sizes, warps and pipeline stages for each kind of kernel, dtype, head dim and architecture.

A shipped table, so that nothing is tuned at run time and a new clip length never compiles anything anew. The sm90
rows of forward and backward and the 2-byte ones of the far field's forward were measured (see benchmarks/); the others
follow from shared memory and registers. What :mod:`.tuning` has measured on this machine comes before the table.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Tokens of a tile of queries and of keys, and how the kernel is compiled."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


# (kind, bytes an element, head dim at most) -> tiles. 227 KB of shared memory: sm90, sm100, sm103.
_LARGE = {
    ("forward", 2, 64): Tiles(64, 128, 4, 2),
    ("forward", 2, 128): Tiles(128, 64, 4, 3),
    ("forward", 2, 256): Tiles(128, 64, 8, 2),
    ("forward", 4, 128): Tiles(64, 32, 8, 2),
    ("forward", 4, 256): Tiles(32, 32, 8, 1),
    ("backward", 2, 64): Tiles(64, 64, 4, 3),
    ("backward", 2, 128): Tiles(64, 64, 4, 3),
    ("backward", 2, 256): Tiles(32, 64, 4, 1),
    ("backward", 4, 128): Tiles(32, 32, 8, 1),
    ("backward", 4, 256): Tiles(16, 32, 8, 1),
    ("tail", 2, 64): Tiles(64, 128, 4, 3),
    ("tail", 2, 128): Tiles(128, 32, 4, 3),
    ("tail", 2, 256): Tiles(64, 64, 8, 1),
    ("tail", 4, 128): Tiles(32, 32, 8, 1),
    ("tail", 4, 256): Tiles(32, 16, 8, 1),
    ("tail backward", 2, 128): Tiles(64, 64, 4, 2),
    ("tail backward", 2, 256): Tiles(32, 64, 8, 1),
    ("tail backward", 4, 128): Tiles(32, 32, 8, 1),
    ("tail backward", 4, 256): Tiles(16, 32, 8, 1),
}
# 99 KB of shared memory (sm86, sm89, sm120) and more.
_SMALL = {
    ("forward", 2, 64): Tiles(128, 64, 4, 3),
    ("forward", 2, 128): Tiles(128, 64, 8, 2),
    ("forward", 2, 256): Tiles(64, 32, 8, 1),
    ("forward", 4, 128): Tiles(64, 32, 8, 1),
    ("forward", 4, 256): Tiles(32, 16, 8, 1),
    ("backward", 2, 64): Tiles(64, 64, 4, 2),
    ("backward", 2, 128): Tiles(32, 64, 4, 1),
    ("backward", 2, 256): Tiles(16, 32, 4, 1),
    ("backward", 4, 128): Tiles(16, 32, 8, 1),
    ("backward", 4, 256): Tiles(16, 16, 8, 1),
    ("tail", 2, 128): Tiles(64, 32, 4, 2),
    ("tail", 2, 256): Tiles(64, 32, 8, 1),
    ("tail", 4, 128): Tiles(32, 32, 8, 1),
    ("tail", 4, 256): Tiles(32, 16, 8, 1),
    ("tail backward", 2, 128): Tiles(32, 64, 4, 1),
    ("tail backward", 2, 256): Tiles(16, 32, 4, 1),
    ("tail backward", 4, 128): Tiles(16, 32, 8, 1),
    ("tail backward", 4, 256): Tiles(16, 16, 8, 1),
}


def choose_tiles(kind: str, q: Tensor, block_size: int) -> Tiles:
    """Tiles of the portable kernels, ``forward`` or ``backward``, or of the far field's, ``tail`` or ``tail backward``.

    The gradient of q swaps queries and keys. Tiles of the far field, whose keys are no block's, are as in the table.
    """
    tuned = read_tuned(tuned_file()).get(tuning_key(kind, q)) if q.is_cuda else None
    if tuned is not None:
        return tuned if kind.startswith("tail") else _cut(tuned, block_size)
    return tiles_for(kind, _capability(q), q.element_size(), q.shape[-1], block_size)


def tiles_for(kind: str, capability: tuple[int, int], element_size: int, head_dim: int, block_size: int) -> Tiles:
    """Tiles of a kind of kernel on an architecture by the shipped table; the far field's may be larger than a block."""
    table = _LARGE if capability in ((9, 0), (10, 0), (10, 3)) else _SMALL
    wide = min(limit for name, size, limit in table if (name, size) == (kind, element_size) and head_dim <= limit)
    tiles = table[kind, element_size, wide]
    return tiles if kind.startswith("tail") else _cut(tiles, block_size)


def tuning_key(kind: str, q: Tensor) -> str:
    """What a tuned choice holds for: kernel, dtype, head dim, architecture, and a power of two of tokens.

    Clips of any length in between share a key, so that a new length asks for no tuning.
    """
    dtype = str(q.dtype).removeprefix("torch.")
    bucket = min(19, max(12, q.shape[1].bit_length() - 1))
    return f"{kind} {dtype} {q.shape[-1]} {_architecture(q)} {1 << bucket}"


def tuned_file() -> Path:
    """Where tuned choices are kept: ``$RADIAL_TILES``, or tiles.json in the user's cache folder."""
    named = os.environ.get("RADIAL_TILES")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else cache / "radial" / "tiles.json"


@functools.cache
def read_tuned(file: Path) -> dict[str, Tiles]:
    """Tuned choices by key, read once a process.

    Raises:
        ValueError: the file holds something else; it says which file to delete.
    """
    if not file.exists():
        return {}
    try:
        return {key: Tiles(**tiles) for key, tiles in json.loads(file.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not hold tuned tiles ({error}); delete it, or tune again") from error


def _cut(tiles: Tiles, block_size: int) -> Tiles:
    """Tiles no larger than a block."""
    queries, keys = min(tiles.queries, block_size), min(tiles.keys, block_size)
    # A tile cut down to the block needs fewer warps.
    warps = max(1, tiles.num_warps * min(queries, keys) // min(tiles.queries, tiles.keys))
    return Tiles(queries, keys, warps, tiles.num_stages)


def _capability(q: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(q.device) if q.is_cuda and torch.version.hip is None else (0, 0)


def _architecture(q: Tensor) -> str:
    if not q.is_cuda:
        return q.device.type
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(q.device).gcnArchName)
    return "sm{}{}".format(*torch.cuda.get_device_capability(q.device))
