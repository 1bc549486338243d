"""The Hopper 8-bit forward kernel: int8 logits and e4m3 weighted values, with the roles of the forward kernel.

With products twice as fast, the softmax is what takes time, so its instructions are counted. Whole-number logits
become floats without a conversion: added to the bits of 1.5 * 2^23 they are that float plus themselves. Weights go
from the layout of a result to that of an 8-bit operand without leaving their thread, because values are stored with
the tokens of every 16 in the order in which a thread holds their weights. They are scaled by 256 before they are
rounded to e4m3. Each product of weights and values starts from zero and is added in full precision: the matrix unit
keeps only about 14 bits of an 8-bit sum.

Shapes: B batch, S query length, T key length, H heads, D head dim, P key length up to a whole block.
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
from radial_kernels.block_sparse.hopper.forward import load_row
from radial_kernels.block_sparse.hopper.ring import make_barrier, make_ring
from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.eight_bit import unsmooth
from radial_kernels.block_sparse.portable.quantise import quantise_logits, quantise_values
from radial_kernels.block_sparse.portable.tiles import LOG2_E
from radial_kernels.triton_runtime import launching_on


@gluon.jit
def _exponentiate(exponents, QUERIES: gl.constexpr, KEYS: gl.constexpr):
    """Weights in four tensors ``[QUERIES, KEYS / 4]``, of what will be the four bytes of a word.

    A thread holds keys 8b + 2t + r of every 16, and as an operand must hold 4t + 2b + r: word 4a + t takes the four
    that thread t has of group a. POLYNOMIALS of the four leave the exponential unit, which is the bottleneck, to the
    multipliers.
    """
    grouped = exponents.reshape([QUERIES, KEYS // 16, 2, 4, 2]).permute([0, 1, 3, 2, 4])
    even, odd = gl.split(grouped.reshape([QUERIES, KEYS // 4, 2, 2]))
    first, third = gl.split(even)
    second, fourth = gl.split(odd)
    return gl.exp2(first), gl.exp2(second), gl.exp2(third), gl.exp2(fourth)


@gluon.jit
def _add_words(first, second, third, fourth, QUERIES: gl.constexpr, KEYS: gl.constexpr):
    """Partial row sums ``[QUERIES, 4]``, one a thread."""
    return gl.sum(((first + second) + (third + fourth)).reshape([QUERIES, KEYS // 16, 4]), 1)


@gluon.jit
def _pack(first, second, third, fourth):
    """Weights in e4m3, four to a word: ``[QUERIES, KEYS / 4]``.

    Words, not bytes, are carried from step to step, because the compiler would keep every byte in a register of its
    own.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high};
        }""",
        "=r,r,r,r,r",
        [first, second, third, fourth],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _to_operand(words, QUERIES: gl.constexpr, KEYS: gl.constexpr, LAYOUT: gl.constexpr):
    """The packed weights as the left operand of an 8-bit product; nothing moves."""
    spread = gl.join(gl.join(words, words), gl.join(words, words)).reshape([QUERIES, KEYS])
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;",
        "=r,r,r,r,r",
        [gl.convert_layout(spread, LAYOUT)],
        dtype=gl.float8e4nv,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def _attend(
    HALF: gl.constexpr, queries, keys, values, outputs, output_descriptor, lse_ptr, queries_full, query_scale_ptr,
    key_scale_ptr, value_shift_ptr, value_scale_ptr, row_offsets_ptr, column_indices_ptr, row, batch, head, scale_log2,
    query_length, key_length, BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr,
):  # fmt: skip
    """A computing group: 64 queries against all blocks of the row."""
    QUERIES: gl.constexpr = BLOCK // 2
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 32])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 32])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 4)
    ROWS: gl.constexpr = gl.SliceLayout(1, LOGITS)
    OUTPUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)
    MAGIC: gl.constexpr = 12582912.0  # 1.5 * 2^23, whose bits are 0x4B400000
    start = gl.load(row_offsets_ptr + row)
    stop = gl.load(row_offsets_ptr + row + 1)
    last_block = gl.load(column_indices_ptr + stop - 1, mask=start < stop, other=0)
    keys_left = gl.where(start < stop, key_length - last_block * BLOCK, 0)
    count = gl.maximum(stop - start, 1)
    query_scale = gl.load(query_scale_ptr + row) * scale_log2
    factor = query_scale * gl.load(key_scale_ptr + last_block)
    next_block = gl.load(column_indices_ptr + start, mask=count > 1, other=0)
    next_factor = query_scale * gl.load(key_scale_ptr + next_block)
    # Weights are scaled by 256, which e4m3 holds, and by what their block of values is worth.
    shift = gl.load(value_shift_ptr + last_block) + 8.0
    next_shift = gl.load(value_shift_ptr + next_block) + 8.0

    no_logits = gl.zeros([QUERIES, BLOCK], gl.int32, LOGITS)
    no_output = gl.zeros([QUERIES, HEAD_DIM], gl.float32, OUTPUT)
    mbarrier.wait(queries_full, 0)
    query = queries.index(HALF).reshape([QUERIES, HEAD_DIM])

    key = keys.tile(0, BLOCK, HEAD_DIM)
    wholes = warpgroup_mma(query, key.permute([1, 0]), no_logits, use_acc=False, is_async=True)
    wholes = warpgroup_mma_wait(0, deps=[wholes])
    keys.release(0)
    columns = gl.arange(0, BLOCK, gl.SliceLayout(0, LOGITS))
    logits = gl.where((columns < keys_left)[None, :], wholes.to(gl.float32), float("-inf"))
    running_max = gl.max(logits, 1) * factor
    finite_max = gl.where(running_max == float("-inf"), 0.0, running_max)
    first, second, third, fourth = _exponentiate(logits * factor - (finite_max - shift)[:, None], QUERIES, BLOCK)
    sums = _add_words(first, second, third, fourth, QUERIES, BLOCK) * gl.exp2(-shift)
    SUM_ROWS: gl.constexpr = gl.SliceLayout(1, sums.type.layout)
    packed = _pack(first, second, third, fourth)
    accumulated = no_output
    correction = gl.full([QUERIES], 1.0, gl.float32, ROWS)

    for step in range(1, count):
        factor = next_factor
        next_block = gl.load(column_indices_ptr + start + step, mask=step + 1 < count, other=0)
        next_factor = query_scale * gl.load(key_scale_ptr + next_block)
        shift = next_shift
        next_shift = gl.load(value_shift_ptr + next_block) + 8.0
        key = keys.tile(step, BLOCK, HEAD_DIM)
        next_wholes = warpgroup_mma(query, key.permute([1, 0]), no_logits, use_acc=False, is_async=True)
        operand = _to_operand(packed, QUERIES, BLOCK, OPERAND)
        value = values.tile(step - 1, HEAD_DIM, BLOCK)
        next_part = warpgroup_mma(operand, value.permute([1, 0]), no_output, use_acc=False, is_async=True)
        wholes = warpgroup_mma_wait(1, deps=[next_wholes])
        keys.release(step)
        shifted = (wholes + 0x4B400000).to(gl.float32, bitcast=True)
        new_max = gl.maximum(running_max, (gl.max(shifted, 1) - MAGIC) * factor)
        exponents = shifted * factor - (new_max + (MAGIC * factor - shift))[:, None]
        first, second, third, fourth = _exponentiate(exponents, QUERIES, BLOCK)
        new_correction = gl.exp2(running_max - new_max)
        running_max = new_max
        sums = sums * gl.convert_layout(new_correction, SUM_ROWS)[:, None]
        sums += _add_words(first, second, third, fourth, QUERIES, BLOCK) * gl.exp2(-shift)
        part = warpgroup_mma_wait(0, deps=[next_part])
        values.release(step - 1)
        accumulated = accumulated * gl.convert_layout(correction, OUTPUT_ROWS)[:, None] + part
        correction = new_correction
        # Not before the wait: the product under way reads the old words, and would be waited for at every turn.
        packed = _pack(first, second, third, fourth)

    operand = _to_operand(packed, QUERIES, BLOCK, OPERAND)
    value = values.tile(count - 1, HEAD_DIM, BLOCK)
    part = warpgroup_mma(operand, value.permute([1, 0]), no_output, use_acc=False, is_async=True)
    part = warpgroup_mma_wait(0, deps=[part])
    accumulated = accumulated * gl.convert_layout(correction, OUTPUT_ROWS)[:, None] + part
    total = gl.convert_layout(gl.sum(sums, 1), ROWS)
    divisor = gl.where(total > 0, total, 1.0)
    # What is left of the scale of 256, which the sums no longer have.
    factor = gl.load(value_scale_ptr) / 256.0 / gl.convert_layout(divisor, OUTPUT_ROWS)
    output = accumulated * factor[:, None]
    tile = outputs.index(HALF)
    tile.reshape([QUERIES, HEAD_DIM]).store(output.to(output_descriptor.dtype))
    fence_async_shared()
    first_query = row * BLOCK + HALF * QUERIES
    tma.async_copy_shared_to_global(output_descriptor, [batch, first_query, head, 0], tile)
    if lse_ptr is not None:
        positions = first_query + gl.arange(0, QUERIES, ROWS)
        lse = running_max * 0.6931471805599453 + gl.log(divisor)
        gl.store(lse_ptr + positions, lse, mask=positions < query_length)
    tma.store_wait(0)


@gluon.jit
def _eight_bit_kernel(
    query_descriptor, key_descriptor, value_descriptor, output_descriptor, lse_ptr,
    query_scale_ptr, key_scale_ptr, value_shift_ptr, value_scale_ptr, row_offsets_ptr, column_indices_ptr,
    scale_log2, query_length, key_length, key_blocks, offsets_batch_stride, offsets_head_stride,
    HEADS: gl.constexpr, BLOCK: gl.constexpr, HEAD_DIM: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    row = gl.program_id(0)
    batch = gl.program_id(1) // HEADS
    head = gl.program_id(1) % HEADS
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    query_scale_ptr += gl.program_id(1) * gl.num_programs(0)
    key_scale_ptr += gl.program_id(1) * key_blocks
    value_shift_ptr += gl.program_id(1) * key_blocks
    value_scale_ptr += gl.program_id(1)
    if lse_ptr is not None:
        lse_ptr += gl.program_id(1).to(gl.int64) * query_length
    queries = gl.allocate_shared_memory(
        query_descriptor.dtype, [2] + query_descriptor.block_shape, query_descriptor.layout
    )
    outputs = gl.allocate_shared_memory(
        output_descriptor.dtype, [2] + output_descriptor.block_shape, output_descriptor.layout
    )
    queries_full = make_barrier()
    keys = make_ring(key_descriptor, STAGES, 2)
    values = make_ring(value_descriptor, STAGES, 2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_attend, (
                0, queries, keys, values, outputs, output_descriptor, lse_ptr, queries_full, query_scale_ptr,
                key_scale_ptr, value_shift_ptr, value_scale_ptr, row_offsets_ptr, column_indices_ptr, row, batch, head,
                scale_log2, query_length, key_length, BLOCK, HEAD_DIM,
            )),
            (_attend, (
                1, queries, keys, values, outputs, output_descriptor, lse_ptr, queries_full, query_scale_ptr,
                key_scale_ptr, value_shift_ptr, value_scale_ptr, row_offsets_ptr, column_indices_ptr, row, batch, head,
                scale_log2, query_length, key_length, BLOCK, HEAD_DIM,
            )),
            (load_row, (
                queries, keys, values, query_descriptor, key_descriptor, value_descriptor, queries_full,
                row_offsets_ptr, column_indices_ptr, row, batch, head, BLOCK, True,
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
    num_stages: int = 3,
) -> tuple[Tensor, Tensor]:
    """Quantise and attend: outputs in q's dtype and, when asked for, log-sum-exps (else empty)."""
    batch, query_length, heads, head_dim = q_BSHD.shape
    values = quantise_values(v_BTHD, BLOCK, interleaved=True)
    inputs = quantise_logits(q_BSHD, k_BTHD, BLOCK)
    output = torch.empty(q_BSHD.shape, dtype=q_BSHD.dtype, device=q_BSHD.device)
    lse_BHS = torch.empty((batch, heads, query_length) if with_lse else (0,), device=q_BSHD.device)
    with launching_on(q_BSHD):
        _eight_bit_kernel[(row_offsets.shape[-1] - 1, batch * heads)](
            describe(inputs.q_BSHD, BLOCK // 2), describe(inputs.k_BTHD, BLOCK),
            describe_tiles(values.v_BHDP, [1, 1, head_dim, BLOCK]), describe(output, BLOCK // 2),
            lse_BHS if with_lse else None, inputs.q_scale_BHR, inputs.k_scale_BHR,
            values.shift_BHR, values.scale_BH, row_offsets, column_indices,
            scale * LOG2_E, query_length, k_BTHD.shape[1], inputs.k_scale_BHR.shape[-1], *plan_strides(row_offsets),
            HEADS=heads, BLOCK=BLOCK, HEAD_DIM=head_dim, STAGES=num_stages, num_warps=4, maxnreg=168,
        )  # fmt: skip
    return output, unsmooth(lse_BHS, q_BSHD, inputs, scale) if with_lse else lse_BHS
