"""Means of blocks of tokens, and of spans of blocks, from their sums; and the gradients of means back to blocks.

Shapes: B batch, T tokens, C blocks, P pooled tokens (level after level), H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def block_sums(x_BTHD: Tensor, block_size: int) -> Tensor:
    """Sums of the tokens of each block, ``[B, C, H, D]`` in at least single precision, in plain torch."""
    wide = torch.promote_types(x_BTHD.dtype, torch.float32)
    padded = F.pad(x_BTHD, (0, 0, 0, 0, 0, -x_BTHD.shape[1] % block_size))
    return padded.unflatten(1, (-1, block_size)).sum(2, dtype=wide)


def means_of(sums_BCHD: Tensor, counts_P: Tensor, spans: tuple[int, ...], order_C: Tensor | None = None) -> Tensor:
    """Means ``[B, P, H, D]`` of spans of blocks, in their order or in one that is given, from the blocks' sums."""
    levels = [_sum_spans(sums_BCHD, span, order_C) for span in spans]
    return torch.cat(levels, 1) / counts_P[:, None, None]


def shares_of(
    grad_means_BPHD: Tensor, counts_P: Tensor, spans: tuple[int, ...], blocks: int, order_C: Tensor | None = None
) -> Tensor:
    """What each token of a block gets of the gradients of the means that it is in, ``[B, C, H, D]``."""
    parts = (grad_means_BPHD / counts_P[:, None, None]).split([-(-blocks // span) for span in spans], 1)
    spread = [_spread(part, span, blocks, order_C) for part, span in zip(parts, spans, strict=True)]
    return sum(spread[1:], spread[0])


def _sum_spans(sums_BCHD: Tensor, span: int, order_C: Tensor | None) -> Tensor:
    if span == 1:
        return sums_BCHD
    sums_BCHD = sums_BCHD if order_C is None else sums_BCHD[:, order_C]
    padded = F.pad(sums_BCHD, (0, 0, 0, 0, 0, -sums_BCHD.shape[1] % span))
    return padded.unflatten(1, (-1, span)).sum(2)


def _spread(part_BGHD: Tensor, span: int, blocks: int, order_C: Tensor | None) -> Tensor:
    if span == 1:
        return part_BGHD
    spread_BCHD = part_BGHD.repeat_interleave(span, 1)[:, :blocks]
    return spread_BCHD if order_C is None else torch.empty_like(spread_BCHD).index_copy_(1, order_C, spread_BCHD)
