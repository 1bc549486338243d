"""What becomes of the blocks of keys that a list leaves out."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from radial.plans.layout import FarField, Layout, Tile
from radial.plans.token_order import run_starts, token_order
from radial_kernels.block_sparse import BlockLists, PooledLists

_SPANS = (1, 2, 4, 8, 16, 32, 64)  # for clips of any length: blocks would be compiled anew for others


def pool_rest(lists: BlockLists, layout: Layout, far_field: FarField) -> PooledLists | None:
    """The far field of attention over a layout: what ``lists`` leave out, on their device.

    Args:
        far_field: ``drop`` leaves it out; ``mean`` makes of each block one mean key and value; ``pyramid`` makes one of
            2, 4, ... blocks of one place, the more the farther away they are in time.
    """
    if far_field == "drop":
        return None
    if far_field == "mean":
        return PooledLists.complement(lists, layout.tokens)
    columns, times = _columns(layout, lists.block_size)
    return PooledLists.pyramid(lists, layout.tokens, spans=_SPANS, reach=1, columns=columns, times=times)


@functools.lru_cache(maxsize=8)
def pool_rest_once(lists: BlockLists, layout: Layout, far_field: FarField) -> PooledLists | None:
    """The same, kept for lists that are themselves kept: each object of lists is a key of its own."""
    return pool_rest(lists, layout, far_field)


def _columns(layout: Layout, block_size: int) -> tuple[Tensor, Tensor]:
    """Of each block its place in the frame, and its frame. Blocks without tokens of the clip, which are never left out,
    count as one place of their own, -1."""
    grid, before = layout.grid, layout.before
    first = torch.arange(0, layout.tokens, block_size)
    of_clip = (first + block_size > before) & (first < before + grid.tokens)
    middle = (first + block_size // 2 - before).clamp(0, grid.tokens - 1)
    if layout.tile is not None:
        columns, times = _tiles(middle, layout, layout.tile)
        return torch.where(of_clip, columns, -1), times
    columns = middle % grid.tokens_per_frame // block_size
    return torch.where(of_clip, columns, -1), (middle // grid.tokens_per_frame).float()


def _tiles(middle: Tensor, layout: Layout, tile: Tile) -> tuple[Tensor, Tensor]:
    """The same of tokens in columns: the tile of each one, and the first frame of its run. Those of the first frame,
    whose tiles are others, are by themselves."""
    grid = layout.grid
    token = torch.from_numpy(token_order(grid, tile).copy())[middle]
    frame, place = token // grid.tokens_per_frame, token % grid.tokens_per_frame
    across = -(-grid.width // tile[2])
    columns = place // grid.width // tile[1] * across + place % grid.width // tile[2]
    runs = torch.tensor([0, *run_starts(grid, tile)[:-1]])
    times = runs[torch.searchsorted(runs, frame, right=True) - 1]
    return torch.where(frame == 0, -2 - torch.arange(len(middle)), columns), times.float()
