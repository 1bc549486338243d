"""The Hopper backward kernels: one for the gradients of k and v, one for that of q.

The mathematics and the per-query terms are those of the portable kernels. As in the forward kernel, two groups of four
warps compute 64 rows of the tile that stays, and one warp loads what passes by. The gradient kernel of k and v
computes transposed logits, keys by queries, so that weights and logit gradients are ready in registers as the left
operands of the two products they enter. Each gradient tile belongs to one program, which adds its parts in a fixed
order: results are deterministic.

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from radial_kernels.block_sparse.hopper.descriptors import BLOCK, describe, describe_tiles
from radial_kernels.block_sparse.hopper.ring import make_barrier, make_ring
from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.backward import row_terms
from radial_kernels.triton_runtime import launching_on


@gluon.jit
def _load_two(
    first_tiles, second_tiles, first_descriptor, second_descriptor, full, block, batch, head, BLOCK: gl.constexpr
):
    """Copy both halves of a block of two tensors."""
    mbarrier.expect(full, 2 * (first_descriptor.block_type.nbytes + second_descriptor.block_type.nbytes))
    for half in gl.static_range(2):
        token = block * BLOCK + half * (BLOCK // 2)
        tma.async_copy_global_to_shared(first_descriptor, [batch, token, head, 0], full, first_tiles.index(half))
        tma.async_copy_global_to_shared(second_descriptor, [batch, token, head, 0], full, second_tiles.index(half))


@gluon.jit
def _load_queries(
    keys, values, queries, grads, terms, key_descriptor, value_descriptor, query_descriptor, grad_descriptor,
    terms_descriptor, keys_full, column_offsets_ptr, row_indices_ptr, column, batch, head, first_term, padded_length,
    BLOCK: gl.constexpr, QUERIES: gl.constexpr,
):  # fmt: skip
    """The loading warp of the k and v kernel: q, dO and both terms of every query tile that attends to the column."""
    TILES: gl.constexpr = BLOCK // QUERIES
    SIZE: gl.constexpr = 2 * (query_descriptor.block_type.nbytes + terms_descriptor.block_type.nbytes)
    _load_two(keys, values, key_descriptor, value_descriptor, keys_full, column, batch, head, BLOCK)
    start = gl.load(column_offsets_ptr + column)
    stop = gl.load(column_offsets_ptr + column + 1)
    steps = (stop - start) * TILES
    row = gl.load(row_indices_ptr + start, mask=start < stop, other=0)
    for step in range(steps):
        first = row * BLOCK + step % TILES * QUERIES
        row = gl.load(row_indices_ptr + start + (step + 1) // TILES, mask=step + 1 < steps, other=0)
        slot = queries.claim(step, SIZE)
        full = queries.full.index(slot)
        tma.async_copy_global_to_shared(query_descriptor, [batch, first, head, 0], full, queries.slots.index(slot))
        for term in gl.static_range(2):
            tma.async_copy_global_to_shared(
                terms_descriptor, [first_term + term * padded_length + first], full, terms.index(2 * slot + term)
            )
        tma.async_copy_global_to_shared(grad_descriptor, [batch, first, head, 0], full, grads.index(slot))


@gluon.jit
def _add_key_gradients(
    HALF: gl.constexpr, keys, values, queries, grads, terms, grad_key_descriptor, grad_value_descriptor, keys_full,
    column_offsets_ptr, column, batch, head, scale,
    BLOCK: gl.constexpr, QUERIES: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    """A computing group of the k and v kernel: 64 keys against all queries that attend to them."""
    KEYS: gl.constexpr = BLOCK // 2
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUERIES, 16])
    GRADIENT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, GRADIENT, 2)
    TERMS: gl.constexpr = gl.SliceLayout(0, LOGITS)
    dtype: gl.constexpr = grad_key_descriptor.dtype
    start = gl.load(column_offsets_ptr + column)
    stop = gl.load(column_offsets_ptr + column + 1)
    scale_log2 = scale * 1.4426950408889634
    nothing = gl.zeros([KEYS, QUERIES], gl.float32, LOGITS)
    grad_key = gl.zeros([KEYS, HEAD_DIM], gl.float32, GRADIENT)
    grad_value = gl.zeros([KEYS, HEAD_DIM], gl.float32, GRADIENT)
    mbarrier.wait(keys_full, 0)
    key = keys.index(HALF).reshape([KEYS, HEAD_DIM])
    value = values.index(HALF).reshape([KEYS, HEAD_DIM])
    for step in range((stop - start) * (BLOCK // QUERIES)):
        slot = step % queries.STAGES
        query = queries.tile(step, QUERIES, HEAD_DIM)
        grad = grads.index(slot).reshape([QUERIES, HEAD_DIM])
        logits = warpgroup_mma(key, query.permute([1, 0]), nothing, use_acc=False, is_async=True)
        grad_weights = warpgroup_mma(value, grad.permute([1, 0]), nothing, use_acc=False, is_async=True)
        lse = terms.index(2 * slot).load(TERMS)
        logits = warpgroup_mma_wait(1, deps=[logits])
        weights = gl.exp2(logits * scale_log2 - lse[None, :])
        operand = gl.convert_layout(weights.to(dtype), OPERAND)
        delta = terms.index(2 * slot + 1).load(TERMS)
        grad_weights = warpgroup_mma_wait(0, deps=[grad_weights])
        grad_value = warpgroup_mma(operand, grad, grad_value, is_async=True)
        grad_logits = weights * (grad_weights - delta[None, :])
        operand = gl.convert_layout(grad_logits.to(dtype), OPERAND)
        grad_key = warpgroup_mma(operand, query, grad_key, is_async=True)
        grad_value, grad_key = warpgroup_mma_wait(0, deps=[grad_value, grad_key])
        queries.release(step)
    # The tiles leave through the shared memory of k and v.
    key.store((grad_key * scale).to(dtype))
    value.store(grad_value.to(dtype))
    fence_async_shared()
    first = column * BLOCK + HALF * KEYS
    tma.async_copy_shared_to_global(grad_key_descriptor, [batch, first, head, 0], keys.index(HALF))
    tma.async_copy_shared_to_global(grad_value_descriptor, [batch, first, head, 0], values.index(HALF))
    tma.store_wait(0)


@gluon.jit
def _key_gradients_kernel(
    query_descriptor, key_descriptor, value_descriptor, grad_descriptor, terms_descriptor, grad_key_descriptor,
    grad_value_descriptor, column_offsets_ptr, row_indices_ptr, column_order_ptr, scale, padded_length,
    offsets_batch_stride, offsets_head_stride,
    HEADS: gl.constexpr, BLOCK: gl.constexpr, QUERIES: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    column = gl.program_id(0)
    if column_order_ptr is not None:
        column = gl.load(column_order_ptr + column)
    batch = gl.program_id(1) // HEADS
    head = gl.program_id(1) % HEADS
    column_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    keys = gl.allocate_shared_memory(key_descriptor.dtype, [2] + key_descriptor.block_shape, key_descriptor.layout)
    values = gl.allocate_shared_memory(
        value_descriptor.dtype, [2] + value_descriptor.block_shape, value_descriptor.layout
    )
    grads = gl.allocate_shared_memory(
        grad_descriptor.dtype, [STAGES] + grad_descriptor.block_shape, grad_descriptor.layout
    )
    terms = gl.allocate_shared_memory(
        terms_descriptor.dtype, [2 * STAGES] + terms_descriptor.block_shape, terms_descriptor.layout
    )
    keys_full = make_barrier()
    queries = make_ring(query_descriptor, STAGES, 2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_add_key_gradients, (
                0, keys, values, queries, grads, terms, grad_key_descriptor, grad_value_descriptor, keys_full,
                column_offsets_ptr, column, batch, head, scale, BLOCK, QUERIES, HEAD_DIM,
            )),
            (_add_key_gradients, (
                1, keys, values, queries, grads, terms, grad_key_descriptor, grad_value_descriptor, keys_full,
                column_offsets_ptr, column, batch, head, scale, BLOCK, QUERIES, HEAD_DIM,
            )),
            (_load_queries, (
                keys, values, queries, grads, terms, key_descriptor, value_descriptor, query_descriptor,
                grad_descriptor, terms_descriptor, keys_full, column_offsets_ptr, row_indices_ptr, column, batch, head,
                gl.program_id(1) * 2 * padded_length, padded_length, BLOCK, QUERIES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


@gluon.jit
def _load_keys(
    queries, grads, keys, values, query_descriptor, grad_descriptor, key_descriptor, value_descriptor, queries_full,
    row_offsets_ptr, column_indices_ptr, row, batch, head, BLOCK: gl.constexpr,
):  # fmt: skip
    """The loading warp of the q kernel: the key and value blocks of the row."""
    _load_two(queries, grads, query_descriptor, grad_descriptor, queries_full, row, batch, head, BLOCK)
    start = gl.load(row_offsets_ptr + row)
    stop = gl.load(row_offsets_ptr + row + 1)
    block = gl.load(column_indices_ptr + start, mask=start < stop, other=0)
    for step in range(stop - start):
        first = block * BLOCK
        block = gl.load(column_indices_ptr + start + step + 1, mask=start + step + 1 < stop, other=0)
        keys.fill(step, key_descriptor, [batch, first, head, 0])
        values.fill(step, value_descriptor, [batch, first, head, 0])


@gluon.jit
def _add_query_gradient(
    HALF: gl.constexpr, queries, grads, keys, values, grad_query_descriptor, terms_ptr, queries_full,
    row_offsets_ptr, row, batch, head, scale, padded_length, BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    """A computing group of the q kernel: 64 queries against all their keys. Keys past the end are zeros."""
    QUERIES: gl.constexpr = BLOCK // 2
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    GRADIENT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, GRADIENT, 2)
    dtype: gl.constexpr = grad_query_descriptor.dtype
    start = gl.load(row_offsets_ptr + row)
    stop = gl.load(row_offsets_ptr + row + 1)
    scale_log2 = scale * 1.4426950408889634
    first = row * BLOCK + HALF * QUERIES
    positions = first + gl.arange(0, QUERIES, gl.SliceLayout(1, LOGITS))
    lse = gl.load(terms_ptr + positions)
    delta = gl.load(terms_ptr + padded_length + positions)
    nothing = gl.zeros([QUERIES, BLOCK], gl.float32, LOGITS)
    grad_query = gl.zeros([QUERIES, HEAD_DIM], gl.float32, GRADIENT)
    mbarrier.wait(queries_full, 0)
    query = queries.index(HALF).reshape([QUERIES, HEAD_DIM])
    grad = grads.index(HALF).reshape([QUERIES, HEAD_DIM])
    for step in range(stop - start):
        key = keys.tile(step, BLOCK, HEAD_DIM)
        logits = warpgroup_mma(query, key.permute([1, 0]), nothing, use_acc=False, is_async=True)
        value = values.tile(step, BLOCK, HEAD_DIM)
        grad_weights = warpgroup_mma(grad, value.permute([1, 0]), nothing, use_acc=False, is_async=True)
        logits = warpgroup_mma_wait(1, deps=[logits])
        weights = gl.exp2(logits * scale_log2 - lse[:, None])
        grad_weights = warpgroup_mma_wait(0, deps=[grad_weights])
        values.release(step)
        grad_logits = weights * (grad_weights - delta[:, None])
        operand = gl.convert_layout(grad_logits.to(dtype), OPERAND)
        grad_query = warpgroup_mma(operand, key, grad_query, is_async=True)
        grad_query = warpgroup_mma_wait(0, deps=[grad_query])
        keys.release(step)
    query.store((grad_query * scale).to(dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(grad_query_descriptor, [batch, first, head, 0], queries.index(HALF))
    tma.store_wait(0)


@gluon.jit
def _query_gradient_kernel(
    query_descriptor, key_descriptor, value_descriptor, grad_descriptor, grad_query_descriptor, terms_ptr,
    row_offsets_ptr, column_indices_ptr, scale, padded_length, offsets_batch_stride, offsets_head_stride,
    HEADS: gl.constexpr, BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    row = gl.program_id(0)
    batch = gl.program_id(1) // HEADS
    head = gl.program_id(1) % HEADS
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    terms_ptr += gl.program_id(1).to(gl.int64) * 2 * padded_length
    queries = gl.allocate_shared_memory(
        query_descriptor.dtype, [2] + query_descriptor.block_shape, query_descriptor.layout
    )
    grads = gl.allocate_shared_memory(grad_descriptor.dtype, [2] + grad_descriptor.block_shape, grad_descriptor.layout)
    queries_full = make_barrier()
    keys = make_ring(key_descriptor, STAGES, 2)
    values = make_ring(value_descriptor, STAGES, 2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_add_query_gradient, (
                0, queries, grads, keys, values, grad_query_descriptor, terms_ptr, queries_full, row_offsets_ptr, row,
                batch, head, scale, padded_length, BLOCK, HEAD_DIM,
            )),
            (_add_query_gradient, (
                1, queries, grads, keys, values, grad_query_descriptor, terms_ptr, queries_full, row_offsets_ptr, row,
                batch, head, scale, padded_length, BLOCK, HEAD_DIM,
            )),
            (_load_keys, (
                queries, grads, keys, values, query_descriptor, grad_descriptor, key_descriptor, value_descriptor,
                queries_full, row_offsets_ptr, column_indices_ptr, row, batch, head, BLOCK,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


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
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    batch, _, heads, head_dim = q_BSHD.shape
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BSHD, k_BTHD, v_BTHD))
    terms = row_terms(output_BSHD, grad_BSHD, lse_BHS, grad_lse_BHS)
    padded_length, half, queries = terms.shape[-1], BLOCK // 2, 64
    columns, rows = column_offsets.shape[-1] - 1, row_offsets.shape[-1] - 1
    constants = {"HEADS": heads, "BLOCK": BLOCK, "HEAD_DIM": head_dim, "num_warps": 4, "maxnreg": 168}
    with launching_on(q_BSHD):
        _key_gradients_kernel[(columns, batch * heads)](
            describe(q_BSHD, queries), describe(k_BTHD, half), describe(v_BTHD, half), describe(grad_BSHD, queries),
            describe_tiles(terms.flatten(), [queries]), describe(grad_k, half), describe(grad_v, half),
            column_offsets, row_indices, column_order, scale, padded_length, *plan_strides(column_offsets),
            QUERIES=queries, STAGES=3, **constants,
        )  # fmt: skip
        _query_gradient_kernel[(rows, batch * heads)](
            describe(q_BSHD, half), describe(k_BTHD, BLOCK), describe(v_BTHD, BLOCK), describe(grad_BSHD, half),
            describe(grad_q, half), terms, row_offsets, column_indices, scale, padded_length,
            *plan_strides(row_offsets), STAGES=2, **constants,
        )  # fmt: skip
    return grad_q, grad_k, grad_v
