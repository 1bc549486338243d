"""Block-sparse attention against dense cuDNN attention on one GPU: ``python benchmarks/attention.py``.

Speed is quoted on kept blocks only (4 x kept pairs x head dim operations a head) and as a ratio to dense cuDNN in
the same process, interleaved, medians. A variant that fails its check against fp64 prints no speed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from radial.grid import TokenGrid
from radial.pattern import RadialPattern
from radial.plan import BlockPlan
from radial_kernels.block_sparse import forward

TOLERANCE = 1e-2  # relative error in bf16


@dataclass(frozen=True)
class Case:
    """One clip's attention: its grid, decay, sink, heads and head dim."""

    name: str
    grid: TokenGrid
    pattern: RadialPattern
    heads: int
    head_dim: int = 128


CASES = {
    "wan69": Case("Wan 768x1280, 69 frames", TokenGrid(18, 48, 80), RadialPattern(decay=0.2), heads=40),
    "wan161": Case("Wan 720x1280, 161 frames", TokenGrid(41, 45, 80), RadialPattern(decay=1.0), heads=40),
    "hunyuan117": Case(
        "HunyuanVideo 768x1280, 117 frames",
        TokenGrid(30, 48, 80),
        RadialPattern(decay=0.95, sink_frames=0),
        heads=24,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["wan69"], choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sweep", action="store_true", help="time every kernel variant, not just the one in use")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for name in options.cases:
        measure(CASES[name], options.rounds, options.sweep)


def measure(case: Case, rounds: int, sweep: bool) -> None:
    """Print one case's table."""
    torch.manual_seed(0)
    plan = BlockPlan.build(case.grid, case.pattern).to("cuda")
    tokens = case.grid.tokens
    q, k, v = (torch.randn(1, tokens, case.heads, case.head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    scale = case.head_dim**-0.5
    pairs = kept_pairs(plan)
    print(f"\n{case.name}: {tokens} tokens, {case.heads} heads x {case.head_dim}, density {plan.density:.4f}")

    def dense() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    def ours(**options: object) -> Callable[[], Tensor]:
        return lambda: forward.attention(
            q, k, v, plan.row_offsets, plan.column_indices, plan.block_size, scale, **options
        )

    runs: dict[str, Callable[[], Tensor]] = {"triton": ours()}
    if sweep:
        for descriptors in (True, False):
            for warps, stages in ((8, 2), (8, 3), (4, 2), (4, 3), (8, 1)):
                label = f"triton {'descriptors' if descriptors else 'pointers'} warps {warps} stages {stages}"
                runs[label] = ours(use_descriptors=descriptors, num_warps=warps, num_stages=stages)
    expected = fp64_rows(q, k, v, plan, scale)
    errors = {}
    for label in list(runs):
        try:
            errors[label] = relative_error(runs[label](), expected, plan)
        except Exception as error:  # a variant that does not compile or fit is a result too
            print(f"  {label}: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
            del runs[label]
            continue
        if not errors[label] < TOLERANCE:
            print(f"  {label}: relative error {errors[label]:.1e}: WRONG, not timed")
            del runs[label]
    times = interleaved_medians({"dense cuDNN": dense, **runs}, rounds)
    dense_rate = 4 * tokens**2 * case.head_dim * case.heads / times["dense cuDNN"] / 1e9
    print(f"  {'variant':44} {'ms':>8} {'TFLOP/s':>8} {'rate/cuDNN':>10} {'speed-up':>8} {'error':>8}")
    print(f"  {'dense cuDNN':44} {times['dense cuDNN']:8.2f} {dense_rate:8.0f} {1:10.2f} {1:8.2f}")
    for label in runs:
        rate = 4 * pairs * case.head_dim * case.heads / times[label] / 1e9
        ratio, faster = rate / dense_rate, times["dense cuDNN"] / times[label]
        print(f"  {label:44} {times[label]:8.2f} {rate:8.0f} {ratio:10.2f} {faster:8.2f} {errors[label]:8.1e}")


def kept_pairs(plan: BlockPlan) -> int:
    """Token pairs in kept blocks, ragged ends counted as they are."""
    sizes = torch.full((plan.rows,), plan.block_size)
    sizes[-1] = plan.grid.tokens - (plan.rows - 1) * plan.block_size
    per_row = torch.zeros(plan.rows, dtype=torch.long)
    rows = torch.arange(plan.rows).repeat_interleave(plan.row_offsets.cpu().diff().long())
    per_row.index_add_(0, rows, sizes[plan.column_indices.cpu().long()])
    return int((per_row * sizes).sum())


def fp64_rows(q: Tensor, k: Tensor, v: Tensor, plan: BlockPlan, scale: float) -> dict[int, Tensor]:
    """The exact result of a few block rows, all heads."""
    result = {}
    for row in sorted({0, plan.rows // 3, plan.rows // 2, plan.rows - 1}):
        start, stop = int(plan.row_offsets[row]), int(plan.row_offsets[row + 1])
        blocks = plan.column_indices[start:stop].long()
        keys = (blocks[:, None] * plan.block_size + torch.arange(plan.block_size, device=q.device)).flatten()
        keys = keys[keys < k.shape[1]]
        queries = q[0, row * plan.block_size : (row + 1) * plan.block_size].double()
        logits = torch.einsum("shd,thd->hst", queries, k[0, keys].double()) * scale
        result[row] = torch.einsum("hst,thd->shd", logits.softmax(-1), v[0, keys].double())
    return result


def relative_error(output: Tensor, expected: dict[int, Tensor], plan: BlockPlan) -> float:
    """Largest relative error of the sampled rows; NaN if any output is not finite."""
    if not output.isfinite().all():
        return float("nan")
    size = plan.block_size
    errors = [
        ((output[0, row * size : (row + 1) * size].double() - want).norm() / want.norm()).item()
        for row, want in expected.items()
    ]
    return max(errors)


def interleaved_medians(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median milliseconds of single launches: every variant once a round, in shuffled order with idle gaps between,
    so that none always follows the one that heats the chip most."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {label: [] for label in runs}
    order = random.Random(0)
    for _ in range(rounds):
        for label, run in order.sample(list(runs.items()), len(runs)):
            time.sleep(0.05)
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times[label].append(start.elapsed_time(stop))
    return {label: statistics.median(values) for label, values in times.items()}


if __name__ == "__main__":
    main()
