"""How far sparse attention is off while a run goes on, by a few rows that are computed exactly beside it, and whether
the next step is to be dense for it.

Which rows and layers are looked at follows from the step and the layer alone, so that a run goes on bit for bit.

Shapes: B batch, S tokens, H heads, D head dim, R sampled rows, C blocks of keys, N sums of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from radial.attention.context_parallel import ContextParallel
from radial.plans.layout import Layout
from radial.plans.policy import DENSE
from radial_kernels.block_sparse import BlockLists

LAYERS = 4  # that are looked at in a call
ROWS = 32  # of queries, at most, of each
_SHARE = 0.002  # of what dense attention in all layers computes
_NUMBERS = 1 << 24  # that are held at one time
_GOLDEN = 0.618033988749895


class Figures(NamedTuple):
    """Of the rows that were looked at in one step.

    Attributes:
        recall: share of the softmax's mass that lies in the blocks that were kept.
        error: relative square error of the output against full attention, mean of the layers.
    """

    recall: float
    error: float


class Probe:
    """Looks at an installation's sparse layers.

    Args:
        dense_above: a step whose error is greater has a dense one follow it.
        parallel: the processes that share the heads; their sums are added up, so that all decide alike.

    Attributes:
        dense: whether the current step is dense for what the one before it was found to be.
        made_dense: those that were, since installation.
        layers: that are looked at in the current call.
    """

    def __init__(self, dense_above: float, parallel: ContextParallel | None = None) -> None:
        self.dense_above, self._parallel = dense_above, parallel
        self.dense, self.made_dense = False, list[int]()
        self._step, self._left_out = -1, False
        self.layers: tuple[int, ...] = ()
        self._rows = 1
        # Squares of the difference and of the true output, mass in kept blocks, rows: of the step, and of the call.
        self._sums_LN = self._call_LN = torch.zeros(LAYERS, 4, dtype=torch.float64)
        self._ended: list[Figures] = []

    def begin_step(self, step: int) -> None:
        """Note where the next call stands, and decide on its step where it begins one."""
        if step == self._step:
            return
        found = self.figures
        if found is not None:
            self._ended.append(found)
        wanted = found is not None and found.error > self.dense_above
        # A dense step that a step cache left out is still to come.
        self.dense = step > self._step >= 0 and (wanted or (self.dense and self._left_out))
        self._step, self._left_out = step, False
        self._sums_LN = torch.zeros_like(self._sums_LN)

    def choose(self, choices: Mapping[int, int], tokens: int, device: torch.device) -> dict[int, int]:
        """What each of a call's layers computes, given what the policy chose; of those that stay sparse some are looked
        at."""
        self._call_LN = torch.zeros(LAYERS, 4, dtype=torch.float64, device=device)
        sparse = [layer for layer, choice in choices.items() if choice != DENSE]
        if self.dense and sparse:
            if self.made_dense[-1:] != [self._step]:
                self.made_dense.append(self._step)
            sparse = []
        count = min(LAYERS, len(sparse))
        self.layers = tuple(sparse[(2 * index + 1) * len(sparse) // (2 * count)] for index in range(count))
        self._rows = min(ROWS, max(1, int(_SHARE * tokens * len(choices) / LAYERS)))
        return dict.fromkeys(choices, DENSE) if self.dense else dict(choices)

    def leave_out(self) -> None:
        """Take account of a step cache that left layers out of the current call."""
        self._left_out = True

    @torch.compiler.disable(reason="dense_above looks at attention outside of the graph: compile without fullgraph")
    @torch.no_grad()
    def look(
        self, layer: int, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, out_BSHD: Tensor, lists: BlockLists,
        layout: Layout, scale: float | None,
    ) -> None:  # fmt: skip
        """Hold some rows of a sparse layer's output against full attention."""
        rows_R = sampled_rows(layout, self._rows, self._step, layer).to(q_BSHD.device)
        kept_BHRC = kept_blocks(lists, rows_R // lists.block_size, -(-k_BSHD.shape[1] // lists.block_size))
        found = self._call_LN.new_zeros(4)
        heads = q_BSHD.shape[2]
        some = max(1, _NUMBERS // (k_BSHD.shape[1] * max(len(rows_R), k_BSHD.shape[3])))
        for entry in range(len(q_BSHD)):
            kept_HRC = kept_BHRC[min(entry, len(kept_BHRC) - 1)].expand(heads, -1, -1)
            for first in range(0, heads, some):
                own = slice(first, first + some)
                q, out = (x[entry, rows_R, own].transpose(0, 1) for x in (q_BSHD, out_BSHD))
                k, v = (x[entry, :, own].transpose(0, 1) for x in (k_BSHD, v_BSHD))
                found = found + held_against_full(q, k, v, out, kept_HRC[own], lists.block_size, scale)
        call = list(self._call_LN)
        call[self.layers.index(layer)] = call[self.layers.index(layer)] + found
        self._call_LN = torch.stack(call)

    @torch.no_grad()
    def end_call(self) -> None:
        """Take account of a call; where processes share it, all of them call this."""
        if not self.layers:
            return
        call_LN = self._call_LN
        if self._parallel is not None:  # in one order on all, so that the sums are the same to the last bit
            call_LN = self._parallel.gather(call_LN[None], 0, self._parallel.size).sum(0)
        self._sums_LN = self._sums_LN.to(call_LN.device) + call_LN

    @property
    def figures(self) -> Figures | None:
        """Of the current step so far; None where no sparse layer was computed in it."""
        seen = [sums for sums in self._sums_LN.tolist() if sums[3]]
        if not seen:
            return None
        error = sum(apart / max(real, 1e-30) for apart, real, _, _ in seen) / len(seen)
        return Figures(sum(sums[2] for sums in seen) / sum(sums[3] for sums in seen), error)

    def report(self) -> dict[str, Any]:
        """What a receipt says."""
        every = [*self._ended, *filter(None, [self.figures])]
        told: dict[str, Any] = {"dense_above": self.dense_above, "made_dense": list(self.made_dense)}
        if not every:
            return told
        recalls, errors = [one.recall for one in every], [one.error for one in every]
        return told | {
            "recall": round(sum(recalls) / len(every), 4), "least_recall": round(min(recalls), 4),
            "error": float(f"{sum(errors) / len(every):.4g}"), "greatest_error": float(f"{max(errors):.4g}"),
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a run needs to go on."""
        return {
            "step": self._step, "dense": self.dense, "left_out": self._left_out, "made_dense": self.made_dense,
            "sums": self._sums_LN, "ended": [list(one) for one in self._ended],
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there."""
        self._step, self.dense, self._left_out = state["step"], state["dense"], state["left_out"]
        self.made_dense, self._sums_LN = list(state["made_dense"]), state["sums"].to(device)
        self._ended = [Figures(*one) for one in state["ended"]]


def held_against_full(
    q_HRD: Tensor, k_HSD: Tensor, v_HSD: Tensor, out_HRD: Tensor, kept_HRC: Tensor, block_size: int,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Of some rows of a sparse layer: the squares of what its output is off full attention's, and of that, the
    softmax's mass in the blocks that each row keeps, and how many rows of heads they are; sums, in float64."""
    q_HRD, k_HSD, v_HSD, out_HRD = (x.float() for x in (q_HRD, k_HSD, v_HSD, out_HRD))
    weights_HRS = (q_HRD @ k_HSD.mT * (q_HRD.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
    real_HRD = weights_HRS @ v_HSD
    weights_HRS = F.pad(weights_HRS, (0, -weights_HRS.shape[-1] % block_size))
    mass_HRC = weights_HRS.unflatten(-1, (-1, block_size)).sum(-1)
    sums = [(out_HRD - real_HRD).double().square(), real_HRD.double().square(), (mass_HRC * kept_HRC).double()]
    return torch.stack([*(x.sum() for x in sums), sums[0].new_tensor(mass_HRC[..., 0].numel())])


def sampled_rows(layout: Layout, count: int, step: int, layer: int) -> Tensor:
    """Tokens of the clip, one out of each of so many equal parts: others at another step or layer."""
    tokens = layout.grid.tokens
    count = min(count, tokens)
    part = torch.arange(count, dtype=torch.float64)
    within = (part + 1 + 7 * step + 101 * layer) * _GOLDEN % 1
    return layout.before + ((part + within) * tokens / count).long().clamp(max=tokens - 1)


def kept_blocks(lists: BlockLists, rows_R: Tensor, columns: int) -> Tensor:
    """Which blocks of keys some rows of blocks keep: bool ``[B or 1, H or 1, R, C]``."""
    plans = (*lists.row_offsets.shape[:-1], 1, 1)[:2]
    offsets = lists.row_offsets.reshape(*plans, -1)
    place = offsets[..., rows_R, None] + torch.arange(columns, device=offsets.device)
    held = place < offsets[..., rows_R + 1, None]
    indices = lists.column_indices[place.clamp(max=len(lists.column_indices) - 1).long()].long()
    kept = torch.zeros(*held.shape[:-1], columns + 1, dtype=torch.bool, device=held.device)
    return kept.scatter_(-1, torch.where(held, indices, columns), torch.ones_like(held))[..., :columns]
