"""Where work is spent: which planner computes which layer at which part of a run, for the least error.

Shapes: K parts of a run, L layers, M planners.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radial.plans.policy import TablePolicy


def spend(error_KLM: NDArray[np.float32], costs: NDArray[np.floating], budget: float) -> TablePolicy:
    """The policy of least error whose mean cost is within a budget.

    Errors of layers and steps are taken to add up, dense attention to have none. Every cell of the table begins with
    the cheapest planner; what takes away most error for its cost comes first, as long as the budget lasts. Of planners
    that another one, or a mixture of two, beats in a cell, none is taken there: so gains fall from one to the next, and
    the order is that of all gains together.

    Args:
        error_KLM: of one layer sparse at a time.
        costs: ``[M + 1]``, first that of dense attention.
        budget: the same for the mean of all cells; at least the least of ``costs``.
    """
    parts, layers, _ = error_KLM.shape
    precise = costs.astype(np.float64)
    error = np.concatenate([np.zeros((parts, layers, 1), np.float32), error_KLM], -1)
    cheapest = int(precise.argmin())
    choices = np.full((parts, layers), cheapest)
    steps = [
        (gain, *cell, after, float(precise[after] - precise[before]))
        for cell in np.ndindex(parts, layers)
        for gain, before, after in _gains(error[cell], precise, cheapest)
    ]
    left = budget * parts * layers - float(precise[cheapest]) * parts * layers
    full = set()
    for _, part, layer, after, cost in sorted(steps, key=lambda step: (-step[0], *step[1:3])):
        if (part, layer) in full:
            continue
        if cost > left + 1e-6:  # a dearer planner of this cell would be dearer still
            full.add((part, layer))
            continue
        choices[part, layer] = after
        left -= cost
    _spend_rest(error, precise, choices, left)
    return TablePolicy(tuple(tuple(map(int, row)) for row in choices))


def _spend_rest(
    error: NDArray[np.float32], costs: NDArray[np.float64], choices: NDArray[np.int64], left: float
) -> None:
    """Spend what was too little for the next gain of a cell on lesser ones."""
    while True:
        now = np.take_along_axis(error, choices[..., None], -1)
        more = costs - costs[choices][..., None]
        fits = (more > 0) & (more <= left + 1e-6) & (error < now)
        if not fits.any():
            return
        *cell, best = np.unravel_index(np.where(fits, now - error, 0).argmax(), error.shape)
        left -= float(more[*cell, best])
        choices[*cell] = best


def _gains(error: NDArray[np.float32], costs: NDArray[np.float64], cheapest: int) -> list[tuple[float, int, int]]:
    """Of one cell, from planner to planner, the error that is taken away for the cost: falling."""
    found: list[tuple[float, int, int]] = []
    here = cheapest
    while True:
        dearer = [one for one in range(len(costs)) if costs[one] > costs[here] and error[one] < error[here]]
        if not dearer:
            return found
        gain = {one: float((error[here] - error[one]) / (costs[one] - costs[here])) for one in dearer}
        best = max(dearer, key=lambda one: (gain[one], -costs[one], -one))
        found.append((gain[best], here, best))
        here = best
