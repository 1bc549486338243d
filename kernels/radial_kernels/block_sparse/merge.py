"""Join the results of attention over disjoint sets of keys into the result over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(outputs_BSHD: Sequence[Tensor], lses_BHS: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Exact: softmax over a union of keys is the parts weighted by their shares of the whole sum.

    Args:
        outputs_BSHD: one output of :func:`attention` for each set of keys.
        lses_BHS: the log-sum-exps that came with them.

    Returns:
        The joint output and log-sum-exp; zeros and minus infinity where no part had a key. Differentiable in all that
        is given.

    Raises:
        ValueError: no parts, or parts that do not belong together.
    """
    if not outputs_BSHD or len(outputs_BSHD) != len(lses_BHS):
        raise ValueError(f"merge needs one log-sum-exp for each output, not {len(lses_BHS)} for {len(outputs_BSHD)}")
    batch, length, heads, _ = outputs_BSHD[0].shape
    for out, lse in zip(outputs_BSHD, lses_BHS, strict=True):
        if out.shape != outputs_BSHD[0].shape or lse.shape != (batch, heads, length):
            raise ValueError(
                f"parts must agree in shape: output {tuple(out.shape)} beside {tuple(outputs_BSHD[0].shape)}, "
                f"log-sum-exp {tuple(lse.shape)} for {(batch, heads, length)}"
            )
    lse_PBHS = torch.stack(list(lses_BHS))
    # Where no part has a key there is nothing to divide by, in the gradient either.
    empty_BHS = lse_PBHS.isneginf().all(0)
    finite_BHS = lse_PBHS.masked_fill(empty_BHS, 0.0).logsumexp(0)
    share_PBHS = (lse_PBHS - finite_BHS).exp()
    weights = share_PBHS.mT.unsqueeze(-1)  # [P, B, S, H, 1]
    merged = sum(out * weight for out, weight in zip(outputs_BSHD, weights, strict=True))
    assert isinstance(merged, Tensor)
    return merged.to(outputs_BSHD[0].dtype), finite_BHS.masked_fill(empty_BHS, float("-inf"))
