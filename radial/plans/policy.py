"""Which planner computes a layer at a step; dense attention is one of the choices."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from radial.errors import RequestError

DENSE = 0  # the choice that every installation has
_COUNTS = ("dense_layers", "dense_steps", "dense_last_steps", "dense_every")


class Policy(Protocol):
    """Chooses among an installation's planners."""

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        """The planner of a layer at a step, layers and steps counted from 0: 0 is dense attention, 1 the first planner.

        Layers of one choice share what torch.compile makes of them.
        """


def count_choices(policy: Policy, layers: int, num_steps: int) -> Counter[int]:
    """How many of a clip's layer calls each planner computes, one guidance branch taken: by choice."""
    return Counter(policy.choose(layer, step, num_steps) for layer in range(layers) for step in range(num_steps))


@dataclass(frozen=True)
class Schedule:
    """Early layers and early steps settle a clip's layout, the last ones its detail; they can stay dense. Dense steps
    between sparse ones bring a run back onto its way.

    Attributes:
        dense_layers: leading transformer layers that are always dense.
        dense_steps: leading denoising steps in which every layer is dense.
        dense_last_steps: trailing denoising steps in which every layer is dense.
        dense_every: after the leading dense steps, every so-manieth step is dense in every layer; 0 for none.
        early: what computes the leading steps in place of dense attention, such as a denser planner.
    """

    dense_layers: int = 0
    dense_steps: int = 0
    dense_last_steps: int = 0
    dense_every: int = 0
    early: int = DENSE

    def __post_init__(self) -> None:
        for name in (*_COUNTS, "early"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be 0 or more, not {getattr(self, name)}")

    @classmethod
    def dense(cls) -> Schedule:
        """Every layer at every step."""
        return cls(dense_layers=sys.maxsize)

    @property
    def dense_counts(self) -> dict[str, int]:
        """Its numbers, by the names of a request."""
        return {name: getattr(self, name) for name in _COUNTS}

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        """Dense, the first planner, or the one of early steps."""
        last = self.dense_last_steps > 0 and step >= num_steps - self.dense_last_steps
        if layer < self.dense_layers or last:
            return DENSE
        since = step - self.dense_steps
        if since < 0:
            return self.early
        return DENSE if self.dense_every and (since + 1) % self.dense_every == 0 else 1
