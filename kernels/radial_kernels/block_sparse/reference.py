"""The formula: dense logits, masked, in at least single precision. For tests and small inputs.

Shapes: B batch, S query length, T key length, H heads, D head dim, R rows of query blocks, P pooled keys.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
    *,
    pooled_RP: Tensor | None = None,
    spans: tuple[int, ...] = (1,),
    order: Tensor | None = None,
    key_ends: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k' * scale + mask) v and its log-sum-exp ``[B, H, S]``, with the mask spelled out.

    A row without keys gives zeros, and minus infinity. ``pooled_RP``, bool and with the lists' plans in front, adds the
    far field to the same softmax: keys and values that are means over ``span`` blocks, for each of ``spans``, whose
    logits are greater by the logarithm of the number of keys in the mean. Blocks come together as they lie, or in an
    ``order``. ``key_ends`` says for each row where its keys end.
    """
    wide = torch.promote_types(q_BSHD.dtype, torch.float32)
    q, k, v = (x.to(wide) for x in (q_BSHD, k_BTHD, v_BTHD))
    logits_BHST = torch.einsum("bshd,bthd->bhst", q, k) * scale
    mask = token_mask(row_offsets, column_indices, q.shape[1], k.shape[1], block_size)
    if key_ends is not None:
        ends_S = key_ends.repeat_interleave(block_size)[: q.shape[1]]
        mask = mask & (torch.arange(k.shape[1], device=k.device) < ends_S[:, None])
    logits_BHST = logits_BHST.masked_fill(~_by_head(mask), float("-inf"))
    if pooled_RP is not None:
        pools = _pools(k.shape[1], block_size, spans, order)
        means = [[x[:, tokens].mean(1) for tokens in pools] for x in (k, v)]
        counts = q.new_tensor([len(tokens) for tokens in pools])
        k_BPHD, v_BPHD = (torch.stack(x, 1) for x in means)
        far_BHSP = torch.einsum("bshd,bphd->bhsp", q, k_BPHD) * scale + counts.log()
        mask = pooled_RP.repeat_interleave(block_size, -2)[..., : q.shape[1], :]
        far_BHSP = far_BHSP.masked_fill(~_by_head(mask), float("-inf"))
        logits_BHST, v = torch.cat([logits_BHST, far_BHSP], -1), torch.cat([v, v_BPHD], 1)
    weights_BHST = logits_BHST.softmax(-1).nan_to_num(0.0)
    out_BSHD = torch.einsum("bhst,bthd->bshd", weights_BHST, v).to(q_BSHD.dtype)
    return out_BSHD.contiguous(), logits_BHST.logsumexp(-1)


def token_mask(
    row_offsets: Tensor, column_indices: Tensor, query_length: int, key_length: int, block_size: int
) -> Tensor:
    """Bool ``[..., S, T]``: the block lists spread out to tokens."""
    rows, columns = row_offsets.shape[-1] - 1, -(-key_length // block_size)
    plans, device = tuple(row_offsets.shape[:-1]), row_offsets.device
    mask = torch.zeros(row_offsets[..., 1:].numel(), columns, dtype=torch.bool, device=device)
    row = torch.arange(len(mask), device=device).repeat_interleave(row_offsets.diff().flatten().long())
    mask[row, column_indices.long()] = True
    spread = mask.reshape(*plans, rows, columns).repeat_interleave(block_size, -2).repeat_interleave(block_size, -1)
    return spread[..., :query_length, :key_length]


def _pools(length: int, block_size: int, spans: tuple[int, ...], order: Tensor | None) -> list[Tensor]:
    """The tokens of every mean, level after level."""
    blocks = torch.arange(length).split(block_size)
    places = [range(len(blocks)) if order is None or span == 1 else order.tolist() for span in spans]
    return [
        torch.cat([blocks[place] for place in where[first : first + span]])
        for span, where in zip(spans, places, strict=True)
        for first in range(0, len(blocks), span)
    ]


def _by_head(mask: Tensor) -> Tensor:
    """A mask with its plans in front as one that spreads over ``[B, H, ...]``."""
    return mask.unsqueeze(1) if mask.ndim == 3 else mask
