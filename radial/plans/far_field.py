"""What becomes of the blocks of keys that a list leaves out."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from radial.plans.layout import FarField, Layout
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
    columns = middle % grid.tokens_per_frame // block_size
    return torch.where(of_clip, columns, -1), (middle // grid.tokens_per_frame).float()
