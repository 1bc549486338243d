"""From layout and pattern to the blocks of attention that are computed.

A plan lists, for every block of queries, the blocks of keys it attends to.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from radial.plans.block_runs import check_block_size, count_blocks, kept_columns
from radial.plans.layout import Layout, TokenGrid, as_layout
from radial.plans.pattern import RadialPattern
from radial_kernels.block_sparse import BlockLists
from radial_kernels.block_sparse.reference import token_mask


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockPlan(BlockLists):
    """The kept blocks of one sequence's attention, as many blocks of keys as of queries, with their lists by columns.

    Columns come by falling length: every row attends to a sink frame's columns, so they are several times as long as
    the mean and should be computed first.

    Attributes:
        layout: of the sequence.
        pattern: the rule that was applied.
    """

    layout: Layout
    pattern: RadialPattern

    @staticmethod
    def build(clip: TokenGrid | Layout, pattern: RadialPattern | None = None, block_size: int = 128) -> BlockPlan:
        """Plan the attention of a clip, or of a sequence with one clip. Plans are kept and shared, keyed by all of
        the arguments.

        The block rule is the released code's: between two frames a block is kept when more than 60 % of its
        non-empty key columns have more than a third of the block's rows kept, and a block that straddles frames is
        kept when any of its frame pairs keeps it. Rows that do not exist (a ragged last block) do not count; frames
        of no more tokens than a third of a block count a third of their own rows. The rule treats rows and columns
        differently, so where frames do not end on a block's border the mask is not quite symmetric. The
        paper gives no block rule; its variant keeps a block when any of its token pairs is kept. Beyond both, the
        diagonal and the sink frames are kept whatever the sizes, and so are all blocks that hold other tokens than
        the clip's.

        Raises:
            RequestError: ``block_size`` is not a power of two from 16 to 256, or leaves too many blocks, or there are
                several clips.
        """
        check_block_size(block_size)
        return _build(as_layout(clip), pattern or RadialPattern(), block_size)

    @property
    def grid(self) -> TokenGrid:
        """That of the clip."""
        return self.layout.grid

    @property
    def density(self) -> float:
        """Share of blocks that are kept."""
        return self.kept_blocks / self.rows**2

    def to_mask(self) -> torch.Tensor:
        """Bool ``[R, C]``, true where a block of queries attends to a block of keys."""
        return token_mask(self.row_offsets, self.column_indices, self.rows, self.rows, block_size=1)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # plans are shared: one made while sampling must serve training too
def _build(layout: Layout, pattern: RadialPattern, block_size: int) -> BlockPlan:
    blocks = count_blocks(layout, block_size)
    found = kept_columns(layout, pattern, block_size, np.arange(blocks, dtype=np.int32))
    row_counts, columns = (np.concatenate(part) for part in zip(*found, strict=True))
    column_counts = np.bincount(columns, minlength=blocks)
    # Column and row in one word: sorting words is faster than sorting indices by column.
    words = columns.astype(np.uint32) << 16
    words |= np.repeat(np.arange(blocks, dtype=np.uint32), row_counts)
    words.sort()
    words &= 0xFFFF

    def offsets(counts: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    return BlockPlan(
        layout=layout,
        pattern=pattern,
        block_size=block_size,
        row_offsets=offsets(row_counts),
        column_indices=torch.from_numpy(columns),
        column_offsets=offsets(column_counts),
        row_indices=torch.from_numpy(words.view(np.int32)),
        column_order=torch.from_numpy(np.argsort(-column_counts, kind="stable").astype(np.int32)),
    )
