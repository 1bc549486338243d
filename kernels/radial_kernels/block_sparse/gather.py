"""Any device, no compiler, differentiable: gather each row's key blocks and call dense attention on them.

Rows with the same number of keys go through one call. Shapes: B batch, S query length, T key length, H heads,
D head dim, R rows of a group, N keys of a row, Q queries of a row.
"""

from __future__ import annotations

from collections import defaultdict

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
) -> Tensor:
    """Block-sparse attention by gathering. A row without keys gives zeros."""
    query_length, key_length = q_BSHD.shape[1], k_BTHD.shape[1]
    device = q_BSHD.device
    offsets, columns = row_offsets.tolist(), column_indices.cpu()
    within = torch.arange(block_size)
    groups: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for row in range(len(offsets) - 1):
        blocks = columns[offsets[row] : offsets[row + 1]]
        keys = (blocks[:, None].long() * block_size + within).flatten()
        keys = keys[keys < key_length]
        queries = min(block_size, query_length - row * block_size)
        groups[len(keys), queries].append((row, keys))

    order: list[Tensor] = []
    pieces: list[Tensor] = []
    for (num_keys, num_queries), members in groups.items():
        size = max(1, _GATHERED_TOKENS // max(num_keys, 1))
        for start in range(0, len(members), size):
            part = members[start : start + size]
            first = torch.tensor([row * block_size for row, _ in part])
            query_index = (first[:, None] + within[:num_queries]).to(device)
            key_index = torch.stack([keys for _, keys in part]).to(device)
            order.append(query_index.flatten())
            pieces.append(_rows(q_BSHD, k_BTHD, v_BTHD, query_index, key_index, scale))
    positions = torch.cat(order).argsort()
    return torch.cat(pieces, 1)[:, positions]


def _rows(q_BSHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, query_RQ: Tensor, key_RN: Tensor, scale: float) -> Tensor:
    """Attention of R rows of equal length: ``[B, R * Q, H, D]``."""
    batch, _, heads, dim = q_BSHD.shape

    def take(x: Tensor, index: Tensor) -> Tensor:
        return x[:, index].flatten(0, 1).transpose(1, 2)  # [B * R, H, N, D]

    if key_RN.shape[1] == 0:
        return q_BSHD[:, query_RQ.flatten()] * 0
    out = F.scaled_dot_product_attention(
        take(q_BSHD, query_RQ), take(k_BTHD, key_RN), take(v_BTHD, key_RN), scale=scale
    )
    return out.transpose(1, 2).reshape(batch, query_RQ.numel(), heads, dim)
