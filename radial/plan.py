"""From grid and pattern to the blocks of attention that are computed.

A plan lists, for every block of queries, the blocks of keys it attends to. It is worked out from the geometry of
frames alone: between a row of blocks and a key frame the kept blocks form one run, whose two ends have a closed form,
so no tokens x tokens tensor is ever made.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from radial.errors import RequestError
from radial.grid import TokenGrid
from radial.pattern import RadialPattern
from radial_kernels import block_sparse

_Array = NDArray[np.int32]  # twice as fast as int64 here
_ROWS_AT_A_TIME = 256  # keeps the work in the cache
_LISTS = ("row_offsets", "column_indices", "column_offsets", "row_indices", "column_order")
_MAX_BLOCKS = 46_000  # beyond, a plan itself takes gigabytes


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The kept blocks of one clip's attention, R = C = ceil(tokens / block_size) blocks a side.

    Attributes:
        row_offsets: int32 ``[R + 1]``; row r keeps ``column_indices[row_offsets[r] : row_offsets[r + 1]]``.
        column_indices: int32 ``[kept]``, ascending within a row.
        column_offsets: int32 ``[C + 1]``, the same by columns, for the backward pass.
        row_indices: int32 ``[kept]``, ascending within a column.
        column_order: int32 ``[C]``, columns by falling length: every row attends to a sink frame's columns, so they
            are several times as long as the mean and should be computed first.
    """

    grid: TokenGrid
    pattern: RadialPattern
    block_size: int
    row_offsets: torch.Tensor = field(repr=False)
    column_indices: torch.Tensor = field(repr=False)
    column_offsets: torch.Tensor = field(repr=False)
    row_indices: torch.Tensor = field(repr=False)
    column_order: torch.Tensor = field(repr=False)

    @staticmethod
    def build(grid: TokenGrid, pattern: RadialPattern | None = None, block_size: int = 128) -> BlockPlan:
        """Plan a clip's attention. Plans are kept and shared, keyed by all three arguments.

        The block rule is the released code's: between two frames a block is kept when more than 60 % of its
        non-empty key columns have more than a third of the block's rows kept, and a block that straddles frames is
        kept when any of its frame pairs keeps it. Rows that do not exist (a ragged last block) do not count; frames
        of no more tokens than a third of a block count a third of their own rows. The rule treats rows and columns
        differently, so where frames do not end on a block's border the mask is not quite symmetric. The
        paper gives no block rule; its variant keeps a block when any of its token pairs is kept. Beyond both, the
        diagonal and the sink frames are kept whatever the sizes, and so are all blocks that hold text tokens.

        Raises:
            RequestError: ``block_size`` is not a power of two from 16 to 256, or leaves too many blocks.
        """
        BlockPlan.check_block_size(block_size)
        return _build(grid, pattern or RadialPattern(), block_size)

    @staticmethod
    def check_block_size(block_size: int) -> None:
        """Raise RequestError for a block size the kernels do not have."""
        if block_size not in block_sparse.BLOCK_SIZES:
            raise RequestError(f"block_size must be 16, 32, 64, 128 or 256, not {block_size}")

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def kept_blocks(self) -> int:
        return len(self.column_indices)

    @property
    def density(self) -> float:
        """Share of blocks that are kept."""
        return self.kept_blocks / self.rows**2

    @property
    def sparsity(self) -> float:
        return 1 - self.density

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> BlockPlan:
        """The same plan with its tensors on another device."""
        if self.row_offsets.device == torch.device(device):
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in _LISTS})

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
        """Attention over the kept blocks: q, k, v and the result are ``[batch, tokens, heads, head dim]``."""
        return block_sparse.attention(
            q,
            k,
            v,
            self.row_offsets,
            self.column_indices,
            column_offsets=self.column_offsets,
            row_indices=self.row_indices,
            column_order=self.column_order,
            block_size=self.block_size,
            backend=backend,
        )

    def to_mask(self) -> torch.Tensor:
        """Bool ``[R, C]``, true where a block of queries attends to a block of keys."""
        mask = torch.zeros(self.rows, self.rows, dtype=torch.bool, device=self.row_offsets.device)
        counts = self.row_offsets.diff().long()
        mask[torch.arange(self.rows, device=mask.device).repeat_interleave(counts), self.column_indices.long()] = True
        return mask


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # plans are shared: one made while sampling must serve training too
def _build(grid: TokenGrid, pattern: RadialPattern, block_size: int) -> BlockPlan:
    blocks = -(-grid.tokens // block_size)
    if blocks > _MAX_BLOCKS:
        raise RequestError(
            f"{grid.tokens:,} tokens in blocks of {block_size} are more than {_MAX_BLOCKS:,} blocks; "
            f"take a larger block_size or a smaller clip"
        )
    pieces = _pieces(grid, block_size)
    windows = np.array([pattern.window(d, grid.tokens_per_frame, block_size) for d in range(grid.frames)], np.int32)
    row_counts, columns = [], []
    for first in range(0, blocks, _ROWS_AT_A_TIME):
        runs = _Runs(first, min(first + _ROWS_AT_A_TIME, blocks), blocks)
        _add_frame_pairs(runs, pieces, windows, grid, pattern, block_size)
        _add_certain_blocks(runs, grid, pattern, block_size)
        counts, kept = runs.kept()
        row_counts.append(counts)
        columns.append(kept)
    return _finish(grid, pattern, block_size, np.concatenate(row_counts), np.concatenate(columns))


def _finish(
    grid: TokenGrid, pattern: RadialPattern, block_size: int, row_counts: NDArray[np.int64], columns: _Array
) -> BlockPlan:
    """The plan of kept columns listed row by row, with its transpose."""
    blocks = len(row_counts)
    rows = np.repeat(np.arange(blocks, dtype=np.int32), row_counts)
    # A stable sort by column keeps rows in order; on 16 bits it is a radix sort.
    by_column = np.argsort(columns.astype(np.uint16) if blocks < 1 << 16 else columns, kind="stable")

    column_counts = np.bincount(columns, minlength=blocks)

    def offsets(counts: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    return BlockPlan(
        grid,
        pattern,
        block_size,
        row_offsets=offsets(row_counts),
        column_indices=torch.from_numpy(columns),
        column_offsets=offsets(column_counts),
        row_indices=torch.from_numpy(rows[by_column]),
        column_order=torch.from_numpy(np.argsort(-column_counts, kind="stable").astype(np.int32)),
    )


class _Runs:
    """Runs of kept blocks in a span of rows, collected as the points where a row's coverage rises and falls."""

    def __init__(self, first: int, last: int, blocks: int) -> None:
        self.rows = np.arange(first, last, dtype=np.int32)
        self.blocks = blocks
        self._rise = np.zeros((last - first) * (blocks + 1), np.int16)

    def add(self, row: _Array, first: _Array, last: _Array) -> None:
        """Keep columns ``first`` to ``last`` of each row of the span; an empty run has ``last < first``."""
        some = last >= first
        base = (row[some] - self.rows[0]) * (self.blocks + 1)
        np.add.at(self._rise, base + first[some], 1)
        np.add.at(self._rise, base + last[some] + 1, -1)

    def kept(self) -> tuple[NDArray[np.int64], _Array]:
        """How many blocks each row keeps, and their columns, row by row."""
        covered = np.cumsum(self._rise.reshape(-1, self.blocks + 1), axis=1, dtype=np.int16)
        mask = covered[:, :-1] > 0
        counts = np.count_nonzero(mask, axis=1)
        starts = np.arange(len(self.rows)) * self.blocks
        return counts, (np.flatnonzero(mask) - np.repeat(starts, counts)).astype(np.int32)


def _add_frame_pairs(
    runs: _Runs,
    pieces: tuple[_Array, _Array],
    windows: _Array,
    grid: TokenGrid,
    pattern: RadialPattern,
    block_size: int,
) -> None:
    """Apply the block rule to every pair of frames.

    Row pieces are the parts of block rows that lie in one frame; all arrays are ``[pieces, frames]``.
    """
    tokens, start = grid.tokens_per_frame, grid.video_start
    span = slice(*np.searchsorted(pieces[1], [runs.rows[0], runs.rows[-1] + 1]))
    piece_frame, piece_block = pieces[0][span], pieces[1][span]
    frame_start = start + piece_frame * tokens
    # The piece's rows as positions in its own frame: top <= k < bottom.
    top = np.maximum(piece_block * block_size - frame_start, 0)[:, None]
    bottom = np.minimum((piece_block + 1) * block_size - frame_start, tokens)[:, None]
    block_rows = np.minimum((piece_block + 1) * block_size, grid.tokens) - piece_block * block_size

    key_frame = np.arange(grid.frames, dtype=np.int32)[None, :]
    window = windows[np.abs(piece_frame[:, None] - key_frame)]
    window = np.where(key_frame < pattern.sink_frames, tokens, window)

    strict = pattern.variant == "published"
    needed = (block_rows // 3 + 1)[:, None] if strict else np.ones_like(top)
    if strict and tokens <= block_size // 3:
        needed = (bottom - top) // 3 + 1  # frames too small ever to fill a third of a block
    # Key positions with any kept row, and with enough kept rows: two intervals about the same centre.
    any_first, any_last = np.maximum(top - window, 0), np.minimum(bottom - 1 + window, tokens - 1)
    full_first = np.maximum(top + needed - 1 - window, 0)
    full_last = np.minimum(bottom - needed + window, tokens - 1)
    enough = (bottom - top >= needed) & (2 * window + 1 >= needed) & (window >= 0) & (full_last >= full_first)

    origin = start + key_frame * tokens
    first_block, last_block = (origin + full_first) // block_size, (origin + full_last) // block_size

    def overlap(block: _Array, first: _Array, last: _Array) -> _Array:
        low = np.maximum(block * block_size - origin, first)
        high = np.minimum((block + 1) * block_size - 1 - origin, last)
        return np.maximum(high - low + 1, 0)

    def kept(block: _Array) -> NDArray[np.bool_]:
        full = overlap(block, full_first, full_last)
        return 5 * full > 3 * overlap(block, any_first, any_last) if strict else full > 0

    # Blocks strictly between the two ends lie wholly inside the inner interval, so only the ends need the test.
    first = np.where(kept(first_block), first_block, first_block + 1)
    last = np.where(kept(last_block), last_block, last_block - 1)
    last = np.where(enough, last, first - 1)
    row = np.broadcast_to(piece_block[:, None], first.shape)
    runs.add(row.ravel(), first.ravel(), last.ravel())


def _pieces(grid: TokenGrid, block_size: int) -> tuple[_Array, _Array]:
    """Frame and block of every part of a block row that lies in one frame."""
    starts = grid.video_start + np.arange(grid.frames, dtype=np.int32) * grid.tokens_per_frame
    first, last = starts // block_size, (starts + grid.tokens_per_frame - 1) // block_size
    counts = last - first + 1
    frame = np.repeat(np.arange(grid.frames, dtype=np.int32), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return frame, np.repeat(first, counts) + within.astype(np.int32)


def _add_certain_blocks(runs: _Runs, grid: TokenGrid, pattern: RadialPattern, block_size: int) -> None:
    """Keep the diagonal, the sink frames' columns, and every row and column that holds text."""
    every = runs.rows
    runs.add(every, every, every)
    sink_tokens = min(pattern.sink_frames, grid.frames) * grid.tokens_per_frame
    if sink_tokens:
        low = grid.video_start // block_size
        high = (grid.video_start + sink_tokens - 1) // block_size
        # The block where the sink ends is left to the block rule: most of it may be another frame.
        high -= (grid.video_start + sink_tokens) % block_size != 0 and high > low
        runs.add(every, np.full_like(every, low), np.full_like(every, high))
    if grid.text:
        first = 0 if grid.text_first else grid.video_tokens // block_size
        last = (grid.text - 1) // block_size if grid.text_first else runs.blocks - 1
        runs.add(every, np.full_like(every, first), np.full_like(every, last))
        text_rows = every[(every >= first) & (every <= last)]
        runs.add(text_rows, np.zeros_like(text_rows), np.full_like(text_rows, runs.blocks - 1))
