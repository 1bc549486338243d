"""Tile sizes, warps and pipeline stages for each kind of kernel, dtype, head dim and architecture.

A shipped table, so that nothing is tuned at run time and a new clip length never compiles anything anew. The sm90
rows were measured (see benchmarks/); the others follow from shared memory and registers.
"""

from __future__ import annotations

from dataclasses import dataclass

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
}


def forward_tiles(q: Tensor, block_size: int) -> Tiles:
    """Tiles of the portable forward kernel."""
    return tiles_for("forward", _capability(q), q.element_size(), q.shape[-1], block_size)


def backward_tiles(q: Tensor, block_size: int) -> Tiles:
    """Tiles of the portable backward kernels; the gradient of q swaps queries and keys."""
    return tiles_for("backward", _capability(q), q.element_size(), q.shape[-1], block_size)


def tiles_for(kind: str, capability: tuple[int, int], element_size: int, head_dim: int, block_size: int) -> Tiles:
    """Tiles of a kind of kernel on an architecture; never larger than a block."""
    table = _LARGE if capability in ((9, 0), (10, 0), (10, 3)) else _SMALL
    wide = min(limit for name, size, limit in table if (name, size) == (kind, element_size) and head_dim <= limit)
    tiles = table[kind, element_size, wide]
    queries, keys = min(tiles.queries, block_size), min(tiles.keys, block_size)
    # A tile cut down to the block needs fewer warps.
    warps = max(1, tiles.num_warps * min(queries, keys) // min(tiles.queries, tiles.keys))
    return Tiles(queries, keys, warps, tiles.num_stages)


def _capability(q: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(q.device) if q.is_cuda and torch.version.hip is None else (0, 0)
