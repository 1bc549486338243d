"""The Hopper forward kernel: one program computes one block of 128 queries of one head.

Nine warps work in it: two groups of four compute 64 queries each, and one warp keeps the copy engine busy with the key
and value blocks of the row's list. In a step a group starts the next block's logits and this block's weighted values
together, and computes the softmax of the former while the latter runs. A row starts with its last key block, because
only that one can reach beyond its last key; the loop over the others needs no mask.

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

from radial_kernels.block_sparse.hopper.descriptors import BLOCK, describe
from radial_kernels.block_sparse.hopper.ring import make_barrier, make_ring
from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.tiles import LOG2_E
from radial_kernels.triton_runtime import launching_on


@gluon.jit
def load_row(
    queries, keys, values, query_descriptor, key_descriptor, value_descriptor, queries_full,
    row_offsets_ptr, column_indices_ptr, row, batch, head,
    BLOCK: gl.constexpr, TOKENS_INNERMOST: gl.constexpr = False,
):  # fmt: skip
    """The loading warp: both query tiles, then the key and value blocks of the row, its last one first.

    ``TOKENS_INNERMOST`` says how values lie in memory: 8-bit ones are transposed.
    """
    mbarrier.expect(queries_full, 2 * query_descriptor.block_type.nbytes)
    for half in gl.static_range(2):
        first = row * BLOCK + half * (BLOCK // 2)
        tma.async_copy_global_to_shared(query_descriptor, [batch, first, head, 0], queries_full, queries.index(half))
    start = gl.load(row_offsets_ptr + row)
    stop = gl.load(row_offsets_ptr + row + 1)
    # A row without keys loads block 0 and masks all of it.
    block = gl.load(column_indices_ptr + stop - 1, mask=start < stop, other=0)
    count = gl.maximum(stop - start, 1)
    for step in range(count):
        first = block * BLOCK
        # Fetched a step ahead, so that the copies never wait for an index.
        block = gl.load(column_indices_ptr + start + step, mask=step + 1 < count, other=0)
        keys.fill(step, key_descriptor, [batch, first, head, 0])
        if TOKENS_INNERMOST:
            values.fill(step, value_descriptor, [batch, head, 0, first])
        else:
            values.fill(step, value_descriptor, [batch, first, head, 0])


@gluon.jit
def _add_own_columns(weights, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Partial row sums ``[ROWS, 4]``: each thread adds the columns 8j + 2t and 8j + 2t + 1 that it holds.

    The four threads of a row are added once, after the loop, which spares shuffles inside it.
    """
    return gl.sum(gl.sum(weights.reshape([ROWS, COLUMNS // 8, 4, 2]), 3), 1)


@gluon.jit
def _finish_before_waiting(x):
    """x as it is, computed before the wait that comes next.

    The assembler would put a softmax off until after the wait for the product that should run beside it. It does not
    move a wait across a sleep, and this one never happens: only numbers below -1 would bring it on, and x has none.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .pred negative;
        setp.lt.f32 negative, $1, 0fBF800000;
        @negative nanosleep.u32 0;
        mov.b32 $0, $1;
        }""",
        "=r,r",
        [x],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _attend(
    HALF: gl.constexpr, queries, keys, values, output_descriptor, lse_ptr, queries_full,
    row_offsets_ptr, column_indices_ptr, key_ends_ptr, row, batch, head, scale_log2, query_length, key_length,
    BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    """A computing group: 64 queries against all blocks of the row."""
    QUERIES: gl.constexpr = BLOCK // 2
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    ROWS: gl.constexpr = gl.SliceLayout(1, LOGITS)
    OUTPUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)
    dtype: gl.constexpr = output_descriptor.dtype
    start = gl.load(row_offsets_ptr + row)
    stop = gl.load(row_offsets_ptr + row + 1)
    last_block = gl.load(column_indices_ptr + stop - 1, mask=start < stop, other=0)
    key_end = key_length
    if key_ends_ptr is not None:
        key_end = gl.load(key_ends_ptr + row)
    keys_left = gl.where(start < stop, key_end - last_block * BLOCK, 0)
    count = gl.maximum(stop - start, 1)

    nothing = gl.zeros([QUERIES, BLOCK], gl.float32, LOGITS)
    accumulated = gl.zeros([QUERIES, HEAD_DIM], gl.float32, OUTPUT)
    mbarrier.wait(queries_full, 0)
    query = queries.index(HALF).reshape([QUERIES, HEAD_DIM])

    key = keys.tile(0, BLOCK, HEAD_DIM)
    logits = warpgroup_mma(query, key.permute([1, 0]), nothing, use_acc=False, is_async=True)
    logits = warpgroup_mma_wait(0, deps=[logits])
    keys.release(0)
    columns = gl.arange(0, BLOCK, gl.SliceLayout(0, LOGITS))
    logits = gl.where((columns < keys_left)[None, :], logits, float("-inf"))
    running_max = gl.max(logits, 1) * scale_log2
    finite_max = gl.where(running_max == float("-inf"), 0.0, running_max)
    weights = gl.exp2(logits * scale_log2 - finite_max[:, None])
    sums = _add_own_columns(weights, QUERIES, BLOCK)
    SUM_ROWS: gl.constexpr = gl.SliceLayout(1, sums.type.layout)
    operand = gl.convert_layout(weights.to(dtype), OPERAND)

    for step in range(1, count):
        key = keys.tile(step, BLOCK, HEAD_DIM)
        next_logits = warpgroup_mma(query, key.permute([1, 0]), nothing, use_acc=False, is_async=True)
        value = values.tile(step - 1, BLOCK, HEAD_DIM)
        running = warpgroup_mma(operand, value, accumulated, is_async=True)
        logits = warpgroup_mma_wait(1, deps=[next_logits])
        keys.release(step)
        new_max = gl.maximum(running_max, gl.max(logits, 1) * scale_log2)
        weights = gl.exp2(logits * scale_log2 - new_max[:, None])
        correction = gl.exp2(running_max - new_max)
        running_max = new_max
        sums = sums * gl.convert_layout(correction, SUM_ROWS)[:, None] + _add_own_columns(weights, QUERIES, BLOCK)
        if HEAD_DIM == 64:  # at 128 the matrix unit is the bottleneck whatever the order, and this one is slower
            sums = _finish_before_waiting(sums)
        accumulated = warpgroup_mma_wait(0, deps=[running])
        values.release(step - 1)
        accumulated = accumulated * gl.convert_layout(correction, OUTPUT_ROWS)[:, None]
        operand = gl.convert_layout(weights.to(dtype), OPERAND)

    value = values.tile(count - 1, BLOCK, HEAD_DIM)
    accumulated = warpgroup_mma(operand, value, accumulated, is_async=True)
    accumulated = warpgroup_mma_wait(0, deps=[accumulated])
    total = gl.convert_layout(gl.sum(sums, 1), ROWS)
    divisor = gl.where(total > 0, total, 1.0)
    output = accumulated / gl.convert_layout(divisor, OUTPUT_ROWS)[:, None]
    # The tile leaves through the shared memory of the queries, which are done with; the copy stops at the last one.
    query.store(output.to(dtype))
    fence_async_shared()
    first = row * BLOCK + HALF * QUERIES
    tma.async_copy_shared_to_global(output_descriptor, [batch, first, head, 0], queries.index(HALF))
    if lse_ptr is not None:
        positions = first + gl.arange(0, QUERIES, ROWS)
        lse = running_max * 0.6931471805599453 + gl.log(divisor)
        gl.store(lse_ptr + positions, lse, mask=positions < query_length)
    tma.store_wait(0)


@gluon.jit
def _forward_kernel(
    query_descriptor, key_descriptor, value_descriptor, output_descriptor, lse_ptr,
    row_offsets_ptr, column_indices_ptr, key_ends_ptr, scale_log2, query_length, key_length,
    offsets_batch_stride, offsets_head_stride,
    HEADS: gl.constexpr, BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    # Rows run fastest, so that the programs alive at one time share one head's keys in the cache.
    row = gl.program_id(0)
    batch = gl.program_id(1) // HEADS
    head = gl.program_id(1) % HEADS
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    if lse_ptr is not None:
        lse_ptr += gl.program_id(1).to(gl.int64) * query_length
    queries = gl.allocate_shared_memory(
        query_descriptor.dtype, [2] + query_descriptor.block_shape, query_descriptor.layout
    )
    queries_full = make_barrier()
    keys = make_ring(key_descriptor, STAGES, 2)
    values = make_ring(value_descriptor, STAGES, 2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_attend, (
                0, queries, keys, values, output_descriptor, lse_ptr, queries_full, row_offsets_ptr, column_indices_ptr,
                key_ends_ptr, row, batch, head, scale_log2, query_length, key_length, BLOCK, HEAD_DIM,
            )),
            (_attend, (
                1, queries, keys, values, output_descriptor, lse_ptr, queries_full, row_offsets_ptr, column_indices_ptr,
                key_ends_ptr, row, batch, head, scale_log2, query_length, key_length, BLOCK, HEAD_DIM,
            )),
            (load_row, (
                queries, keys, values, query_descriptor, key_descriptor, value_descriptor, queries_full,
                row_offsets_ptr, column_indices_ptr, row, batch, head, BLOCK,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def attention(
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    scale: float,
    *,
    with_lse: bool = False,
    key_ends: Tensor | None = None,
    num_stages: int = 3,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel: outputs ``[B, S, H, D]`` and, when asked for, log-sum-exps ``[B, H, S]`` (else empty)."""
    batch, query_length, heads, head_dim = q_BSHD.shape
    output = torch.empty((batch, query_length, heads, head_dim), dtype=q_BSHD.dtype, device=q_BSHD.device)
    lse_BHS = torch.empty((batch, heads, query_length) if with_lse else (0,), device=q_BSHD.device)
    with launching_on(q_BSHD):
        _forward_kernel[(row_offsets.shape[-1] - 1, batch * heads)](
            describe(q_BSHD, BLOCK // 2), describe(k_BTHD, BLOCK), describe(v_BTHD, BLOCK),
            describe(output, BLOCK // 2), lse_BHS if with_lse else None, row_offsets, column_indices, key_ends,
            scale * LOG2_E, query_length, k_BTHD.shape[1], *plan_strides(row_offsets),
            HEADS=heads, BLOCK=BLOCK, HEAD_DIM=head_dim, STAGES=num_stages,
            num_warps=4, maxnreg=168,
        )  # fmt: skip
    return output, lse_BHS
