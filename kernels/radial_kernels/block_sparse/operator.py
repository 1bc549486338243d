"""The operator as torch knows it: forward and backward as custom ops with fake and autograd registrations.

The backend is chosen inside the ops, at run time, where torch.compile does not look.

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from radial_kernels.block_sparse import gather, reference
from radial_kernels.block_sparse.backends import choose_backend
from radial_kernels.block_sparse.lists import transpose_lists


@torch.library.custom_op("radial::block_sparse_attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    column_offsets: Tensor | None,
    row_indices: Tensor | None,
    column_order: Tensor | None,
    block_size: int,
    scale: float,
    backend: str,
    with_lse: bool,
    key_ends: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs ``[B, S, H, D]`` and log-sum-exps ``[B, H, S]``, the latter empty unless asked for."""
    plain = (block_size, scale)
    match choose_backend(q, backend, block_size=block_size, others=(k, v)):
        case "reference":
            out, lse = reference.attention(q, k, v, row_offsets, column_indices, *plain, key_ends=key_ends)
            return out, lse if with_lse else lse.new_empty(0)
        case "gather":
            attend = functools.partial(gather.attention, with_lse=with_lse, key_ends=key_ends)
            return _plan_by_plan(attend, q, k, v, row_offsets, column_indices, *plain)
        case "triton":
            from radial_kernels.block_sparse.portable import forward

            return forward.attention(q, k, v, row_offsets, column_indices, *plain, with_lse=with_lse, key_ends=key_ends)
        case "hopper":
            from radial_kernels.block_sparse.hopper import forward as hopper_forward

            return hopper_forward.attention(
                q, k, v, row_offsets, column_indices, scale, with_lse=with_lse, key_ends=key_ends
            )
        case "flash":
            from radial_kernels.block_sparse import flash

            if key_ends is not None:
                raise ValueError("backend flash knows no sequences that lie one after the other; use auto or triton")
            out, lse = flash.attention(q, k, v, row_offsets, column_indices, scale)
            return out, lse if with_lse else lse.new_empty(0)
    raise AssertionError("choose_backend knows only the backends above")


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: Tensor, column_indices: Tensor,
    column_offsets: Tensor | None, row_indices: Tensor | None, column_order: Tensor | None,
    block_size: int, scale: float, backend: str, with_lse: bool, key_ends: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, query_length, heads, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((batch, heads, query_length) if with_lse else (0,), dtype=wide)


@torch.library.custom_op("radial::block_sparse_attention_eight_bit", mutates_args=())
def eight_bit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
    backend: str,
    with_lse: bool,
) -> tuple[Tensor, Tensor]:
    """The same from 8-bit copies of q, k and v; without gradients."""
    chosen = choose_backend(q, backend, block_size=block_size, others=(k, v))
    if chosen not in ("triton", "hopper"):
        raise ValueError(f"eight_bit needs backend triton or hopper; {chosen} computes in full precision only")
    if chosen == "hopper":
        from radial_kernels.block_sparse.hopper import eight_bit as hopper_eight_bit

        return hopper_eight_bit.attention(q, k, v, row_offsets, column_indices, scale, with_lse=with_lse)
    from radial_kernels.block_sparse.portable import eight_bit

    return eight_bit.attention(q, k, v, row_offsets, column_indices, block_size, scale, with_lse=with_lse)


@eight_bit_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, row_offsets: Tensor, column_indices: Tensor,
    block_size: int, scale: float, backend: str, with_lse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, query_length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, query_length) if with_lse else (0,), dtype=torch.float32)


@torch.library.custom_op("radial::block_sparse_attention_backward", mutates_args=())
def gradients(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    column_offsets: Tensor | None,
    row_indices: Tensor | None,
    column_order: Tensor | None,
    block_size: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    backend = choose_backend(q, backend, block_size=block_size, others=(k, v))
    if backend in ("reference", "gather"):
        return _gradients_plan_by_plan(
            grad, grad_lse, q, k, v, out, lse, row_offsets, column_indices, block_size, scale
        )
    if column_offsets is None or row_indices is None:
        column_offsets, row_indices = transpose_lists(row_offsets, column_indices, -(-k.shape[1] // block_size))
    if grad.stride(-1) != 1 or 0 in grad.stride():  # an expanded gradient, as sum() makes
        grad = grad.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    lists = (row_offsets, column_indices, column_offsets, row_indices, column_order)
    if backend == "hopper":
        from radial_kernels.block_sparse.hopper import backward as hopper_backward

        return hopper_backward.gradients(grad, grad_lse, q, k, v, out, lse, *lists, scale)
    from radial_kernels.block_sparse.portable import backward

    return backward.gradients(grad, grad_lse, q, k, v, out, lse, *lists, block_size, scale)


@gradients.register_fake
def _(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    row_offsets: Tensor, column_indices: Tensor, column_offsets: Tensor | None, row_indices: Tensor | None,
    column_order: Tensor | None, block_size: int, scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:8])
    ctx.options = inputs[8:11]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *lists = ctx.saved_tensors
    if lse.numel() == 0:
        raise RuntimeError("gradients need the log-sum-exp: call the operator with with_lse=True")
    grad = torch.zeros_like(out) if grad is None else grad
    result = torch.ops.radial.block_sparse_attention_backward(grad, grad_lse, q, k, v, out, lse, *lists, *ctx.options)
    return (*result, *[None] * 10)


attention.register_autograd(_backward, setup_context=_save)


def _plan_by_plan(
    attend: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Call a backend that knows one plan once for every plan."""
    if row_offsets.ndim == 1:
        return attend(q, k, v, row_offsets, column_indices, block_size, scale)
    outs, lses = [], []
    for b, batch in enumerate(_heads_of_plans(row_offsets, len(q))):
        parts = [
            attend(*(x[b : b + 1, :, heads] for x in (q, k, v)), offsets, columns, block_size, scale)
            for heads, offsets, columns in _own_lists(batch, column_indices)
        ]
        outs.append(torch.cat([out for out, _ in parts], 2))
        lses.append(torch.cat([lse for _, lse in parts], 1 if parts[0][1].ndim > 1 else 0))
    return torch.cat(outs), torch.cat(lses)


def _gradients_plan_by_plan(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if row_offsets.ndim == 1:
        return gather.gradients(grad, grad_lse, q, k, v, out, lse, row_offsets, column_indices, block_size, scale)
    sums = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    for b, batch in enumerate(_heads_of_plans(row_offsets, len(q))):
        for heads, offsets, columns in _own_lists(batch, column_indices):
            here = (slice(b, b + 1), slice(None), heads)
            part_lse = None if grad_lse is None else grad_lse[b : b + 1, heads]
            inputs = (q[here], k[here], v[here], out[here], lse[b : b + 1, heads])
            parts = gather.gradients(grad[here], part_lse, *inputs, offsets, columns, block_size, scale)
            for total, part in zip(sums, parts, strict=True):
                total[here] = part
    grad_q, grad_k, grad_v = sums
    return grad_q, grad_k, grad_v


def _heads_of_plans(row_offsets: Tensor, batch: int) -> list[Tensor]:
    """For every batch entry, its offsets ``[H or 1, R + 1]``."""
    offsets = row_offsets.unsqueeze(1) if row_offsets.ndim == 2 else row_offsets
    return list(offsets.expand(batch, -1, -1))


def _own_lists(offsets_HR: Tensor, column_indices: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """The heads of each plan, and its lists counted from its own start."""
    shared = len(offsets_HR) == 1
    result = []
    for head, offsets in enumerate(offsets_HR):
        start, stop = int(offsets[0]), int(offsets[-1])
        heads = slice(None) if shared else slice(head, head + 1)
        result.append((heads, offsets - start, column_indices[start:stop]))
    return result
