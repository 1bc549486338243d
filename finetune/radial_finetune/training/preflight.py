"""What a run will need, before it begins: memory, disk and time, from the sizes of its clips."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch

from radial.errors import RequestError
from radial.files import existing_folder
from radial.loading.load import choose_device, choose_dtype
from radial.loading.quantize import round_weights
from radial.models.architecture import architecture_in
from radial.models.checkpoint import checkpoint_folder
from radial.models.find import find_model
from radial.models.hub.download import cached_folder
from radial.plans.block_plan import BlockPlan
from radial.plans.layout import TokenGrid
from radial.plans.pattern import RadialPattern
from radial_finetune.adapter.place import add_adapter
from radial_finetune.data.cache import read_index
from radial_finetune.objective import objective_of
from radial_finetune.training.assemble import adapter_settings, grid_of, pattern_of
from radial_finetune.training.config import FinetuneConfig
from radial_finetune.training.offloading import BLOCKS
from radial_finetune.training.optimizers import MOMENT_BYTES

# Tensors of a token's width, and of its feed-forward layer's, that one block holds at the height of its backward pass;
# read off Wan 1.3 B at 480p, 81 and 321 frames, on an H100 (benchmarks/training_h100_2026-11-24.md).
_WIDTHS, _FEED_FORWARD_WIDTHS = 24, 4
_SPARE = 0.6e9  # the CUDA context and what the allocator cannot use
_SHARE_OF_RATE = 0.5  # of the rate of a large matrix product, which is what whole steps reach


@dataclass(frozen=True)
class TrainingNeeds:
    """Bytes on the device, in the host's memory and on disk, and seconds a step; ``tokens`` are the longest clip's."""

    tokens: int
    device: float
    host: float
    disk: float
    seconds: float

    def __str__(self) -> str:
        host = f", {self.host / 1e9:.1f} GB of host memory" if self.host > 1e8 else ""
        return (
            f"{self.tokens:,} tokens a clip, about {self.device / 1e9:.1f} GB{host}, {self.disk / 1e9:.2f} GB of disk, "
            f"about {self.seconds:.2g} s a step"
        )


@dataclass(frozen=True)
class _Model:
    """The sizes of a transformer that decide what training takes."""

    width: int
    feed_forward: int
    blocks: int
    weights: int
    weight_bytes: int
    linear_bytes: int
    block_weights: int
    block_bytes: int
    adapter: int
    itemsize: int
    teacher_passes: int


def estimate(
    config: FinetuneConfig, transformer: Any, grids: list[TokenGrid], pattern: RadialPattern, device: torch.device,
    dense_layers: int, block_size: int,
) -> TrainingNeeds:  # fmt: skip
    """What a run on clips of these grids needs, a batch of the largest one at a time."""
    model = _measure(transformer, config)
    if config.memory is not None:
        grids = [TokenGrid(config.memory.training_frames(grid.frames), grid.height, grid.width) for grid in grids]
    densities = [_density(config, grid, pattern, block_size) for grid in grids]
    flops = max(
        _step_flops(config, model, grid, density, dense_layers) for grid, density in zip(grids, densities, strict=True)
    )
    tokens = max(grid.tokens for grid in grids)
    kept = model.adapter * (4 + MOMENT_BYTES[config.optimizer] + (4 if config.ema_decay else 0))
    rate = _matmul_rate(device, transformer.dtype) * _SHARE_OF_RATE
    return TrainingNeeds(
        tokens, _device_bytes(config, model, tokens), _host_bytes(config, model, tokens),
        # A checkpoint holds the adapter to use too; beside them are the best one and the last.
        (config.keep_checkpoints + 1) * (kept + 4 * model.adapter) + 8 * model.adapter, flops / rate,
    )  # fmt: skip


def _density(config: FinetuneConfig, grid: TokenGrid, pattern: RadialPattern, block_size: int) -> float:
    """The share of all pairs of tokens that is computed; of stories, without their memory."""
    if (memory := config.memory) is not None:
        seen = 1 + memory.window_frames + memory.chunk_frames
        return min(1.0, seen / grid.frames)
    return 1.0 if config.attention == "dense" else BlockPlan.build(grid, pattern, block_size).density


def forecast(config: FinetuneConfig) -> TrainingNeeds:
    """What a run will need, told without loading the model: from its configuration, on the clips of the cache.

    Raises:
        RequestError: there is no such cache or model.
        ModelError: the model is of a kind that is not trained here.
    """
    index = read_index(Path(config.data))
    spec = find_model(config.model)
    folder = checkpoint_folder(spec) or cached_folder(spec.source)
    if folder is None:
        raise RequestError(f"{config.model} is not on this machine")
    device = choose_device(config.device)
    architecture = architecture_in(folder, "transformer_2" if config.expert == "low" else "transformer")
    sizes = json.loads(architecture.config)
    objective = objective_of(architecture.kind, sizes, sizes.get("out_channels") or sizes["in_channels"])
    with torch.device("meta"):
        transformer = getattr(diffusers, architecture.kind).from_config(sizes)
        round_weights(transformer, choose_dtype(config.dtype, device, spec.half_dtype))
        add_adapter(transformer, objective, config.adapter_form)
    lengths = {stage.num_frames for stage in config.curriculum}
    buckets = [bucket for bucket in index.buckets if not lengths or bucket.num_frames in lengths]
    settings = adapter_settings(config, spec, buckets)
    grids = [grid_of(spec, bucket) for bucket in buckets]
    return estimate(
        config, transformer, grids, pattern_of(spec, settings), device, settings.dense_layers or 0,
        settings.block_size or 128,
    )  # fmt: skip


def check(
    needed: TrainingNeeds, config: FinetuneConfig, transformer: Any, grids: list[TokenGrid], device: torch.device
) -> None:
    """Refuse a run that cannot fit.

    Raises:
        RequestError: with the settings, or the length, that would fit.
    """
    free = shutil.disk_usage(existing_folder(Path(config.output))).free
    if needed.disk > free:
        raise RequestError(
            f"checkpoints need {needed.disk / 1e9:.1f} GB, and {config.output} has {free / 1e9:.1f} GB free; "
            "take another output, or a lower keep_checkpoints or rank"
        )
    if device.type != "cuda":
        return
    if needed.host > (installed := psutil.virtual_memory().total):
        raise RequestError(
            f"what waits outside the device needs {needed.host / 1e9:.0f} GB of host memory, and there is "
            f"{installed / 1e9:.0f} GB; take a smaller batch_size, shorter clips, or leave out offload_checkpoints or "
            "offload_blocks"
        )
    available = torch.cuda.get_device_properties(device).total_memory
    if needed.device <= available:
        return
    model = _measure(transformer, config)
    advice = _what_fits(config, model, max(grid.tokens for grid in grids), available)
    raise RequestError(
        f"a step needs about {needed.device / 1e9:.0f} GB, and {device} has {available / 1e9:.0f} GB; {advice}"
    )


def _what_fits(config: FinetuneConfig, model: _Model, tokens: int, available: float) -> str:
    """The fewest settings that make a run fit, tried in the order of what they cost."""
    changes: dict[str, Any] = {}
    for name, value in (
        ("batch_size", 1), ("gradient_checkpointing", True), ("offload_checkpoints", True),
        ("optimizer", "adamw8bit"), ("base_precision", "float8"), ("offload_blocks", True),
    ):  # fmt: skip
        if getattr(config, name) == value:
            continue
        changes[name] = value
        if _device_bytes(config.model_copy(update=changes), model, tokens) <= available:
            for other in list(changes):  # what was tried before, and is not needed
                fewer = {key: v for key, v in changes.items() if key != other}
                if _device_bytes(config.model_copy(update=fewer), model, tokens) <= available:
                    changes = fewer
            return "these would fit: " + ", ".join(f"{key} = {str(v).lower()}" for key, v in changes.items())
    least = config.model_copy(update=changes)
    if config.packed and (config.batch_tokens or 0) > tokens:
        return f"take a smaller batch_tokens: the longest clip has {tokens:,}"
    degree = config.ulysses_degree
    least = least.model_copy(update={"packed": False})
    one, two = (_device_bytes(least, model, count * degree) for count in (1, 2))
    if 2 * one - two >= available:
        return "the model's weights alone do not fit"
    longest = int((available - (2 * one - two)) / (two - one)) * degree
    return (
        f"even with {', '.join(changes) or 'all that saves memory'}, clips of {longest:,} tokens are the longest; more "
        "processes and a higher ulysses_degree hold longer ones"
    )


def _measure(transformer: Any, config: FinetuneConfig) -> _Model:
    sizes = transformer.config
    width = sizes.num_attention_heads * sizes.attention_head_dim
    layers = [block for name in BLOCKS for block in getattr(transformer, name, ())]
    blocks = len(layers)
    every = [p.to_local() if hasattr(p, "to_local") else p for p in transformer.parameters()]  # FSDP: this one's part
    asked = [p.requires_grad for p in transformer.parameters()]
    frozen = [p for p, trained in zip(every, asked, strict=True) if not trained]
    linear = sum(p.numel() for p in frozen if p.ndim == 2)
    weight_bytes = sum(p.numel() * p.itemsize for p in frozen)
    itemsize = torch.empty((), dtype=transformer.dtype).itemsize
    linear_bytes = sum(p.numel() * p.itemsize for p in frozen if p.ndim == 2)
    in_blocks = [p for block in layers for p in block.parameters() if not p.requires_grad]
    block_weights = sum(p.numel() for p in in_blocks)
    block_bytes = sum(p.numel() * p.itemsize for p in in_blocks)
    adapter = sum(p.numel() for p, trained in zip(every, asked, strict=True) if trained)
    once = config.guidance_scale == 1 or sizes.get("guidance_embeds")
    passes = (config.teacher_steps or 0) * (1 if once else 2)
    return _Model(
        width, sizes.get("ffn_dim") or 4 * width, blocks, linear, weight_bytes, linear_bytes, block_weights,
        block_bytes, adapter, itemsize, passes,
    )  # fmt: skip


def _device_bytes(config: FinetuneConfig, model: _Model, tokens: int) -> float:
    tokens = -(-config.tokens_in_batch(tokens) // config.ulysses_degree)
    weights = float(model.weight_bytes)
    if config.base_precision == "float8":
        weights += model.weights - model.linear_bytes
        if not config.gradient_checkpointing:  # the backward pass keeps every widened weight
            weights += model.weights * model.itemsize
    if config.offload_blocks:
        weights -= _offloaded_bytes(config, model) * max(0.0, 1 - 2 / max(1, model.blocks))
    adapter = model.adapter * (4 + 4 + MOMENT_BYTES[config.optimizer] + (4 if config.ema_decay else 0))
    block = tokens * (_WIDTHS * model.width + _FEED_FORWARD_WIDTHS * model.feed_forward) * model.itemsize
    if not config.gradient_checkpointing:
        kept = model.blocks * block * 0.6
    elif config.offload_checkpoints:
        kept = 2 * tokens * model.width * model.itemsize
    else:
        kept = model.blocks * tokens * model.width * model.itemsize
    return weights + adapter + block + kept + (_SPARE if tokens else 0)


def _offloaded_bytes(config: FinetuneConfig, model: _Model) -> float:
    """Of the weights of blocks, in the numbers that they are kept in."""
    return float(model.block_weights if config.base_precision == "float8" else model.block_bytes)


def _host_bytes(config: FinetuneConfig, model: _Model, tokens: int) -> float:
    needed = _offloaded_bytes(config, model) if config.offload_blocks else 0.0
    if config.offload_checkpoints:
        block = -(-config.tokens_in_batch(tokens) // config.ulysses_degree) * model.width * model.itemsize
        # Pinned memory comes in such sizes.
        needed += model.blocks * (1 << max(0, math.ceil(math.log2(max(1, block)))))
    return needed


def _step_flops(config: FinetuneConfig, model: _Model, grid: TokenGrid, density: float, dense_layers: int) -> float:
    """Of the forward pass, once more where checkpoints are recomputed, and of the backward pass; of a teacher's forward
    passes before."""
    again = (2 if config.gradient_checkpointing else 1) + model.teacher_passes
    layers = dense_layers + (model.blocks - dense_layers) * density
    products = 2 * grid.tokens * model.weights * (again + 1)
    attention = 4 * grid.tokens**2 * model.width * layers * (again + 2.5)
    return (
        (products + attention)
        * config.clips_in_batch(grid.tokens)
        * config.gradient_accumulation_steps
        / config.ulysses_degree
    )


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product here and now."""
    side = 4096 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        b = a @ a
        float(b[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
