"""The order of a clip's tokens in the sequence: raster, or columns along time.

A block of columns is small in space and long in time: what moves little stays alike through it, so that its mean says
more than that of a strip of one frame.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from radial.plans.layout import Layout, Tile, TokenGrid

_FRAMES = 8  # about as many latent frames are in a column


def in_columns(layout: Layout, block_size: int) -> Layout:
    """The same layout with its clip's tokens in columns that fill blocks of such a size."""
    width = 1 << (block_size // _FRAMES).bit_length() // 2
    tile = (_FRAMES, block_size // _FRAMES // width, width)
    return Layout(tuple(one if one.grid is None else replace(one, tile=tile) for one in layout.segments))


@functools.lru_cache(maxsize=8)
def token_order(grid: TokenGrid, tile: Tile) -> NDArray[np.int64]:
    """The raster number of each token of a clip, in the order of columns; read only.

    The first frame comes first, by tiles of one block: it differs from all others in what an autoencoder makes of it,
    and is what sinks are. The rest is cut in runs of about as many frames as the tile has; a run goes tile by tile, a
    tile column by column, a column frame by frame. Runs and tiles at the border may be smaller.
    """
    number = np.arange(grid.tokens).reshape(grid.frames, grid.height, grid.width)
    _, height, width = tile
    tokens = tile[0] * height * width
    flat = 1 << (tokens.bit_length() - 1) // 2
    parts = [piece.ravel() for piece in _tiles(number[:1], flat, tokens // flat)]
    for first, end in itertools.pairwise(run_starts(grid, tile)):
        parts += [piece.transpose(1, 2, 0).ravel() for piece in _tiles(number[first:end], height, width)]
    order = np.concatenate(parts)
    order.flags.writeable = False
    return order


def run_starts(grid: TokenGrid, tile: Tile) -> list[int]:
    """The first frame of each run of columns, and the end of the last: runs differ by a frame at most."""
    rest = grid.frames - 1
    runs = max(1, round(rest / tile[0])) if rest else 0
    return [1 + index * rest // runs for index in range(runs + 1)] if runs else []


def _tiles(frames: NDArray[np.int64], height: int, width: int) -> list[NDArray[np.int64]]:
    rows, columns = range(0, frames.shape[1], height), range(0, frames.shape[2], width)
    return [frames[:, row : row + height, column : column + width] for row in rows for column in columns]
