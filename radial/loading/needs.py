"""What a run takes of memory, by arithmetic alone. The estimates are upper ones, by what was measured at full size
(benchmarks/memory_h100_*.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from radial.errors import RequestError
from radial.models.spec import ModelSpec
from radial.models.weights import Weight, Weights
from radial.request import GenerationRequest

Profile = Literal["full", "balanced", "low", "lowest"]
PROFILES: tuple[Profile, ...] = ("full", "balanced", "low", "lowest")
_CONTEXT = 950 << 20  # CUDA's own, and what the allocator leaves unused
_TILE = 256  # pixels of a side of a decoded tile
TRANSFORMERS = ("transformer", "transformer_2")
SMALLEST = 1 << 20  # weights of a layer from which it is worth to have them in 8 bit


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
        from radial.video.strips import Strips

        whole = self.frames // 3
        decode = int(self.decode * Strips.cut_into(latents, processes).widest) + whole
        return replace(self, clip=self.clip // processes, decode=min(self.decode, decode),
                       decode_tiled=self.decode_tiled + whole)  # fmt: skip

    @classmethod
    def together(cls, clips: Sequence[Needs]) -> Needs:
        """Of clips whose calls of one model are made together: they are decoded one after the other."""
        return replace(
            clips[0], clip=sum(one.clip for one in clips), decode=max(one.decode for one in clips),
            decode_tiled=max(one.decode_tiled for one in clips), frames=sum(one.frames for one in clips),
        )  # fmt: skip

    def vram(self, profile: Profile) -> int:
        """The most that lies on the GPU at once."""
        transformer = max((self.weights.get(name, 0) for name in TRANSFORMERS), default=0)
        vae = self.weights.get("vae", 0)
        others = max((size for name, size in self.weights.items() if name not in (*TRANSFORMERS, "vae")), default=0)
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


def needs_of(request: GenerationRequest, spec: ModelSpec, weights: Weights, number: int, processes: int = 1) -> Needs:
    """What a resolved request needs of a checkpoint with such weights, each of the processes that share its clip.

    Args:
        number: bytes of one that is computed with.
    """
    sizes, blocks = {}, {}
    for component, tensors in weights.components.items():
        narrow = request.precision != "full" and component in TRANSFORMERS
        narrow = narrow or (request.precision == "eight_bit_weights" and component.startswith("text_encoder"))
        wide = 4 if component == "vae" and spec.exact_autoencoder else number
        sizes[component] = sum(_bytes(tensor, narrow, wide) for tensor in tensors)
        if component in TRANSFORMERS:
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
    clip = int(number * tokens * (8 * width + 2.5 * inner)) * (2 if request.batched_guidance else 1)
    pixels = request.clip_height * request.clip_width
    frames = request.clip_frames * pixels * 3 * 4
    decoded = 4 if spec.exact_autoencoder else number
    # The widest layers work on whole frames with a hundred-odd channels, some of them at a time.
    decode = decoded * pixels * 96 * 4 * 24 + frames
    tiled = decoded * min(pixels, 4 * _TILE * _TILE) * 96 * 4 * 10 + 2 * frames
    if spec.decodes_in_tiles:
        decode = min(decode, tiled)
    if request.decoder != "full":  # a latent frame at a time, by up to 64 channels of whole frames
        decode = tiled = number * pixels * 64 * 4 * 4 + 2 * frames
    cached = _cached(request, spec, number * tokens * width)
    needs = Needs(
        sizes, max(blocks.values(), default=0), clip + cached, decode + cached, min(decode, tiled) + cached, 3 * frames
    )
    return needs.shared_by(processes, max(request.clip_height, request.clip_width) // 8)


def _cached(request: GenerationRequest, spec: ModelSpec, residual: int) -> int:
    """What a step cache keeps, of residuals of so many bytes, until the clip is decoded: for each pass of a step, and
    each transformer."""
    cache = spec.step_cache(request.cache, request.task, request.num_inference_steps or 1)
    if cache is None:
        return 0
    residuals = 3 if cache.method == "first_block" else 2
    return residual * residuals * (2 if request.is_guided(spec) else 1) * (2 if spec.has_two_transformers else 1)


def _bytes(tensor: Weight, narrow: bool, wide: int) -> int:
    return tensor.bytes(1 if narrow and _is_narrowed(tensor) else wide)


def _is_narrowed(tensor: Weight) -> bool:
    """Whether :func:`radial.loading.quantize.narrow_linears` would narrow a tensor, by its name and shape alone."""
    if len(tensor.shape) != 2 or math.prod(tensor.shape) < SMALLEST or tensor.packed is not None:
        return False
    inside = "block" in tensor.name or "layers." in tensor.name
    return inside and not any(word in tensor.name for word in ("norm", "mod", ".wo.", "scale_shift_table"))


def fit_profile(request: GenerationRequest, spec: ModelSpec, needs: Needs, free: int, device: str) -> Profile:
    """The profile that a request names, or the fastest that fits on a GPU with so many bytes free.

    Raises:
        RequestError: none does; the profile or the length that does is named.
    """
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
