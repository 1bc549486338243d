"""How long a plan takes to build, on one core: ``python benchmarks/plan.py``.

The first build of a process pays for imports and fresh memory; the median is over later ones, the cache emptied.
"""

from __future__ import annotations

import statistics
import time

import torch

from radial import plan as plans
from radial.plans.layout import TokenGrid
from radial.plans.pattern import RadialPattern

CASES = {
    "Wan 768x1280, 69 frames": (TokenGrid(18, 48, 80), RadialPattern(decay=0.2)),
    "Wan 720x1280, 161 frames": (TokenGrid(41, 45, 80), RadialPattern()),
    "HunyuanVideo 720x1280, 509 frames": (TokenGrid(128, 45, 80), RadialPattern(sink_frames=0)),
}


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'clip':36} {'tokens':>8} {'kept blocks':>12} {'first ms':>9} {'median ms':>10}")
    for name, (grid, pattern) in CASES.items():
        times = []
        for _ in range(8):
            plans._build.cache_clear()
            start = time.perf_counter()
            plan = plans.BlockPlan.build(grid, pattern)
            times.append(1000 * (time.perf_counter() - start))
        print(f"{name:36} {grid.tokens:8} {plan.kept_blocks:12} {times[0]:9.0f} {statistics.median(times[1:]):10.0f}")


if __name__ == "__main__":
    main()
