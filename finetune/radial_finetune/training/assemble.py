"""What a run is made of: the model and what is kept of it, its adapter, its optimizer, the attention it trains with."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

import radial
from radial.attention.context_parallel import ContextParallel
from radial.attention.families.find import find_family
from radial.attention.install import transformers_of
from radial.attention.packed.clips import PackedClips, packed_model
from radial.attention.positions import riflex
from radial.attention.story.framewise import check_framewise
from radial.attention.story.tokens import train_tokens
from radial.attention.timed_text import timed_text
from radial.errors import RequestError
from radial.generation.sampler import scheduler_for
from radial.loading.load import LoadedModel, choose_dtype, load
from radial.models.find import find_model
from radial.models.lora_settings import AdapterSettings
from radial.models.spec import ModelSpec
from radial.plans.pattern import RadialPattern
from radial.plans.policy import Schedule
from radial.request import make_request
from radial_finetune.adapter.file import is_norm
from radial_finetune.adapter.place import add_adapter, switched_off
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import CacheIndex
from radial_finetune.data.prepare import encode_texts
from radial_finetune.noise import Windows
from radial_finetune.objective import (
    CausalLoss,
    Loss,
    Objective,
    StepDistillation,
    Text,
    find_objective,
    stands_for_frames,
    velocity_loss,
)
from radial_finetune.training.compilation import compile_blocks
from radial_finetune.training.config import FinetuneConfig
from radial_finetune.training.offloading import OffloadedBlocks, offloaded_checkpoint, plain_checkpoint
from radial_finetune.training.processes import Processes, whole

FEW_STEP_SAMPLER: Literal["euler"] = "euler"  # straight from level to level, as windows are crossed
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
SAMPLERS = ("vae", "image_encoder")  # of a pipeline: what only clips that are made on the way need


def load_model(config: FinetuneConfig, index: CacheIndex, device: torch.device) -> tuple[LoadedModel, Objective]:
    longest, spec, at = max(index.buckets), find_model(config.model), device
    dtype: str = config.dtype
    if config.offload_blocks:  # it may be too large for the device
        at, dtype = torch.device("cpu"), str(choose_dtype(dtype, device, spec.half_dtype)).removeprefix("torch.")
    request = make_request(
        prompt="fine-tuning", model=config.model, height=longest.height, width=longest.width,
        num_frames=longest.num_frames, device=str(at), dtype=dtype, seed=0, long_adapter=False,
        **stands_for_frames(spec),
    )  # fmt: skip
    model = replace(load(request), device=device)
    if at != device:
        for transformer in transformers_of(model.pipe):
            find_family(transformer).fuse(transformer)
        for name in TEXT_ENCODERS:
            if getattr(model.pipe, name, None) is not None:
                getattr(model.pipe, name).to(device)
    objective = find_objective(model.pipe, model.spec)
    if config.packed:
        packed_model(model.pipe.transformer)
    if model.fingerprint != index.fingerprint:
        raise RequestError(f"the cache {config.data} was made with {index.model}, other weights than {config.model}")
    if config.expert is not None and config.sample_every:
        raise RequestError(
            "sample_every needs both experts, and a run holds one; make clips with the adapter afterwards"
        )
    if config.riflex and model.spec.riflex_period is None:
        raise RequestError(f"riflex has no constant for {config.model}")
    return model, objective


def keep_only(pipe: Any, name: str) -> dict[str, Any]:
    """Let go of all but the transformer that is tuned, which becomes the pipeline's only one: the autoencoder and the
    image encoder, for clips that are made on the way."""
    parts = {part: getattr(pipe, part).to("cpu") for part in SAMPLERS if getattr(pipe, part, None) is not None}
    for part in (*parts, *TEXT_ENCODERS):
        if getattr(pipe, part, None) is not None:
            setattr(pipe, part, None)
    if name == "transformer_2":
        pipe.transformer = pipe.transformer_2
    if getattr(pipe, "transformer_2", None) is not None:
        pipe.transformer_2 = None
        pipe.register_to_config(boundary_ratio=None)
    return parts


def prepare_transformer(
    config: FinetuneConfig, model: LoadedModel, objective: Objective, processes: Processes
) -> tuple[Any, dict[str, torch.nn.Parameter], dict[str, Tensor]]:
    """The transformer with its adapter; the parameters to train, and what they were before."""
    transformer = model.pipe.transformer
    if config.base_precision == "float8":
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        add_adapter(transformer, objective, config.adapter_form)
        if config.memory is not None and config.memory.memory_tokens is not None:
            train_tokens(transformer, config.memory.memory_tokens)
    if config.offload_blocks:
        if processes.sharded:
            raise RequestError("FSDP spreads weights over processes, and offload_blocks holds them whole: take one")
        blocks = OffloadedBlocks(transformer, processes.device)
        inner = offloaded_checkpoint if config.offload_checkpoints else plain_checkpoint
        transformer.enable_gradient_checkpointing(functools.partial(blocks.checkpoint, inner))
    elif config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing(*([offloaded_checkpoint] if config.offload_checkpoints else []))
    transformer.train()
    if config.compile:
        compile_blocks(transformer)
    model.pipe.transformer = transformer = processes.spread(transformer)
    parameters = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    before = {name: whole(p.detach()).clone() for name, p in parameters.items() if is_norm(name)}
    return transformer, parameters, before


def make_loss(config: FinetuneConfig, objective: Objective, windows: Windows | None, device: torch.device) -> Loss:
    """What the run lowers; to be made while the text encoder is at hand.

    Args:
        windows: of the steps that it distills to, where it does.

    Raises:
        RequestError: the model's pipeline does not take the steps that an adapter would be distilled to.
    """
    if config.memory is not None:
        check_framewise(objective.pipe.transformer)
        memory = config.memory
        return CausalLoss(objective, memory.seen, reconstruction=memory.reconstruction, recall=memory.recall)
    if windows is None:
        return functools.partial(velocity_loss, objective)
    pipe, spec = objective.pipe, objective.spec
    check_levels(pipe, windows)
    own = spec.guidance_for(objective.first_frame == "always")
    own = spec.guidance_scale_2 or own if config.expert == "low" else own
    scale = own if config.guidance_scale is None else config.guidance_scale
    negative: Text = {}
    if scale > 1 and not objective.guides_by_input(pipe.transformer.config):
        if objective.text_sees_frames:
            raise RequestError(
                f"step_distillation with guidance is not for {spec.name}, which reads words to avoid beside each "
                "clip's frame; set guidance_scale = 1"
            )
        words = spec.negative_prompt if config.negative_prompt is None else config.negative_prompt
        text = objective.stack_text(encode_texts(objective, [words]))
        negative = {name: value.to(device) for name, value in text.items()}
    return StepDistillation(objective, windows, config.teacher_steps or 1, scale, negative, switched_off)


def check_levels(pipe: Any, windows: Windows) -> None:
    """Make sure that generation steps at the noise levels that are trained.

    Raises:
        RequestError: it does not.
    """
    scheduler = scheduler_for(pipe, FEW_STEP_SAMPLER, windows.shift)
    scheduler.set_timesteps(windows.num_steps)
    if scheduler.config.get("invert_sigmas") or not torch.allclose(scheduler.sigmas, windows.levels(), atol=1e-6):
        raise RequestError(
            f"step_distillation is not for {type(pipe).__name__}, which chooses its noise levels by itself, at few "
            "steps too; it is for Wan and HunyuanVideo"
        )


def adapter_settings(
    config: FinetuneConfig, spec: ModelSpec, buckets: Iterable[Bucket], flow_shift: float | None = None
) -> AdapterSettings:
    """What generation is to do with the adapter: as it was tuned, for its longest clips, on that shift."""
    buckets = list(buckets)
    frames = max(bucket.num_frames for bucket in buckets)
    pattern, schedule = spec.preset(frames, spec.num_inference_steps)
    few: dict[str, Any] = {
        "num_inference_steps": config.num_inference_steps, "sampler": FEW_STEP_SAMPLER, "guidance_scale": 1.0,
    }  # fmt: skip
    return AdapterSettings(
        base_model=config.model,
        rank=config.rank,
        alpha=config.adapter_form.alpha,
        native_frames=spec.native_frames,
        target_frames=frames,
        trigger=config.trigger,
        expert=config.expert,
        attention=config.attention,
        # Pictures among clips make it none for clips of every length in between.
        tuned_frames=tuple(sorted({b.num_frames for b in buckets if b.num_frames > 1} or {1})),
        decay=config.decay or pattern.decay,
        skip_width=config.skip_width or pattern.skip_width,
        sink_frames=pattern.sink_frames,
        dense_layers=schedule.dense_layers if config.dense_layers is None else config.dense_layers,
        dense_steps=0 if config.distills else schedule.dense_steps,  # all of them as they were trained
        dense_every=config.dense_every or None,
        block_size=config.block_size or spec.block_size,
        far_field=config.far_field,
        token_order=config.token_order,
        riflex=config.riflex,
        flow_shift=flow_shift,
        memory=config.memory and config.memory.seen,
        **(few if config.distills else {}),
    )


def pattern_of(spec: ModelSpec, settings: AdapterSettings) -> RadialPattern:
    preset, _ = spec.preset(settings.target_frames or 1, spec.num_inference_steps)
    sinks = preset.sink_frames if settings.sink_frames is None else settings.sink_frames
    return replace(
        preset, decay=settings.decay or preset.decay, sink_frames=sinks,
        skip_width=settings.skip_width or preset.skip_width,
    )  # fmt: skip


@contextlib.contextmanager
def attention(
    config: FinetuneConfig, model: LoadedModel, settings: AdapterSettings, parallel: ContextParallel | None,
    pipe: Any = None, *, steps: int | None = None, in_time: bool = False,
) -> Iterator[PackedClips | None]:  # fmt: skip
    """The attention that generation will use, in the layers that are not dense; given the pipeline, also in the steps
    that are not. Processes that share clips share dense attention too. Without the pipeline, what calls the transformer
    on packed clips, where the run has them.

    Args:
        steps: of the clip that the pipeline makes; the model's own when left out.
        in_time: whether there are clips in which one text follows another.
    """
    with contextlib.ExitStack() as stack:
        if config.memory is not None:  # its loss attends by itself
            yield None
            return
        packs, installed = config.packed and pipe is None, None
        if in_time:
            if settings.token_order == "columns":
                raise RequestError("clips whose texts follow one another take token_order raster")
            stack.enter_context(
                timed_text([model.pipe.transformer], model.spec.max_sequence_length, model.spec.stride[0],
                           parallel=parallel)
            )  # fmt: skip
        if config.riflex:
            stack.enter_context(riflex([model.pipe.transformer], model.spec.riflex_period or 1.0))
        target = model.pipe.transformer if pipe is None else pipe
        if config.attention == "dense" and (packs or parallel is not None):
            installed = stack.enter_context(radial.apply(target, schedule=Schedule.dense(), parallel=parallel))
        if config.attention == "radial":
            taken = steps or model.spec.num_inference_steps
            dense = model.spec.dense_share(settings.dense_steps or 0, taken) if pipe is not None else 0
            every = settings.dense_every or 0 if pipe is not None else 0
            installed = stack.enter_context(
                radial.apply(
                    target, pattern=pattern_of(model.spec, settings), block_size=settings.block_size or 128,
                    schedule=Schedule(settings.dense_layers or 0, dense, dense_every=every), parallel=parallel,
                    far_field=config.far_field, token_order=config.token_order,
                )
            )  # fmt: skip
        yield stack.enter_context(PackedClips(target, installed)) if packs and installed is not None else None


def grid_of(spec: ModelSpec, bucket: Bucket) -> radial.TokenGrid:
    frames, height, width = spec.stride
    return radial.TokenGrid((bucket.num_frames - 1) // frames + 1, bucket.height // height, bucket.width // width)
