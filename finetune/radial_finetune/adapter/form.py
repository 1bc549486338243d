"""What kind of adapter a run tunes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lora", "dora", "lokr"]
Layers = Literal["self", "all", "blocks"]


@dataclass(frozen=True)
class AdapterForm:
    """The kind of an adapter and its sizes.

    Attributes:
        kind: low-rank changes (LoRA); those with a magnitude for each row of a weight (DoRA, arXiv 2402.09353); or
            Kronecker products (LoKr, arXiv 2212.10650).
        rank, alpha: a change is multiplied by alpha over the rank, or over its root (``rslora``, arXiv 2312.03732).
        layers: of self-attention, of all attention, or all products of the blocks.
        norms: whether the norms of queries and keys are tuned along.
        factor: of LoKr, the size of the smaller matrix at most; -1 makes both about equal.
    """

    rank: int
    alpha: float
    layers: Layers = "all"
    kind: Kind = "lora"
    norms: bool = False
    rslora: bool = False
    factor: int = -1

    @property
    def scale(self) -> float:
        """What a change is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
