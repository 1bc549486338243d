"""Which blocks of keys a block of queries attends to, worked out from the geometry of frames alone: between a row of
blocks and a key frame the kept blocks form one run, whose two ends have a closed form, so no tokens x tokens array is
ever made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from radial.errors import RequestError
from radial.plans.block_tokens import kept_columns_by_token
from radial.plans.layout import BlockSize, Layout
from radial.plans.pattern import RadialPattern

_Array = NDArray[np.int32]  # twice as fast as int64 here
_ROWS_AT_A_TIME = 256  # keeps the work in the cache
_MAX_BLOCKS = 46_000  # beyond, a plan itself takes gigabytes, and block numbers more than 16 bits
_NO_RUN = 0xFFFF0000  # starts after every block and ends before


def check_block_size(block_size: int) -> None:
    """Raise RequestError for a block size the kernels do not have."""
    if block_size not in get_args(BlockSize):
        raise RequestError(f"block_size must be 16, 32, 64, 128 or 256, not {block_size}")


def count_blocks(layout: Layout, block_size: int) -> int:
    """Blocks a side of a clip's attention.

    Raises:
        RequestError: they are more than a plan can have.
    """
    blocks = -(-layout.tokens // block_size)
    if blocks > _MAX_BLOCKS:
        raise RequestError(
            f"{layout.tokens:,} tokens in blocks of {block_size} are more than {_MAX_BLOCKS:,} blocks; "
            f"take a larger block_size or a smaller clip"
        )
    return blocks


def kept_columns(
    layout: Layout, pattern: RadialPattern, block_size: int, rows: _Array
) -> Iterator[tuple[NDArray[np.int64], _Array]]:
    """For some rows of blocks, ascending: how many columns each keeps, and which, row by row; a few rows at a time."""
    if layout.tile is not None:
        yield from kept_columns_by_token(layout, pattern, block_size, rows)
        return
    piece_frame, piece_row = _pieces(layout, block_size)
    grid = layout.grid
    windows = np.array([pattern.window(d, grid.tokens_per_frame, block_size) for d in range(grid.frames)], np.int32)
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        some = rows[start : start + _ROWS_AT_A_TIME]
        first, end = np.searchsorted(piece_row, some), np.searchsorted(piece_row, some, side="right")
        own = np.repeat(end - np.cumsum(end - first), end - first) + np.arange((end - first).sum())
        frame, row = piece_frame[own], piece_row[own]
        runs = _frame_pair_runs(frame, row, windows, layout, pattern, block_size)
        yield _union(_row_runs(some, row, *runs, layout, pattern, block_size))


def _row_runs(
    rows: _Array, row: _Array, first: _Array, end: _Array, layout: Layout, pattern: RadialPattern, block_size: int
) -> NDArray[np.uint32]:
    """All runs of each row, by ascending start, as words of first block and end: ``[rows, runs]``.

    To the runs that the block rule gives come the sink frames' columns, and every row and column that holds other
    tokens than the clip's.
    """
    words = first.astype(np.uint32) << 16
    words |= end.astype(np.uint32)
    words[end <= first] = _NO_RUN
    # A row that straddles frames has several pieces, each with a run in every key frame.
    starts = np.searchsorted(row, rows)
    each = np.diff(starts, append=len(row))
    most = int(each.max(initial=0))
    runs = np.full((len(rows), 3 + layout.grid.frames * most), _NO_RUN, np.uint32)
    by_frame = runs[:, 2:-1].reshape(len(rows), layout.grid.frames, most)
    for piece in range(most):
        has = each > piece
        by_frame[has, :, piece] = words[starts[has] + piece]
    if most == 2:
        low, high = by_frame[..., 0], by_frame[..., 1]
        runs[:, 2:-1:2], runs[:, 3:-1:2] = np.minimum(low, high), np.maximum(low, high)
    else:
        runs[:, 2:-1] = np.sort(by_frame, axis=2).reshape(len(rows), -1)

    blocks = -(-layout.tokens // block_size)
    sink_tokens = min(pattern.sink_frames, layout.grid.frames) * layout.grid.tokens_per_frame
    if sink_tokens:
        low_block = layout.before // block_size
        high_block = (layout.before + sink_tokens - 1) // block_size
        # The block where the sink ends is left to the block rule: most of it may be another frame.
        high_block -= (layout.before + sink_tokens) % block_size != 0 and high_block > low_block
        runs[:, 1] = low_block << 16 | high_block + 1
    if layout.before:
        last_before = (layout.before - 1) // block_size
        runs[:, 0] = last_before + 1
        runs[rows <= last_before, 0] = blocks  # the whole row
    if layout.after:
        first_after = (layout.before + layout.grid.tokens) // block_size
        runs[:, -1] = first_after << 16 | blocks
        runs[rows >= first_after, 0] = blocks
    return runs


def _union(runs: NDArray[np.uint32]) -> tuple[NDArray[np.int64], _Array]:
    """How many blocks the runs of each row cover, and which, row by row."""
    first, end = (runs >> 16).astype(np.int32), (runs & 0xFFFF).astype(np.int32)
    covered = np.maximum.accumulate(end, axis=1)
    start = first.copy()
    np.maximum(first[:, 1:], covered[:, :-1], out=start[:, 1:])
    counts = np.maximum(end - start, 0)
    some = np.flatnonzero(counts)
    lengths, starts = counts.ravel()[some], start.ravel()[some]
    before = np.cumsum(lengths, dtype=np.int32) - lengths
    columns = np.repeat(starts - before, lengths)
    columns += np.arange(len(columns), dtype=np.int32)
    return counts.sum(axis=1), columns


def _frame_pair_runs(
    piece_frame: _Array, piece_block: _Array, windows: _Array, layout: Layout, pattern: RadialPattern, block_size: int
) -> tuple[_Array, _Array]:
    """First and end of the run of blocks that each row piece keeps in each key frame, ``[pieces, frames]``.

    Row pieces are the parts of block rows that lie in one frame. In its own frame a piece keeps its block always.
    """
    tokens, start = layout.grid.tokens_per_frame, layout.before
    frame_start = start + piece_frame * tokens
    # The piece's rows as positions in its own frame: top <= k < bottom.
    top = np.maximum(piece_block * block_size - frame_start, 0)[:, None]
    bottom = np.minimum((piece_block + 1) * block_size - frame_start, tokens)[:, None]
    block_rows = np.minimum((piece_block + 1) * block_size, layout.tokens) - piece_block * block_size

    key_frame = np.arange(layout.grid.frames, dtype=np.int32)[None, :]
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
    end = np.where(enough, last + 1, first)
    own = key_frame == piece_frame[:, None]
    first = np.where(own, np.minimum(first, piece_block[:, None]), first)
    return first, np.where(own, np.maximum(end, piece_block[:, None] + 1), end)


def _pieces(layout: Layout, block_size: int) -> tuple[_Array, _Array]:
    """Frame and block of every part of a block row that lies in one frame."""
    starts = layout.before + np.arange(layout.grid.frames, dtype=np.int32) * layout.grid.tokens_per_frame
    first, last = starts // block_size, (starts + layout.grid.tokens_per_frame - 1) // block_size
    counts = last - first + 1
    frame = np.repeat(np.arange(layout.grid.frames, dtype=np.int32), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return frame, np.repeat(first, counts) + within.astype(np.int32)
