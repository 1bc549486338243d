"""The far field's forward kernel: it goes on with the softmax where the exact part has stopped.

Per program, one tile of queries of one head: an output and its log-sum-exp are a softmax's running state (the maximum
is the log-sum-exp, the sum one), so the exact part's are read, the online softmax runs over the row's pooled keys, and
the joint ones are written in their place. No second output is ever in memory, no merge is a pass of its own, and the
exact part may be any backend's.

A row attends to what its list leaves out, which is most of what there is, so the kernel is dense over words of 64
pooled keys and masks by the word's bits: 1/128 of dense attention's work where a mean is of 128 keys. Words without a
bit are not in the row's list of words, so that a pyramid of means costs only what its rows attend to.

Shapes: B batch, S query length, H heads, D head dim, P pooled keys.
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
from radial_kernels.block_sparse.tail.lists import WORD, PooledLists
from radial_kernels.triton_runtime import launching_on


@triton.jit
def load_bias(bias_ptr, word, first, pooled_length, part, KEYS: tl.constexpr):
    """What pooled keys ``first`` to ``first + KEYS`` add to their logits; minus infinity where a row has no bit."""
    keys = tl.arange(0, KEYS)
    bias = tl.load(bias_ptr + first + keys, mask=first + keys < pooled_length, other=0.0)
    present = (word >> (part * KEYS + keys).to(tl.int64)) & 1
    return tl.where(present != 0, bias, float("-inf"))


@triton.jit
def _tail_kernel(
    query_ptr, key_ptr, value_ptr, bias_ptr, output_ptr, lse_ptr, bits_ptr, row_offsets_ptr, word_indices_ptr,
    scale_log2, query_length, pooled_length, words,
    query_batch_stride, query_stride, query_head_stride,
    pooled_batch_stride, pooled_stride, pooled_head_stride,
    output_batch_stride, output_stride, output_head_stride,
    bits_batch_stride, bits_head_stride, offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WORD_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES
    PARTS: tl.constexpr = WORD_KEYS // KEYS  # tiles of pooled keys in a word
    row = tl.program_id(0) // QUERY_TILES
    first_query = row * BLOCK + tl.program_id(0) % QUERY_TILES * QUERIES
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * pooled_batch_stride + head * pooled_head_stride
    value_ptr += batch * pooled_batch_stride + head * pooled_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride
    bits_ptr += batch * bits_batch_stride + head * bits_head_stride + row.to(tl.int64) * words
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    keys = describe_head(key_ptr, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    values = describe_head(value_ptr, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    start = tl.load(row_offsets_ptr + row)
    stop = tl.load(row_offsets_ptr + row + 1)

    query = load_tile(None, query_ptr, first_query, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    accumulated = load_tile(
        None, output_ptr, first_query, query_length, output_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False
    ).to(tl.float32)
    positions = first_query + tl.arange(0, QUERIES)
    lse_row = lse_ptr + tl.program_id(1).to(tl.int64) * query_length
    running_max = tl.load(lse_row + positions, mask=positions < query_length, other=0.0) * 1.4426950408889634
    running_sum = tl.where(running_max == float("-inf"), 0.0, 1.0)
    for step in tl.range(0, (stop - start) * PARTS):
        index = tl.load(word_indices_ptr + start + step // PARTS)
        first = index * WORD_KEYS + step % PARTS * KEYS
        bias = load_bias(bias_ptr, tl.load(bits_ptr + index), first, pooled_length, step % PARTS, KEYS)
        key = load_tile(keys, key_ptr, first, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
        value = load_tile(
            values, value_ptr, first, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        logits = tl.dot(query, key.T, input_precision=PRECISION) * scale_log2 + bias[None, :]
        new_max = tl.maximum(running_max, tl.max(logits, 1))
        # A part of a word may have no bit, and a row no key before it: its maximum is not finite yet.
        finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.math.exp2(logits - finite_max[:, None])
        correction = tl.math.exp2(running_max - finite_max)
        running_sum = running_sum * correction + tl.sum(weights, 1)
        accumulated = accumulated * correction[:, None]
        accumulated = tl.dot(weights.to(value.dtype), value, accumulated, input_precision=PRECISION)
        running_max = new_max

    if start < stop:  # else all is as it was
        divisor = tl.where(running_sum > 0, running_sum, 1.0)
        store_tile(
            output_ptr, accumulated / divisor[:, None], first_query, query_length, output_stride,
            QUERIES, HEAD_DIM, HEAD_BLOCK,
        )  # fmt: skip
        store_log_sum_exp(lse_ptr, running_max, divisor, first_query, query_length, QUERIES)


def add_tail(
    out_BSHD: Tensor,
    lse_BHS: Tensor,
    q_BSHD: Tensor,
    k_BPHD: Tensor,
    v_BPHD: Tensor,
    tail: PooledLists,
    scale: float,
    *,
    tiles: Tiles | None = None,
    use_descriptors: bool | None = None,
) -> None:
    """Launch the kernel: output and log-sum-exp become those over the pooled keys too, in place.

    ``tiles`` and ``use_descriptors`` exist for measuring.
    """
    batch, query_length, heads, head_dim = q_BSHD.shape
    tiles = tiles or choose_tiles("tail", q_BSHD, tail.block_size)
    queries = min(tiles.queries, tail.block_size)
    if use_descriptors is None:
        use_descriptors = descriptors_fit(k_BPHD, v_BPHD)
    with launching_on(q_BSHD):
        _tail_kernel[(tail.rows * (tail.block_size // queries), batch * heads)](
            q_BSHD, k_BPHD, v_BPHD, tail.counts.log2(), out_BSHD, lse_BHS,
            tail.bits, tail.row_offsets, tail.word_indices,
            scale * LOG2_E, query_length, k_BPHD.shape[1], tail.bits.shape[-1],
            *q_BSHD.stride()[:3], *k_BPHD.stride()[:3], *out_BSHD.stride()[:3],
            *plan_strides(tail.bits[..., 0]), *plan_strides(tail.row_offsets),
            HEADS=heads,
            BLOCK=tail.block_size,
            QUERIES=queries,
            KEYS=min(tiles.keys, WORD),
            WORD_KEYS=WORD,
            HEAD_DIM=head_dim,
            HEAD_BLOCK=head_block(head_dim),
            USE_DESCRIPTORS=use_descriptors,
            PRECISION="ieee" if q_BSHD.dtype == torch.float32 else "tf32",
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )  # fmt: skip
