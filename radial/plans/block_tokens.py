"""Which blocks of keys a block of queries attends to, token by token: for tokens in any order.

Where a block has the same places in several frames, as columns have, how many of its tokens attend to a key depends on
the key's place alone for each window; so the work is tokens x windows for a row of blocks, not tokens x block size.

Shapes: F frames, P places in a frame, V windows, R rows of blocks, C columns of blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from radial.plans.layout import Layout
from radial.plans.pattern import RadialPattern
from radial.plans.token_order import token_order

_PAIRS = 1 << 20  # of blocks, or tokens, that are looked at together


def kept_columns_by_token(
    layout: Layout, pattern: RadialPattern, block_size: int, rows: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    """For each of some rows of blocks how many columns it keeps, and which.

    The block rule is that of raster blocks, with all of a block's pairs taken together: a block is kept when more than
    60 % of its keys that any of its queries attends to are attended to by more than a third of them; in the paper's
    variant, when any pair is. The diagonal is kept, and all blocks that hold other tokens than the clip's.
    """
    grid, before = layout.grid, layout.before
    assert layout.tile is not None
    order = token_order(grid, layout.tile)
    frame, place = np.divmod(order, grid.tokens_per_frame)
    windows = np.array([pattern.window(d, grid.tokens_per_frame, block_size) for d in range(grid.frames)])
    widths, window_of = np.unique(windows, return_inverse=True)
    starts = np.arange(0, layout.tokens, block_size)
    ends = np.minimum(starts + block_size, layout.tokens)
    mixed = (starts < before) | (ends > before + grid.tokens)
    # The first token of the clip in each block that has any.
    held = np.flatnonzero((ends > before) & (starts < before + grid.tokens))
    borders = np.maximum(starts[held] - before, 0)
    strict = pattern.variant == "published"
    for row in rows:
        if mixed[row]:
            kept = np.arange(len(starts), dtype=np.int32)
            yield np.array([len(kept)]), kept
            continue
        own = slice(starts[row] - before, ends[row] - before)
        count_FP = _seen_by(frame[own], place[own], grid.frames, grid.tokens_per_frame, widths, window_of)
        length = own.stop - own.start
        count_FP[: pattern.sink_frames] = length
        # Both numbers of a block, of 256 keys at most, in one word: those seen by any, and by enough.
        words_FP = (count_FP >= (length // 3 + 1 if strict else 1)) * np.uint16(512)
        words_FP += count_FP > 0
        words = np.add.reduceat(words_FP.reshape(-1)[order], borders, dtype=np.int32)
        any_, enough = words & 511, words >> 9
        keep = mixed.copy()
        keep[held] |= 5 * enough > 3 * any_ if strict else enough > 0
        keep[row] = True
        kept = np.flatnonzero(keep).astype(np.int32)
        yield np.array([len(kept)]), kept


def _seen_by(
    frame: NDArray[np.int64], place: NDArray[np.int64], frames: int, places: int, widths: NDArray[np.int64],
    window_of: NDArray[np.int64],
) -> NDArray[np.float32]:  # fmt: skip
    """How many of a block's tokens attend to each key ``[F, P]``."""
    alike: dict[bytes, tuple[NDArray[np.int64], list[int]]] = {}
    for one in np.unique(frame):
        own = np.sort(place[frame == one])
        alike.setdefault(own.tobytes(), (own, []))[1].append(int(one))
    total = np.zeros((frames, places), np.float32)
    key = np.arange(places)
    for own, in_frames in alike.values():
        low, high = key - widths[:, None], key + widths[:, None]  # crossed where a window is -1: nobody is in it
        near_VP = np.searchsorted(own, high, "right") - np.searchsorted(own, low)
        near_VP = np.maximum(near_VP, 0).astype(np.float32)
        times_FV = np.zeros((frames, len(widths)), np.float32)
        for one in in_frames:
            times_FV[np.arange(frames), window_of[np.abs(np.arange(frames) - one)]] += 1
        total += times_FV @ near_VP
    return total


def nearest_blocks(
    layout: Layout, block_size: int, share: float, sink_frames: int, rows: NDArray[np.int32]
) -> Iterator[NDArray[np.bool_]]:
    """The blocks of keys that are nearest in time and space to some rows of blocks, some rows at a time: ``[rows, C]``.

    How far is log2(1 + frames) + log2(1 + tokens across the frame), from middle to middle, so that a row keeps ever
    fewer with distance in either. Its own block is kept, those with tokens of the leading frames, and whatever is not
    of the clip.

    Args:
        share: of all blocks that a row keeps, rounded.
    """
    middle, first, mixed = _places_of_blocks(layout, block_size)
    always = mixed | (first < sink_frames)
    count = min(len(middle), max(1, round(share * len(middle))))
    for some in np.split(rows, range(0, len(rows), max(1, _PAIRS // len(middle)))[1:]):
        time, down, across = (np.abs(middle[some, None, axis] - middle[:, axis]) for axis in range(3))
        # Of those as far, the first.
        distance = np.log2(1 + time) + np.log2(1 + np.hypot(down, across)) + 1e-9 * np.arange(len(middle))
        distance[:, always] = -1
        distance[np.arange(len(some)), some] = -1
        kept = distance < 0
        np.put_along_axis(kept, distance.argpartition(count - 1, 1)[:, :count], True, 1)
        kept[mixed[some]] = True
        yield kept


def blocks_beside(density: float, blocks: int, core: int) -> int:
    """How many blocks a row keeps beside those that are nearest, of which there may be more than the half."""
    return max(1, round(density * blocks) - core)


@functools.lru_cache(maxsize=4)
def _places_of_blocks(
    layout: Layout, block_size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Of each block the middle of its tokens of the clip, frame, row and column, the first frame that it has tokens of,
    and whether it has others; read only."""
    grid, before = layout.grid, layout.before
    order = None if layout.tile is None else token_order(grid, layout.tile)
    starts = np.arange(0, layout.tokens, block_size) - before
    ends = np.minimum(starts + block_size, layout.tokens - before)
    middle, first = np.zeros((len(starts), 3)), np.full(len(starts), grid.frames)
    at_once = max(1, _PAIRS // block_size)
    held = np.flatnonzero((ends > 0) & (starts < grid.tokens))
    for some in np.split(held, range(0, len(held), at_once)[1:]):  # of a long clip all tokens take gigabytes
        low, high = np.maximum(starts[some], 0), np.minimum(ends[some], grid.tokens)
        number = np.arange(low[0], high[-1]) if order is None else order[low[0] : high[-1]]
        frame, place = np.divmod(number, grid.tokens_per_frame)
        at = (frame, *np.divmod(place, grid.width))
        middle[some] = np.stack([np.add.reduceat(one, low - low[0]) for one in at], -1) / (high - low)[:, None]
        first[some] = np.minimum.reduceat(frame, low - low[0])
    mixed = (starts < 0) | (ends > grid.tokens)
    for one in (middle, first, mixed):
        one.flags.writeable = False
    return middle, first, mixed
