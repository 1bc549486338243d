"""What the portable Triton kernels share: reading and writing one head's tiles.

Shapes: B batch, S sequence length, H heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.triton_runtime import next_power_of_2

LOG2_E = 1.4426950408889634


@triton.jit
def describe_head(
    pointer, length, stride, TILE: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    USE_DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """A descriptor of one head's tokens where the hardware has them, the pointer itself elsewhere."""
    if USE_DESCRIPTORS:
        return tl.make_tensor_descriptor(
            pointer, shape=[length, HEAD_DIM], strides=[stride, 1], block_shape=[TILE, HEAD_BLOCK]
        )
    else:
        return pointer


@triton.jit
def load_tile(
    descriptor, pointer, first, length, stride, TILE: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Tokens ``first`` to ``first + TILE`` of one head, zero beyond its end."""
    if USE_DESCRIPTORS:
        return descriptor.load([first, 0])
    else:
        rows = first + tl.arange(0, TILE)
        columns = tl.arange(0, HEAD_BLOCK)
        inside = (rows < length)[:, None] & (columns < HEAD_DIM)[None, :]
        return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(
    pointer, tile, first, length, stride, TILE: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr
):
    """Write tokens ``first`` to ``first + TILE`` of one head, as far as there are such tokens."""
    rows = first + tl.arange(0, TILE)
    columns = tl.arange(0, HEAD_BLOCK)
    inside = (rows < length)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(
        pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :],
        tile.to(pointer.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def store_log_sum_exp(lse_ptr, running_max, divisor, first, length, TILE: tl.constexpr):
    """Write a tile's log-sum-exps, natural, from its running maximum in base 2 and its sum of weights."""
    positions = first + tl.arange(0, TILE)
    lse = running_max * 0.6931471805599453 + tl.log(divisor)
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * length + positions, lse, mask=positions < length)


def head_block(head_dim: int) -> int:
    """The head dim rounded up to what a tile can have."""
    return max(16, next_power_of_2(head_dim))


def descriptors_fit(*tensors_BSHD: Tensor) -> bool:
    """Whether tensors can be read through the hardware's tensor descriptors (compute capability 9 and later)."""
    return all(x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9 and aligned(x) for x in tensors_BSHD)


def aligned(x_BSHD: Tensor) -> bool:
    """Whether the start of every row lies on 16 bytes and none is expanded, as descriptors ask."""
    size = x_BSHD.element_size()
    return x_BSHD.data_ptr() % 16 == 0 and all(s > 0 and s * size % 16 == 0 for s in x_BSHD.stride()[:3])
