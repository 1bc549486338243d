"""Which blocks of keys a block of queries attends to, token by token: for tokens in any order.

Where a block has the same places in several frames, as columns have, how many of its tokens attend to a key depends on
the key's place alone for each window; so the work is tokens x windows for a row of blocks, not tokens x block size.

Shapes: F frames, P places in a frame, V windows, R rows of blocks, C columns of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from radial.plans.layout import Layout
from radial.plans.pattern import RadialPattern
from radial.plans.token_order import token_order


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
) -> NDArray[np.bool_]:
    """The blocks of keys that are nearest in time and space to some rows of blocks: ``[rows, C]``.

    How far is log2(1 + frames) + log2(1 + tokens across the frame), from middle to middle, so that a row keeps ever
    fewer with distance in either. Its own block is kept, those with tokens of the leading frames, and whatever is not
    of the clip.

    Args:
        share: of all blocks that a row keeps, rounded.
    """
    grid, before = layout.grid, layout.before
    number = np.arange(grid.tokens) if layout.tile is None else token_order(grid, layout.tile)
    frame, place = np.divmod(number, grid.tokens_per_frame)
    at = np.stack([frame, *np.divmod(place, grid.width)], -1)
    starts = np.arange(0, layout.tokens, block_size) - before
    ends = np.minimum(starts + block_size, layout.tokens - before)
    first, end = np.clip(starts, 0, grid.tokens), np.clip(ends, 0, grid.tokens)
    sums = np.concatenate([np.zeros((1, 3)), at.cumsum(0)])
    middle = ((sums[end] - sums[first]) / np.maximum(end - first, 1)[:, None]).astype(np.float32)
    sinks = np.concatenate([[0], (frame < sink_frames).cumsum()])
    mixed = (starts < 0) | (ends > grid.tokens)
    time, down, across = (np.abs(middle[rows, None, axis] - middle[:, axis]) for axis in range(3))
    distance = np.log2(1 + time) + np.log2(1 + np.hypot(down, across))
    distance[:, mixed | (sinks[end] > sinks[first])] = -1
    distance[np.arange(len(rows)), rows] = -1
    count = min(len(starts), max(1, round(share * len(starts))))
    kept = distance < 0
    np.put_along_axis(kept, distance.argsort(1, kind="stable")[:, :count], True, 1)
    kept[mixed[rows]] = True
    return kept
