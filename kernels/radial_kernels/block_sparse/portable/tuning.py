"""Tile sizes for this machine, measured: ``python -m radial_kernels.block_sparse.portable.tuning``.

For GPUs other than those of the shipped table. Each choice of tiles runs on random inputs with lists of the shape that
radial attention has; the fastest for every key (kernel, dtype, head dim, architecture, power of two of tokens) is
written to a file that the portable kernels read from then on. Nothing is tuned unless this is run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radial_kernels.block_sparse.lists import BlockLists, transpose_lists
from radial_kernels.block_sparse.portable import backward, forward
from radial_kernels.block_sparse.portable.configurations import Tiles, read_tuned, tuned_file, tuning_key
from radial_kernels.block_sparse.tail import backward as tail_backward
from radial_kernels.block_sparse.tail import forward as tail_forward
from radial_kernels.block_sparse.tail import pooling
from radial_kernels.block_sparse.tail.lists import PooledLists

BLOCK = 128
KINDS = ("forward", "backward", "tail", "tail backward")
CANDIDATES = tuple(
    Tiles(queries, keys, warps, stages)
    for queries, keys, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3))
    if queries * keys >= 2048
)


def band_lists(blocks: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Every row keeps the first two key blocks, a band around itself, and every eighth block beyond."""
    position = torch.arange(blocks)
    distance = (position[:, None] - position).abs()
    mask = (distance <= max(1, blocks // 16)) | (distance % 8 == 0) | (position < 2)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    return offsets.to(device, torch.int32), mask.nonzero()[:, 1].to(device, torch.int32)


def fastest(runs: Mapping[Tiles, Callable[[], Any]], measure: Callable[[Callable[[], Any]], float]) -> Tiles:
    """The choice whose run takes the least time; those that do not compile or fit are passed over.

    Raises:
        RuntimeError: none of them runs.
    """
    times = {}
    for tiles, run in runs.items():
        try:
            times[tiles] = measure(run)
        except Exception as failure:  # too much shared memory or too many registers, as the compiler words it
            print(f"    {tiles}: {type(failure).__name__}", file=sys.stderr)
    if not times:
        raise RuntimeError("no choice of tiles runs on this GPU")
    return min(times, key=times.__getitem__)


def tune(
    kind: str, dtype: torch.dtype, head_dim: int, tokens: int, candidates: Iterable[Tiles] = CANDIDATES, heads: int = 8
) -> tuple[str, Tiles]:
    """Measure one key on the GPU: the key, and the fastest tiles for it."""
    q, k, v = (torch.randn(1, tokens, heads, head_dim, device="cuda", dtype=dtype) for _ in range(3))
    lists = band_lists(-(-tokens // BLOCK), q.device)
    scale = head_dim**-0.5
    runs: dict[Tiles, Callable[[], Any]]
    if kind == "forward":
        runs = {
            tiles: lambda tiles=tiles: forward.attention(q, k, v, *lists, BLOCK, scale, tiles=tiles)  # type: ignore[misc]
            for tiles in candidates
        }
    elif kind.startswith("tail"):
        runs = _tail_runs(kind, (q, k, v), BlockLists(*lists), scale, candidates)
    else:
        out, lse = forward.attention(q, k, v, *lists, BLOCK, scale, with_lse=True)
        by_column = transpose_lists(*lists, len(lists[0]) - 1)
        runs = {
            tiles: lambda tiles=tiles: backward.gradients(  # type: ignore[misc]
                out, None, q, k, v, out, lse, *lists, *by_column, None, BLOCK, scale, tiles=tiles
            )
            for tiles in candidates
        }
    return tuning_key(kind, q), fastest(runs, _milliseconds)


def _tail_runs(
    kind: str, inputs: tuple[Tensor, Tensor, Tensor], lists: BlockLists, scale: float, candidates: Iterable[Tiles]
) -> dict[Tiles, Callable[[], Any]]:
    """The far field's kernels, which write in place: run after run on what the last one left."""
    q, k, v = inputs
    tail = PooledLists.complement(lists, k.shape[1])
    means = pooling.pool(k, v, tail)
    out, lse = forward.attention(*inputs, lists.row_offsets, lists.column_indices, BLOCK, scale, with_lse=True)
    if kind == "tail":
        return {
            tiles: lambda tiles=tiles: tail_forward.add_tail(out, lse, q, *means, tail, scale, tiles=tiles)  # type: ignore[misc]
            for tiles in candidates
        }
    tail_forward.add_tail(out, lse, q, *means, tail, scale)
    grads = (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    return {
        tiles: lambda tiles=tiles: tail_backward.add_gradients(  # type: ignore[misc]
            grads, out, None, q, *means, out, lse, tail, scale, tiles=tiles
        )
        for tiles in candidates
    }


def save(found: Mapping[str, Tiles], file: Path) -> None:
    """Add choices to the file, all at once."""
    merged = {key: asdict(tiles) for key, tiles in (read_tuned(file) | dict(found)).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(merged, indent=1, sort_keys=True))
    part.replace(file)
    read_tuned.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--head-dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192, 32768, 65536])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tuning needs a GPU")
    file = tuned_file()
    for kind, dtype, head_dim, tokens in itertools.product(
        options.kinds, options.dtypes, options.head_dims, options.tokens
    ):
        key, tiles = tune(kind, getattr(torch, dtype), head_dim, tokens)
        save({key: tiles}, file)
        print(f"{key}: {tiles}")
    print(file)


def _milliseconds(run: Callable[[], Any], rounds: int = 5) -> float:
    run()
    times = []
    for _ in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


if __name__ == "__main__":
    main()
