"""Sums of blocks of keys and values in one read, and what the means' gradients give back to every token.

Shapes: B batch, T key length, H heads, D head dim, C blocks of keys, P pooled keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.portable.tiles import head_block, load_tile, store_tile
from radial_kernels.block_sparse.tail.lists import PooledLists
from radial_kernels.block_sparse.tail.means import means_of, shares_of
from radial_kernels.triton_runtime import launching_on


@triton.jit
def _add_up(
    x_ptr, sums_ptr, first_token, length, stride, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([HEAD_BLOCK], tl.float32)
    for first in range(0, BLOCK, TOKENS):
        x = load_tile(None, x_ptr, first_token + first, length, stride, TOKENS, HEAD_DIM, HEAD_BLOCK, False)
        total += tl.sum(x.to(tl.float32), 0)
    columns = tl.arange(0, HEAD_BLOCK)
    tl.store(sums_ptr + columns, total, mask=columns < HEAD_DIM)


@triton.jit
def _sums_kernel(
    key_ptr, value_ptr, key_sums_ptr, value_sums_ptr, length,
    key_batch_stride, key_stride, key_head_stride,
    value_batch_stride, value_stride, value_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one head, keys and values. Heads run fastest, since a token's heads lie side by side."""
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = (tl.program_id(0) % HEADS).to(tl.int64)
    block = tl.program_id(1)
    place = ((batch * tl.num_programs(1) + block) * HEADS + head) * HEAD_DIM
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    first = block * BLOCK
    _add_up(key_ptr, key_sums_ptr + place, first, length, key_stride, BLOCK, TOKENS, HEAD_DIM, HEAD_BLOCK)
    _add_up(value_ptr, value_sums_ptr + place, first, length, value_stride, BLOCK, TOKENS, HEAD_DIM, HEAD_BLOCK)


@triton.jit
def _add_share(
    x_ptr, shares_ptr, first_token, length, stride, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, HEAD_BLOCK)
    share = tl.load(shares_ptr + columns, mask=columns < HEAD_DIM, other=0.0)
    for start in range(0, BLOCK, TOKENS):
        first = first_token + start
        x = load_tile(None, x_ptr, first, length, stride, TOKENS, HEAD_DIM, HEAD_BLOCK, False).to(tl.float32)
        store_tile(x_ptr, x + share[None, :], first, length, stride, TOKENS, HEAD_DIM, HEAD_BLOCK)


@triton.jit
def _shares_kernel(
    grad_key_ptr, grad_value_ptr, key_shares_ptr, value_shares_ptr, length, batch_stride, stride, head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to every token of one block of one head what the means give back, in place."""
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    head = (tl.program_id(0) % HEADS).to(tl.int64)
    block = tl.program_id(1)
    place = ((batch * tl.num_programs(1) + block) * HEADS + head) * HEAD_DIM
    start = batch * batch_stride + head * head_stride
    first = block * BLOCK
    _add_share(grad_key_ptr + start, key_shares_ptr + place, first, length, stride, BLOCK, TOKENS, HEAD_DIM, HEAD_BLOCK)
    _add_share(
        grad_value_ptr + start, value_shares_ptr + place, first, length, stride, BLOCK, TOKENS, HEAD_DIM, HEAD_BLOCK
    )


def pool(k_BTHD: Tensor, v_BTHD: Tensor, tail: PooledLists) -> tuple[Tensor, Tensor]:
    """Mean keys and values, ``[B, P, H, D]``, in the inputs' dtype; summed in single precision."""
    batch, length, heads, head_dim = k_BTHD.shape
    blocks = -(-length // tail.block_size)
    sums = [torch.empty((batch, blocks, heads, head_dim), device=k_BTHD.device) for _ in range(2)]
    with launching_on(k_BTHD):
        _sums_kernel[(batch * heads, blocks)](
            k_BTHD, v_BTHD, *sums, length, *k_BTHD.stride()[:3], *v_BTHD.stride()[:3],
            **_constants(k_BTHD, tail.block_size),
        )  # fmt: skip
    k, v = (means_of(x, tail.counts, tail.spans, tail.order).to(k_BTHD.dtype) for x in sums)
    return k, v


def add_shares(
    grad_k_BTHD: Tensor, grad_v_BTHD: Tensor, grad_k_BPHD: Tensor, grad_v_BPHD: Tensor, tail: PooledLists
) -> None:
    """Add the gradients of the means to those of keys and values, which have the same strides; in place."""
    batch, length, heads, _ = grad_k_BTHD.shape
    blocks = -(-length // tail.block_size)
    pools = (tail.counts, tail.spans, blocks, tail.order)
    shares = [shares_of(x, *pools).contiguous() for x in (grad_k_BPHD, grad_v_BPHD)]
    with launching_on(grad_k_BTHD):
        _shares_kernel[(batch * heads, blocks)](
            grad_k_BTHD, grad_v_BTHD, *shares, length, *grad_k_BTHD.stride()[:3],
            **_constants(grad_k_BTHD, tail.block_size),
        )  # fmt: skip


def _constants(x_BTHD: Tensor, block_size: int) -> dict[str, int]:
    _, _, heads, head_dim = x_BTHD.shape
    return {
        "HEADS": heads,
        "BLOCK": block_size,
        "TOKENS": min(block_size, 32),
        "HEAD_DIM": head_dim,
        "HEAD_BLOCK": head_block(head_dim),
        "num_warps": 4,
    }
