"""The portable 8-bit forward kernel: int8 logits, and weighted values in e4m3 or, before sm89, in 16 bits.

As in the full-precision kernel, one program computes one tile of queries of one head. Weights are scaled by 256, and
by what their block of values is worth, before they are rounded to e4m3, which has no finer steps than 2^-9. Each
product of weights and values starts from zero and is added in full precision: the matrix unit keeps only about 14 bits
of an 8-bit sum.

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from radial_kernels.block_sparse.lists import plan_strides
from radial_kernels.block_sparse.portable.quantise import EightBitLogits, quantise_logits, quantise_values
from radial_kernels.block_sparse.portable.tiles import LOG2_E, head_block, load_tile, store_log_sum_exp, store_tile
from radial_kernels.triton_runtime import launching_on


@triton.jit
def _eight_bit_kernel(
    query_ptr, key_ptr, value_ptr, query_scale_ptr, key_scale_ptr, value_shift_ptr, value_scale_ptr,
    output_ptr, lse_ptr, row_offsets_ptr, column_indices_ptr, scale_log2, query_length, key_length, key_blocks,
    query_batch_stride, query_stride, query_head_stride,
    key_batch_stride, key_stride, key_head_stride,
    value_batch_stride, value_stride, value_head_stride,
    output_batch_stride, output_stride, output_head_stride,
    offsets_batch_stride, offsets_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, EIGHT_BIT_VALUES: tl.constexpr,
):  # fmt: skip
    QUERY_TILES: tl.constexpr = BLOCK // QUERIES
    KEY_TILES: tl.constexpr = BLOCK // KEYS
    row = tl.program_id(0) // QUERY_TILES
    first_query = row * BLOCK + tl.program_id(0) % QUERY_TILES * QUERIES
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride
    row_offsets_ptr += batch * offsets_batch_stride + head * offsets_head_stride
    key_scale_ptr += tl.program_id(1) * key_blocks
    start = tl.load(row_offsets_ptr + row)
    stop = tl.load(row_offsets_ptr + row + 1)

    query = load_tile(None, query_ptr, first_query, query_length, query_stride, QUERIES, HEAD_DIM, HEAD_BLOCK, False)
    query_scale = tl.load(query_scale_ptr + tl.program_id(1) * (tl.num_programs(0) // QUERY_TILES) + row)
    query_scale *= scale_log2
    accumulated = tl.zeros([QUERIES, HEAD_BLOCK], tl.float32)
    running_max = tl.full([QUERIES], float("-inf"), tl.float32)
    running_sum = tl.zeros([QUERIES], tl.float32)
    columns = tl.arange(0, HEAD_BLOCK)
    for step in tl.range(0, (stop - start) * KEY_TILES):
        block = tl.load(column_indices_ptr + start + step // KEY_TILES)
        first = block * BLOCK + step % KEY_TILES * KEYS
        key = load_tile(None, key_ptr, first, key_length, key_stride, KEYS, HEAD_DIM, HEAD_BLOCK, False)
        logits = tl.dot(query, key.T).to(tl.float32) * (query_scale * tl.load(key_scale_ptr + block))
        # A tile wholly past the end would leave a row without a finite maximum; the first tile of a row never is.
        logits = tl.where((first + tl.arange(0, KEYS) < key_length)[None, :], logits, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(logits, 1))
        correction = tl.math.exp2(running_max - new_max)
        weights = tl.math.exp2(logits - new_max[:, None])
        running_sum = running_sum * correction + tl.sum(weights, 1)
        accumulated = accumulated * correction[:, None]
        if EIGHT_BIT_VALUES:
            tokens = first + tl.arange(0, KEYS)
            # value_stride is that from one channel to the next: tokens are innermost, and the last block is whole.
            value = tl.load(
                value_ptr + columns[:, None].to(tl.int64) * value_stride + tokens[None, :],
                mask=(columns < HEAD_DIM)[:, None],
                other=0.0,
            )
            worth = tl.math.exp2(tl.load(value_shift_ptr + tl.program_id(1) * key_blocks + block) + 8.0)
            accumulated += tl.dot((weights * worth).to(tl.float8e4nv), value.T)
        else:
            value = load_tile(None, value_ptr, first, key_length, value_stride, KEYS, HEAD_DIM, HEAD_BLOCK, False)
            accumulated = tl.dot(weights.to(value.dtype), value, accumulated)
        running_max = new_max

    divisor = tl.where(running_sum > 0, running_sum, 1.0)
    output = accumulated / divisor[:, None]
    if EIGHT_BIT_VALUES:
        output *= tl.load(value_scale_ptr + tl.program_id(1)) / 256.0
    store_tile(output_ptr, output, first_query, query_length, output_stride, QUERIES, HEAD_DIM, HEAD_BLOCK)
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
    eight_bit_values: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantise and attend: outputs in q's dtype and, when asked for, log-sum-exps (else empty)."""
    batch, query_length, heads, head_dim = q_BSHD.shape
    if eight_bit_values is None:
        eight_bit_values = not q_BSHD.is_cuda or torch.cuda.get_device_capability(q_BSHD.device) >= (8, 9)
    inputs = quantise_logits(q_BSHD, k_BTHD, block_size)
    value, value_strides = v_BTHD, list(v_BTHD.stride()[:3])
    value_worths: tuple[Tensor | None, Tensor | None] = (None, None)
    if eight_bit_values:
        values = quantise_values(v_BTHD, block_size, interleaved=False)
        value, value_worths = values.v_BHDP, (values.shift_BHR, values.scale_BH)
        value_strides = [value.stride(dim) for dim in (0, 2, 1)]
    output = torch.empty(q_BSHD.shape, dtype=q_BSHD.dtype, device=q_BSHD.device)
    lse_BHS = torch.empty((batch, heads, query_length) if with_lse else (0,), device=q_BSHD.device)
    tile = min(block_size, 64)
    rows = row_offsets.shape[-1] - 1
    with launching_on(q_BSHD):
        _eight_bit_kernel[(rows * (block_size // tile), batch * heads)](
            inputs.q_BSHD, inputs.k_BTHD, value, inputs.q_scale_BHR, inputs.k_scale_BHR, *value_worths,
            output, lse_BHS if with_lse else None, row_offsets, column_indices,
            scale * LOG2_E, query_length, k_BTHD.shape[1], inputs.k_scale_BHR.shape[-1],
            *inputs.q_BSHD.stride()[:3], *inputs.k_BTHD.stride()[:3], *value_strides, *output.stride()[:3],
            *plan_strides(row_offsets),
            HEADS=heads, BLOCK=block_size, QUERIES=tile, KEYS=tile, HEAD_DIM=head_dim,
            HEAD_BLOCK=max(32, head_block(head_dim)), EIGHT_BIT_VALUES=eight_bit_values, num_warps=4, num_stages=2,
        )  # fmt: skip
    return output, unsmooth(lse_BHS, q_BSHD, inputs, scale) if with_lse else lse_BHS


def unsmooth(lse_BHS: Tensor, q_BSHD: Tensor, inputs: EightBitLogits, scale: float) -> Tensor:
    """Add what smoothing took from every logit of a row: the product of its query and the mean key."""
    return lse_BHS + torch.einsum("bshd,bhd->bhs", q_BSHD.float(), inputs.k_mean_BHD) * scale
