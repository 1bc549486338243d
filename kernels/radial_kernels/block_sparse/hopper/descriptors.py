"""Tensor descriptors: how the copy engine finds a tile of one head in a tensor of any strides.

Shapes: B batch, S sequence length, H heads, D head dim.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK = 128  # tokens a block, the only size these kernels have


def describe(x_BSHD: Tensor, tokens: int) -> TensorDescriptor:
    """Tiles of ``tokens`` tokens of one head. Reads beyond the end give zeros, writes there are dropped."""
    return describe_tiles(x_BSHD, [1, tokens, 1, x_BSHD.shape[-1]])


def describe_tiles(x: Tensor, tile: list[int]) -> TensorDescriptor:
    """Tiles of any shape, laid out in shared memory as the matrix unit reads them."""
    return TensorDescriptor(x, list(x.shape), _strides(x), tile, tile_layout(tile, x.element_size()))


def tile_layout(tile: list[int], element_size: int) -> gl.NVMMASharedLayout:
    """Swizzled over as many bytes as a row of the tile has, 128 at most; a vector is not swizzled."""
    swizzle = min(128, tile[-1] * element_size) if len(tile) > 1 else 0
    return gl.NVMMASharedLayout(swizzle, element_size * 8, rank=len(tile))


def _strides(x: Tensor) -> list[int]:
    """A dimension of size one may have any stride in torch; the copy engine wants a multiple of 16 bytes."""
    whole = x.shape[-1]
    return [
        stride if size > 1 or stride * x.element_size() % 16 == 0 else whole
        for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True)
    ] + [1]
