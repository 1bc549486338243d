"""What the far field costs beside exact attention, on one GPU: ``python benchmarks/tail.py``; a few minutes.

Lists keep a band around each block of queries and random blocks beyond, half of the density each. "far field" attends
to every block that they leave out as one mean; "pyramid" to means that grow coarser with distance. Times are medians
of single calls, every variant once a round, in shuffled order with idle gaps between; errors are relative to fp64 on
some blocks of the first head. What fails its check prints no speed. ``--device cpu --tokens 1000 --heads 2`` tries it
where there is no GPU.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radial_kernels.block_sparse import BlockLists, PooledLists, attention, choose_backend
from radial_kernels.block_sparse.tail.means import block_sums, means_of

TOLERANCE = 1e-2  # relative, in 16 bits on normal random inputs
HEAD = 0  # the head that is held against fp64


@dataclass(frozen=True)
class Case:
    """One clip's attention: its tokens, heads and head dim."""

    name: str
    tokens: int
    heads: int
    head_dim: int = 128


CASES = {
    "wan69": Case("Wan 14B 768x1280, 69 frames", 69_120, 40),
    # A quarter of the model's heads, as in benchmarks/attention.py.
    "hunyuan509": Case("HunyuanVideo 720x1280, 509 frames", 460_800, 6),
}


class Inputs:
    """q, k, v, an output gradient and lists for one case, and what the formula gives in fp64 for parts of it."""

    def __init__(self, case: Case, density: float, block_size: int, device: str) -> None:
        torch.manual_seed(0)
        self.case, self.block_size, self.device = case, block_size, device
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        shape = (1, case.tokens, case.heads, case.head_dim)
        self.q, self.k, self.v, self.grad = (torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
        self.scale = case.head_dim**-0.5
        self.mask = band_and_random(-(-case.tokens // block_size), density).to(device)
        self.lists = BlockLists.of_mask(self.mask, block_size).with_columns(case.tokens)
        self.far: dict[str, PooledLists | None] = {
            "exact": None,
            "exact + far field": PooledLists.complement(self.lists, case.tokens),
            "exact + pyramid": PooledLists.pyramid(self.lists, case.tokens),
        }

    def attend(self, label: str, *qkv: Tensor, **options: Any) -> Any:
        return attention(*(qkv or (self.q, self.k, self.v)), self.lists, tail=self.far[label], **options)

    def forward_error(self, label: str, out: Tensor) -> float:
        rows = {0, len(self.mask) // 2, len(self.mask) - 1}
        return max(relative(out[0, self.tokens_of(row), HEAD], self.exact_row(label, row)[0]) for row in rows)

    def backward_error(self, label: str, grads: tuple[Tensor, ...]) -> float:
        middle = len(self.mask) // 2
        tokens = self.tokens_of(middle)
        wanted = (self.exact_row(label, middle)[1], *self.exact_column(label, middle))
        return max(relative(got[0, tokens, HEAD], want) for got, want in zip(grads, wanted, strict=True))

    def exact_row(self, label: str, row: int) -> tuple[Tensor, Tensor]:
        """Output and gradient of q in one row of blocks."""
        queries = self.tokens_of(row)
        q, grad = self.q[0, queries, HEAD].double(), self.grad[0, queries, HEAD].double()
        keys = self.tokens_of(*self.mask[row].nonzero().flatten().tolist())
        k, v = self.k[0, keys, HEAD].double(), self.v[0, keys, HEAD].double()
        bias = torch.zeros(len(k), device=self.device, dtype=torch.double)
        tail = self.far[label]
        if tail is not None:
            k_mean, v_mean, mask = *self.means(tail), tail.mask()[row]
            k, v = torch.cat([k, k_mean[mask]]), torch.cat([v, v_mean[mask]])
            bias = torch.cat([bias, tail.counts[mask].double().log()])
        weights = (q @ k.T * self.scale + bias).softmax(-1)
        grad_weights = grad @ v.T
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True)) * self.scale
        return weights @ v, grad_logits @ k

    def exact_column(self, label: str, block: int) -> tuple[Tensor, Tensor]:
        """Gradients of k and v in one block, from its own keys and from every mean that it is in."""
        out, lse = self.attend(label, return_lse=True)
        q, grad = self.q[0, :, HEAD].double(), self.grad[0, :, HEAD].double()
        delta, lse = (out[0, :, HEAD].double() * grad).sum(-1), lse[0, HEAD].double()
        del out

        def gradients(k: Tensor, v: Tensor, rows: Tensor, count: Tensor | float) -> tuple[Tensor, Tensor]:
            s = self.tokens_of(*rows.nonzero().flatten().tolist())
            bias = torch.as_tensor(count, dtype=torch.double).log()
            weights = (q[s] @ k.T * self.scale + bias - lse[s, None]).exp()
            grad_logits = weights * (grad[s] @ v.T - delta[s, None]) * self.scale
            return grad_logits.T @ q[s], weights.T @ grad[s]

        tokens = self.tokens_of(block)
        own = self.k[0, tokens, HEAD].double(), self.v[0, tokens, HEAD].double()
        grad_k, grad_v = gradients(*own, self.mask[:, block], 1.0)
        tail = self.far[label]
        if tail is not None:
            k_mean, v_mean, mask = *self.means(tail), tail.mask()
            first = 0
            for span in tail.spans:
                one = first + block // span
                first += -(-len(self.mask) // span)
                if mask[:, one].any():
                    parts = gradients(k_mean[one : one + 1], v_mean[one : one + 1], mask[:, one], tail.counts[one])
                    grad_k, grad_v = (
                        total + part / tail.counts[one] for total, part in zip((grad_k, grad_v), parts, strict=True)
                    )
        return grad_k, grad_v

    def means(self, tail: PooledLists) -> tuple[Tensor, Tensor]:
        k, v = (
            means_of(block_sums(x[:, :, HEAD : HEAD + 1].double(), self.block_size), tail.counts, tail.spans)[0, :, 0]
            for x in (self.k, self.v)
        )
        return k, v

    def tokens_of(self, *blocks: int) -> Tensor:
        starts = torch.tensor(blocks, device=self.device, dtype=torch.long) * self.block_size
        tokens = (starts[:, None] + torch.arange(self.block_size, device=self.device)).flatten()
        return tokens[tokens < self.case.tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.15, 0.30])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tokens", type=int, help="in place of the case's")
    parser.add_argument("--heads", type=int, help="in place of the case's")
    parser.add_argument("--block-size", type=int, default=128)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU; to try it without one: --device cpu --tokens 1000 --heads 2")
    print(torch.cuda.get_device_name() if options.device == "cuda" else "CPU", "torch", torch.__version__)
    for name in options.cases:
        case = CASES[name]
        case = Case(case.name, options.tokens or case.tokens, options.heads or case.heads, case.head_dim)
        for density in options.densities:
            report(Inputs(case, density, options.block_size, options.device), options.rounds)


def report(inputs: Inputs, rounds: int) -> None:
    case, kept = inputs.case, inputs.mask.float().mean().item()
    backend = choose_backend(inputs.q, block_size=inputs.block_size)
    print(f"\n{case.name}: {case.tokens} tokens, {case.heads} heads x {case.head_dim}, density {kept:.3f}, {backend}")
    for label, tail in inputs.far.items():
        if tail is not None:
            start = time.perf_counter()
            (PooledLists.pyramid if len(tail.spans) > 1 else PooledLists.complement)(inputs.lists, case.tokens)
            synchronize(inputs.device)
            made = (time.perf_counter() - start) * 1000
            print(f"  {label}: {tail.mask().sum(-1).float().mean():.0f} pooled keys a row; lists made in {made:.1f} ms")
    forward = {label: (lambda label=label: inputs.attend(label)) for label in inputs.far}
    table("forward", inputs, forward, inputs.forward_error, rounds)
    qkv = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    outs = {label: inputs.attend(label, *qkv) for label in inputs.far}
    backward = {
        label: (lambda out=out: torch.autograd.grad(out, qkv, inputs.grad, retain_graph=True))
        for label, out in outs.items()
    }
    with torch.no_grad():
        table("backward", inputs, backward, inputs.backward_error, rounds)


def table(
    kind: str, inputs: Inputs, runs: dict[str, Callable[[], Any]], error: Callable[[str, Any], float], rounds: int
) -> None:
    print(f"  {kind:20} {'ms':>9} {'x exact':>8} {'error':>9}")
    good = {}
    for label, run in runs.items():
        with torch.enable_grad() if kind == "backward" else torch.no_grad():
            off = error(label, run())
        if off < TOLERANCE:
            good[label] = (run, off)
        else:
            print(f"  {label}: relative error {off:.1e}: WRONG, not timed")
    times: dict[str, list[float]] = {label: [] for label in good}
    order = random.Random(0)
    for _ in range(rounds):
        for label, (run, _) in order.sample(list(good.items()), len(good)):
            synchronize(inputs.device)
            time.sleep(0.05)
            times[label].append(milliseconds(run, inputs.device))
    exact = statistics.median(times["exact"]) if "exact" in times else float("nan")
    for label, values in times.items():
        middle = statistics.median(values)
        print(f"  {label:20} {middle:9.2f} {middle / exact:8.3f} {good[label][1]:9.1e}", flush=True)


def band_and_random(blocks: int, density: float) -> Tensor:
    """Kept blocks ``[R, C]``: a band around the diagonal and random ones beyond, half of the density each."""
    position = torch.arange(blocks)
    band = (position[:, None] - position).abs() <= density * blocks / 4
    beyond = (density - band.float().mean()) / (1 - band.float().mean())
    return band | (torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(0)) < beyond)


def milliseconds(run: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1000
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def relative(got: Tensor, want: Tensor) -> float:
    if not got.isfinite().all():
        return float("nan")
    return ((got.double() - want).norm() / want.norm()).item()


if __name__ == "__main__":
    main()
