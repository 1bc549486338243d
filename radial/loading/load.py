"""Models onto their device: checkpoints and adapters, from a folder or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from radial.adapters.apply import load_loras
from radial.attention.families.find import find_family
from radial.attention.install import transformers_of
from radial.errors import ModelError, RequestError, first_line, some
from radial.input_files import named_files
from radial.loading.devices import find_device
from radial.loading.memory import choose_profile, decode_in_tiles, place
from radial.loading.modular import pipeline_class
from radial.loading.needs import Profile
from radial.loading.quantize import narrow_linears
from radial.loading.transformer_file import is_gguf, load_transformer_file
from radial.models.architecture import check_whole
from radial.models.checkpoint import check_checkpoint, checkpoint_folder, components_of, spec_in
from radial.models.find import check_packages, find_model, pipeline_of
from radial.models.hub.download import OnProgress, cached_folder, find_local
from radial.models.hub.pieces import download_model
from radial.models.lora_settings import adapter_file, check_adapter_file
from radial.models.spec import ModelSpec
from radial.plans.measured.policy_file import policy_path
from radial.request import GenerationRequest
from radial_kernels.fused import EightBitWeights, refuse_eight_bit
from radial_kernels.triton_runtime import HAS_TRITON


@dataclass(frozen=True)
class LoadedModel:
    """A diffusers pipeline on its device, with what is known of it: ``loras`` are names and fingerprints, ``notes``
    what the user should hear of, ``revision`` the hub's, where the weights come from there, ``profile`` how it is laid
    out over memories."""

    spec: ModelSpec
    pipe: Any
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    loras: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    revision: str | None = None
    profile: Profile = "full"


def fetch(request: GenerationRequest, on_download: OnProgress = lambda done, total: None) -> Path:
    """The folder with the checkpoint of a request's model, downloaded where it is not here.

    Args:
        on_download: told bytes that are here, and of the whole.

    Raises:
        ModelError: it cannot be had.
        OutputError: the disk has no room for it.
    """
    spec = find_model(request.model)
    check_packages(spec)
    without = spec.own_components
    return checkpoint_folder(spec) or find_local(spec.source, without) or download_model(spec, on_download)


def load(
    request: GenerationRequest, on_download: OnProgress = lambda done, total: None, *, processes: int = 1
) -> LoadedModel:
    """Load the model and adapters a request names, onto its device.

    Args:
        on_download: told bytes that are here, and of the whole, where the model must be downloaded first.
        processes: that share each clip.

    Raises:
        RequestError: the device does not exist here.
        ModelError: the checkpoint is missing, corrupt or pickled, or an adapter does not fit.
        OutputError: the disk has no room for a download.
    """
    request = request.resolve()
    for lora in request.loras:
        check_adapter_file(adapter_file(lora.path))
    spec = find_model(request.model)
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device, spec.half_dtype)
    _check_precision(request, spec, device)
    folder = fetch(request, on_download)
    check_checkpoint(folder, spec.own_components)
    spec = spec_in(folder, spec)
    spec.check_size(request.clip_height, request.clip_width, request.clip_frames)
    profile = choose_profile(request, spec, folder, dtype, device, processes)
    kind = pipeline_of(spec, request.task)
    with quiet():
        import diffusers

        for part, (library, kind_of_part) in components_of(folder).items():
            ours = library == "diffusers" and part not in spec.own_weights and hasattr(diffusers, kind_of_part or "")
            if ours and (folder / part / "config.json").is_file():
                check_whole(folder, part)
        try:
            # Wan's autoencoder stays in float32, as its authors run it: in bfloat16 it shows.
            dtypes = {"default": dtype, "vae": torch.float32 if spec.exact_autoencoder else dtype}
            own = {name: load_transformer_file(file, folder, name, dtype) for name, file in spec.own_weights.items()}
            own |= _load_encoders(folder, dtype)
            made = pipeline_class(kind, from_image=request.starts_from_image)
            pipe = made.from_pretrained(folder, dtype=dtypes, use_safetensors=True, **own)
        except ModelError:
            raise
        except Exception as error:  # diffusers and safetensors raise many kinds for files that are not right
            raise ModelError(f"cannot load {spec.name}: {first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    _take_scale(pipe)
    _see_one_image(pipe)
    if spec.scheduler is not None:
        authors = getattr(diffusers, spec.scheduler)
        pipe.scheduler = authors.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with quiet():
        notes = (*((spec.note,) if spec.note else ()), *load_loras(pipe, request.loras))
        for transformer in transformers_of(pipe):
            if request.precision == "eight_bit":
                narrow_linears(transformer, device)
            elif request.precision == "eight_bit_weights":
                narrow_linears(transformer, device, EightBitWeights)
            # Layer by layer, weights come when their layer is called, and fused kernels call none.
            if device.type == "cuda" and profile != "lowest" and HAS_TRITON:
                find_family(transformer).fuse(transformer)
        if request.precision == "eight_bit_weights":
            for name, component in pipe.components.items():
                if name.startswith("text_encoder") and isinstance(component, torch.nn.Module):
                    narrow_linears(component, device, EightBitWeights)
        place(pipe, profile, device)
        if spec.decodes_in_tiles:
            decode_in_tiles(pipe.vae)
    if profile != "full":
        notes += (f"memory {profile}: {_PROFILE_NOTES[profile]}",)
    paths = [adapter_file(lora.path) for lora in request.loras]
    loras = tuple({"name": path.name, "fingerprint": fingerprint(path)} for path in paths)
    revision = folder.name if folder.parent.name == "snapshots" else None  # as the hub's cache lays them out
    whole = fingerprint(folder)
    for file in spec.transformer_files:
        whole = hashlib.sha256(f"{whole} {fingerprint(Path(file))}".encode()).hexdigest()[:16]
    return LoadedModel(spec, pipe, device, dtype, whole, loras, notes, revision, profile)


def _take_scale(pipe: Any) -> None:
    """Have a pipeline take the scale of its autoencoder as that says it: those of Wan that make a clip over or steer it
    count the autoencoder's layers, and are wrong where it takes patches first or has more of them."""
    scales = {name: pipe.vae.config.get(f"scale_factor_{name}") for name in ("spatial", "temporal")}
    if type(pipe).__name__ in ("WanVideoToVideoPipeline", "WanVACEPipeline") and all(scales.values()):
        pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal = scales["spatial"], scales["temporal"]
        pipe.video_processor.register_to_config(vae_scale_factor=scales["spatial"])


def _see_one_image(pipe: Any) -> None:
    """Have models of Wan that see one image see the first of two, as VideoX-Fun's that end on another do: the pipeline
    would have them see both as a batch."""
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    sees = config.get("image_dim") is not None and config.get("pos_embed_seq_len") is None
    if type(pipe).__name__ == "WanImageToVideoPipeline" and sees:
        own = pipe.encode_image
        pipe.encode_image = lambda image, device=None: own(image[0] if isinstance(image, list) else image, device)


def _load_encoders(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text and image encoders of a checkpoint, which transformers would fill up with chance where tensors lack."""
    import transformers

    encoders: dict[str, Any] = {}
    for name, (library, kind) in components_of(folder).items():
        made = getattr(transformers, kind or "", None) if library == "transformers" else None
        if not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
            continue
        encoders[name], told = getattr(transformers, str(kind)).from_pretrained(
            folder / name, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        # Heads that only writing needs are left out of some checkpoints.
        missing = sorted(key for key in told["missing_keys"] if not key.startswith(("lm_head", "pooler")))
        if missing:
            raise ModelError(f"the {name} of {folder} lacks {some(missing)}")
    return encoders


_PROFILE_NOTES = {
    "balanced": "text encoder, transformer and autoencoder take turns on the GPU",
    "low": "the transformer comes to the GPU block by block",
    "lowest": "all weights come to the GPU layer by layer, which takes longer",
}


def _check_precision(request: GenerationRequest, spec: ModelSpec, device: torch.device) -> None:
    reason = refuse_eight_bit(device) or (
        None if HAS_TRITON else "8-bit attention needs Triton, which is not installed"
    )
    if request.precision == "eight_bit" and reason is not None:
        raise RequestError(f"precision eight_bit cannot be: {reason}; take eight_bit_weights or full")
    if any(is_gguf(file) for file in spec.own_weights.values()) and request.precision != "full":
        raise RequestError(f"precision {request.precision} cannot be: {spec.name} is quantised already; take full")


def profile_of(request: GenerationRequest, processes: int = 1) -> Profile | None:
    """The profile that :func:`load` would choose; None where the model is not here yet.

    Raises:
        RequestError: the request does not fit on its device.
    """
    request = request.resolve()
    spec, device = find_model(request.model), choose_device(request.device)
    folder = checkpoint_folder(spec) or cached_folder(spec.source)
    if folder is None:
        return None
    return choose_profile(
        request, spec_in(folder, spec), folder, choose_dtype(request.dtype, device), device, processes
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or the CPU.

    Raises:
        RequestError: there is no such device here.
    """
    return torch.device(find_device(name))


def choose_dtype(name: str, device: torch.device, half: str = "bfloat16") -> torch.dtype:
    """The dtype of that name; ``auto`` is ``half`` on a GPU and float32 on the CPU, where it is faster."""
    if name == "auto":
        name = half if device.type == "cuda" else "float32"
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


def fingerprint_files(request: GenerationRequest) -> list[str]:
    """A digest of each file that a request names beside its model and adapters, frames of a folder each by itself; and
    of the policy that comes with the package."""
    named = [Path(path) for _, path in named_files(request.model_dump())]
    if request.policy is not None and policy_path(request.policy) not in named:
        named.append(policy_path(request.policy))
    files = [file for path in named for file in (sorted(path.glob("*.png")) if path.is_dir() else [path])]
    return [fingerprint(file) for file in files]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
