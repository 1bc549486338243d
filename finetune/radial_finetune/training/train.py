"""Fine-tuning in one loop: a LoRA under radial attention, at the lengths of the cached clips.

Everything random in a step follows from the seed and the step's number, so that a run that was stopped, however it
was stopped, goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radial.attention.packed.clips import PackedClips
from radial.errors import GenerationError, RequestError
from radial.models.lora_settings import AdapterSettings
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import read_index
from radial_finetune.noise import loss_weights
from radial_finetune.objective import Loss, Objective, by_frame, expert_span, packed_loss
from radial_finetune.training.assemble import (
    adapter_settings,
    attention,
    grid_of,
    keep_only,
    load_model,
    make_loss,
    pattern_of,
    prepare_transformer,
)
from radial_finetune.training.batches import Batch, Batches, PackedBatch, Packs
from radial_finetune.training.checkpoints import RunState, list_checkpoints, load_last_checkpoint, save_checkpoint
from radial_finetune.training.compilation import as_written, compiling
from radial_finetune.training.config import FinetuneConfig
from radial_finetune.training.exports import Exports, begin_from, digest_of, exported_weights
from radial_finetune.training.optimizers import SPREADABLE, make_optimizer, rate_of, set_rate
from radial_finetune.training.preflight import check, estimate
from radial_finetune.training.processes import Processes, whole
from radial_finetune.training.samples import encode_samples, make_samples
from radial_finetune.training.trackers import Line, run_log

VALIDATION_QUANTILES = tuple(k / 10 for k in range(1, 10))


@dataclass(frozen=True)
class HeldOutLoss:
    """Of held-out clips at noise levels spread as in training: over all frames, and over those within and beyond the
    native length."""

    all: float
    within: float
    beyond: float | None


@dataclass(frozen=True)
class Progress:
    """A step that ended: its mean loss, learning rate, seconds and peak memory in bytes, and the held-out loss where it
    was measured. Step 0, before the first one, has no loss."""

    step: int
    steps: int
    loss: float | None
    learning_rate: float
    seconds: float
    memory: int = 0
    validation: HeldOutLoss | None = None


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    on_step: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Path:
    """Train, and write the adapter: its path.

    Args:
        on_step: told after every step.
        on_note: told what a user should know before the first one.

    Raises:
        RequestError: data, model or output do not fit together, or the run does not fit the device; raised before the
            first step.
        GenerationError: losses or gradients stopped being numbers for too long, or memory ran out.
        KeyboardInterrupt: after a checkpoint was saved, with the adapter as it is.
    """
    output = Path(config.output)
    if list_checkpoints(output) and not resume:
        raise RequestError(f"{output} has checkpoints of a run; pass --resume to go on, or take another output")
    index = read_index(Path(config.data))
    processes = Processes(config.device, config.ulysses_degree)
    model, objective = load_model(config, index, processes.device)
    name, _ = expert_span(model.pipe, config.expert)
    batches = Batches(config, index, objective, *processes.place)
    packs = Packs(batches, config, objective, *processes.place) if config.packed else None
    shift = batches.shift_of(max(batches.buckets)) if config.shift_by_length or config.distills else None
    settings = adapter_settings(config, model.spec, batches.buckets, shift)
    samples = (
        encode_samples(
            objective, config.sample_prompts, config.model, _sample_size(batches.buckets), Path(config.data),
            batches.held_out,
        )
        if config.sample_every else None
    )  # fmt: skip
    loss_of = make_loss(config, objective, batches.windows, processes.device)
    samplers = keep_only(model.pipe, name)
    transformer, parameters, before = prepare_transformer(config, model, objective, processes)
    grids = [grid_of(model.spec, bucket) for bucket in batches.buckets]
    needed = estimate(
        config, transformer, grids, pattern_of(model.spec, settings), processes.device, settings.dense_layers or 0,
        settings.block_size or 128,
    )  # fmt: skip
    apart = f", {batches.unused} of the same files unused" if batches.unused else ""
    on_note(f"{len(batches.train)} clips, {len(batches.held_out)} held out{apart}; {needed}")
    check(needed, config, transformer, grids, processes.device)
    if config.packed and processes.sharded:
        raise RequestError("packed calls a transformer's parts, and FSDP spreads weights over whole calls: take one")
    if config.optimizer not in SPREADABLE and processes.sharded:
        raise RequestError(f"{config.optimizer} needs whole matrices, and FSDP spreads them: take adamw or adamw8bit")
    scale = config.adapter_form.scale
    if config.init_adapter:
        begin_from(Path(config.init_adapter), parameters, before, scale)
    optimizer = make_optimizer(config.optimizer, parameters, config.learning_rate, config.weight_decay)
    average = {n: p.detach().clone() for n, p in parameters.items()} if config.ema_decay else {}
    begun = digest_of(Path(config.init_adapter)) if config.init_adapter else None
    run = config.model_dump(mode="json") | {
        "cache": index.digest_with_bare if config.memory and config.memory.copies else index.digest,
        "processes": processes.count, "init_adapter": begun, "base": index.fingerprint,
        "timestep_sampling": batches.sampling, "caption_dropout": batches.caption_dropout,
        "shifts": {str(bucket): batches.shift_of(bucket) for bucket in batches.buckets},
        # What the model's preset filled in, as a model that lies elsewhere may be taken for another one.
        "preset": settings.model_dump(mode="json", include={"decay", "skip_width", "sink_frames", "dense_layers",
                                                            "block_size"}),
    }  # fmt: skip
    state = RunState(parameters, optimizer, average, config=run)
    if resume:
        for note in _changes(config, load_last_checkpoint(output, state), state.step):
            on_note(note)
    bad_steps = 0
    in_time = any(clip.then for clip in index.clips)
    parts = config.gradient_accumulation_steps
    logged = run_log(config, output, state.step) if processes.is_first else contextlib.nullcontext(lambda line: None)

    made = {"learning_rate": config.learning_rate, "data": index.digest, "base": index.fingerprint} | (
        {"init_adapter": begun} if begun else {}
    )
    exports = Exports(output, before, scale, settings, made)
    if state.step == 0 and processes.is_first:
        exports.best.unlink(missing_ok=True)  # of a run that was stopped before its first checkpoint
    path = output / "adapter.safetensors"

    def save() -> Path:
        written = save_checkpoint(
            output, state, config.keep_checkpoints, write=processes.is_first, export=exports.write
        )
        processes.wait()
        return written

    def export() -> None:
        weights = exported_weights(state)
        if processes.is_first:
            exports.write(path, weights, state.step)
        processes.wait()

    def look() -> HeldOutLoss | None:
        if not batches.held_out or not _is_time(config.validate_every, state.step):
            return None
        with _averaged(state), as_written():
            found = validate(objective, transformer, batches, processes.device, config, loss_of)
        if state.step:
            exports.keep_best(state, found.all, write=processes.is_first)
        return found

    def show() -> None:
        if samples is None or not _is_time(config.sample_every, state.step):
            return
        if processes.is_first or processes.sharded or processes.parallel is not None:
            installed.close()
            attend = functools.partial(
                attention, config, model, settings, processes.parallel, model.pipe, in_time=in_time
            )
            with _averaged(state), as_written():
                make_samples(
                    model, objective, samplers, samples, _sample_lengths(config, settings),
                    _sample_size(batches.buckets), settings.num_inference_steps or config.sample_steps,
                    settings, attend, output / "samples", state.step, write=processes.is_first,
                )  # fmt: skip
            install()
        processes.wait()

    packed: PackedClips | None = None

    def install() -> None:
        nonlocal packed
        packed = installed.enter_context(attention(config, model, settings, processes.parallel, in_time=in_time))

    def loss_in(batch: Batch | PackedBatch) -> Tensor:
        if isinstance(batch, PackedBatch):
            assert packed is not None
            clips = [clip.to(processes.device) for clip in batch.clips]
            return packed_loss(objective, transformer, packed, clips, batch.weights, config.weighting_scheme)
        x, text, noise, sigma = batch.to(processes.device)
        losses_BF = loss_of(transformer, x, text, noise, sigma)
        weights_BF = by_frame(loss_weights(config.weighting_scheme, sigma), losses_BF.shape[1])
        return (losses_BF * weights_BF).mean()

    def tell(progress: Progress, norm: float | None = None) -> None:
        log(_numbers(progress, norm))
        on_step(progress)

    with contextlib.ExitStack() as installed, logged as log, _interrupts() as interrupted, compiling(batches.kinds):
        install()
        if state.step == 0:  # what the model does untuned, to compare with
            if (untuned := look()) is not None:
                tell(Progress(0, config.steps, None, 0.0, 0.0, validation=untuned))
            show()
        upcoming: Generator[Batch | PackedBatch] = (packs or batches).iterate(state.step * parts)
        try:
            while state.step < config.steps:
                if interrupted():
                    raise KeyboardInterrupt
                started = time.monotonic()
                loss = 0.0
                for _ in range(parts):
                    part_loss = loss_in(next(upcoming)) / parts
                    part_loss.backward()
                    loss += float(part_loss.detach())
                loss = processes.mean(loss)
                processes.average_gradients(parameters.values())
                norm = whole(torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.max_grad_norm))
                set_rate(optimizer, learning_rate(state.step, config))
                if math.isfinite(loss) and bool(norm.isfinite()):
                    optimizer.step()
                    bad_steps = 0
                else:
                    bad_steps += 1
                optimizer.zero_grad(set_to_none=True)
                _update_average(state, min(config.ema_decay, (1 + state.step) / (10 + state.step)))
                state.step += 1
                if bad_steps >= config.max_bad_steps:
                    raise GenerationError(
                        f"{bad_steps} steps in a row had no finite loss, up to step {state.step}; "
                        "try a lower learning_rate or float32"
                    )
                validation = look()
                seconds = time.monotonic() - started
                memory = torch.cuda.max_memory_allocated() if processes.device.type == "cuda" else 0
                rate = rate_of(optimizer)
                tell(Progress(state.step, config.steps, loss, rate, seconds, memory, validation), float(norm))
                show()
                if _is_time(config.checkpoint_every, state.step) and bad_steps == 0:
                    save()
        except KeyboardInterrupt:
            # Not as ``path``: by that name others know that a run is done.
            adapter = save() / "adapter.safetensors"
            on_note(f"stopped at step {state.step} of {config.steps}: {adapter} is its adapter, --resume goes on")
            raise
        except torch.OutOfMemoryError as error:
            raise GenerationError(
                f"out of memory at step {state.step + 1}; take offload_checkpoints, a smaller batch_size, shorter clips"
            ) from error
        finally:
            upcoming.close()
    save()
    export()
    return path


def learning_rate(step: int, config: FinetuneConfig) -> float:
    """Warm up linearly, then stay or fall along a cosine to zero."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    if config.lr_scheduler == "constant":
        return config.learning_rate
    done = (step - config.lr_warmup_steps) / max(1, config.steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _changes(config: FinetuneConfig, before: dict[str, Any] | None, step: int) -> Iterator[str]:
    """What a run that goes on does otherwise from here on than it did before."""
    if before is None:
        return
    if "shifts" not in before and config.shift is None:
        yield "this run began before its noise shift was written down: it goes on with the authors'; shift says another"
    if (rate := before.get("learning_rate", config.learning_rate)) != config.learning_rate:
        yield f"from step {step + 1} on the learning rate is {config.learning_rate:g}, not {rate:g}"
    if (steps := before.get("steps", config.steps)) != config.steps and config.lr_scheduler == "cosine":
        yield f"from step {step + 1} on the rate falls to zero at step {config.steps}, not {steps}"


@torch.no_grad()
def validate(
    objective: Objective, transformer: Any, batches: Batches, device: torch.device, config: FinetuneConfig,
    loss_of: Loss,
) -> HeldOutLoss:  # fmt: skip
    """Loss of the held-out clips over quantiles of the noise levels that are trained on, weighed as in training, within
    and beyond the native length."""
    native = (objective.spec.native_frames - 1) // objective.spec.stride[0] + 1
    within: list[Tensor] = []
    beyond: list[Tensor] = []
    batch: Batch
    for batch in batches.validation(VALIDATION_QUANTILES):
        weight = loss_weights(config.weighting_scheme, batch.sigma)
        losses_F = loss_of(transformer, *batch.to(device))[0].cpu() * weight
        within.append(losses_F[:native])
        beyond.append(losses_F[native:])
    inside, outside = torch.cat(within), torch.cat(beyond)
    return HeldOutLoss(
        float(torch.cat([inside, outside]).mean()), float(inside.mean()),
        float(outside.mean()) if len(outside) else None,
    )  # fmt: skip


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl+C waits for the end of a step, so that what is saved is whole; a second one does not wait. SIGTERM, by which
    batch systems and containers stop a run, is the same."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sample_lengths(config: FinetuneConfig, settings: AdapterSettings) -> tuple[int, ...]:
    wanted = config.sample_frames or (settings.native_frames or 1, settings.target_frames or 1)
    return tuple(sorted(set(wanted)))


def _sample_size(buckets: Iterable[Bucket]) -> tuple[int, int]:
    longest = max(buckets)
    return longest.height, longest.width


def _is_time(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _update_average(state: RunState, decay: float) -> None:
    with torch.no_grad():
        for name, average in state.average.items():
            average.lerp_(state.parameters[name].detach(), 1 - decay)


@contextlib.contextmanager
def _averaged(state: RunState) -> Iterator[None]:
    """The averaged weights, as they are exported, in place of those of the step; then these again, bit for bit."""
    own = {name: state.parameters[name].detach().clone() for name in state.average}
    with torch.no_grad():
        for name, average in state.average.items():
            state.parameters[name].copy_(average)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in own.items():
                state.parameters[name].copy_(value)


def _numbers(progress: Progress, norm: float | None) -> Line:
    """What is logged of a step; before the first one, only what was measured."""
    line: Line = {"step": progress.step}
    if progress.loss is not None:
        line |= {
            "loss": progress.loss, "learning_rate": progress.learning_rate, "gradient_norm": norm,
            "seconds": round(progress.seconds, 4),
        }  # fmt: skip
    if progress.memory:
        line["memory"] = progress.memory
    if (held_out := progress.validation) is not None:
        line |= {"validation": held_out.all, "validation_within": held_out.within}
        if held_out.beyond is not None:
            line["validation_beyond"] = held_out.beyond
    return line
