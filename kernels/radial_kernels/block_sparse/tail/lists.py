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
_PAIRS = 1 << 24  # of a block of queries and one of keys, looked at together


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
        keys: ``[T, 0]``, as long as the keys that are pooled: torch.compile takes a tensor's length for one that may
            change, and a number not.
        spans: blocks of keys in a pooled key of each level.
        block_size: tokens a block, of queries and of keys.
        order: int64 ``[C]``, the blocks of keys as they come together to pooled keys of several; one after another when
            left out.
    """

    bits: Tensor = field(repr=False)
    row_offsets: Tensor = field(repr=False)
    word_indices: Tensor = field(repr=False)
    column_offsets: Tensor = field(repr=False)
    row_indices: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    keys: Tensor = field(repr=False)
    spans: tuple[int, ...] = (1,)
    block_size: int = 128
    order: Tensor | None = field(default=None, repr=False)

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
        lists: BlockLists, key_length: int, *, spans: tuple[int, ...] = (1, 2, 4, 8), reach: float = 2,
        columns: Tensor | None = None, times: Tensor | None = None,
    ) -> PooledLists:  # fmt: skip
        """The complement pooled the coarser the farther away: O(log n) pooled keys a row.

        As many neighbouring blocks as a span has become one pooled key where the row leaves out all of them and the
        nearest is at least ``reach`` spans away, in blocks. For sequences whose neighbouring blocks are alike; of
        others say which blocks are.

        Args:
            columns: int64 ``[C]``, of each block what it is in: only blocks of one column come together, in the order
                of their times. All are in one when left out.
            times: float32 ``[C]``, where each block lies along its column. With it, the nearest must be at least
                ``reach`` times as far away in time as its pooled key is long.

        Raises:
            ValueError: queries and keys differ in number, or spans do not ascend from 1, or columns and times are not
                one a block each.
        """
        blocks, device = -(-key_length // lists.block_size), lists.row_offsets.device
        if lists.rows != blocks:
            raise ValueError(f"a pyramid needs as many blocks of queries as of keys, not {lists.rows} and {blocks}")
        if not spans or spans[0] != 1 or any(b <= a for a, b in itertools.pairwise(spans)):
            raise ValueError(f"spans must ascend from 1, as (1, 2, 4, 8), not {spans}")
        given = [x for x in (columns, times) if x is not None]
        if len(given) == 1 or any(x.shape != (blocks,) for x in given):
            raise ValueError(f"columns and times belong together, one for each of {blocks} blocks")
        order = None
        if columns is None or times is None:
            columns, times = torch.zeros(blocks, dtype=torch.int64), torch.arange(blocks, dtype=torch.float32)
        else:
            by_time = times.argsort(stable=True)
            order = by_time[columns[by_time].argsort(stable=True)].to(device)
        groups = [_groups(columns.to(device), times.to(device), span, order) for span in spans]
        rest = PooledLists.complement(lists, key_length)
        plans = [
            _levels(bits, times.to(device), blocks, groups, spans, reach, order)
            for bits in rest.bits.reshape(-1, *rest.bits.shape[-2:])
        ]
        bits = torch.stack(plans).reshape(*rest.bits.shape[:-1], -1)
        return _of_bits(bits, key_length, spans, lists.block_size, order)

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

    @property
    def key_length(self) -> int:
        """Keys that are pooled."""
        return self.keys.shape[0]

    @property
    def pairs(self) -> float:
        """Pairs of a query and a pooled key, as a share of all pairs of queries and keys."""
        plans = self.bits[..., 0, 0].numel()
        return int(self.mask().sum()) / (plans * self.rows * self.key_length)

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
        times = exact.to(torch.int8) + by_head(_spread(self.mask(), self.spans, blocks, self.order)).to(torch.int8)
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


def _of_bits(
    bits: Tensor, key_length: int, spans: tuple[int, ...], block_size: int, order: Tensor | None = None
) -> PooledLists:
    by_rows = BlockLists.of_mask(bits != 0)
    offsets, indices = by_rows.row_offsets, by_rows.column_indices
    by_columns = transpose_lists(offsets, indices, bits.shape[-1])
    sizes = torch.full((-(-key_length // block_size),), float(block_size), device=bits.device)
    sizes[-1] -= -key_length % block_size
    counts_P = torch.cat([_in_order(sizes, span, order, 0.0).sum(-1) for span in spans])
    keys = torch.empty(key_length, 0, device=bits.device)
    return PooledLists(bits.contiguous(), offsets, indices, *by_columns, counts_P, keys, spans, block_size, order)


def _in_order(x_C: Tensor, span: int, order: Tensor | None, filler: float | bool) -> Tensor:
    """What is said of each block, ``[..., C]``, by the pooled keys that blocks come together to: ``[..., G, span]``."""
    x_C = x_C if order is None or span == 1 else x_C[..., order]
    return torch.nn.functional.pad(x_C, (0, -x_C.shape[-1] % span), value=filler).unflatten(-1, (-1, span))


def _groups(columns_C: Tensor, times_C: Tensor, span: int, order: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of pooled keys of so many blocks, when they begin and end, and how far away in time they may be taken: nowhere
    where they lie in several columns."""
    first, last = (_in_order(times_C, span, order, filler) for filler in (float("inf"), float("-inf")))
    first, last = first.amin(-1), last.amax(-1)
    columns = columns_C if order is None or span == 1 else columns_C[order]
    ends = torch.arange(0, len(columns) + span - 1, span, device=columns.device)[: len(first)]
    one = columns[ends] == columns[(ends + span - 1).clamp(max=len(columns) - 1)]
    length = (last - first) * span / max(1, span - 1)
    apart = (last > first) | (span == 1)
    return first, last, torch.where(one & apart, length, float("inf"))


def _levels(
    bits_RW: Tensor, times_C: Tensor, blocks: int, groups: list[tuple[Tensor, Tensor, Tensor]], spans: tuple[int, ...],
    reach: float, order: Tensor | None,
) -> Tensor:  # fmt: skip
    """Words ``[R, W]`` of the pooled keys that take the place of the blocks left out by one plan, coarsest first; rows
    a few at a time."""
    words = []
    size = max(1, _PAIRS // blocks)
    for start in range(0, len(bits_RW), size):
        left_RC, time = unpack(bits_RW[start : start + size], blocks), times_C[start : start + size, None]
        levels = []
        for span, (first, last, length) in reversed(list(zip(spans, groups, strict=True))):
            away = torch.maximum(first - time, time - last)
            taken = _in_order(left_RC, span, order, True).all(-1)
            if span > 1:
                taken &= away >= reach * length
                spread = taken.repeat_interleave(span, -1)[:, :blocks]
                if order is None:
                    left_RC = left_RC & ~spread
                else:
                    left_RC = left_RC.index_copy(1, order, left_RC[:, order] & ~spread)
            levels.append(taken)
        words.append(pack(torch.cat(levels[::-1], -1)))
    return torch.cat(words)


def _spread(mask: Tensor, spans: tuple[int, ...], blocks: int, order: Tensor | None) -> Tensor:
    """How often each block of keys ``[..., R, C]`` lies in a pooled key of the mask ``[..., R, P]``."""
    parts = mask.to(torch.int8).split([-(-blocks // span) for span in spans], -1)
    total = torch.zeros((*mask.shape[:-1], blocks), dtype=torch.int8, device=mask.device)
    for part, span in zip(parts, spans, strict=True):
        spread = part.repeat_interleave(span, -1)[..., :blocks]
        total += spread if order is None or span == 1 else torch.zeros_like(spread).index_copy(-1, order, spread)
    return total
