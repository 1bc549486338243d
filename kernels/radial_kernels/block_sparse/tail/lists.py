"""Which pooled keys each block of queries attends to.

Shapes: B batch, H heads, R rows of query blocks, C blocks of keys, P pooled keys, W words of 64 of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from radial_kernels.block_sparse.lists import BlockLists, transpose_lists

WORD = 64  # pooled keys that one word tells of, and that a kernel takes at one time


@dataclass(frozen=True, eq=False)
class PooledLists:
    """The far field of an attention: pooled keys, each the mean of ``span`` blocks of keys, and who attends to them.

    Pooled keys are numbered level after level, ``ceil(C / span)`` for each of ``spans``. Make them by
    :meth:`complement`, :meth:`pyramid` or :meth:`of_masks`, once for many calls, as lists are made. Like those they
    are one plan for all, or one a batch entry or head: then there are dimensions ``[B]`` or ``[B or 1, H or 1]`` in
    front. A bit a pair takes less memory than the lists of the blocks that are kept (1.6 MB a plan at 460,800
    tokens); the words that have a bit set are listed by rows and by columns, so that what no bit names costs nothing.

    Attributes:
        bits: int64 ``[R, W]``; bit i of word w tells whether the row attends to pooled key 64 w + i.
        row_offsets: int32 ``[R + 1]``; row r has bits in words ``word_indices[row_offsets[r] : row_offsets[r + 1]]``.
        word_indices: int32 ``[listed]``, ascending within a row.
        column_offsets: int32 ``[W + 1]``, the same by words, for the gradients of the means.
        row_indices: int32 ``[listed]``, ascending within a word.
        counts: float32 ``[P]``, keys in each mean; those past the end are not counted.
        key_length: keys that are pooled.
        spans: blocks of keys in a pooled key of each level.
        block_size: tokens a block, of queries and of keys.
    """

    bits: Tensor = field(repr=False)
    row_offsets: Tensor = field(repr=False)
    word_indices: Tensor = field(repr=False)
    column_offsets: Tensor = field(repr=False)
    row_indices: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    key_length: int
    spans: tuple[int, ...] = (1,)
    block_size: int = 128

    @staticmethod
    @torch.inference_mode(False)  # shared, as BlockLists are: made while sampling, they must serve training too
    def complement(lists: BlockLists, key_length: int) -> PooledLists:
        """Every block of so many keys that a row's list leaves out, as a mean of its own; on the lists' device."""
        rows, blocks = lists.rows, -(-key_length // lists.block_size)
        offsets, device = lists.row_offsets, lists.row_offsets.device
        plans, words = offsets[..., 0].numel(), -(-blocks // WORD)
        kept = torch.zeros(plans * rows * words, dtype=torch.int64, device=device)
        row_of = torch.arange(plans * rows, device=device).repeat_interleave(
            offsets.diff().flatten().long(), output_size=lists.kept_blocks
        )
        column = lists.column_indices.long()
        kept.index_add_(0, row_of * words + column // WORD, torch.ones_like(column) << column % WORD)
        there = pack(torch.ones(blocks, dtype=torch.bool, device=device))
        bits = there & ~kept.reshape(*offsets.shape[:-1], rows, words)
        return _of_bits(bits, key_length, (1,), lists.block_size)

    @staticmethod
    @torch.inference_mode(False)
    def pyramid(
        lists: BlockLists, key_length: int, *, spans: tuple[int, ...] = (1, 2, 4, 8), reach: int = 2
    ) -> PooledLists:
        """The complement pooled the coarser the farther away: O(log n) pooled keys a row.

        As many neighbouring blocks as a span has become one pooled key where the row leaves out all of them and the
        nearest is at least ``reach`` spans away, in blocks. For sequences whose neighbouring blocks are alike, as
        those of tokens in columns along time are.

        Raises:
            ValueError: queries and keys differ in number, or spans do not ascend from 1.
        """
        blocks = -(-key_length // lists.block_size)
        if lists.rows != blocks:
            raise ValueError(f"a pyramid needs as many blocks of queries as of keys, not {lists.rows} and {blocks}")
        if not spans or spans[0] != 1 or any(b <= a for a, b in itertools.pairwise(spans)):
            raise ValueError(f"spans must ascend from 1, as (1, 2, 4, 8), not {spans}")
        rest = PooledLists.complement(lists, key_length)
        plans = [_levels(unpack(bits, blocks), spans, reach) for bits in rest.bits.reshape(-1, *rest.bits.shape[-2:])]
        bits = torch.stack(plans).reshape(*rest.bits.shape[:-1], -1)
        return _of_bits(bits, key_length, spans, lists.block_size)

    @staticmethod
    @torch.inference_mode(False)
    def of_masks(masks: Mapping[int, Tensor], key_length: int, block_size: int = 128) -> PooledLists:
        """Pooled keys of your own choice: for each span a bool mask ``[..., R, ceil(C / span)]``, on its device.

        Raises:
            ValueError: a mask is not of that shape, or they differ in rows or plans.
        """
        if len({tuple(mask.shape[:-1]) for mask in masks.values()}) != 1:
            shapes = [list(mask.shape) for mask in masks.values()]
            raise ValueError(f"masks must agree in all dimensions but the last, and be at least one, not {shapes}")
        for span, mask in masks.items():
            groups = -(-key_length // (block_size * span)) if span > 0 else 0
            if span < 1 or mask.dtype != torch.bool or mask.ndim < 2 or mask.shape[-1] != groups:
                raise ValueError(
                    f"{key_length} keys in blocks of {block_size} need a bool mask [..., rows, {groups}] for span "
                    f"{span}, not {mask.dtype} {list(mask.shape)}"
                )
        return _of_bits(pack(torch.cat(list(masks.values()), -1)), key_length, tuple(masks), block_size)

    @property
    def rows(self) -> int:
        """Blocks of queries."""
        return self.bits.shape[-2]

    def mask(self) -> Tensor:
        """Bool ``[..., R, P]``: who attends to what, spelled out."""
        return unpack(self.bits, len(self.counts))

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        if self.bits.device == torch.device(device):
            return self
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def check(self, lists: BlockLists) -> Self:
        """The same, looked through once: no row attends to a key twice, exactly and pooled or in two pooled keys.

        Raises:
            ValueError: a row does; it is named, with the block of keys.
        """
        blocks = -(-self.key_length // self.block_size)
        exact = by_head(~PooledLists.complement(lists, self.key_length).mask())
        times = exact.to(torch.int8) + by_head(_spread(self.mask(), self.spans, blocks)).to(torch.int8)
        if (times > 1).any():
            *_, row, block = (times > 1).nonzero()[0].tolist()
            raise ValueError(f"row {row} attends to block {block} of keys more than once")
        return self


def pack(mask: Tensor) -> Tensor:
    """A bool mask ``[..., P]`` as int64 words ``[..., W]``, the first of 64 in the lowest bit."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % WORD))
    place = torch.arange(8, dtype=torch.uint8, device=mask.device)
    octets = (padded.unflatten(-1, (-1, 8)) << place).sum(-1, dtype=torch.uint8)
    return octets.contiguous().view(torch.int64)


def unpack(bits: Tensor, count: int) -> Tensor:
    """Bool ``[..., count]`` of int64 words ``[..., W]``."""
    octets = bits.contiguous().view(torch.uint8)
    place = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (octets[..., None] >> place & 1).bool().flatten(-2)[..., :count]


def by_head(x: Tensor) -> Tensor:
    """A matrix with its plans in front as one that spreads over ``[B, H]``."""
    return x.unsqueeze(1) if x.ndim == 3 else x


def _of_bits(bits: Tensor, key_length: int, spans: tuple[int, ...], block_size: int) -> PooledLists:
    by_rows = BlockLists.of_mask(bits != 0)
    offsets, indices = by_rows.row_offsets, by_rows.column_indices
    by_columns = transpose_lists(offsets, indices, bits.shape[-1])
    sizes = [block_size * span for span in spans]
    counts = [min(size, key_length - first) for size in sizes for first in range(0, key_length, size)]
    counts_P = torch.tensor(counts, dtype=torch.float32, device=bits.device)
    return PooledLists(bits.contiguous(), offsets, indices, *by_columns, counts_P, key_length, spans, block_size)


def _levels(left_RC: Tensor, spans: tuple[int, ...], reach: int) -> Tensor:
    """Words ``[R, W]`` of the pooled keys that take the place of the blocks left out by one plan, coarsest first."""
    rows, blocks = left_RC.shape
    row = torch.arange(rows, device=left_RC.device)[:, None]
    levels = []
    for span in reversed(spans):
        first = torch.arange(0, blocks, span, device=left_RC.device)
        away = torch.maximum(first - row, row - (first + span - 1).clamp(max=blocks - 1))
        padded = torch.nn.functional.pad(left_RC, (0, -blocks % span), value=True)
        taken = padded.unflatten(-1, (-1, span)).all(-1) & ((away >= reach * span) | (span == 1))
        left_RC = left_RC & ~taken.repeat_interleave(span, -1)[:, :blocks]
        levels.append(taken)
    return pack(torch.cat(levels[::-1], -1))


def _spread(mask: Tensor, spans: tuple[int, ...], blocks: int) -> Tensor:
    """How often each block of keys ``[..., R, C]`` lies in a pooled key of the mask ``[..., R, P]``."""
    parts = mask.to(torch.int8).split([-(-blocks // span) for span in spans], -1)
    spread = [part.repeat_interleave(span, -1)[..., :blocks] for part, span in zip(parts, spans, strict=True)]
    return torch.stack(spread).sum(0)
