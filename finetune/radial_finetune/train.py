"""Fine-tuning in one loop: a LoRA under radial attention, at the length of the cached clips.

Everything random in a step follows from the seed and the step's number, so that a run that was stopped, however it
was stopped, goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import radial
from radial.adapter_settings import AdapterSettings
from radial.errors import GenerationError, RequestError
from radial.loading import LoadedModel, load
from radial.positions import riflex
from radial.request import make_request
from radial.schedule import Schedule
from radial_finetune.adapter import add_adapter, export_state, write_adapter
from radial_finetune.checkpoints import RunState, list_checkpoints, load_checkpoint, save_checkpoint
from radial_finetune.config import FinetuneConfig
from radial_finetune.objective import check_objective, draw_sigmas, flow_loss
from radial_finetune.prepare import CacheIndex, read_clip, read_empty_text, read_index

VALIDATION_SIGMAS = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Progress:
    """A step that ended: its mean loss, learning rate and seconds, and the held-out loss where it was measured."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    validation: float | None = None


def finetune(
    config: FinetuneConfig, *, resume: bool = False, on_step: Callable[[Progress], None] = lambda progress: None
) -> Path:
    """Train, and write the adapter: its path.

    Raises:
        RequestError: data, model or output do not fit together; raised before the first step.
        GenerationError: losses or gradients stopped being numbers for too long.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    output, cache = Path(config.output), Path(config.data)
    if list_checkpoints(output) and not resume:
        raise RequestError(f"{output} has checkpoints of a run; pass --resume to go on, or take another output")
    index = read_index(cache)
    train_clips, held_out = _split(index, config)
    model = _load_model(config, index)
    transformer = model.pipe.transformer
    alpha = config.alpha if config.alpha is not None else float(config.rank)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        parameters = add_adapter(transformer, config.rank, alpha, config.layers)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    average = {n: p.detach().clone() for n, p in parameters.items()} if config.ema_decay else {}
    state = RunState(parameters, optimizer, average, config=config.model_dump(mode="json"))
    if resume and (saved := list_checkpoints(output)):
        load_checkpoint(saved[-1], state)
    settings = _settings(config, model, index)
    shift = config.shift or float(model.pipe.scheduler.config.get("flow_shift", 1.0))
    empty_text = read_empty_text(cache)
    bad_steps = 0
    with _attention(config, model, settings):
        try:
            while state.step < config.steps:
                started = time.monotonic()
                loss = 0.0
                for part in range(config.gradient_accumulation_steps):
                    number = state.step * config.gradient_accumulation_steps + part
                    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
                    names = _batch(train_clips, number, config)
                    latents, text = _read_batch(cache, names, empty_text, config.caption_dropout, generator)
                    noise = torch.randn(latents.shape, generator=generator)
                    sigma = draw_sigmas(len(latents), config.timestep_sampling, shift, generator)
                    on_device = (x.to(model.device) for x in (latents, text, noise, sigma))
                    part_loss = flow_loss(transformer, *on_device).mean() / config.gradient_accumulation_steps
                    part_loss.backward()
                    loss += float(part_loss.detach())
                norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm)
                rate = learning_rate(state.step, config)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                if math.isfinite(loss) and bool(norm.isfinite()):
                    optimizer.step()
                    bad_steps = 0
                else:
                    bad_steps += 1
                optimizer.zero_grad(set_to_none=True)
                _update_average(state, config.ema_decay)
                state.step += 1
                if bad_steps >= config.max_bad_steps:
                    raise GenerationError(
                        f"{bad_steps} steps in a row had no finite loss, up to step {state.step}; "
                        "try a lower learning_rate or float32"
                    )
                validation = None
                if held_out and config.validate_every and state.step % config.validate_every == 0:
                    validation = validate(transformer, cache, held_out, model.device)
                _log(output, state.step, loss, rate, validation)
                seconds = time.monotonic() - started
                on_step(Progress(state.step, config.steps, loss, rate, seconds, validation))
                if state.step % config.checkpoint_every == 0 and bad_steps == 0:
                    save_checkpoint(output, state, config.keep_checkpoints)
        except KeyboardInterrupt:
            save_checkpoint(output, state, config.keep_checkpoints)
            raise
    save_checkpoint(output, state, config.keep_checkpoints)
    final = state.average or {name: p.detach() for name, p in parameters.items()}
    return write_adapter(
        output / "adapter.safetensors", export_state(final, alpha / config.rank, "diffusers"), asdict(settings),
        overwrite=True,
    )  # fmt: skip


def learning_rate(step: int, config: FinetuneConfig) -> float:
    """Warm up linearly, then stay or fall along a cosine to zero."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return config.learning_rate
    done = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def validate(transformer: Any, cache: Path, names: list[str], device: torch.device) -> float:
    """Mean loss of held-out clips at fixed noise levels, with the same noise every time."""
    losses = []
    for number, name in enumerate(names):
        latents, text = (x[None] for x in read_clip(cache, name))
        for sigma in VALIDATION_SIGMAS:
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(latents.shape, generator=generator)
            inputs = (x.to(device) for x in (latents, text, noise, torch.tensor([sigma])))
            losses.append(float(flow_loss(transformer, *inputs)))
    return sum(losses) / len(losses)


def _split(index: CacheIndex, config: FinetuneConfig) -> tuple[list[str], list[str]]:
    names = [clip["file"] for clip in index.clips]
    if config.held_out >= len(names):
        raise RequestError(f"held_out is {config.held_out}, and the cache has {len(names)} clips: none would be left")
    cut = len(names) - config.held_out
    return names[:cut], names[cut:]


def _load_model(config: FinetuneConfig, index: CacheIndex) -> LoadedModel:
    request = make_request(
        prompt="fine-tuning", model=config.model, height=index.height, width=index.width, num_frames=index.num_frames,
        device=config.device, dtype=config.dtype, seed=0,
    )  # fmt: skip
    model = load(request)
    check_objective(model.pipe)
    if model.fingerprint != index.fingerprint:
        raise RequestError(f"the cache {config.data} was made with {index.model}, other weights than {config.model}")
    model.pipe.vae = model.pipe.text_encoder = None  # the cache has their work
    return model


def _settings(config: FinetuneConfig, model: LoadedModel, index: CacheIndex) -> AdapterSettings:
    """What generation is to do with the adapter: as it was tuned."""
    spec = model.spec
    pattern, schedule = spec.preset(index.num_frames, spec.num_inference_steps)
    return AdapterSettings(
        base_model=config.model,
        rank=config.rank,
        native_frames=spec.native_frames,
        target_frames=index.num_frames,
        trigger=config.trigger,
        attention=config.attention,
        decay=config.decay or pattern.decay,
        dense_layers=schedule.dense_layers if config.dense_layers is None else config.dense_layers,
        dense_steps=schedule.dense_steps,
        block_size=config.block_size or spec.block_size,
        riflex=config.riflex,
    )


@contextlib.contextmanager
def _attention(config: FinetuneConfig, model: LoadedModel, settings: AdapterSettings) -> Iterator[None]:
    """The attention that generation will use, in the layers that are not dense."""
    assert settings.decay is not None
    assert settings.dense_layers is not None
    assert settings.block_size is not None
    assert settings.target_frames is not None
    with contextlib.ExitStack() as stack:
        if config.attention == "radial":
            preset, _ = model.spec.preset(settings.target_frames, model.spec.num_inference_steps)
            stack.enter_context(
                radial.apply(
                    model.pipe.transformer, pattern=replace(preset, decay=settings.decay),
                    schedule=Schedule(dense_layers=settings.dense_layers), block_size=settings.block_size,
                )
            )  # fmt: skip
        if config.riflex:
            if model.spec.riflex_period is None:
                raise RequestError(f"riflex has no constant for {config.model}")
            stack.enter_context(riflex([model.pipe.transformer], model.spec.riflex_period))
        yield


def _batch(names: list[str], number: int, config: FinetuneConfig) -> list[str]:
    """The clips of a batch: every clip once an epoch, each epoch in an order of its own."""
    chosen = []
    for position in range(number * config.batch_size, (number + 1) * config.batch_size):
        epoch, place = divmod(position, len(names))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(config.seed * 7919 + epoch))
        chosen.append(names[int(order[place])])
    return chosen


def _read_batch(
    cache: Path, names: list[str], empty_text: Tensor, dropout: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    latents, texts = zip(*(read_clip(cache, name) for name in names), strict=True)
    dropped = torch.rand(len(names), generator=generator) < dropout
    chosen = [empty_text if drop else text for text, drop in zip(texts, dropped, strict=True)]
    return torch.stack(latents), torch.stack(chosen)


def _update_average(state: RunState, decay: float) -> None:
    with torch.no_grad():
        for name, average in state.average.items():
            average.lerp_(state.parameters[name].detach(), 1 - decay)


def _log(output: Path, step: int, loss: float, rate: float, validation: float | None) -> None:
    """A line a step, to plot from."""
    output.mkdir(parents=True, exist_ok=True)
    line = {"step": step, "loss": loss, "learning_rate": rate}
    if validation is not None:
        line["validation"] = validation
    with (output / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
