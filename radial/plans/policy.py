"""Which planner computes a layer at a step; dense attention is one of the choices."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from radial.errors import RequestError

DENSE = 0  # the choice that every installation has


class Policy(Protocol):
    """Chooses among an installation's planners."""

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        """The planner of a layer at a step, layers and steps counted from 0: 0 is dense attention, 1 the first planner.

        Layers of one choice share what torch.compile makes of them.
        """


@dataclass(frozen=True)
class Schedule:
    """Early layers and early steps settle a clip's layout, the last ones its detail; they can stay dense.

    Attributes:
        dense_layers: leading transformer layers that are always dense.
        dense_steps: leading denoising steps in which every layer is dense.
        dense_last_steps: trailing denoising steps in which every layer is dense.
    """

    dense_layers: int = 0
    dense_steps: int = 0
    dense_last_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("dense_layers", "dense_steps", "dense_last_steps"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be 0 or more, not {getattr(self, name)}")

    @classmethod
    def dense(cls) -> Schedule:
        """Every layer at every step."""
        return cls(dense_layers=sys.maxsize)

    def choose(self, layer: int, step: int, num_steps: int) -> int:
        """Dense, or the first planner."""
        return DENSE if self.is_dense(layer, step, num_steps) else 1

    def is_dense(self, layer: int, step: int, num_steps: int) -> bool:
        """Whether a layer computes full attention at a step; layers and steps count from 0."""
        last = self.dense_last_steps > 0 and step >= num_steps - self.dense_last_steps
        return layer < self.dense_layers or step < self.dense_steps or last

    def dense_share(self, layers: int, num_steps: int) -> float:
        """Share of all layer calls of a clip that are dense."""
        calls = layers * num_steps
        dense = sum(self.is_dense(layer, step, num_steps) for layer in range(layers) for step in range(num_steps))
        return dense / calls if calls else 0.0
