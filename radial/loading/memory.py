"""What a run needs, and how a pipeline is laid out over a GPU and the host's memory so that it fits.

    full       everything on the GPU
    balanced   the text encoder, the transformer and the autoencoder one after the other; frames decoded in tiles
    low        the transformer block by block, the next one on its way meanwhile; the text encoder layer by layer
    lowest     everything layer by layer

All of them compute the same, save that tiles are blended where they meet. The estimates are upper ones, by what was
measured at full size (benchmarks/memory_h100_*.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from radial.errors import GenerationError, RequestError
from radial.loading.quantize import SMALLEST
from radial.models.spec import ModelSpec
from radial.models.weights import Weight, Weights, weights_in
from radial.request import GenerationRequest
from radial.video.strips import Strips

Profile = Literal["full", "balanced", "low", "lowest"]
PROFILES: tuple[Profile, ...] = ("full", "balanced", "low", "lowest")
_CONTEXT = 950 << 20  # CUDA's own, and what the allocator leaves unused
_TILE = 256  # pixels of a side of a decoded tile
_TRANSFORMERS = ("transformer", "transformer_2")


@dataclass(frozen=True)
class Needs:
    """Bytes that a run takes.

    Attributes:
        weights: of each component, in the dtype that it is loaded in.
        block: of a transformer's largest block.
        clip: what a transformer's forward pass holds of the clip.
        decode, decode_tiled: what the autoencoder holds of it, whole and in tiles.
        frames: the finished frames, in the host's memory.
    """

    weights: dict[str, int]
    block: int
    clip: int
    decode: int
    decode_tiled: int
    frames: int

    @property
    def model(self) -> int:
        """All weights."""
        return sum(self.weights.values())

    def shared_by(self, processes: int, latents: int) -> Needs:
        """What each process of several that share the clip takes on its GPU at most: the first one, which puts the
        frames together from the strips that each decodes of so many ``latents``, the clip's longer side."""
        if processes == 1:
            return self
        whole = self.frames // 3
        decode = int(self.decode * Strips.cut_into(latents, processes).widest) + whole
        return replace(self, clip=self.clip // processes, decode=min(self.decode, decode),
                       decode_tiled=self.decode_tiled + whole)  # fmt: skip

    def vram(self, profile: Profile) -> int:
        """The most that lies on the GPU at once."""
        transformer = max((self.weights.get(name, 0) for name in _TRANSFORMERS), default=0)
        vae = self.weights.get("vae", 0)
        others = max((size for name, size in self.weights.items() if name not in (*_TRANSFORMERS, "vae")), default=0)
        if profile == "full":
            return self.model + max(self.clip, self.decode) + _CONTEXT
        decoding = vae + self.decode_tiled
        if profile == "balanced":
            return max(others, transformer + self.clip, decoding) + _CONTEXT
        resident = 3 * self.block if profile == "low" else self.block
        return max(resident + self.clip, decoding) + _CONTEXT

    @property
    def cpu(self) -> int:
        """The host's memory where it computes, too."""
        return self.model + max(self.clip, self.decode) + self.frames + (1 << 30)

    def ram(self, profile: Profile) -> int:
        """The host's memory: weights pass through it while they load, and stay where they are fetched from it."""
        passing = max(self.weights.values(), default=0) if profile == "full" else self.model
        return passing + self.frames + (2 << 30)


def needs_of(
    request: GenerationRequest, spec: ModelSpec, weights: Weights, dtype: torch.dtype, processes: int = 1
) -> Needs:
    """What a resolved request needs of a checkpoint with such weights, each of the processes that share its clip."""
    sizes, blocks = {}, {}
    for component, tensors in weights.components.items():
        narrow = request.precision != "full" and component in _TRANSFORMERS
        narrow = narrow or (request.precision == "eight_bit_weights" and component.startswith("text_encoder"))
        wide = 4 if component == "vae" and spec.exact_autoencoder else dtype.itemsize
        sizes[component] = sum(_bytes(tensor, narrow, wide) for tensor in tensors)
        if component in _TRANSFORMERS:
            by_block: dict[str, int] = {}
            for tensor in tensors:
                block = ".".join(tensor.name.removeprefix("model.diffusion_model.").split(".")[:2])
                by_block[block] = by_block.get(block, 0) + _bytes(tensor, narrow, wide)
            blocks[component] = max(by_block.values())
    config = weights.transformer
    width = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)
    inner = config.get("ffn_dim") or int(width * config.get("mlp_ratio", 4))
    tokens = request.grid(spec).tokens
    # Residual, normed, queries, keys, values, their copies, and the wide layer of the feed-forward.
    clip = int(dtype.itemsize * tokens * (8 * width + 2.5 * inner))
    pixels = request.clip_height * request.clip_width
    frames = request.clip_frames * pixels * 3 * 4
    number = 4 if spec.exact_autoencoder else dtype.itemsize
    # The widest layers work on whole frames with a hundred-odd channels, some of them at a time.
    decode = number * pixels * 96 * 4 * 24 + frames
    tiled = number * min(pixels, 4 * _TILE * _TILE) * 96 * 4 * 10 + 2 * frames
    needs = Needs(sizes, max(blocks.values(), default=0), clip, decode, min(decode, tiled), 3 * frames)
    return needs.shared_by(processes, max(request.clip_height, request.clip_width) // 8)


def _bytes(tensor: Weight, narrow: bool, wide: int) -> int:
    return tensor.bytes(1 if narrow and _is_narrowed(tensor) else wide)


def _is_narrowed(tensor: Weight) -> bool:
    """Whether :func:`radial.loading.quantize.narrow_linears` would narrow a tensor, by its name and shape alone."""
    if len(tensor.shape) != 2 or math.prod(tensor.shape) < SMALLEST or tensor.packed is not None:
        return False
    inside = "block" in tensor.name or "layers." in tensor.name
    return inside and not any(word in tensor.name for word in ("norm", "mod", ".wo.", "scale_shift_table"))


def choose_profile(
    request: GenerationRequest, spec: ModelSpec, folder: Path, dtype: torch.dtype, device: torch.device,
    processes: int = 1,
) -> Profile:  # fmt: skip
    """The profile that a request names, or the fastest that fits where so many processes share the clip.

    Raises:
        RequestError: it does not fit on the device; the profile or the length that does is named.
        ModelError: the checkpoint in the folder cannot be read.
    """
    if device.type != "cuda":
        if request.memory not in ("auto", "full"):
            raise RequestError(f"memory {request.memory} is for GPUs; on {device} everything is in one memory")
        return "full"
    needs = needs_of(request, spec, weights_in(folder, spec.own_weights), dtype, processes)
    return fit_profile(request, spec, needs, free_memory(device), str(device))


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that nobody has but this process."""
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def fit_profile(request: GenerationRequest, spec: ModelSpec, needs: Needs, free: int, device: str) -> Profile:
    """As :func:`choose_profile`, for a GPU with so many bytes free."""
    fitting = [profile for profile in PROFILES if needs.vram(profile) <= free]
    if request.memory == "auto" and fitting:
        return fitting[0]
    if request.memory in fitting:
        return request.memory
    wanted: Profile = "lowest" if request.memory == "auto" else request.memory
    what = f"this clip needs about {needs.vram(wanted) / 1e9:.1f} GB on the GPU with memory {wanted}"
    if fitting:
        advice = f"memory {fitting[0]} fits ({needs.vram(fitting[0]) / 1e9:.1f} GB)"
    elif (frames := _longest(request, spec, needs, free)) is not None:
        advice = f"with memory lowest {frames} frames of this size fit"
    else:
        advice = "no length of this size fits: take a smaller height and width, or another model"
    raise RequestError(f"{what}, and {device} has {free / 1e9:.1f} GB free; {advice}")


def _longest(request: GenerationRequest, spec: ModelSpec, needs: Needs, free: int) -> int | None:
    """The longest clip of this size that fits, by how its share of memory grows with its length."""
    for frames in range(request.clip_frames - spec.stride[0], 0, -spec.stride[0]):
        share = frames / request.clip_frames
        clip, tiled = int(needs.clip * share), int(needs.decode_tiled * share)
        if Needs(needs.weights, needs.block, clip, tiled, tiled, 0).vram("lowest") <= free:
            return frames
    return None


def place(pipe: Any, profile: Profile, device: torch.device) -> None:
    """Lay a loaded pipeline out over the device and the host's memory.

    Raises:
        GenerationError: it does not fit after all.
    """
    try:
        if profile == "full":
            pipe.to(device)
            return
        decode_in_tiles(pipe.vae)
        if profile == "balanced":
            pipe.enable_model_cpu_offload(device=device)
            return
        from diffusers.hooks import apply_group_offloading

        stream = device.type == "cuda"
        for name, component in pipe.components.items():
            if not isinstance(component, torch.nn.Module) or name == "vae":
                continue
            by_block = profile == "low" and name in _TRANSFORMERS
            apply_group_offloading(
                component, onload_device=device, offload_device=torch.device("cpu"), use_stream=stream,
                offload_type="block_level" if by_block else "leaf_level", num_blocks_per_group=1 if by_block else None,
                low_cpu_mem_usage=stream,
            )  # fmt: skip
        pipe.vae.to(device)
    except torch.OutOfMemoryError as error:
        raise GenerationError(f"the model does not fit into the memory of {device} with memory {profile}") from error


def decode_in_tiles(vae: Any) -> bool:
    """Have an autoencoder work on tiles of a frame, where it can: whether it can."""
    if not hasattr(vae, "enable_tiling"):
        return False
    vae.enable_tiling()
    if hasattr(vae, "enable_slicing"):
        vae.enable_slicing()
    return True
