"""The verbs of generation in reading order: load a model, denoise a clip, hand it over with its receipt."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from radial import __version__
from radial.attention import RadialAttention, apply
from radial.errors import GenerationError, ModelError, RequestError
from radial.models import ModelSpec, check_checkpoint, checkpoint_folder, find_model, fit_spec
from radial.request import GenerationRequest, Lora
from radial.video import Video

Stage = Literal["load", "encode", "denoise", "decode"]


@dataclass(frozen=True)
class Event:
    """Progress: a stage began (``step`` 0) or a denoising step ended. ``video`` counts from 0."""

    stage: Stage
    step: int = 0
    steps: int = 0
    video: int = 0


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class LoadedModel:
    """A diffusers pipeline on its device, with what is known of it: ``loras`` are names and fingerprints."""

    spec: ModelSpec
    pipe: Any
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    loras: tuple[dict[str, str], ...] = ()


def generate(
    request: GenerationRequest,
    *,
    model: LoadedModel | None = None,
    on_event: OnEvent = lambda event: None,
) -> Iterator[Video]:
    """Generate the request's videos, one after the other, seeds counting up from the request's.

    Args:
        request: what to make; open fields are resolved here.
        model: a model loaded before, to save loading it again.
        on_event: told about every stage and step.

    Raises:
        RequestError: a value is out of place; raised before anything is loaded.
        ModelError: the model or an adapter cannot be loaded.
        GenerationError: memory ran out or the latents stopped being numbers.
    """
    request = request.resolve()
    if model is None:
        on_event(Event("load"))
        model = load(request)
    for index in range(request.num_videos):
        # The receipt of one video repeats that video alone.
        single = request.model_copy(update={"seed": request.seed + index, "num_videos": 1})
        yield _generate_one(single, model, lambda event, index=index: on_event(replace(event, video=index)))  # type: ignore[misc]


def load(request: GenerationRequest) -> LoadedModel:
    """Load the model and adapters a request names, onto its device.

    Raises:
        RequestError: the device does not exist here.
        ModelError: the checkpoint is missing, corrupt or pickled, or an adapter does not fit.
    """
    request = request.resolve()
    _check_lora_files(request.loras)
    spec = find_model(request.model)
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    folder = checkpoint_folder(spec) or _download(spec)
    check_checkpoint(folder)
    spec = fit_spec(spec, folder)
    spec.check_size(request.clip_height, request.clip_width, request.clip_frames)
    with _quiet():
        import diffusers

        try:
            # The autoencoder stays in float32, as Wan's authors run it: in bfloat16 it shows.
            dtypes = {"default": dtype, "vae": torch.float32}
            pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtypes, use_safetensors=True)
        except Exception as error:  # diffusers and safetensors raise many kinds for files that are not right
            raise ModelError(f"cannot load {spec.name}: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    _load_loras(pipe, request.loras)
    try:
        pipe.to(device)
    except torch.OutOfMemoryError as error:
        raise GenerationError(f"{spec.name} does not fit into the memory of {device}") from error
    paths = [Path(lora.path) for lora in request.loras]
    loras = tuple({"name": path.name, "fingerprint": fingerprint(path)} for path in paths)
    return LoadedModel(spec, pipe, device, dtype, fingerprint(folder), loras)


def _download(spec: ModelSpec) -> Path:
    """The folder of a hub model, downloaded unless it is here already; the hub's own bars show the progress."""
    import diffusers

    try:
        return Path(diffusers.DiffusionPipeline.download(spec.source, use_safetensors=True))
    except Exception as error:  # the hub's client raises many kinds
        raise ModelError(
            f"there is no folder {spec.source} here, and the Hugging Face hub has no such model or cannot be reached; "
            "`radial models` lists the models with a name"
        ) from error


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or the CPU.

    Raises:
        RequestError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name not in available and not (name == "cuda" and torch.cuda.is_available()):
        raise RequestError(f"no device {name!r} here; there is {', '.join(available)}")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is bfloat16 on a GPU and float32 on the CPU, where it is faster."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def fingerprint(path: Path) -> str:
    """A digest of a file, or of a checkpoint's files: names, sizes and content. Of files above 64 MB, where reading all
    would take minutes, the first and last 32 MB count."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".json", ".safetensors"))
    digest, half = hashlib.sha256(), 32 << 20
    for file in files:
        size = file.stat().st_size
        name = "" if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(half))
            content.seek(max(size - half, half))
            digest.update(content.read())
    return digest.hexdigest()[:16]


def _generate_one(request: GenerationRequest, model: LoadedModel, on_event: OnEvent) -> Video:
    assert request.num_inference_steps is not None
    assert request.fps is not None
    pipe, steps = model.pipe, request.num_inference_steps
    pattern, schedule, block_size = request.radial_settings(model.spec)
    marks: dict[str, float] = {}

    def begin(stage: Stage) -> None:
        if stage not in marks:
            marks[stage] = time.monotonic()
            on_event(Event(stage, 0, steps))

    def after_step(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not torch.isfinite(tensors["latents"]).all():
            raise GenerationError(f"the latents stopped being numbers at step {step + 1} of {steps}; try float32")
        on_event(Event("denoise", step + 1, steps))
        if step + 1 == steps:
            begin("decode")
        return {}

    transformers = [t for t in (pipe.transformer, pipe.transformer_2) if t is not None]
    watchers = [t.register_forward_pre_hook(lambda *_: begin("denoise")) for t in transformers]
    radial = (
        apply(pipe, pattern=pattern, schedule=schedule, block_size=block_size)
        if request.attention == "radial"
        else None
    )
    begin("encode")
    try:
        with torch.inference_mode(), _quiet():
            frames = pipe(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                height=request.height,
                width=request.width,
                num_frames=request.num_frames,
                num_inference_steps=steps,
                guidance_scale=request.guidance_scale,
                # On the CPU whatever the device, so that a seed means the same noise everywhere.
                generator=torch.Generator("cpu").manual_seed(request.seed),
                max_sequence_length=model.spec.max_sequence_length,
                callback_on_step_end=after_step,
                output_type="np",
            ).frames[0]
    except torch.OutOfMemoryError as error:
        stage = list(marks)[-1]
        raise GenerationError(
            f"out of memory on {model.device} in stage {stage}; ask for fewer frames or a smaller size"
        ) from error
    finally:
        if radial is not None:
            radial.remove()
        for watcher in watchers:
            watcher.remove()
    if not torch.isfinite(torch.from_numpy(frames)).all():
        raise GenerationError("the decoded frames are not all numbers; try float32")
    if frames.shape[:3] != (request.num_frames, request.height, request.width):
        raise GenerationError(f"the pipeline made {frames.shape[:3]} frames, height, width; the request differs")
    ends = [*marks.values(), time.monotonic()]
    timings = {stage: round(ends[i + 1] - ends[i], 3) for i, stage in enumerate(marks)}
    pixels = (frames * 255).round().clip(0, 255).astype("uint8")
    return Video(pixels, request.fps, _receipt(request, model, radial, timings))


def _receipt(
    request: GenerationRequest, model: LoadedModel, radial: RadialAttention | None, timings: dict[str, float]
) -> dict[str, Any]:
    """Everything needed to make the clip again, and what making it took."""
    import diffusers
    import transformers

    attention: dict[str, Any] = {"kind": request.attention, "computed_share": 1.0}
    if radial is not None and radial.plan is not None:
        from radial_kernels.block_sparse import choose_backend

        head_dim = model.pipe.transformer.config.attention_head_dim
        like_queries = torch.empty(1, 1, 1, head_dim, device=model.device, dtype=model.dtype)
        attention |= {
            "computed_share": round(radial.computed_share, 4),
            "density": round(radial.plan.density, 4),
            "variant": radial.plan.pattern.variant,
            "decay": radial.plan.pattern.decay,
            "sink_frames": radial.plan.pattern.sink_frames,
            "skip_width": radial.plan.pattern.skip_width,
            "block_size": radial.plan.block_size,
            "backend": choose_backend(like_queries, block_size=radial.plan.block_size),
        }
    return {
        "radial": __version__,
        "request": request.model_dump(mode="json"),
        "model": {"name": model.spec.name, "source": model.spec.source, "fingerprint": model.fingerprint},
        "loras": list(model.loras),
        "attention": attention,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": timings,
    }


def _check_lora_files(loras: tuple[Lora, ...]) -> None:
    """Raise ModelError for adapter files that are missing or pickled, before a model is loaded for them."""
    for lora in loras:
        path = Path(lora.path)
        if path.suffix != ".safetensors":
            raise ModelError(f"LoRA {path.name} is not a safetensors file; safetensors only")
        if not path.is_file():
            raise ModelError(f"no LoRA file {path}")


def _load_loras(pipe: Any, loras: tuple[Lora, ...]) -> None:
    """Load adapters and set their weights.

    Raises:
        ModelError: an adapter is corrupt or fits no layer.
    """
    for index, lora in enumerate(loras):
        path = Path(lora.path)
        try:
            with _quiet():
                pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"lora_{index}")
        except Exception as error:  # diffusers, peft and safetensors raise many kinds for files that do not fit
            raise ModelError(f"LoRA {path.name} does not fit this model: {_first_line(error)}") from error
        if not any(f"lora_{index}" in names for names in pipe.get_list_adapters().values()):
            raise ModelError(f"LoRA {path.name} does not fit this model: none of its keys match a layer")
    if loras:
        pipe.set_adapters([f"lora_{i}" for i in range(len(loras))], [lora.weight for lora in loras])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' own progress bars and advice; their errors still come through."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
