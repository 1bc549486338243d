"""Which planner computes a layer at a step; dense attention is one of the choices."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from radial.errors import ModelError, RequestError

DENSE = 0  # the choice that every installation has
_COUNTS = ("dense_layers", "dense_steps", "dense_last_steps", "dense_every")


class Policy(Protocol):
    """Chooses among an installation's planners."""

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        """The planner of a layer at a step, layers and steps counted from 0: 0 is dense attention, 1 the first planner.

        Layers of one choice share what torch.compile makes of them.
        """


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


@dataclass(frozen=True)
class TablePolicy:
    """A choice for each layer in each part of a run.

    Attributes:
        rows: of the parts, each of as many steps, a choice for each layer.
    """

    rows: tuple[tuple[int, ...], ...]

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        """What the table says.

        Raises:
            ModelError: it has not so many layers.
        """
        row = self.rows[min(step * len(self.rows) // max(1, num_steps), len(self.rows) - 1)]
        if layer >= len(row):
            raise ModelError(f"the policy was measured on {len(row)} layers, and this model has more")
        return row[layer]
