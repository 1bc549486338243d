"""The portable Triton backward kernels: one for the gradients of k and v, one for that of q.

Both recompute the weights from q, k and the log-sum-exp of the forward pass, exactly as it computed them. Every
gradient tile belongs to one program, which adds its parts in a fixed order: results are deterministic. Columns are
taken longest first where the plan gives such an order, since every row attends to the first frame.

With weights P = exp(q k' * scale - lse) and D = rowsum(dO * O) - dlse:
    dV = P' dO,  dP = dO V',  dS = P * (dP - D),  dQ = dS K * scale,  dK = dS' Q * scale

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.configurations import Tiles, choose_tiles
from radial_kernels.block_sparse.portable.tiles import describe_head, descriptors_fit, head_block, load_tile, store_tile
from radial_kernels.triton_runtime import launching_on


@triton.jit
def _row_terms_kernel(
    output_ptr, grad_ptr, lse_ptr, grad_lse_ptr, terms_ptr, query_length, padded_length,
    output_batch_stride, output_stride, output_head_stride,
    grad_batch_stride, grad_stride, grad_head_stride,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
):  # fmt: skip
    """Per query: its log-sum-exp in base 2 (plus infinity past the end, so that weights vanish there), and D."""
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    first = tl.program_id(0) * QUERIES
    output_ptr += batch * output_batch_stride + head * output_head_stride
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    output = load_tile(None, output_ptr, first, query_length, output_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    grad = load_tile(None, grad_ptr, first, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    positions = first + tl.arange(0, QUERIES)
    inside = positions < query_length
    row = tl.program_id(1).to(tl.int64)
    lse = tl.load(lse_ptr + row * query_length + positions, mask=inside, other=float("inf"))
    delta = tl.sum(output.to(tl.float32) * grad.to(tl.float32), 1)
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + row * query_length + positions, mask=inside, other=0.0)
    terms_ptr += row * 2 * padded_length + positions
    tl.store(terms_ptr, lse * 1.4426950408889634, mask=positions < padded_length)
    tl.store(terms_ptr + padded_length, delta, mask=positions < padded_length)


@triton.jit
def _key_gradients_kernel(
    query_ptr, key_ptr, value_ptr, grad_ptr, terms_ptr, grad_key_ptr, grad_value_ptr,
    column_offsets_ptr, row_indices_ptr, column_order_ptr, scale, query_length, key_length, padded_length,
    query_batch_stride, query_stride, query_head_stride,
    key_batch_stride, key_stride, key_head_stride,
    value_batch_stride, value_stride, value_head_stride,
    grad_batch_stride, grad_stride, grad_head_stride,
    grad_key_batch_stride, grad_key_stride, grad_key_head_stride,
    offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one head against all queries that attend to it."""
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES
    KEY_TILES: tl.constexpr = BLOCK // KEYS
    column = tl.program_id(0) // KEY_TILES
    if column_order_ptr is not None:
        column = tl.load(column_order_ptr + column)
    first_key = column * BLOCK + tl.program_id(0) % KEY_TILES * KEYS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    grad_key_ptr += batch * grad_key_batch_stride + head * grad_key_head_stride
    grad_value_ptr += batch * grad_key_batch_stride + head * grad_key_head_stride
    column_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    terms_ptr += tl.program_id(1).to(tl.int64) * 2 * padded_length
    queries = describe_head(query_ptr, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    grads = describe_head(grad_ptr, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)

    key = load_tile(None, key_ptr, first_key, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, False)
    value = load_tile(None, value_ptr, first_key, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, False)
    grad_key = tl.zeros([KEYS, HEAD_BLOCK], tl.float32)
    grad_value = tl.zeros([KEYS, HEAD_BLOCK], tl.float32)
    start = tl.load(column_offsets_ptr + column)
    stop = tl.load(column_offsets_ptr + column + 1)
    for step in tl.range(0, (stop - start) * QUERY_TILES):
        first = tl.load(row_indices_ptr + start + step // QUERY_TILES) * BLOCK + step % QUERY_TILES * QUERIES
        query = load_tile(
            queries, query_ptr, first, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        grad = load_tile(
            grads, grad_ptr, first, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        positions = first + tl.arange(0, QUERIES)
        lse = tl.load(terms_ptr + positions)
        delta = tl.load(terms_ptr + padded_length + positions)
        logits = tl.dot(key, query.T, input_precision=PRECISION)
        weights = tl.math.exp2(logits * (scale * 1.4426950408889634) - lse[None, :])
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision=PRECISION)
        grad_weights = tl.dot(value, grad.T, input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[None, :])
        grad_key = tl.dot(grad_logits.to(query.dtype), query, grad_key, input_precision=PRECISION)

    store_tile(grad_key_ptr, grad_key * scale, first_key, key_length, grad_key_stride, KEYS, HEAD_DIM, HEAD_BLOCK)
    store_tile(grad_value_ptr, grad_value, first_key, key_length, grad_key_stride, KEYS, HEAD_DIM, HEAD_BLOCK)


@triton.jit
def _query_gradient_kernel(
    query_ptr, key_ptr, value_ptr, grad_ptr, terms_ptr, grad_query_ptr,
    row_offsets_ptr, column_indices_ptr, scale, query_length, key_length, padded_length,
    query_batch_stride, query_stride, query_head_stride,
    key_batch_stride, key_stride, key_head_stride,
    value_batch_stride, value_stride, value_head_stride,
    grad_batch_stride, grad_stride, grad_head_stride,
    grad_query_batch_stride, grad_query_stride, grad_query_head_stride,
    offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all its keys. Keys past the end are zeros and add nothing."""
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES
    KEY_TILES: tl.constexpr = BLOCK // KEYS
    row = tl.program_id(0) // QUERY_TILES
    first_query = row * BLOCK + tl.program_id(0) % QUERY_TILES * QUERIES
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    grad_ptr += batch * grad_batch_stride + head * grad_head_stride
    grad_query_ptr += batch * grad_query_batch_stride + head * grad_query_head_stride
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    terms_ptr += tl.program_id(1).to(tl.int64) * 2 * padded_length
    keys = describe_head(key_ptr, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
    values = describe_head(value_ptr, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)

    query = load_tile(None, query_ptr, first_query, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    grad = load_tile(None, grad_ptr, first_query, query_length, grad_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    positions = first_query + tl.arange(0, QUERIES)
    lse = tl.load(terms_ptr + positions)
    delta = tl.load(terms_ptr + padded_length + positions)
    grad_query = tl.zeros([QUERIES, HEAD_BLOCK], tl.float32)
    start = tl.load(row_offsets_ptr + row)
    stop = tl.load(row_offsets_ptr + row + 1)
    for step in tl.range(0, (stop - start) * KEY_TILES):
        first = tl.load(column_indices_ptr + start + step // KEY_TILES) * BLOCK + step % KEY_TILES * KEYS
        key = load_tile(keys, key_ptr, first, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS)
        value = load_tile(
            values, value_ptr, first, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        logits = tl.dot(query, key.T, input_precision=PRECISION)
        weights = tl.math.exp2(logits * (scale * 1.4426950408889634) - lse[:, None])
        grad_weights = tl.dot(grad, value.T, input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[:, None])
        grad_query = tl.dot(grad_logits.to(key.dtype), key, grad_query, input_precision=PRECISION)

    store_tile(
        grad_query_ptr, grad_query * scale, first_query, query_length, grad_query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK
    )


def row_terms(output_BSHD: Tensor, grad_BSHD: Tensor, lse_BHS: Tensor, grad_lse_BHS: Tensor | None) -> Tensor:
    """What a backward kernel needs of every query: ``[B, H, 2, padded S]``, log-sum-exp in base 2 and D."""
    batch, query_length, heads, head_dim = output_BSHD.shape
    padded = -(-query_length // 256) * 256
    terms = torch.empty((batch, heads, 2, padded), device=output_BSHD.device)
    with launching_on(output_BSHD):
        _row_terms_kernel[(padded // 64, batch * heads)](
            output_BSHD, grad_BSHD, lse_BHS, grad_lse_BHS, terms, query_length, padded,
            *output_BSHD.stride()[:3], *grad_BSHD.stride()[:3],
            HEADS=heads, QUERIES=64, HEAD_DIM=head_dim, HEAD_BLOCK=head_block(head_dim), num_warps=4,
        )  # fmt: skip
    return terms


def gradients(
    grad_BSHD: Tensor,
    grad_lse_BHS: Tensor | None,
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    output_BSHD: Tensor,
    lse_BHS: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    column_offsets: Tensor,
    row_indices: Tensor,
    column_order: Tensor | None,
    block_size: int,
    scale: float,
    *,
    tiles: Tiles | None = None,
    use_descriptors: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. ``tiles`` and ``use_descriptors`` exist for measuring."""
    batch, query_length, heads, head_dim = q_BSHD.shape
    key_length = k_BTHD.shape[1]
    tiles = tiles or choose_tiles("backward", q_BSHD, block_size)
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BSHD, k_BTHD, v_BTHD))
    if use_descriptors is None:
        use_descriptors = descriptors_fit(q_BSHD, k_BTHD, v_BTHD, grad_BSHD)
    terms = row_terms(output_BSHD, grad_BSHD, lse_BHS, grad_lse_BHS)
    inputs = (q_BSHD, k_BTHD, v_BTHD, grad_BSHD, terms)
    lengths = (query_length, key_length, terms.shape[-1])
    strides = [stride for x in (q_BSHD, k_BTHD, v_BTHD, grad_BSHD) for stride in x.stride()[:3]]
    constants = {
        "HEADS": heads,
        "BLOCK": block_size,
        "HEAD_DIM": head_dim,
        "HEAD_BLOCK": head_block(head_dim),
        "USE_DESCRIPTORS": use_descriptors,
        "PRECISION": "ieee" if q_BSHD.dtype == torch.float32 else "tf32",
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    rows, columns = row_offsets.shape[-1] - 1, column_offsets.shape[-1] - 1
    with launching_on(q_BSHD):
        _key_gradients_kernel[(columns * (block_size // tiles.keys), batch * heads)](
            *inputs, grad_k, grad_v, column_offsets, row_indices, column_order, scale, *lengths,
            *strides, *grad_k.stride()[:3], *plan_strides(column_offsets),
            QUERIES=tiles.queries, KEYS=tiles.keys, **constants,
        )  # fmt: skip
        # Here the tile that stays is of queries, so the sizes change places.
        _query_gradient_kernel[(rows * (block_size // tiles.keys), batch * heads)](
            *inputs, grad_q, row_offsets, column_indices, scale, *lengths,
            *strides, *grad_q.stride()[:3], *plan_strides(row_offsets),
            QUERIES=tiles.keys, KEYS=tiles.queries, **constants,
        )  # fmt: skip
    return grad_q, grad_k, grad_v
