"""Block-sparse attention against dense attention on one GPU: ``python benchmarks/attention.py``.

Rates count kept blocks only (4 x kept pairs x head dim operations a head forward, 10 backward). The baseline is dense
cuDNN attention, forced, in the same process: "burst" is the median of single launches in shuffled order with idle
gaps between, "sustained" half a second back to back, when the chip is at its power limit. What fails its check
against fp64 prints no speed.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from radial.plans.block_plan import BlockPlan
from radial.plans.layout import TokenGrid
from radial.plans.pattern import RadialPattern
from radial_kernels.block_sparse import attention, choose_backend
from radial_kernels.block_sparse.backends import flash_attention_installed

TOLERANCE = {"16 bit": 1e-2, "8 bit": 6e-2}  # relative, on normal random inputs


@dataclass(frozen=True)
class Case:
    """One clip's attention: its grid, pattern, heads and head dim."""

    name: str
    grid: TokenGrid
    pattern: RadialPattern
    heads: int
    head_dim: int = 128


WAN_69 = (TokenGrid(18, 48, 80), RadialPattern(decay=0.2))
HUNYUAN_117 = (TokenGrid(30, 48, 80), RadialPattern(decay=0.95, sink_frames=0))
CASES = {
    "wan69": Case("Wan 768x1280, 69 frames", *WAN_69, heads=40),
    "hunyuan117": Case("HunyuanVideo 768x1280, 117 frames", *HUNYUAN_117, heads=24),
    "wan161": Case("Wan 720x1280, 161 frames", TokenGrid(41, 45, 80), RadialPattern(decay=1.0), heads=40),
    # A quarter of the model's heads: dense attention over all would take four seconds a call.
    "hunyuan509": Case(
        "HunyuanVideo 720x1280, 509 frames", TokenGrid(128, 45, 80), RadialPattern(decay=1.0, sink_frames=0), heads=6
    ),
    "wan69-d64": Case("Wan 69 frames at head dim 64", *WAN_69, heads=40, head_dim=64),
    "hunyuan117-d64": Case("HunyuanVideo 117 frames at head dim 64", *HUNYUAN_117, heads=24, head_dim=64),
}


class Inputs:
    """q, k, v and an output gradient for one case, with its plan, and the exact result on a sample of blocks."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.plan = case, BlockPlan.build(case.grid, case.pattern).to("cuda")
        shape = (1, case.grid.tokens, case.heads, case.head_dim)
        self.q, self.k, self.v, self.grad = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        self.scale = case.head_dim**-0.5
        self.pairs = kept_pairs(self.plan)

    def blocks(self, *indices: int) -> Tensor:
        """Positions of the tokens in some blocks."""
        size = self.plan.block_size
        starts = torch.tensor(indices, device="cuda") * size
        positions = (starts[:, None] + torch.arange(size, device="cuda")).flatten()
        return positions[positions < self.case.grid.tokens]

    def keys_of(self, row: int) -> Tensor:
        start, stop = self.plan.row_offsets[row : row + 2].tolist()
        return self.blocks(*self.plan.column_indices[start:stop].tolist())

    def queries_of(self, column: int) -> Tensor:
        start, stop = self.plan.column_offsets[column : column + 2].tolist()
        return self.blocks(*self.plan.row_indices[start:stop].tolist())

    def forward_error(self, out: Tensor) -> float:
        """Largest relative error over a few block rows, all heads; NaN if anything is not finite."""
        rows = sorted({0, self.plan.rows // 3, self.plan.rows // 2, self.plan.rows - 1})
        return max(relative(out[0, self.blocks(row)], self._exact_row(row)[0]) for row in rows)

    def backward_error(self, grads: tuple[Tensor, Tensor, Tensor]) -> float:
        """The same for the gradients of q in one row, and of k and v in one column."""
        grad_q, grad_k, grad_v = grads
        middle = self.plan.rows // 2
        errors = [relative(grad_q[0, self.blocks(middle)], self._exact_row(middle)[1])]
        out, lse = self.plan_attention("auto", return_lse=True)
        queries, keys = self.queries_of(middle), self.blocks(middle)
        q, grad = self.q[0, queries].double(), self.grad[0, queries].double()
        k, v = self.k[0, keys].double(), self.v[0, keys].double()
        delta = (out[0, queries].double() * grad).sum(-1).T
        weights = (torch.einsum("shd,thd->hst", q, k) * self.scale - lse[0, :, queries, None].double()).exp()
        grad_logits = weights * (torch.einsum("shd,thd->hst", grad, v) - delta[..., None]) * self.scale
        errors.append(relative(grad_k[0, keys], torch.einsum("hst,shd->thd", grad_logits, q)))
        errors.append(relative(grad_v[0, keys], torch.einsum("hst,shd->thd", weights, grad)))
        return max(errors)

    def _exact_row(self, row: int) -> tuple[Tensor, Tensor]:
        queries, keys = self.blocks(row), self.keys_of(row)
        q, grad = self.q[0, queries].double(), self.grad[0, queries].double()
        k, v = self.k[0, keys].double(), self.v[0, keys].double()
        weights = (torch.einsum("shd,thd->hst", q, k) * self.scale).softmax(-1)
        grad_weights = torch.einsum("shd,thd->hst", grad, v)
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True)) * self.scale
        return torch.einsum("hst,thd->shd", weights, v), torch.einsum("hst,thd->shd", grad_logits, k)

    def plan_attention(self, backend: str, **options: Any) -> Any:
        return attention(self.q, self.k, self.v, self.plan, backend=backend, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--no-backward", action="store_true")
    parser.add_argument("--flex", action="store_true", help="also FlexAttention, which compiles for half a minute")
    parser.add_argument("--growth", action="store_true", help="time against frames, 16 to 128")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    if not flash_attention_installed():
        print("flash-attn-4, dense and block-sparse: left out, the package is not installed (radial[flash])")
    for name in options.cases:
        inputs = Inputs(CASES[name])
        print(f"\n{inputs.case.name}: {inputs.case.grid.tokens} tokens, {inputs.case.heads} heads x "
              f"{inputs.case.head_dim}, density {inputs.plan.density:.4f}")  # fmt: skip
        forward_table(inputs, options.rounds, options.flex)
        if not options.no_backward:
            backward_table(inputs, options.rounds)
        del inputs
    if options.growth:
        growth_table()


def forward_table(inputs: Inputs, rounds: int, flex: bool) -> None:
    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))

    def dense(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    runs: dict[str, Callable[[], Tensor]] = {}
    for backend in backends(inputs):
        runs[backend] = lambda backend=backend: inputs.plan_attention(backend)  # type: ignore[misc]
        if backend != "flash":
            runs[f"{backend} 8 bit"] = lambda backend=backend: inputs.plan_attention(backend, eight_bit=True)  # type: ignore[misc]
    if flex:
        runs["FlexAttention"] = flex_attention(inputs)
    runs = checked(runs, inputs.forward_error)
    base = {
        "dense cuDNN": lambda: dense(SDPBackend.CUDNN_ATTENTION),
        "dense FA2": lambda: dense(SDPBackend.FLASH_ATTENTION),
    }
    if flash_attention_installed():
        from flash_attn.cute.interface import flash_attn_func

        base["dense FA4"] = lambda: flash_attn_func(inputs.q, inputs.k, inputs.v)[0]
    print_table("forward", inputs, 4, base, runs, rounds)


def backward_table(inputs: Inputs, rounds: int) -> None:
    qkv = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        dense_out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv))
    grad = inputs.grad.transpose(1, 2)
    plan = inputs.plan

    def gradients(out: Tensor, grad: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(out, qkv, grad, retain_graph=True)

    runs = {
        backend: gradients(attention(*qkv, plan, backend=backend), inputs.grad)
        for backend in backends(inputs)
        if backend != "flash"
    }
    runs = checked(runs, inputs.backward_error)
    print_table("backward", inputs, 10, {"dense cuDNN": gradients(dense_out, grad)}, runs, max(3, rounds // 2))


def growth_table() -> None:
    """Time of one call against the number of latent frames, beside n log n and n^2."""
    print("\ngrowth, 720x1280, 4 heads x 128: ms, relative to 16 frames; n log n and n^2 in frames")
    first = None
    for frames in (16, 32, 64, 128):
        grid = TokenGrid(frames, 45, 80)
        inputs = Inputs(Case("growth", grid, RadialPattern(decay=1.0), heads=4))
        milliseconds = burst({"ours": lambda inputs=inputs: inputs.plan_attention("auto")}, 5)["ours"]  # type: ignore[misc]
        first = first or milliseconds
        n = frames / 16
        n_log_n = n * math.log2(frames) / math.log2(16)
        print(f"  {frames:4} frames {milliseconds:8.2f} {milliseconds / first:7.2f} {n_log_n:7.2f} {n**2:7.2f}")


def backends(inputs: Inputs) -> list[str]:
    """Our kernels that can run here, the fastest first."""
    best = choose_backend(inputs.q)
    ours = [best] if best == "triton" else [best, "triton"]
    return [*ours, "flash"] if flash_attention_installed() else ours


def flex_attention(inputs: Inputs) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    mask = inputs.plan.to_mask()
    counts = mask.sum(1, dtype=torch.int32)[None, None]
    indices = mask.int().argsort(dim=1, descending=True, stable=True).int()[None, None]
    block_mask = BlockMask.from_kv_blocks(torch.zeros_like(counts), indices, counts, indices, BLOCK_SIZE=128)
    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=block_mask).transpose(1, 2)


def checked(runs: dict[str, Any], error: Callable[[Any], float]) -> dict[str, tuple[Any, float]]:
    """The runs that work and are right, with their errors; the others are named."""
    good = {}
    for label, run in runs.items():
        try:
            off = error(run())
        except Exception as failure:  # what does not compile or fit is a result too
            print(f"  {label}: {type(failure).__name__}: {str(failure).splitlines()[0][:90]}")
            continue
        if off < TOLERANCE["8 bit" if "8 bit" in label else "16 bit"]:
            good[label] = (run, off)
        else:
            print(f"  {label}: relative error {off:.1e}: WRONG, not timed")
    return good


def print_table(
    kind: str, inputs: Inputs, operations: int, base: dict[str, Any], ours: dict[str, tuple[Any, float]], rounds: int
) -> None:
    runs = base | {label: run for label, (run, _) in ours.items()}
    times, steady = burst(runs, rounds), {label: sustained(run) for label, run in runs.items()}
    per_pair = operations * inputs.case.head_dim * inputs.case.heads
    print(f"  {kind:28} {'ms':>8} {'TFLOP/s':>8} {'burst':>6} {'sustained':>9} {'faster':>7} {'MB':>6} {'error':>8}")
    first = next(iter(base))
    for label, run in runs.items():
        pairs = inputs.case.grid.tokens**2 if label in base else inputs.pairs
        share = pairs / inputs.case.grid.tokens**2
        error = f"{ours[label][1]:8.1e}" if label in ours else ""
        print(
            f"  {label:28} {times[label]:8.2f} {per_pair * pairs / times[label] / 1e9:8.0f} "
            f"{share * times[first] / times[label]:6.2f} {share * steady[first] / steady[label]:9.2f} "
            f"{times[first] / times[label]:7.2f} {extra_megabytes(run):6.0f} {error}",
            flush=True,
        )


def extra_megabytes(run: Callable[[], Any]) -> float:
    """Peak memory of a call beyond what was there before and what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    results = result if isinstance(result, tuple) else (result,)
    return (torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in results)) / 1e6


def burst(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of single launches: every variant once a round, in shuffled order with idle gaps between,
    so that none always follows the one that heats the chip most."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {label: [] for label in runs}
    order = random.Random(0)
    for _ in range(rounds):
        for label, run in order.sample(list(runs.items()), len(runs)):
            torch.cuda.synchronize()
            time.sleep(0.05)
            times[label].append(milliseconds(run, 1))
    return {label: statistics.median(values) for label, values in times.items()}


def sustained(run: Callable[[], Any], seconds: float = 0.5) -> float:
    """Milliseconds a call, back to back after as long again of warming up."""
    calls = max(1, round(seconds * 1000 / milliseconds(run, 1)))
    milliseconds(run, calls)
    return milliseconds(run, calls)


def milliseconds(run: Callable[[], Any], calls: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / calls


def kept_pairs(plan: BlockPlan) -> int:
    """Token pairs in kept blocks, ragged ends counted as they are."""
    sizes = torch.full((plan.rows,), plan.block_size)
    sizes[-1] = plan.grid.tokens - (plan.rows - 1) * plan.block_size
    per_row = torch.zeros(plan.rows, dtype=torch.long)
    rows = torch.arange(plan.rows).repeat_interleave(plan.row_offsets.cpu().diff().long())
    per_row.index_add_(0, rows, sizes[plan.column_indices.cpu().long()])
    return int((per_row * sizes).sum())


def relative(got: Tensor, want: Tensor) -> float:
    if not got.isfinite().all():
        return float("nan")
    return ((got.double() - want).norm() / want.norm()).item()


if __name__ == "__main__":
    main()
