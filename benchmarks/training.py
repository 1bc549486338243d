"""One training step, dense against radial, on one GPU: ``python benchmarks/training.py``.

Wan 2.1's 1.3 B transformer with random weights, bf16, a LoRA of rank 128 on its attention, gradient checkpointing,
batch 1: forward and backward. Dense attention is cuDNN's, forced; radial attention has the settings for clips beyond
the native length (decay 1, two dense layers). Both in one process, in turn; the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import radial
from radial import RadialPattern, Schedule
from radial_finetune.adapter import add_adapter
from radial_finetune.objective import flow_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", nargs="+", type=int, default=[81, 161, 321])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    transformer = build(options.layers, options.device)
    gpu = options.device == "cuda"
    print(torch.cuda.get_device_name() if gpu else "CPU", "torch", torch.__version__)
    print(f"  {'frames':>6} {'tokens':>8} {'density':>8} {'dense s':>8} {'radial s':>9} {'faster':>7} {'dense GB':>9} "
          f"{'radial GB':>10}")  # fmt: skip
    for frames in options.frames:
        latents = (16, (frames - 1) // 4 + 1, options.height // 8, options.width // 8)
        inputs = make_inputs(latents, options.device)
        schedule = Schedule(dense_layers=min(2, options.layers - 1))
        times: dict[str, list[float]] = {"dense": [], "radial": []}
        peaks: dict[str, float] = {}
        density = 0.0
        for _ in range(options.rounds + 1):  # the first warms up
            for kind in times:
                with contextlib.ExitStack() as stack:
                    if gpu:
                        stack.enter_context(sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
                        torch.cuda.reset_peak_memory_stats()
                    if kind == "radial":
                        pattern = RadialPattern(decay=1.0)
                        installed = stack.enter_context(radial.apply(transformer, pattern=pattern, schedule=schedule))
                    times[kind].append(step(transformer, inputs, gpu))
                    if kind == "radial":
                        density = installed.plan.density if installed.plan else 0.0
                    peaks[kind] = torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0
        dense, sparse = (statistics.median(times[kind][1:]) for kind in ("dense", "radial"))
        tokens = latents[1] * latents[2] // 2 * latents[3] // 2
        print(f"  {frames:6} {tokens:8} {density:8.3f} {dense:8.2f} {sparse:9.2f} {dense / sparse:7.2f} "
              f"{peaks['dense']:9.1f} {peaks['radial']:10.1f}", flush=True)  # fmt: skip


def build(layers: int, device: str) -> Any:
    """The transformer of Wan 2.1 1.3 B with an adapter, ready to train."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(device):
        transformer = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=layers
        ).to(torch.bfloat16)
    add_adapter(transformer, rank=128, alpha=128, layers="all")
    transformer.enable_gradient_checkpointing()
    return transformer.train()


def make_inputs(latents: tuple[int, int, int, int], device: str) -> tuple[torch.Tensor, ...]:
    shape = (1, *latents)
    x, noise = (torch.randn(shape, device=device) for _ in range(2))
    return x, torch.randn(1, 512, 4096, device=device), noise, torch.tensor([0.6], device=device)


def step(transformer: Any, inputs: tuple[torch.Tensor, ...], gpu: bool) -> float:
    """Seconds of a forward and a backward pass."""
    if gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    flow_loss(transformer, *inputs).mean().backward()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    transformer.zero_grad(set_to_none=True)
    return seconds


if __name__ == "__main__":
    main()
