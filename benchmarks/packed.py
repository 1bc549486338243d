"""Packed clips against padded ones, and against one by one, on one GPU: ``python benchmarks/packed.py``.

Attention: clips of unlike sizes in one layer, forward and with the backward pass.

    padded      one batch in which every clip is as long as the longest, dense, without a mask: cuDNN or flash, forced
    one by one  dense attention of each clip by itself, the same kernel
    packed      dense attention of the pack, the same kernel: a call for each size, on views of one sequence
    radial      radial attention of the pack, block-sparse kernels, a call for each size likewise
    one list    the same as one call for all clips, by lists that are joined: each clip is filled up to a block, which
                copies q, k, v and the output

The ceiling of packed over padded is B max^2 / sum N^2, pairs of tokens that padding computes over those that are there;
``share`` is how much of it was reached. The rival of a pack is also one by one, which computes the same pairs: packing
saves launches and fills the GPU where single clips do not, and no more. Memory is the peak of a call with its inputs.

Tuning: a whole epoch of a mixed set by packs and by buckets, a transformer of Wan 2.1 1.3B with random weights, bf16, a
LoRA, gradient checkpointing, radial attention in both; the same clips, noise levels and budget of tokens. Clips a
second, and the number of steps that took.

Drafts: 8 short clips of the bundled model, together and one by one, and what the table of where packs pay should say
of them.

    python benchmarks/packed.py --tiny     all at a size for the CPU, where times say nothing
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import radial
from radial import RadialPattern, Schedule
from radial.attention.packed.clips import PackedClips
from radial.attention.packed.pack import Budget, Pack, align, unalign
from radial.generation.acceleration.pack_rates import Rate
from radial.generation.acceleration.together import generate_together
from radial.generation.pipeline import generate
from radial.loading.load import load
from radial.models.table import MODELS
from radial.plans.block_plan import BlockPlan
from radial.plans.layout import Layout, TokenGrid
from radial.request import make_request
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter
from radial_finetune.objective import WanObjective, packed_loss, velocity_loss
from radial_finetune.training.batches.packing import first_fit
from radial_kernels import block_sparse

PARTS = ("attention", "tuning", "drafts")
KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
OBJECTIVE = WanObjective(SimpleNamespace(config={}), MODELS["wan2.1-1.3b"])


@dataclass(frozen=True)
class Sizes:
    """What is measured, at real size or for the CPU.

    Attributes:
        mixes: clips of a pack of attention, by name.
        tuned: grids of the mixed set, each with how many clips of it there are.
        budget: tokens of a step.
    """

    mixes: dict[str, list[TokenGrid]]
    heads: int
    head_dim: int
    block_size: int
    tuned: tuple[tuple[TokenGrid, int], ...]
    budget: int
    model: dict[str, Any]
    words: int


def grid(frames: int, height: int = 480, width: int = 832) -> TokenGrid:
    """Of Wan's clips of so many frames and pixels."""
    return TokenGrid((frames - 1) // 4 + 1, height // 16, width // 16)


REAL = Sizes(
    {
        "17, 33, 49, 81 frames, 480p": [grid(n) for n in (17, 33, 49, 81)],
        "81 frames 720p + 3 x 33 frames 480p": [grid(81, 720, 1280), *[grid(33)] * 3],
        "81 frames 480p + 12 pictures": [grid(81), *[grid(1)] * 12],
    },
    12, 128, 128, ((grid(1), 24), (grid(17), 12), (grid(33), 8), (grid(49), 6), (grid(81), 4)), 66_000,
    {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 512,
)  # fmt: skip
TINY = Sizes(
    {"1, 5, 9 frames": [TokenGrid(1, 4, 6), TokenGrid(2, 4, 6), TokenGrid(3, 4, 6), TokenGrid(2, 4, 6)]},
    2, 16, 16, ((TokenGrid(1, 4, 6), 3), (TokenGrid(3, 4, 6), 2)), 150,
    {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 1, "text_dim": 16}, 8,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kernel", choices=list(KERNELS), default="cudnn", help="of dense attention")
    parser.add_argument("--heads", type=int, help="12 when left out, as Wan 1.3B's; 40 of 14B")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU")
    options = parser.parse_args()
    sizes, device = (TINY, "cpu") if options.tiny else (REAL, "cuda")
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU", "torch", torch.__version__, vars(options))
    if "attention" in options.part:
        for name, grids in sizes.mixes.items():
            compare_attention(name, grids, sizes, options, device)
    if "tuning" in options.part:
        compare_tuning(sizes, device)
    if "drafts" in options.part:
        compare_drafts(*((2, 5, 2) if options.tiny else (8, 17, 20)))


def compare_attention(
    name: str, grids: Sequence[TokenGrid], sizes: Sizes, options: argparse.Namespace, device: str
) -> None:
    tokens, longest = [one.tokens for one in grids], max(one.tokens for one in grids)
    ceiling = len(grids) * longest**2 / sum(n**2 for n in tokens)
    heads = options.heads or sizes.heads
    padded = len(grids) * longest
    print(f"\n{name}: {sum(tokens):,} tokens, {1 - sum(tokens) / padded:.0%} of a padded batch is padding; "
          f"ceiling {ceiling:.2f}x, of what is computed on each token {padded / sum(tokens):.2f}x")  # fmt: skip
    print(f"  {'':11} {'forward ms':>11} {'x padded':>9} {'share':>6} {'both ms':>9} {'x padded':>9} {'share':>6} "
          f"{'GB':>6}")  # fmt: skip
    measured = {kind: measure(make(grids, heads, sizes, device), options, device) for kind, make in ATTENTIONS.items()}
    for kind, (forward, both, memory) in measured.items():
        columns = "".join(
            f" {1e3 * seconds:{width}.2f} {measured['padded'][place] / seconds:9.2f} "
            f"{measured['padded'][place] / seconds / ceiling:6.0%}"
            for place, width, seconds in ((0, 11, forward), (1, 9, both))
        )
        print(f"  {kind:11}{columns} {memory / 1e9:6.2f}", flush=True)


Attend = Callable[..., Tensor]


def make_padded(grids: Sequence[TokenGrid], heads: int, sizes: Sizes, device: str) -> tuple[Attend, list[list[Tensor]]]:
    longest = max(one.tokens for one in grids)
    return dense, [drawn((len(grids), longest, heads, sizes.head_dim), device)]


def make_single(grids: Sequence[TokenGrid], heads: int, sizes: Sizes, device: str) -> tuple[Attend, list[list[Tensor]]]:
    return dense, [drawn((1, one.tokens, heads, sizes.head_dim), device) for one in grids]


def make_packed(grids: Sequence[TokenGrid], heads: int, sizes: Sizes, device: str) -> tuple[Attend, list[list[Tensor]]]:
    pack = pack_of(grids)

    def attend(*parts: Tensor) -> Tensor:
        return pack.join([dense(*group) for group in zip(*map(pack.split, parts), strict=True)])

    return attend, [drawn((1, pack.tokens, heads, sizes.head_dim), device)]


def make_radial(grids: Sequence[TokenGrid], heads: int, sizes: Sizes, device: str) -> tuple[Attend, list[list[Tensor]]]:
    pack = pack_of(grids)
    plans = [BlockPlan.build(group.layout, RadialPattern(), sizes.block_size).to(device) for group in pack.groups]

    def attend(*parts: Tensor) -> Tensor:
        groups = zip(*map(pack.split, parts), plans, strict=True)
        return pack.join([block_sparse.attention(*group) for group in groups])

    return attend, [drawn((1, pack.tokens, heads, sizes.head_dim), device)]


def make_joined(grids: Sequence[TokenGrid], heads: int, sizes: Sizes, device: str) -> tuple[Attend, list[list[Tensor]]]:
    pack = pack_of(grids)
    plans = [BlockPlan.build(layout, RadialPattern(), sizes.block_size) for layout in pack.layouts]
    lists = block_sparse.join_lists(plans, [layout.tokens for layout in pack.layouts]).to(device)

    def attend(*parts: Tensor) -> Tensor:
        groups = [pack.split(part) for part in parts]
        out = block_sparse.attention(*(align(group, sizes.block_size) for group in groups), lists)
        return pack.join(unalign(out, groups[0], sizes.block_size))

    return attend, [drawn((1, pack.tokens, heads, sizes.head_dim), device)]


ATTENTIONS = {
    "padded": make_padded,
    "one by one": make_single,
    "packed": make_packed,
    "radial": make_radial,
    "one list": make_joined,
}


def pack_of(grids: Sequence[TokenGrid]) -> Pack:
    return Pack(tuple(Layout.of(one) for one in sorted(grids, key=grids.index)), (0,) * len(grids))


def drawn(shape: tuple[int, ...], device: str) -> list[Tensor]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]


def dense(*parts_BSHD: Tensor) -> Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts_BSHD)).transpose(1, 2)


def measure(
    made: tuple[Attend, list[list[Tensor]]], options: argparse.Namespace, device: str
) -> tuple[float, float, float]:
    """Seconds forward, seconds with the backward pass, and bytes at the peak."""
    attend, inputs = made
    gradients = [torch.randn_like(parts[0]) for parts in inputs]

    def forward() -> None:
        with torch.no_grad():
            for parts in inputs:
                attend(*parts)

    def both() -> None:
        for parts, gradient in zip(inputs, gradients, strict=True):
            torch.autograd.grad(attend(*parts), parts, gradient)

    gpu = device == "cuda"
    with sdpa_kernel(KERNELS[options.kernel]) if gpu else contextlib.nullcontext():
        seconds = [statistics.median(timed(one, gpu) for _ in range(options.rounds + 2)) for one in (forward, both)]
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            both()
        return seconds[0], seconds[1], torch.cuda.max_memory_allocated() if gpu else 0


def timed(one: Callable[[], object], gpu: bool) -> float:
    if gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    one()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare_tuning(sizes: Sizes, device: str) -> None:
    grids = [one for one, count in sizes.tuned for _ in range(count)]
    transformer = build(sizes, device)
    print(f"\ntuning: an epoch of {len(grids)} clips, {sum(g.tokens for g in grids):,} tokens, {sizes.budget:,} a step")
    print(f"  {'':8} {'steps':>6} {'s':>8} {'clips/s':>8} {'faster':>7} {'GB':>6}")
    attention = radial.apply(
        transformer, pattern=RadialPattern(), block_size=sizes.block_size,
        schedule=Schedule(dense_layers=min(2, len(transformer.blocks) - 1)),
    )  # fmt: skip
    first = 0.0
    with attention, PackedClips(transformer, attention) as packed:

        def packs() -> int:
            steps = first_fit([one.tokens for one in grids], Budget(sizes.budget))
            random.Random(0).shuffle(steps)
            for step in steps:
                clips = [clip_of(grids[number], 1, sizes, device) for number in step]
                packed_loss(OBJECTIVE, transformer, packed, clips, [1 / len(clips)] * len(clips), "none").backward()
            return len(steps)

        def buckets() -> int:
            steps = []
            for one, count in sizes.tuned:
                most = max(1, sizes.budget // one.tokens)
                steps += [(one, min(most, count - start)) for start in range(0, count, most)]
            random.Random(0).shuffle(steps)
            for one, count in steps:
                velocity_loss(OBJECTIVE, transformer, *clip_of(one, count, sizes, device)).mean().backward()
            return len(steps)

        for name, epoch in (("buckets", buckets), ("packs", packs)):
            count = epoch()  # warms up
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = timed(epoch, device == "cuda")
            first = first or seconds
            memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
            rate = len(grids) / seconds
            print(f"  {name:8} {count:6} {seconds:8.2f} {rate:8.2f} {first / seconds:7.2f} {memory:6.1f}", flush=True)


def compare_drafts(count: int, frames: int, steps: int) -> None:
    requests = [
        make_request(prompt="a red circle moves right", num_frames=frames, num_inference_steps=steps, seed=seed)
        for seed in range(count)
    ]
    model = load(requests[0])
    print(f"\ndrafts: {count} clips of {frames} frames and {steps} steps, bundled model, {model.device}")
    first = 0.0
    for name in ("one by one", "together"):
        for _ in range(2):  # the first warms up
            started = time.perf_counter()
            if name == "together":
                made = generate_together(requests, model=model)
            else:
                made = [next(generate(request, model=model)) for request in requests]
            seconds = time.perf_counter() - started
        failed = [str(one) for one in made if isinstance(one, Exception)]
        if failed:
            raise SystemExit(f"  {name} failed: {failed[0]}")
        first = first or seconds
        print(f"  {name:10} {seconds:8.2f} s {first / seconds:6.2f} x", flush=True)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
    tokens = requests[0].resolve().grid(model.spec).tokens
    measured = f"{date.today()}, benchmarks/packed.py --part drafts"
    rate = Rate(model.spec.name, device, tokens, count, round(first / seconds, 2), measured)
    print(f"  a row of pack_rates.py: {rate}", flush=True)


def build(sizes: Sizes, device: str) -> Any:
    """The transformer with an adapter, ready to train."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(device):
        transformer = WanTransformer3DModel(**{"attention_head_dim": 128} | sizes.model)
        transformer = transformer.to(torch.bfloat16 if device == "cuda" else torch.float32)
    add_adapter(transformer, OBJECTIVE, AdapterForm(*(2 * [128 if device == "cuda" else 4])))
    transformer.enable_gradient_checkpointing()
    return transformer.train()


def clip_of(one: TokenGrid, count: int, sizes: Sizes, device: str) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    shape = (count, 16, one.frames, 2 * one.height, 2 * one.width)
    x, noise = (torch.randn(shape, device=device) for _ in range(2))
    text = {"prompt_embeds": torch.randn(count, sizes.words, sizes.model.get("text_dim", 4096), device=device)}
    return x, text, noise, torch.rand(count, device=device)


if __name__ == "__main__":
    main()
