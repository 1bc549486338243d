"""One forward of one clip over several GPUs, against one GPU: ``torchrun --nproc-per-node 2 benchmarks/scaling.py``.

Transformers at full size with random weights, bf16, batch 1, Ulysses over all processes; dense (cuDNN, forced) and
radial. The first process alone is the baseline: it runs the same transformer while the others wait, in turn with the
runs of all. Medians of the rounds after the first, where there are several. The share of exchanges is the time that
the all-to-alls take in one more run with a barrier before and after each; it is no part of the times beside it.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from full_size import Case, build, make_inputs, relative_error, timed_forward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

import radial
from radial import ContextParallel, Schedule

CASES = {
    "wan-69": (Case("wan2.1-14b", 768, 1280, 69), 3),
    "wan-161": (Case("wan2.1-14b", 768, 1280, 161), 2),
    # A whole dense forward takes over four minutes on one GPU.
    "hunyuan-509": (Case("hunyuan-video", 720, 1280, 509, part=10), 1),
    # Neither its heads nor its tokens divide by two.
    "uneven": (Case("wan, 13 heads", 464, 816, 81), 2),
    # These try the script out, without a GPU.
    "cpu": (Case("wan, 13 heads", 48, 80, 9, part=15), 2),
    "cpu-hunyuan": (Case("hunyuan-video", 48, 80, 9, part=20), 1),
}


class TimedExchanges(ContextParallel):
    """Counts the seconds of its exchanges, and nothing but theirs: everybody has come before one starts."""

    seconds = 0.0

    def _exchange(self, sent: list[Tensor], sizes: list[int]) -> Tensor:
        dist.barrier(self.group)
        synchronize()
        started = time.perf_counter()
        received = super()._exchange(sent, sizes) + 0  # the sum waits for what is still on its way
        synchronize()
        type(self).seconds += time.perf_counter() - started
        return received


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["wan-69", "wan-161", "hunyuan-509"])
    parser.add_argument("--kill", type=float, metavar="SECONDS", help="kill the last process so long after its start")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=5))
    if options.kill and rank == size - 1:
        threading.Timer(options.kill, os.kill, (os.getpid(), signal.SIGKILL)).start()
    waiting = dist.new_group(backend="gloo")  # whoever waits for the first process leaves its GPU alone
    say(torch.cuda.get_device_name() if gpu else "CPU", "x", size, "torch", torch.__version__)
    say(f"{'case':44} {'tokens':>7} {'':6} {'1, s':>7} {size}, s    times  each %  exch. %  GB 1  GB {size}  error")
    for name in options.cases:
        case, rounds = CASES[name]
        measure(case, rounds, waiting, gpu)
        gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def measure(case: Case, rounds: int, waiting: Any, gpu: bool) -> None:
    """Print the rows of a case."""
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    alone, size = dist.get_rank() == 0, dist.get_world_size()
    transformer, inputs = build(case, device, dtype), make_inputs(case, device, dtype)
    pattern, schedule = case.attention()
    schedules = {"dense": Schedule.dense(), "radial": schedule}
    kinds = [(kind, everyone) for kind in schedules for everyone in (False, True)]
    times: dict[Any, list[float]] = {kind: [] for kind in kinds}
    peaks: dict[Any, float] = {}
    outputs: dict[Any, Tensor] = {}
    density = 1.0
    for _ in range(rounds):
        for kind, everyone in kinds:
            dist.barrier(waiting)
            if not everyone and not alone:
                continue
            parallel = ContextParallel.over(dist.group.WORLD) if everyone else None
            with radial.apply(transformer, pattern=pattern, schedule=schedules[kind], parallel=parallel) as installed:
                seconds, peak, out = timed_forward(transformer, inputs)
                density = installed.plan.density if installed.plan else 1.0
            times[kind, everyone].append(seconds)
            peaks[kind, everyone] = peak
            outputs[kind, everyone] = out.float().cpu()
    for kind, one in schedules.items():
        TimedExchanges.seconds = 0.0
        parallel = TimedExchanges.over(dist.group.WORLD)
        with radial.apply(transformer, pattern=pattern, schedule=one, parallel=parallel):
            whole, _, _ = timed_forward(transformer, inputs)
        if alone:
            single, many = (statistics.median(times[kind, everyone][rounds > 1 :]) for everyone in (False, True))
            error = relative_error(outputs[kind, True], outputs[kind, False])
            say(f"{case!s:44} {case.tokens:7} {kind:6} {single:7.2f} {many:7.2f} {single / many:6.2f} "
                f"{100 * single / many / size:7.0f} {100 * TimedExchanges.seconds / whole:8.1f} "
                f"{peaks[kind, False]:5.1f} {peaks[kind, True]:5.1f}  {error:.1e}")  # fmt: skip
    if alone:
        spread = rounding(transformer, inputs, outputs["dense", False]) if gpu and rounds > 2 else None
        say(f"  density {density:.3f}" + (f"; dense, flash attention against cuDNN: {spread:.1e}" if spread else ""))


def rounding(transformer: nn.Module, inputs: dict[str, Any], reference: Tensor) -> float:
    """How far another order of the same sums takes the output: what bf16 leaves open."""
    _, _, out = timed_forward(transformer, inputs, SDPBackend.FLASH_ATTENTION)
    return relative_error(out.float().cpu(), reference)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def say(*words: object) -> None:
    if dist.get_rank() == 0:
        print(*words, flush=True)


if __name__ == "__main__":
    main()
