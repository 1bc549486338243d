"""The far field's backward kernels: its part of the gradient of q, and the gradients of the mean keys and values.

With the joint log-sum-exp and the joint output, the exact part's backward kernels give that part's gradients, and
these the far field's: the softmax is one, so are D and the log-sum-exp of a row, and no gradient passes through a
merge. The part of q's gradient is added in place; those of the means are spread over their tokens by
:func:`.pooling.add_shares`. Every tile belongs to one program and is added up in a fixed order: gradients are
deterministic. Since there are few tiles of means and every query attends to most, the queries of a tile of means are
split among several programs where the GPU would otherwise be idle; their sums are added up afterwards.

Formulas as in the portable backward kernels, with the bias of the means in the logits.

Shapes: B batch, S query length, T key length, H heads, D head dim, P pooled keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.backward import row_terms
from radial_kernels.block_sparse.portable.configurations import Tiles, choose_tiles
from radial_kernels.block_sparse.portable.tiles import describe_head, descriptors_fit, head_block, load_tile, store_tile
from radial_kernels.block_sparse.tail.forward import load_bias
from radial_kernels.block_sparse.tail.lists import WORD, PooledLists
from radial_kernels.block_sparse.tail.pooling import add_shares
from radial_kernels.triton_runtime import launching_on

_PROGRAMS = 512  # that keep any GPU busy
_MOST_SPLITS = 8


@triton.jit
def _mean_gradients_kernel(
    query_ptr, key_ptr, value_ptr, grad_ptr, terms_ptr, bias_ptr, grad_key_ptr, grad_value_ptr,
    bits_ptr, column_offsets_ptr, row_indices_ptr, scale, query_length, pooled_length, padded_length, words,
    split_stride, query_batch_stride, query_stride, query_head_stride,
    pooled_batch_stride, pooled_stride, pooled_head_stride,
    grad_batch_stride, grad_stride, grad_head_stride,
    bits_batch_stride, bits_head_stride, offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WORD_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of mean keys and values of one head against a part of the queries that attend to it."""
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES
    PARTS: tl.constexpr = WORD_KEYS // KEYS
    index = tl.program_id(0) // PARTS
    part = tl.program_id(0) % PARTS
    first_key = index * WORD_KEYS + part * KEYS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    pooled_head = batch * pooled_batch_stride + head * pooled_head_stride
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    split = tl.program_id(2).to(tl.int64) * split_stride
    bits_ptr += batch * bits_batch_stride + head * bits_head_stride + index
    column_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    terms_ptr += tl.program_id(1).to(tl.int64) * 2 * padded_length
    queries = describe_head(query_ptr, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    grads = describe_head(grad_ptr, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)

    key = load_tile(
        None, key_ptr + pooled_head, first_key, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, False
    )
    value = load_tile(
        None, value_ptr + pooled_head, first_key, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, False
    )
    grad_key = tl.zeros([KEYS, HEAD_BLOCK], tl.float32)
    grad_value = tl.zeros([KEYS, HEAD_BLOCK], tl.float32)
    start = tl.load(column_offsets_ptr + index)
    stop = tl.load(column_offsets_ptr + index + 1)
    share = tl.cdiv(stop - start, tl.num_programs(2))
    start += share * tl.program_id(2)
    stop = tl.minimum(stop, start + share)
    for step in tl.range(0, tl.maximum(stop - start, 0) * QUERY_TILES):
        row = tl.load(row_indices_ptr + start + step // QUERY_TILES)
        first = row * BLOCK + step % QUERY_TILES * QUERIES
        word = tl.load(bits_ptr + row.to(tl.int64) * words)
        bias = load_bias(bias_ptr, word, first_key, pooled_length, part, KEYS)
        query = load_tile(
            queries, query_ptr, first, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        grad = load_tile(
            grads, grad_ptr, first, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        positions = first + tl.arange(0, QUERIES)
        lse = tl.load(terms_ptr + positions)
        delta = tl.load(terms_ptr + padded_length + positions)
        logits = tl.dot(key, query.T, input_precision=PRECISION) * (scale * 1.4426950408889634)
        weights = tl.math.exp2(logits + bias[:, None] - lse[None, :])
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=PRECISION)
        grad_weights = tl.dot(value, grad.T, input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[None, :])
        grad_key = tl.dot(grad_logits.to(query.dtype), query, grad_key, input_precision=PRECISION)

    place = split + pooled_head
    store_tile(
        grad_key_ptr + place, grad_key * scale, first_key, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK
    )
    store_tile(grad_value_ptr + place, grad_value, first_key, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK)


@triton.jit
def _query_gradient_kernel(
    query_ptr, key_ptr, value_ptr, grad_ptr, terms_ptr, bias_ptr, grad_query_ptr,
    bits_ptr, row_offsets_ptr, word_indices_ptr, scale, query_length, pooled_length, padded_length, words,
    query_batch_stride, query_stride, query_head_stride,
    pooled_batch_stride, pooled_stride, pooled_head_stride,
    grad_batch_stride, grad_stride, grad_head_stride,
    grad_query_batch_stride, grad_query_stride, grad_query_head_stride,
    bits_batch_stride, bits_head_stride, offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WORD_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against its pooled keys, added to what is there. Keys past the end are zeros."""
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES
    PARTS: tl.constexpr = WORD_KEYS // KEYS
    row = tl.program_id(0) // QUERY_TILES
    first_query = row * BLOCK + tl.program_id(0) % QUERY_TILES * QUERIES
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * pooled_batch_stride + head * pooled_head_stride
    value_ptr += batch * pooled_batch_stride + head * pooled_head_stride
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    grad_query_ptr += batch * grad_query_batch_stride + head * grad_query_head_stride
    bits_ptr += batch * bits_batch_stride + head * bits_head_stride + row.to(tl.int64) * words
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    terms_ptr += tl.program_id(1).to(tl.int64) * 2 * padded_length
    keys = describe_head(key_ptr, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    values = describe_head(value_ptr, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)

    query = load_tile(None, query_ptr, first_query, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    grad = load_tile(None, grad_ptr, first_query, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    positions = first_query + tl.arange(0, QUERIES)
    lse = tl.load(terms_ptr + positions)
    delta = tl.load(terms_ptr + padded_length + positions)
    grad_query = tl.zeros([QUERIES, HEAD_BLOCK], tl.float32)
    start = tl.load(row_offsets_ptr + row)
    stop = tl.load(row_offsets_ptr + row + 1)
    for step in tl.range(0, (stop - start) * PARTS):
        index = tl.load(word_indices_ptr + start + step // PARTS)
        first = index * WORD_KEYS + step % PARTS * KEYS
        bias = load_bias(bias_ptr, tl.load(bits_ptr + index), first, pooled_length, step % PARTS, KEYS)
        key = load_tile(keys, key_ptr, first, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
        value = load_tile(
            values, value_ptr, first, pooled_length, pooled_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        logits = tl.dot(query, key.T, input_precision=PRECISION) * (scale * 1.4426950408889634)
        weights = tl.math.exp2(logits + bias[None, :] - lse[:, None])
        grad_weights = tl.dot(grad, value.T, input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[:, None])
        grad_query = tl.dot(grad_logits.to(key.dtype), key, grad_query, input_precision=PRECISION)

    grad_query *= scale
    grad_query += load_tile(
        None, grad_query_ptr, first_query, query_length, grad_query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False
    ).to(tl.float32)
    store_tile(grad_query_ptr, grad_query, first_query, query_length, grad_query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK)


def add_gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    grad_BSHD: Tensor,
    grad_lse_BHS: Tensor | None,
    q_BSHD: Tensor,
    k_BPHD: Tensor,
    v_BPHD: Tensor,
    out_BSHD: Tensor,
    lse_BHS: Tensor,
    tail: PooledLists,
    scale: float,
    *,
    tiles: Tiles | None = None,
    use_descriptors: bool | None = None,
) -> None:
    """Add the far field's part to the gradients of q, k and v, in place; output and log-sum-exp are the joint ones.

    ``tiles`` and ``use_descriptors`` exist for measuring.
    """
    grad_q, grad_k, grad_v = grads
    batch, query_length, heads, head_dim = q_BSHD.shape
    tiles = tiles or choose_tiles("tail backward", q_BSHD, tail.block_size)
    # The tile that stays is of means in the one kernel and of queries in the other, as in the portable kernels.
    by_means = {"QUERIES": min(tiles.queries, tail.block_size), "KEYS": min(tiles.keys, WORD)}
    by_queries = {"QUERIES": min(tiles.keys, tail.block_size), "KEYS": min(tiles.queries, WORD)}
    if use_descriptors is None:
        use_descriptors = descriptors_fit(q_BSHD, k_BPHD, v_BPHD, grad_BSHD)
    terms = row_terms(out_BSHD, grad_BSHD, lse_BHS, grad_lse_BHS)
    inputs = (q_BSHD, k_BPHD, v_BPHD, grad_BSHD, terms, tail.counts.log2())
    lengths = (query_length, k_BPHD.shape[1], terms.shape[-1], tail.bits.shape[-1])
    strides = [stride for x in (q_BSHD, k_BPHD, grad_BSHD) for stride in x.stride()[:3]]
    constants = {
        "HEADS": heads,
        "BLOCK": tail.block_size,
        "WORD_KEYS": WORD,
        "HEAD_DIM": head_dim,
        "HEAD_BLOCK": head_block(head_dim),
        "USE_DESCRIPTORS": use_descriptors,
        "PRECISION": "ieee" if q_BSHD.dtype == torch.float32 else "tf32",
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    programs = tail.bits.shape[-1] * (WORD // by_means["KEYS"]) * batch * heads
    splits = max(1, min(_MOST_SPLITS, _PROGRAMS // programs, tail.rows))
    sums = [torch.empty((splits, *k_BPHD.shape), device=q_BSHD.device) for _ in range(2)]
    with launching_on(q_BSHD):
        _mean_gradients_kernel[(programs // (batch * heads), batch * heads, splits)](
            *inputs, *sums, tail.bits, tail.column_offsets, tail.row_indices, scale, *lengths, sums[0].stride(0),
            *strides, *plan_strides(tail.bits[..., 0]), *plan_strides(tail.column_offsets),
            **by_means, **constants,
        )  # fmt: skip
        _query_gradient_kernel[(tail.rows * (tail.block_size // by_queries["QUERIES"]), batch * heads)](
            *inputs, grad_q, tail.bits, tail.row_offsets, tail.word_indices, scale, *lengths,
            *strides, *grad_q.stride()[:3], *plan_strides(tail.bits[..., 0]), *plan_strides(tail.row_offsets),
            **by_queries, **constants,
        )  # fmt: skip
    add_shares(grad_k, grad_v, sums[0].sum(0), sums[1].sum(0), tail)
