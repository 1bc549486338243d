"""The portable Triton forward kernel: one program computes one tile of queries of one head.

Per program: load q; loop over the row's key tiles with an online softmax; write o and the log-sum-exp. Tiles are
loaded through tensor descriptors (TMA) where the hardware has them, by pointers elsewhere. Lists ascend, so only a
row's last tile can reach beyond its last key; the loop over the others needs no mask.

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.configurations import Tiles, choose_tiles
from radial_kernels.block_sparse.portable.tiles import (
    LOG2_E,
    describe_head,
    descriptors_fit,
    head_block,
    load_tile,
    store_log_sum_exp,
    store_tile,
)
from radial_kernels.triton_runtime import launching_on


@triton.jit
def _accumulate(
    query, key, value, accumulated, running_max, running_sum, keys_left, scale_log2,
    KEYS: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax, in base 2."""
    logits = tl.dot(query, key.T, input_precision=PRECISION)
    if MASK:
        logits = tl.where((tl.arange(0, KEYS) < keys_left)[None, :], logits, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(logits, 1) * scale_log2)
    weights = tl.math.exp2(logits * scale_log2 - new_max[:, None])
    correction = tl.math.exp2(running_max - new_max)
    running_sum = running_sum * correction + tl.sum(weights, 1)
    accumulated = accumulated * correction[:, None]
    accumulated = tl.dot(weights.to(value.dtype), value, accumulated, input_precision=PRECISION)
    return accumulated, new_max, running_sum


@triton.jit
def _forward_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, row_offsets_ptr, column_indices_ptr, key_ends_ptr,
    scale_log2, query_length, key_length,
    query_batch_stride, query_stride, query_head_stride,
    key_batch_stride, key_stride, key_head_stride,
    value_batch_stride, value_stride, value_head_stride,
    output_batch_stride, output_stride, output_head_stride,
    offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, RAGGED: tl.constexpr,
    USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES  # tiles in a block of queries
    KEY_TILES: tl.constexpr = BLOCK // KEYS
    # Rows run fastest, so that the programs alive at one time share one head's keys in the cache.
    row = tl.program_id(0) // QUERY_TILES
    first_query = row * BLOCK + tl.program_id(0) % QUERY_TILES * QUERIES
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    keys = describe_head(key_ptr, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    values = describe_head(value_ptr, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    start = tl.load(row_offsets_ptr + row)
    stop = tl.load(row_offsets_ptr + row + 1)

    query = load_tile(None, query_ptr, first_query, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    accumulated = tl.zeros([QUERIES, HEAD_BLOCK], tl.float32)
    running_max = tl.full([QUERIES], float("-inf"), tl.float32)
    running_sum = tl.zeros([QUERIES], tl.float32)
    steps = (stop - start) * KEY_TILES
    last = 0
    key_end = key_length
    if key_ends_ptr is not None:
        key_end = tl.load(key_ends_ptr + row)
    if RAGGED and start < stop:
        # Only a row's last block can reach beyond its last key: its tiles past the end are left out, and the last
        # tile with a key in it is masked after the loop.
        last = tl.load(column_indices_ptr + stop - 1) * BLOCK
        steps -= KEY_TILES - (tl.minimum(key_end - last, BLOCK) - 1) // KEYS
        last += (steps - (stop - start - 1) * KEY_TILES) * KEYS

    for step in tl.range(0, steps):
        first = tl.load(column_indices_ptr + start + step // KEY_TILES) * BLOCK + step % KEY_TILES * KEYS
        key = load_tile(keys, key_ptr, first, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
        value = load_tile(
            values, value_ptr, first, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        accumulated, running_max, running_sum = _accumulate(
            query, key, value, accumulated, running_max, running_sum, key_length - first, scale_log2,
            KEYS, False, PRECISION,
        )  # fmt: skip
    if RAGGED and start < stop:
        key = load_tile(keys, key_ptr, last, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
        value = load_tile(
            values, value_ptr, last, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        accumulated, running_max, running_sum = _accumulate(
            query, key, value, accumulated, running_max, running_sum, key_end - last, scale_log2,
            KEYS, True, PRECISION,
        )  # fmt: skip

    # A row without keys has a zero sum and gives zeros, and minus infinity for its log-sum-exp.
    divisor = tl.where(running_sum > 0, running_sum, 1.0)
    store_tile(
        output_ptr, accumulated / divisor[:, None], first_query, query_length, output_stride,
        QUERIES, HEAD_DIM, HEAD_BLOCK,
    )  # fmt: skip
    if lse_ptr is not None:
        store_log_sum_exp(lse_ptr, running_max, divisor, first_query, query_length, QUERIES)


def attention(
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
    *,
    with_lse: bool = False,
    key_ends: Tensor | None = None,
    tiles: Tiles | None = None,
    use_descriptors: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel: outputs ``[B, S, H, D]`` and, when asked for, log-sum-exps ``[B, H, S]`` (else empty).

    ``tiles`` and ``use_descriptors`` exist for measuring; left out, they are chosen from the inputs.
    """
    batch, query_length, heads, head_dim = q_BSHD.shape
    output = torch.empty((batch, query_length, heads, head_dim), dtype=q_BSHD.dtype, device=q_BSHD.device)
    lse_BHS = torch.empty((batch, heads, query_length) if with_lse else (0,), device=q_BSHD.device)
    tiles = tiles or choose_tiles("forward", q_BSHD, block_size)
    if use_descriptors is None:
        use_descriptors = descriptors_fit(k_BTHD, v_BTHD)
    rows = row_offsets.shape[-1] - 1
    with launching_on(q_BSHD):
        _forward_kernel[(rows * (block_size // tiles.queries), batch * heads)](
            q_BSHD, k_BTHD, v_BTHD, output, lse_BHS if with_lse else None, row_offsets, column_indices, key_ends,
            scale * LOG2_E, query_length, k_BTHD.shape[1],
            *q_BSHD.stride()[:3], *k_BTHD.stride()[:3], *v_BTHD.stride()[:3], *output.stride()[:3],
            *plan_strides(row_offsets),
            HEADS=heads,
            BLOCK=block_size,
            QUERIES=tiles.queries,
            KEYS=tiles.keys,
            HEAD_DIM=head_dim,
            HEAD_BLOCK=head_block(head_dim),
            RAGGED=key_ends is not None or k_BTHD.shape[1] % tiles.keys != 0,
            USE_DESCRIPTORS=use_descriptors,
            PRECISION="ieee" if q_BSHD.dtype == torch.float32 else "tf32",
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )  # fmt: skip
    return output, lse_BHS
