"""Any device, no compiler: gather each row's key blocks and call dense attention on them; forward and backward.

Rows with the same number of keys go through one call. Shapes: B batch, S query length, T key length, H heads,
D head dim, R rows of a group, Q queries of a row, N keys of a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Bounds the memory of gathered keys: tokens gathered in one call.
_GATHERED_TOKENS = 1 << 17


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
    key_ends: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs, and log-sum-exps ``[B, H, S]`` when asked for (else empty). A row without keys gives zeros."""
    out_BSHD = torch.zeros(q_BSHD.shape, dtype=q_BSHD.dtype, device=q_BSHD.device)
    batch, query_length, heads, _ = q_BSHD.shape
    wide = torch.promote_types(q_BSHD.dtype, torch.float32)
    lse_shape = (batch, query_length, heads) if with_lse else (0, 0, 0)
    lse_BSH = torch.full(lse_shape, float("-inf"), dtype=wide, device=q_BSHD.device)
    for query_RQ, key_RN in _groups(row_offsets, column_indices, q_BSHD, k_BTHD, block_size, key_ends):
        q, k, v = (_take(x, index) for x, index in ((q_BSHD, query_RQ), (k_BTHD, key_RN), (v_BTHD, key_RN)))
        if with_lse:
            logits = q.to(wide) @ k.to(wide).mT * scale
            lse = logits.logsumexp(-1, keepdim=True)
            out = (logits - lse).exp() @ v.to(wide)
            lse_BSH[:, query_RQ.flatten()] = _give(lse, batch).squeeze(-1)
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        out_BSHD[:, query_RQ.flatten()] = _give(out, batch).to(q_BSHD.dtype)
    return out_BSHD, lse_BSH.transpose(1, 2).contiguous() if with_lse else lse_BSH.flatten()


def gradients(
    grad_BSHD: Tensor,
    grad_lse_BHS: Tensor | None,
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    out_BSHD: Tensor,
    lse_BHS: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, accumulated in at least single precision.

    As in the kernels, the output and its log-sum-exp may be those over more keys than the lists name.
    """
    wide = torch.promote_types(q_BSHD.dtype, torch.float32)
    batch = len(q_BSHD)
    sums = [torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q_BSHD, k_BTHD, v_BTHD)]
    grad_q_BSHD, grad_k_BTHD, grad_v_BTHD = sums
    for query_RQ, key_RN in _groups(row_offsets, column_indices, q_BSHD, k_BTHD, block_size):
        q, grad = _take(q_BSHD, query_RQ).to(wide), _take(grad_BSHD, query_RQ).to(wide)
        k, v = _take(k_BTHD, key_RN).to(wide), _take(v_BTHD, key_RN).to(wide)
        weights = (q @ k.mT * scale - _take(lse_BHS.mT.unsqueeze(-1), query_RQ)).exp()
        grad_weights = grad @ v.mT
        delta = (grad * _take(out_BSHD, query_RQ)).sum(-1, keepdim=True)
        if grad_lse_BHS is not None:
            delta = delta - _take(grad_lse_BHS.mT.unsqueeze(-1), query_RQ)
        grad_logits = weights * (grad_weights - delta) * scale
        grad_q_BSHD.index_add_(1, query_RQ.flatten(), _give(grad_logits @ k, batch))
        grad_k_BTHD.index_add_(1, key_RN.flatten(), _give(grad_logits.mT @ q, batch))
        grad_v_BTHD.index_add_(1, key_RN.flatten(), _give(weights.mT @ grad, batch))
    return grad_q_BSHD.to(q_BSHD.dtype), grad_k_BTHD.to(k_BTHD.dtype), grad_v_BTHD.to(v_BTHD.dtype)


def _groups(
    row_offsets: Tensor,
    column_indices: Tensor,
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    block_size: int,
    key_ends: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions of queries ``[R, Q]`` and of their keys ``[R, N]``, for rows of equal size that have keys."""
    query_length, key_length, device = q_BSHD.shape[1], k_BTHD.shape[1], q_BSHD.device
    offsets, columns = row_offsets.tolist(), column_indices.cpu()
    ends = [key_length] * (len(offsets) - 1) if key_ends is None else key_ends.tolist()
    within = torch.arange(block_size)
    groups: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for row in range(len(offsets) - 1):
        blocks = columns[offsets[row] : offsets[row + 1]]
        keys = (blocks[:, None].long() * block_size + within).flatten()
        keys = keys[keys < ends[row]]
        if len(keys):
            groups[len(keys), min(block_size, query_length - row * block_size)].append((row, keys))
    for (num_keys, num_queries), members in groups.items():
        size = max(1, _GATHERED_TOKENS // num_keys)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            first = torch.tensor([row * block_size for row, _ in part])
            yield (first[:, None] + within[:num_queries]).to(device), torch.stack([keys for _, keys in part]).to(device)


def _take(x_BSHD: Tensor, index_RN: Tensor) -> Tensor:
    """The tokens of every row as a batch of their own: ``[B * R, H, N, D]``."""
    return x_BSHD[:, index_RN].flatten(0, 1).transpose(1, 2)


def _give(x: Tensor, batch: int) -> Tensor:
    """Back from ``[B * R, H, N, D]`` to ``[B, R * N, H, D]``."""
    return x.transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2)
