"""Exact attention and the far field as one operator, as torch knows it: with fake and autograd registrations.

The exact part is the operator without a far field, on the backend that it chooses; its output and log-sum-exp become
those over the pooled keys too, in place.

Shapes: B batch, S query length, T key length, H heads, D head dim, P pooled keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from radial_kernels.block_sparse import operator, reference  # noqa: F401  registers what is called by name
from radial_kernels.block_sparse.backends import choose_backend
from radial_kernels.block_sparse.tail import gather
from radial_kernels.block_sparse.tail.lists import PooledLists


@torch.library.custom_op("radial::block_sparse_attention_with_tail", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    column_offsets: Tensor | None,
    row_indices: Tensor | None,
    column_order: Tensor | None,
    bits: Tensor,
    tail_row_offsets: Tensor,
    word_indices: Tensor,
    tail_column_offsets: Tensor,
    tail_row_indices: Tensor,
    counts: Tensor,
    order: Tensor | None,
    spans: Sequence[int],
    block_size: int,
    scale: float,
    backend: str,
    eight_bit: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs ``[B, S, H, D]``, log-sum-exps ``[B, H, S]``, and mean keys and values ``[B, P, H, D]``."""
    by_words = (bits, tail_row_offsets, word_indices, tail_column_offsets, tail_row_indices, counts)
    tail = PooledLists(*by_words, k.new_empty(k.shape[1], 0), tuple(spans), block_size, order)
    chosen = choose_backend(q, backend, block_size=block_size, others=(k, v))
    if chosen == "reference" and not eight_bit:
        by_rows = (row_offsets, column_indices, block_size)
        out, lse = reference.attention(q, k, v, *by_rows, scale, pooled_RP=tail.mask(), spans=tail.spans, order=order)
        return out, lse.contiguous(), *gather.pool(k, v, tail)
    if eight_bit:
        out, lse = torch.ops.radial.block_sparse_attention_eight_bit(
            q, k, v, row_offsets, column_indices, block_size, scale, backend, True
        )
    else:
        out, lse = torch.ops.radial.block_sparse_attention(
            q, k, v, row_offsets, column_indices, column_offsets, row_indices, column_order,
            block_size, scale, backend, True,
        )  # fmt: skip
    lse = lse.contiguous()
    if chosen == "gather":
        means = gather.pool(k, v, tail)
        gather.add_tail(out, lse, q, *means, tail, scale)
        return out, lse, *means
    from radial_kernels.block_sparse.tail import forward, pooling

    means = pooling.pool(k, v, tail)
    forward.add_tail(out, lse, q, *means, tail, scale)
    return out, lse, *means


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: Tensor, column_indices: Tensor,
    column_offsets: Tensor | None, row_indices: Tensor | None, column_order: Tensor | None,
    bits: Tensor, tail_row_offsets: Tensor, word_indices: Tensor, tail_column_offsets: Tensor,
    tail_row_indices: Tensor, counts: Tensor, order: Tensor | None, spans: Sequence[int],
    block_size: int, scale: float, backend: str, eight_bit: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, query_length, heads, head_dim = q.shape
    lse = q.new_empty((batch, heads, query_length), dtype=torch.promote_types(q.dtype, torch.float32))
    means = (batch, counts.shape[0], heads, head_dim)
    return q.new_empty(q.shape), lse, k.new_empty(means), v.new_empty(means)


@torch.library.custom_op("radial::block_sparse_attention_with_tail_backward", mutates_args=())
def gradients(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    k_mean: Tensor,
    v_mean: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    column_offsets: Tensor | None,
    row_indices: Tensor | None,
    column_order: Tensor | None,
    bits: Tensor,
    tail_row_offsets: Tensor,
    word_indices: Tensor,
    tail_column_offsets: Tensor,
    tail_row_indices: Tensor,
    counts: Tensor,
    order: Tensor | None,
    spans: Sequence[int],
    block_size: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    by_words = (bits, tail_row_offsets, word_indices, tail_column_offsets, tail_row_indices, counts)
    tail = PooledLists(*by_words, k.new_empty(k.shape[1], 0), tuple(spans), block_size, order)
    if grad.stride(-1) != 1 or 0 in grad.stride():  # an expanded gradient, as sum() makes
        grad = grad.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.radial.block_sparse_attention_backward(
        grad, grad_lse, q, k, v, out, lse, row_offsets, column_indices, column_offsets, row_indices, column_order,
        block_size, scale, backend,
    )  # fmt: skip
    inputs = (grads, grad, grad_lse, q, k_mean, v_mean, out, lse, tail, scale)
    if choose_backend(q, backend, block_size=block_size, others=(k, v)) in ("reference", "gather"):
        gather.add_gradients(*inputs)
    else:
        from radial_kernels.block_sparse.tail import backward

        backward.add_gradients(*inputs)
    return grads


@gradients.register_fake
def _(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    k_mean: Tensor, v_mean: Tensor, row_offsets: Tensor, column_indices: Tensor,
    column_offsets: Tensor | None, row_indices: Tensor | None, column_order: Tensor | None,
    bits: Tensor, tail_row_offsets: Tensor, word_indices: Tensor, tail_column_offsets: Tensor,
    tail_row_indices: Tensor, counts: Tensor, order: Tensor | None, spans: Sequence[int], block_size: int, scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:15])
    ctx.options, ctx.eight_bit = inputs[15:19], inputs[19]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.eight_bit:
        raise RuntimeError("eight_bit has no gradients")
    q, k, v, out, *saved = ctx.saved_tensors
    grad = torch.zeros_like(out) if grad is None else grad
    result = torch.ops.radial.block_sparse_attention_with_tail_backward(
        grad, grad_lse, q, k, v, out, *saved, *ctx.options
    )
    return (*result, *[None] * 17)


attention.register_autograd(_backward, setup_context=_save)
