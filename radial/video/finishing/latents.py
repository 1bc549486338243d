"""More pixels by way of latents: an upsampler of LTX-Video's or LTX-2's, with the autoencoder whose latents it takes.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radial.errors import ModelError, RequestError, first_line
from radial.video.colour import Frame
from radial.video.encoding import Frames
from radial.video.finishing.later import Later, once

PARTS = ("vae", "latent_upsampler")  # folders of a checkpoint
_FAMILIES = {
    ("AutoencoderKLLTXVideo", "LTXLatentUpsamplerModel"): "LTXLatentUpsamplePipeline",
    ("AutoencoderKLLTX2Video", "LTX2LatentUpsamplerModel"): "LTX2LatentUpsamplePipeline",
}
_WINDOW, _SHARED = 97, 8  # frames that are in memory at once, and that two windows fade into each other over
_DECODING = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}  # the authors', of decoders that want noise


@dataclass(frozen=True, eq=False)
class LatentUpsampler:
    """Frames of a clip, or of a part of it, many at a time, at ``scale`` times their width and height."""

    pipe: Any
    scale: float

    def __call__(self, frames: Sequence[Frame]) -> Frames:
        """Frames through diffusers' own pipeline, uint8 ``[T, H, W, 3]``; what its autoencoder's steps want more of is
        the last frame and the border once more, and cut off again."""
        import torch
        from PIL import Image

        height, width = frames[0].shape[:2]
        side, time = self.pipe.vae_spatial_compression_ratio, self.pipe.vae_temporal_compression_ratio
        more = (0, -height % side), (0, -width % side), (0, 0)
        pictures = [Image.fromarray(np.pad(frame, more, "edge")) for frame in frames]
        pictures += pictures[-1:] * (-(len(frames) - 1) % time)
        made = self.pipe(
            video=pictures, width=pictures[0].width, height=pictures[0].height, output_type="np", **_DECODING,
            generator=torch.Generator("cpu").manual_seed(0),
        ).frames[0]  # fmt: skip
        inner = made[: len(frames), : round(height * self.scale), : round(width * self.scale)]
        return np.asarray((inner * 255).round().clip(0, 255), np.uint8)


def check_latent_upsampler(folder: Path) -> str:
    """The diffusers pipeline of a folder with an upsampler of latents and the autoencoder that goes with it.

    Raises:
        RequestError: it holds no such two, or others than are known.
    """
    vae, upsampler = (_kind(folder / part) for part in PARTS)
    if not vae or not upsampler:
        raise RequestError(
            f"{folder} does not hold both an upsampler of latents, in {PARTS[1]}, and the autoencoder of the model "
            f"that it is for, in {PARTS[0]}: give a folder with both, as LTX-2's has them"
        )
    if (vae, upsampler) not in _FAMILIES:
        raise RequestError(f"{folder} holds {upsampler} beside {vae}, which do not go together")
    config = json.loads((folder / PARTS[1] / "config.json").read_text(encoding="utf-8"))
    if config.get("temporal_upsample") or not config.get("spatial_upsample", True):
        raise RequestError(f"the upsampler in {folder} makes frames, not pixels: --frames 2 makes frames of a clip")
    return _FAMILIES[vae, upsampler]


def load_latent_upsampler(folder: Path, device: str = "cpu") -> LatentUpsampler:
    """An upsampler of latents on its device.

    Raises:
        RequestError: the folder holds none that can be used, or its parts do not fit each other.
        ModelError: a part's files cannot be read.
    """
    import diffusers
    import torch
    from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    name = check_latent_upsampler(folder)
    is_first = name == "LTXLatentUpsamplePipeline"
    coder = diffusers.AutoencoderKLLTXVideo if is_first else diffusers.AutoencoderKLLTX2Video
    kinds = (coder, LTXLatentUpsamplerModel if is_first else LTX2LatentUpsamplerModel)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        vae, upsampler = (
            kind.from_pretrained(folder / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
            for kind, part in zip(kinds, PARTS, strict=True)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {first_line(error)}") from error
    if vae.config.latent_channels != upsampler.config.in_channels:
        raise RequestError(
            f"the upsampler in {folder} takes latents of {upsampler.config.in_channels} channels, and its autoencoder "
            f"makes {vae.config.latent_channels}: it is of another model"
        )
    vae.enable_tiling()
    pipe = getattr(diffusers, name)(vae=vae, latent_upsampler=upsampler).to(device)
    pipe.set_progress_bar_config(disable=True)
    rational = upsampler.config.get("use_rational_resampler", False)
    return LatentUpsampler(pipe, upsampler.config.rational_spatial_scale if rational else 2.0)


def files_of(path: Path) -> list[Path]:
    """The files that an upscaler is read from: itself, or those of a folder's parts."""
    if not path.is_dir():
        return [path]
    return sorted(file for part in PARTS for file in (path / part).glob("*") if file.is_file())


def upsampled(frames: Iterable[Later], upsample: Callable[[Sequence[Frame]], Frames]) -> Iterator[Later]:
    """A clip's frames made larger many at a time: windows of 97, which fade into each other over the 8 that they share.

    A window is made when one of its frames is asked for.
    """
    held: list[Later] = []
    before: Callable[[], Frames] | None = None
    for frame in frames:
        if len(held) == _WINDOW:
            window = once(_make, tuple(held), upsample)
            yield from _frames_of(window, _WINDOW - _SHARED, before)
            held, before = held[_WINDOW - _SHARED :], window
        held.append(frame)
    if held:
        yield from _frames_of(once(_make, tuple(held), upsample), len(held), before)


def _make(frames: Sequence[Later], upsample: Callable[[Sequence[Frame]], Frames]) -> Frames:
    return upsample([frame() for frame in frames])


def _frames_of(window: Callable[[], Frames], count: int, before: Callable[[], Frames] | None) -> Iterator[Later]:
    for index in range(count):
        yield once(_frame, window, index, before if index < _SHARED else None)


def _frame(window: Callable[[], Frames], index: int, before: Callable[[], Frames] | None) -> Frame:
    now = window()[index]
    if before is None:
        return now
    share = (index + 1) / (_SHARED + 1)
    earlier = before()[index - _SHARED]
    return np.asarray((earlier * (1 - share) + now * share).round(), np.uint8)


def _kind(folder: Path) -> str:
    """The diffusers class that a folder's configuration names; nothing where it names none."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
