"""The verbs of generation in reading order: load a model, denoise a clip, hand it over with its receipt."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radial.advice import advise
from radial.attention.install import RadialAttention, apply, transformers_of
from radial.attention.positions import stretched
from radial.attention.timed_text import timed_text
from radial.errors import GenerationError, RequestError
from radial.generation.acceleration.batched import batched_guidance
from radial.generation.acceleration.calls import Calls
from radial.generation.acceleration.guidance import guided_within
from radial.generation.acceleration.hooks import lasting_hooks
from radial.generation.acceleration.split import Halves, split_guidance
from radial.generation.acceleration.step_cache import InstalledCache, cached_steps
from radial.generation.conditions.controls import controls_for
from radial.generation.conditions.enhance import enhanced
from radial.generation.conditions.images import start_and_end
from radial.generation.decoding import decode_with_fallback, decoded_by
from radial.generation.ranks import Ranks
from radial.generation.receipt import attention_used, make_receipt
from radial.generation.resume import GeneratorPart, OnStep, resumable_steps
from radial.generation.sampler import guider_for, replaced, scheduler_for
from radial.generation.shared_decoding import shared_decoding
from radial.generation.snapshot import Part, Snapshot, describe_attention
from radial.generation.timed_words import encode_in_time
from radial.generation.unseen_words import unseen_words
from radial.generation.watch import Event, OnEvent, Watch, device_errors
from radial.loading.load import LoadedModel, choose_dtype, fingerprint_files, load, quiet
from radial.loading.tiny_decoder import TinyDecoder, load_decoder
from radial.models.spec import ModelSpec
from radial.plans.settings import AttentionSettings
from radial.request import MAX_FRAMES, GenerationRequest
from radial.timed_prompts import begins_of
from radial.video.clip import Video
from radial.video.images import read_clip
from radial.video.sound import Sound


def generate(
    request: GenerationRequest,
    *,
    model: LoadedModel | None = None,
    on_event: OnEvent = lambda event: None,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Video]:
    """Generate the request's videos, one after the other, seeds counting up from the request's.

    Args:
        request: what to make; open fields are resolved here.
        model: a model loaded before, to save loading it again.
        on_event: told about every stage and step.
        on_step: told about every denoising step of pipelines that can go on from one; it may take a snapshot, end the
            clip early or raise.
        snapshot: where the first video goes on; of the same request and model, or the run starts anew.
        ranks: the processes that make each clip together, all of which call this. The videos are rank 0's, and
            so are ``on_event`` and ``on_step``.

    Raises:
        RequestError: a value is out of place; raised before anything is loaded.
        ModelError: the model or an adapter cannot be loaded.
        GenerationError: memory ran out or the latents stopped being numbers.
        Lost: the GPU stopped answering, or another rank died; this process can make no other clip.
    """
    request = request.resolve()
    if ranks is not None:
        ranks.check(request)
        if request.enhance is not None and request.original_prompt is None:
            raise RequestError("enhance is done by one process: take the prompt that it gives, or leave it out")
    request = enhanced(request, on_event)
    if model is None:
        on_event(Event("load"))
        model = load(
            request, lambda done, total: on_event(Event("download", done >> 20, total >> 20)),
            processes=ranks.size if ranks else 1,
        )  # fmt: skip
    decoder = None
    if request.decoder != "full":
        vae = model.pipe.vae.config
        decoder = load_decoder(request.decoder, model.spec, vae, model.device, choose_dtype("auto", model.device))
    notes = (*model.notes, *advise(request, model.spec), *unseen_words(request, model))
    notes += () if decoder is None or not decoder.note else (decoder.note,)
    for index, single in enumerate(request.singles()):
        taken_up = snapshot if index == 0 and snapshot and snapshot.about == describe_run(single, model) else None

        def tell(event: Event, index: int = index) -> None:
            on_event(replace(event, video=index))

        with contextlib.nullcontext() if ranks is None else ranks.clip():
            for note in notes if index == 0 else ():
                on_event(Event("load", note=note))
            followed = on_step if ranks is None else ranks.in_step(on_step)
            video = _generate_one(single, model, tell, followed, taken_up, ranks, decoder)
        if ranks is None or ranks.is_first:
            yield video


def describe_run(request: GenerationRequest, model: LoadedModel) -> str:
    """What a snapshot of this run depends on, as a digest: the request, what its files hold, the weights, the device's
    kind."""
    elsewhere = {"device", "num_videos", "memory", "sink_frames", "variant", "skip_width", "keep_unmasked"}
    elsewhere |= request.later_fields()
    elsewhere |= {name for name, value in AttentionSettings.as_before().items() if getattr(request, name) == value}
    parts = (
        request.model_dump_json(exclude=elsewhere), *fingerprint_files(request), model.fingerprint, model.loras,
        model.device.type, str(model.dtype), type(model.pipe).__name__,
    )  # fmt: skip
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return f"{digest}/{describe_attention(request.model_dump())}"


def _generate_one(
    request: GenerationRequest,
    model: LoadedModel,
    on_event: OnEvent,
    on_step: OnStep | None,
    snapshot: Snapshot | None,
    ranks: Ranks | None = None,
    decoder: TinyDecoder | None = None,
) -> Video:
    assert request.num_inference_steps is not None
    assert request.fps is not None
    pipe = model.pipe
    windows = model.spec.windows(request.clip_frames)
    watch = Watch(request.computed_steps, on_event, snapshot, windows)
    size = (request.clip_height, request.clip_width)
    before = None
    if request.extend is not None:
        most = max(0, MAX_FRAMES - request.clip_frames + 1)
        before = read_clip(Path(request.extend), *size, request.image_fit, request.fps, request.image_ground, most)
    # On the CPU whatever the device, so that a seed means the same noise everywhere.
    generator = torch.Generator("cpu").manual_seed(request.seed)
    images, notes = start_and_end(request, before)
    images, more, kept = controls_for(pipe, request, images, generator)
    for note in (*notes, *more):
        on_event(Event("load", note=note))
    arguments = _call_arguments(request, model, watch, images) | {"generator": generator}
    transformers = transformers_of(pipe)
    attention = _attention_of(request)
    radial: RadialAttention | None = None
    installed: RadialAttention | None = None
    halves = None if ranks is None or not (request.batched_guidance and request.is_guided(model.spec)) else ranks.halves
    parallel = None if ranks is None else ranks.parallel if halves is None else halves.within
    watch.begin("encode")
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            replaced(
                pipe,
                scheduler=scheduler_for(pipe, request.sampler or "model", request.flow_shift, generator),
                guider=guider_for(pipe, request.guidance_scale or 1.0),
            )
        )
        if request.then:
            begins = begins_of(request.then, request.clip_frames / request.fps)
            length, stride = model.spec.max_sequence_length, model.spec.stride[0]
            stack.enter_context(timed_text(transformers, length, stride, begins, parallel))
        if (kind := request.stretched_positions) is not None:
            native, period = model.spec.native_latents, model.spec.riflex_period
            stack.enter_context(stretched(transformers, kind, native, period))
        if attention.kind != "dense" or parallel is not None:
            installed = stack.enter_context(
                apply(
                    pipe, **attention.as_arguments(), parallel=parallel, eight_bit=request.precision == "eight_bit",
                )
            )  # fmt: skip
            radial = None if attention.kind == "dense" else installed
        if radial is not None and (probe := radial.context.probe) is not None:
            watch.look = lambda: probe.figures
        cache = _accelerate(stack, request, model, transformers, installed, halves)
        steps_tell = "callback_on_step_end" in arguments
        for transformer in transformers:
            hook = (lambda *_: watch.begin("denoise")) if steps_tell else watch.before_call
            stack.callback(transformer.register_forward_pre_hook(hook, with_kwargs=not steps_tell).remove)
            if ranks is not None:
                stack.callback(transformer.register_forward_pre_hook(ranks.before_call).remove)
        if on_step is not None or snapshot is not None:
            about = describe_run(request, model)

            def so_far() -> dict[str, Any]:
                used = attention_used(request, model, radial, snapshot, cache)
                return {"attention": used, "seconds": watch.timings(), "about": about}

            parts: dict[str, Part] = {"generator": GeneratorPart(generator)}
            if radial is not None:
                parts["attention"] = radial
            if cache is not None:
                parts["cache"] = cache
            stack.enter_context(resumable_steps(pipe, transformers, parts, on_step, snapshot, so_far, windows))
        vae = getattr(pipe, "vae", None)
        if decoder is not None:
            stack.enter_context(decoded_by(vae, decoder, lambda: watch.begin("decode")))
        else:
            told = (lambda: watch.begin("decode")), (lambda note: on_event(Event("decode", note=note)))
            stack.enter_context(decode_with_fallback(vae, *told))
        stack.enter_context(shared_decoding(vae, ranks))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(quiet())
        if request.then:
            arguments |= _timed_words(request, model)
        with device_errors(
            model.device,
            lambda: f"in stage {list(watch.marks)[-1]}; ask for fewer frames or a smaller size",
            lambda: watch.latents,
        ):
            output = pipe(**arguments)
            frames, sound = _as_array(output.frames), _sound_of(output, pipe)
    if not np.isfinite(frames).all():
        raise GenerationError("the decoded frames are not all numbers; try float32", latents=watch.latents)
    if frames.shape[:3] != (request.num_frames, request.height, request.width):
        raise GenerationError(f"the pipeline made {frames.shape[:3]} frames, height, width; the request differs")
    pixels = (frames * 255).round().clip(0, 255).astype("uint8")
    if kept is not None and request.keep_unmasked:
        pixels = kept.put_back(pixels)
    if before is not None:
        pixels = np.concatenate([before.frames, pixels[1:]])  # the new clip's first frame is the old one's last
        sound = before.sound if sound is None else sound.after((len(before.frames) - 1) / request.fps, before.sound)
    used = attention_used(request, model, radial, snapshot, cache)
    receipt = make_receipt(request, model, used, watch.timings(), cache, decoder)
    if kept is not None and request.keep_unmasked:
        receipt["kept"] = kept.told()
    return Video(pixels, request.fps, receipt | {"processes": ranks.size} if ranks else receipt, sound)


def _attention_of(request: GenerationRequest) -> AttentionSettings:
    """How a run's attention is computed: what appears is seen from every frame, as references come before the first."""
    settings = request.attention_settings
    more = len(request.references)
    return settings.model_copy(update={"sink_frames": settings.sink_frames + more}) if more else settings


def _accelerate(
    stack: contextlib.ExitStack, request: GenerationRequest, model: LoadedModel, transformers: list[Any],
    installed: RadialAttention | None, halves: Halves | None,
) -> InstalledCache | None:  # fmt: skip
    """Have the run leave out what its request allows, until the stack ends: its cache, where it has one."""
    steps, guided = request.num_inference_steps or 1, request.is_guided(model.spec)
    cache = model.spec.step_cache(request.cache, request.task, steps)
    in_part = guided and len(request.guided_steps) < steps
    together = request.batched_guidance and guided
    if cache is None and not in_part and not together:
        return None
    calls = Calls(model.pipe, steps, guided=guided)
    stack.enter_context(lasting_hooks(transformers))
    stack.enter_context(calls.counted(transformers))
    on_skip = (lambda computed: None) if installed is None else installed.context.leave_out
    kept = None
    if cache is not None:
        kept = stack.enter_context(cached_steps(model.pipe, transformers, cache, calls, on_skip))
    if in_part:
        stack.enter_context(guided_within(transformers, calls, request.guided_steps))
    if together:
        stack.enter_context(
            batched_guidance(transformers, calls) if halves is None else split_guidance(transformers, calls, halves)
        )
    return kept


def _call_arguments(
    request: GenerationRequest, model: LoadedModel, watch: Watch, images: dict[str, Any]
) -> dict[str, Any]:
    """What this pipeline takes of what the request says; diffusers' pipelines name the same things alike."""
    offered = {
        "prompt": model.spec.words_for(request.prompt),
        "negative_prompt": request.negative_prompt,
        "height": request.height,
        "width": request.width,
        "num_frames": request.num_frames,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_scale_2": request.guidance_scale_2,
        "true_cfg_scale": request.true_cfg_scale or 1.0,
        "frame_rate": request.fps,
        "fps": request.fps,
        "max_sequence_length": model.spec.max_sequence_length,
        "callback_on_step_end": watch.after_step,
        "output_type": "np",
        **images,
        **dict(model.spec.pipeline_arguments),
    }
    if not request.is_guided(model.spec):  # LTX-2 guides its sound, too, and in further ways
        offered |= {"audio_guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}
        offered |= {"audio_stg_scale": 0.0, "audio_modality_scale": 1.0}
    offered |= _window_arguments(request, model.spec)
    takes = inspect.signature(type(model.pipe).__call__).parameters
    if getattr(model.pipe, "transformer_2", None) is None:
        del offered["guidance_scale_2"]
    return {name: value for name, value in offered.items() if name in takes}


def _window_arguments(request: GenerationRequest, spec: ModelSpec) -> dict[str, Any]:
    """How pipelines that make a clip window by window, each by other words, are to cut it."""
    if spec.window_frames is None:
        return {}
    windows = spec.windows(request.clip_frames)
    if spec.image_pipeline == "HunyuanVideoFramepackPipeline":  # it counts what a section decodes to alone
        return {"latent_window_size": spec.chunk_latents, "num_frames": windows * (spec.new_frames - 3)}
    arguments: dict[str, Any] = {"segment_frame_length": spec.frames_at_once(request.clip_frames)}
    if windows > 1:
        # As the authors have it for long clips: frames that windows share, and a little noise on those that are there.
        arguments |= {"base_num_frames": spec.window_frames, "overlap_history": 17, "addnoise_condition": 20}
    return arguments


def _timed_words(request: GenerationRequest, model: LoadedModel) -> dict[str, Any]:
    """The prompts that follow one another, in place of the one."""
    words = encode_in_time(
        model.pipe, [[model.spec.words_for(prompt) for prompt in request.prompts]], request.negative_prompt or "",
        model.spec.max_sequence_length, guided=request.is_guided(model.spec),
    )  # fmt: skip
    return {"prompt": None, "negative_prompt": None} | words


def _as_array(frames: Any) -> Any:
    """The first clip of what a pipeline returns, ``[T, H, W, 3]`` in 0..1."""
    clip = frames[0]
    return clip if isinstance(clip, np.ndarray) else np.stack([np.asarray(frame, dtype="float32") for frame in clip])


def _sound_of(output: Any, pipe: Any) -> Sound | None:
    """What a pipeline made to be heard with the first clip."""
    made = getattr(output, "audio", None)
    if made is None:
        return None
    rate = getattr(output, "sampling_rate", None) or pipe.vocoder.config.output_sampling_rate
    return Sound(made[0].detach().float().cpu().numpy().reshape(-1, made[0].shape[-1]), rate)
