"""Which blocks of keys each block of queries attends to.

Shapes: B batch, H heads, R rows of query blocks, C columns of key blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BlockLists:
    """The kept blocks of an attention, rectangular: R = ceil(queries / block_size), C = ceil(keys / block_size).

    One plan for all, or one a batch entry or head: then ``row_offsets`` is ``[B, R + 1]`` or ``[B or 1, H or 1,
    R + 1]``, and the plans lie one after another in ``column_indices``.

    Attributes:
        row_offsets: int32 ``[R + 1]``; row r keeps ``column_indices[row_offsets[r] : row_offsets[r + 1]]``.
        column_indices: int32 ``[kept]``, ascending within a row without repeats.
        column_offsets: int32 ``[C + 1]``, the same by columns, for the gradients of keys and values; with
            ``row_indices`` worked out in every backward pass when left out.
        row_indices: int32 ``[kept]``, ascending within a column.
        column_order: int32 ``[C]``, the order in which the columns' gradients are computed. It changes speed only: long
            columns should come first.
        block_size: tokens a block, of queries and of keys.
        key_ends: int32 ``[R]``, where the keys of each row end, within its last block or behind it, in lists of
            sequences that lie one after the other: see :func:`join_lists`. The last key of all when left out.
    """

    row_offsets: Tensor = field(repr=False)
    column_indices: Tensor = field(repr=False)
    column_offsets: Tensor | None = field(default=None, repr=False)
    row_indices: Tensor | None = field(default=None, repr=False)
    column_order: Tensor | None = field(default=None, repr=False)
    block_size: int = 128
    key_ends: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of_mask(mask: Tensor, block_size: int = 128) -> BlockLists:
        """The lists of a bool mask ``[R, C]``, ``[B, R, C]`` or ``[B or 1, H or 1, R, C]``, on its device."""
        counts = mask.sum(-1)
        ends = counts.flatten().cumsum(0).reshape(counts.shape)
        offsets = torch.cat([(ends - counts)[..., :1], ends], -1).to(torch.int32)
        return BlockLists(offsets, mask.nonzero()[:, -1].to(torch.int32), block_size=block_size)

    def with_columns(self, key_length: int) -> Self:
        """The same with its lists by columns, for a backward pass over so many keys."""
        offsets, rows = transpose_lists(self.row_offsets, self.column_indices, -(-key_length // self.block_size))
        return replace(self, column_offsets=offsets, row_indices=rows)

    @property
    def rows(self) -> int:
        """Blocks of queries."""
        return self.row_offsets.shape[-1] - 1

    @property
    def kept_blocks(self) -> int:
        """Blocks that are computed, of all plans together."""
        return len(self.column_indices)

    def share_kept(self, key_length: int) -> float:
        """Share of the blocks of so many keys that is kept."""
        plans = self.row_offsets[..., 0].numel()
        return self.kept_blocks / (plans * self.rows * -(-key_length // self.block_size))

    @torch.inference_mode(False)  # lists are shared: those made while sampling must serve training too
    def to(self, device: torch.device | str) -> Self:
        """The same lists on another device."""
        if self.row_offsets.device == torch.device(device):
            return self
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def check(self, key_length: int) -> Self:
        """The same lists, looked through once; :func:`attention` looks at shapes and dtypes only.

        Raises:
            ValueError: they break a rule, which is named.
        """
        indices, columns = self.column_indices, -(-key_length // self.block_size)
        starts, stops = self.row_offsets[..., :-1].flatten(), self.row_offsets[..., 1:].flatten()
        joined = len(starts) > 0 and starts[0] == 0 and stops[-1] == len(indices)
        if not joined or (stops < starts).any() or (starts[1:] != stops[:-1]).any():
            raise ValueError(
                "row_offsets must start at 0, never fall, and end at the number of column indices, one plan after "
                "another"
            )
        if len(indices) and (indices.min() < 0 or indices.max() >= columns):
            raise ValueError(
                f"column_indices must lie in 0..{columns - 1} for {key_length} keys in blocks of {self.block_size}"
            )
        falls = indices.diff() <= 0
        row_starts = starts[1:].long()
        inner = row_starts[(row_starts > 0) & (row_starts < len(indices))] - 1
        falls[inner] = False
        if falls.any():
            raise ValueError("column_indices must ascend without repeats within each row")
        return self


@torch.inference_mode(False)
def join_lists(parts: Sequence[BlockLists], lengths: Sequence[int]) -> BlockLists:
    """The lists of attention over sequences that lie one after the other, as those of one sequence.

    Each sequence begins on a block: what fills up the last block of the one before is zeros, in q, k, v and the
    gradient of the output, and nothing attends to it. Outputs and gradients there say nothing and are to be left out.

    Args:
        parts: of each sequence, over itself, all of one block size.
        lengths: of each, in tokens, without padding.

    Raises:
        ValueError: a part has a plan for each head or batch entry, or block sizes differ.
    """
    size = parts[0].block_size
    if any(part.row_offsets.ndim > 1 or part.block_size != size for part in parts):
        raise ValueError("sequences are joined by one plan for all heads, of one block size")
    whole = [
        part if part.row_indices is not None else part.with_columns(n) for part, n in zip(parts, lengths, strict=True)
    ]
    joined: dict[str, list[Tensor]] = {name: [] for name in ("rows", "columns", "column_rows", "row_columns", "ends")}
    blocks = kept = 0
    for part, length in zip(whole, lengths, strict=True):
        assert part.column_offsets is not None
        assert part.row_indices is not None
        joined["rows"].append(part.row_offsets[:-1] + kept)
        joined["columns"].append(part.column_indices + blocks)
        joined["column_rows"].append(part.column_offsets[:-1] + kept)
        joined["row_columns"].append(part.row_indices + blocks)
        joined["ends"].append(torch.full_like(part.row_offsets[:-1], blocks * size + length))
        blocks, kept = blocks + part.rows, kept + part.kept_blocks
    end = parts[0].row_offsets.new_tensor([kept])
    column_offsets = torch.cat([*joined["column_rows"], end])
    return BlockLists(
        torch.cat([*joined["rows"], end]), torch.cat(joined["columns"]), column_offsets,
        torch.cat(joined["row_columns"]), column_offsets.diff().argsort(descending=True, stable=True).to(torch.int32),
        size, torch.cat(joined["ends"]),
    )  # fmt: skip


def transpose_lists(row_offsets: Tensor, column_indices: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """The same blocks by columns: ``column_offsets [..., C + 1]`` and ``row_indices [kept]``, rows ascending.

    Runs on the lists' device and does not wait for it.
    """
    rows, plans = row_offsets.shape[-1] - 1, row_offsets[..., 0].numel()
    device = row_offsets.device
    counts = row_offsets.diff().flatten().long()
    row_of = torch.arange(plans * rows, device=device).repeat_interleave(counts, output_size=len(column_indices))
    column_of = row_of // rows * columns + column_indices
    sorted_columns, by_column = column_of.sort(stable=True)
    first = torch.arange(plans, device=device)[:, None] * columns + torch.arange(columns + 1, device=device)
    offsets = torch.searchsorted(sorted_columns, first, out_int32=True)
    return offsets.reshape(*row_offsets.shape[:-1], columns + 1), (row_of % rows)[by_column].to(torch.int32)


def plan_strides(offsets: Tensor) -> tuple[int, int]:
    """Elements from one batch entry's offsets to the next, and from one head's; 0 where they share a plan."""
    batch = offsets.stride(0) if offsets.ndim > 1 and offsets.shape[0] > 1 else 0
    head = offsets.stride(1) if offsets.ndim > 2 and offsets.shape[1] > 1 else 0
    return batch, head
