"""The kernels, a program a token or a row."""

from __future__ import annotations

import triton
import triton.language as tl

E4M3_MAX = tl.constexpr(448.0)


@triton.jit
def residual_norm_kernel(
    x_ptr, y_ptr, gate_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, sum_ptr, normed_ptr,
    tokens, eps, gate_batch, gate_token, scale_batch, scale_token, shift_batch, shift_token,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    x = tl.load(x_ptr + row * CHANNELS + columns, mask=inside, other=0.0).to(tl.float32)
    if y_ptr is not None:
        y = tl.load(y_ptr + row * CHANNELS + columns, mask=inside, other=0.0).to(tl.float32)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + batch * gate_batch + token * gate_token + columns, mask=inside, other=0.0)
            y *= gate.to(tl.float32)
        # The norm is of what is kept, rounded as it is.
        rounded = (x + y).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * CHANNELS + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if normed_ptr is not None:
        mean = tl.sum(x, 0) / CHANNELS
        centred = tl.where(inside, x - mean, 0.0)
        variance = tl.sum(centred * centred, 0) / CHANNELS
        normed = centred * (1.0 / tl.sqrt(variance + eps))
        if weight_ptr is not None:
            normed *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            normed += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + batch * scale_batch + token * scale_token + columns, mask=inside, other=0.0)
            normed *= 1.0 + scale.to(tl.float32)
        if shift_ptr is not None:
            shift = tl.load(shift_ptr + batch * shift_batch + token * shift_token + columns, mask=inside, other=0.0)
            normed += shift.to(tl.float32)
        tl.store(normed_ptr + row * CHANNELS + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_rotary_kernel(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, tokens, turned_tokens, eps, x_batch, x_token, cos_token, sin_token,
    CHANNELS: tl.constexpr, HEAD_DIM: tl.constexpr, A_HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    token = row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    x = tl.load(x_ptr + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    if A_HEAD:
        heads = tl.reshape(x, (BLOCK // HEAD_DIM, HEAD_DIM))
        rms = 1.0 / tl.sqrt(tl.sum(heads * heads, 1) / HEAD_DIM + eps)
        x = tl.reshape(heads * rms[:, None], (BLOCK,)) * tl.load(weight_ptr + columns % HEAD_DIM).to(tl.float32)
    else:
        rms = 1.0 / tl.sqrt(tl.sum(x * x, 0) / CHANNELS + eps)
        x = x * rms * tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = x.to(out_ptr.dtype.element_ty).to(tl.float32)  # as the norm alone would round it
    even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    pairs = tl.arange(0, BLOCK // 2)
    place = (2 * pairs) % HEAD_DIM
    within = (2 * pairs < CHANNELS) & (token < turned_tokens)
    cos = tl.load(cos_ptr + token * cos_token + place, mask=within, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * sin_token + place + 1, mask=within, other=0.0).to(tl.float32)
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(out_ptr + row * CHANNELS + columns, turned.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rows_kernel(
    x_ptr, first_ptr, out_ptr, scale_ptr, x_stride, first_stride,
    FEATURES: tl.constexpr, FIRST: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < FEATURES
    x = tl.load(x_ptr + row * x_stride + columns - FIRST, mask=inside & (columns >= FIRST), other=0.0).to(tl.float32)
    if GELU:  # with tanh, which is a sigmoid: x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    if first_ptr is not None:
        x += tl.load(first_ptr + row * first_stride + columns, mask=columns < FIRST, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / E4M3_MAX
        tl.store(scale_ptr + row, scale)
        x = x / scale
    tl.store(out_ptr + row * FEATURES + columns, x.to(out_ptr.dtype.element_ty), mask=inside)
