"""One training step, dense against radial, on one GPU: ``python benchmarks/training.py``.

A transformer of Wan 2.1 with random weights, bf16, a LoRA of rank 128 on its attention, gradient checkpointing, batch
1: forward and backward. Dense attention is cuDNN's, forced; radial attention has the settings for clips beyond the
native length (decay 1, two dense layers). Both in one process, in turn; the median of the rounds.

    python benchmarks/training.py --compile                          1.3 B at 480p, 81, 161 and 321 frames
    python benchmarks/training.py --offload --frames 161             its memory with checkpoints on the host
    python benchmarks/training.py --model 14b --layers 10 --dense-layers 1 --frames 321 --rounds 1
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import radial
from radial import RadialPattern, Schedule
from radial.models.table import MODELS
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter
from radial_finetune.objective import WanObjective, velocity_loss
from radial_finetune.training.offloading import offloaded_checkpoint

SIZES = {
    "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
OBJECTIVE = WanObjective(SimpleNamespace(config={}), MODELS["wan2.1-1.3b"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="1.3b")
    parser.add_argument("--frames", nargs="+", type=int, default=[81, 161, 321])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--layers", type=int, help="fewer than the model has, where all do not fit")
    parser.add_argument("--dense-layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--offload", action="store_true", help="keep checkpoints in the host's memory")
    parser.add_argument("--attention", nargs="+", default=["dense", "radial"])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    transformer = build(options)
    gpu = options.device == "cuda"
    print(torch.cuda.get_device_name() if gpu else "CPU", "torch", torch.__version__, vars(options), flush=True)
    print(f"  {'frames':>6} {'tokens':>8} {'density':>8} {'dense s':>8} {'radial s':>9} {'faster':>7} {'dense GB':>9} "
          f"{'radial GB':>10}")  # fmt: skip
    sparse_schedule = Schedule(dense_layers=min(options.dense_layers, len(transformer.blocks) - 1))
    schedules = {"dense": Schedule.dense(), "radial": sparse_schedule}
    # Installed once: blocks compile anew whenever it comes in again. Dense layers run the stock code.
    installed = radial.apply(transformer, pattern=RadialPattern(decay=1.0), schedule=sparse_schedule)
    for frames in options.frames:
        latents = (16, (frames - 1) // 4 + 1, options.height // 8, options.width // 8)
        inputs = make_inputs(latents, options.device)
        times: dict[str, list[float]] = {kind: [] for kind in options.attention}
        peaks: dict[str, float] = {}
        for _ in range(options.rounds + 1):  # the first warms up
            for kind in times:
                installed.context.policy = schedules[kind]
                with contextlib.ExitStack() as stack:
                    if gpu:
                        stack.enter_context(sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
                        torch.cuda.reset_peak_memory_stats()
                    times[kind].append(step(transformer, inputs, gpu))
                    peaks[kind] = torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0
        density = installed.plan.density if installed.plan else 0.0
        medians = {kind: statistics.median(values[1:]) for kind, values in times.items()}
        tokens = latents[1] * latents[2] // 2 * latents[3] // 2
        dense, sparse = (medians.get(kind, float("nan")) for kind in ("dense", "radial"))
        print(f"  {frames:6} {tokens:8} {density:8.3f} {dense:8.2f} {sparse:9.2f} {dense / sparse:7.2f} "
              f"{peaks.get('dense', 0.0):9.1f} {peaks.get('radial', 0.0):10.1f}", flush=True)  # fmt: skip


def build(options: argparse.Namespace) -> Any:
    """The transformer with an adapter, ready to train."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    sizes = SIZES[options.model] | ({"num_layers": options.layers} if options.layers else {})
    with torch.device(options.device):
        transformer = WanTransformer3DModel(attention_head_dim=128, **sizes).to(torch.bfloat16)
    add_adapter(transformer, OBJECTIVE, AdapterForm(128, 128))
    transformer.enable_gradient_checkpointing(*([offloaded_checkpoint] if options.offload else []))
    if options.compile:
        torch._dynamo.config.recompile_limit = 64  # every length is compiled for itself
        transformer.compile_repeated_blocks(dynamic=False)
    return transformer.train()


def make_inputs(latents: tuple[int, int, int, int], device: str) -> tuple[Any, ...]:
    x, noise = (torch.randn((1, *latents), device=device) for _ in range(2))
    text = {"prompt_embeds": torch.randn(1, 512, 4096, device=device)}
    return x, text, noise, torch.tensor([0.6], device=device)


def step(transformer: Any, inputs: tuple[Any, ...], gpu: bool) -> float:
    """Seconds of a forward and a backward pass."""
    if gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    velocity_loss(OBJECTIVE, transformer, *inputs).mean().backward()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    transformer.zero_grad(set_to_none=True)
    return seconds


if __name__ == "__main__":
    main()
