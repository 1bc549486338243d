"""The far field on any device, without a compiler: what is added to exact attention, and to its gradients.

Rows of query blocks are taken a few at a time, dense over all pooled keys. Shapes: B batch, S query length, T key
length, H heads, D head dim, P pooled keys, C blocks of keys, Q queries of some rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from radial_kernels.block_sparse.tail.lists import PooledLists, by_head, unpack
from radial_kernels.block_sparse.tail.means import block_sums, means_of, shares_of

# Bounds the memory of one part: logits computed at one time.
_LOGITS = 1 << 24


def pool(k_BTHD: Tensor, v_BTHD: Tensor, tail: PooledLists) -> tuple[Tensor, Tensor]:
    """Mean keys and values, ``[B, P, H, D]``, in the inputs' dtype."""
    sums = (block_sums(x, tail.block_size) for x in (k_BTHD, v_BTHD))
    k, v = (means_of(x, tail.counts, tail.spans, tail.order).to(k_BTHD.dtype).contiguous() for x in sums)
    return k, v


def add_tail(
    out_BSHD: Tensor, lse_BHS: Tensor, q_BSHD: Tensor, k_BPHD: Tensor, v_BPHD: Tensor, tail: PooledLists, scale: float
) -> None:
    """Go on with the softmax whose output and log-sum-exp are given, over the pooled keys; in place."""
    wide = lse_BHS.dtype
    v_BHPD = v_BPHD.to(wide).transpose(1, 2)
    for part, logits_BHQP in _logits(q_BSHD, k_BPHD, tail, scale, wide):
        exact_BHQ = lse_BHS[..., part]
        joint_BHQ = torch.logaddexp(exact_BHQ, logits_BHQP.logsumexp(-1))
        finite_BHQ = joint_BHQ.masked_fill(joint_BHQ.isneginf(), 0.0)
        weights_BHQP = (logits_BHQP - finite_BHQ[..., None]).exp()
        share_BHQ = (exact_BHQ - finite_BHQ).exp()
        far_BHQD = weights_BHQP @ v_BHPD
        near_BHQD = out_BSHD[:, part].to(wide).transpose(1, 2) * share_BHQ[..., None]
        out_BSHD[:, part] = (near_BHQD + far_BHQD).transpose(1, 2).to(out_BSHD.dtype)
        lse_BHS[..., part] = joint_BHQ


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
) -> None:
    """Add the far field's part to the gradients of q, k and v, in place; output and log-sum-exp are the joint ones."""
    grad_q_BSHD, grad_k_BTHD, grad_v_BTHD = grads
    wide = lse_BHS.dtype
    grad_k_BHPD, grad_v_BHPD = (
        torch.zeros(x.transpose(1, 2).shape, dtype=wide, device=x.device) for x in (k_BPHD, v_BPHD)
    )
    k, v = (x.to(wide).transpose(1, 2) for x in (k_BPHD, v_BPHD))
    for part, logits_BHQP in _logits(q_BSHD, k_BPHD, tail, scale, wide):
        q, grad, out = (x[:, part].to(wide).transpose(1, 2) for x in (q_BSHD, grad_BSHD, out_BSHD))
        lse_BHQ = lse_BHS[..., part]
        weights = (logits_BHQP - lse_BHQ.masked_fill(lse_BHQ.isneginf(), 0.0)[..., None]).exp()
        delta = (out * grad).sum(-1, keepdim=True)
        if grad_lse_BHS is not None:
            delta = delta - grad_lse_BHS[..., part, None]
        grad_logits = weights * (grad @ v.mT - delta) * scale
        grad_q_BSHD[:, part] += (grad_logits @ k).transpose(1, 2)
        grad_k_BHPD += grad_logits.mT @ q
        grad_v_BHPD += weights.mT @ grad
    for total_BTHD, means_BHPD in ((grad_k_BTHD, grad_k_BHPD), (grad_v_BTHD, grad_v_BHPD)):
        length = total_BTHD.shape[1]
        blocks = -(-length // tail.block_size)
        shares_BCHD = shares_of(means_BHPD.transpose(1, 2), tail.counts, tail.spans, blocks, tail.order)
        total_BTHD += shares_BCHD.repeat_interleave(tail.block_size, 1)[:, :length]


def _logits(
    q_BSHD: Tensor, k_BPHD: Tensor, tail: PooledLists, scale: float, wide: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """Positions of some queries, and their logits ``[B, H, Q, P]``, minus infinity where they do not attend."""
    batch, length, heads, _ = q_BSHD.shape
    k_BHDP, bias_P = k_BPHD.to(wide).permute(0, 2, 3, 1), tail.counts.to(wide).log()
    bits = by_head(tail.bits)
    size = max(1, _LOGITS // (batch * heads * tail.block_size * len(bias_P)))
    for row in range(0, tail.rows, size):
        queries = slice(row * tail.block_size, min(length, (row + size) * tail.block_size))
        mask = unpack(bits[..., row : row + size, :], len(bias_P)).repeat_interleave(tail.block_size, -2)
        logits_BHQP = q_BSHD[:, queries].to(wide).transpose(1, 2) @ k_BHDP * scale + bias_P
        yield queries, logits_BHQP.masked_fill(~mask[..., : queries.stop - queries.start, :], float("-inf"))
