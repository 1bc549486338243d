"""Tiny decoders: latents into frames by a few million numbers (TAEHV and its kin), told by the tensors of a file.

Names, shapes and order of the layers are those of madebyollin/taehv; so are the conventions: latents come as the
transformer makes them, frames leave in 0..1, and the first frames, fewer by one than a latent stands for, are dropped.

Shapes: T frames, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from radial.errors import ModelError, first_line, some
from radial.loading.load import fingerprint
from radial.models.find import hub_file
from radial.models.hub.download import fetch_file
from radial.models.spec import ModelSpec
from radial.models.weights import read_weights

_STAGES = 3  # each doubles the sides of a frame
_LAYERS_A_STAGE = 6  # three blocks with memory, a doubling of sides, one of frames, and a convolution
# Which autoencoder a file's decoder is for: 16 channels may be of either, and the names are all that tells them apart.
_BY_NAME = {"taew": "Wan", "taehv": "HunyuanVideo", "taehy": "HunyuanVideo"}
_AUTOENCODERS = {
    "AutoencoderKLWan": "Wan", "AutoencoderKLHunyuanVideo": "HunyuanVideo",
    "AutoencoderKLHunyuanVideo15": "HunyuanVideo",
}  # fmt: skip


@dataclass(frozen=True)
class TinyShape:
    """How a tiny decoder is built.

    Attributes:
        latent_channels: of the latents that it takes.
        widths: channels of its three stages, and of what leaves them.
        growth: frames that each stage makes of one.
        patch: pixels of a side that its last layer makes of each place.
    """

    latent_channels: int
    widths: tuple[int, ...]
    growth: tuple[int, ...]
    patch: int

    @property
    def frames(self) -> int:
        """Frames to a latent one."""
        return math.prod(self.growth)

    @property
    def side(self) -> int:
        """Pixels to a latent along a side."""
        return 2**_STAGES * self.patch

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors, by their names in files."""
        found: dict[str, tuple[int, ...]] = {}

        def convolution(name: str, inner: int, outer: int, side: int = 3, *, bias: bool = True) -> None:
            found[f"{name}.weight"] = (outer, inner, side, side)
            if bias:
                found[f"{name}.bias"] = (outer,)

        convolution("decoder.1", self.latent_channels, self.widths[0])
        for stage, growth in enumerate(self.growth):
            first, width = 3 + _LAYERS_A_STAGE * stage, self.widths[stage]
            for block in range(first, first + 3):
                convolution(f"decoder.{block}.conv.0", 2 * width, width)
                convolution(f"decoder.{block}.conv.2", width, width)
                convolution(f"decoder.{block}.conv.4", width, width)
            convolution(f"decoder.{first + 4}.conv", width, width * growth, 1, bias=False)
            convolution(f"decoder.{first + 5}", width, self.widths[stage + 1], bias=False)
        convolution(f"decoder.{4 + _LAYERS_A_STAGE * _STAGES}", self.widths[-1], 3 * self.patch**2)
        return found


def read_tiny_shape(file: Path) -> TinyShape:
    """How the tiny decoder in a file is built, by its tensors.

    Raises:
        ModelError: it holds none that is known here.
    """
    if file.suffix != ".safetensors":
        raise ModelError(f"decoder {file} is no .safetensors file; pickled weights are not loaded")
    shapes = {one.name: one.shape for one in read_weights(file) if one.name.startswith("decoder.")}
    try:
        enters, leaves = shapes["decoder.1.weight"], shapes["decoder.22.weight"]
        firsts = [3 + _LAYERS_A_STAGE * stage for stage in range(_STAGES)]
        widths = [shapes[f"decoder.{first}.conv.0.weight"][0] for first in firsts]
        grown = [shapes[f"decoder.{first + 4}.conv.weight"][0] // widths[i] for i, first in enumerate(firsts)]
        made = TinyShape(enters[1], (*widths, leaves[1]), tuple(grown), math.isqrt(leaves[0] // 3))
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ModelError(
            f"{file} holds no tiny decoder that is known here (TAEHV's layers are): it lacks {error}"
        ) from error
    wrong = [name for name, shape in made.tensors.items() if shapes.get(name) != shape]
    wrong += sorted(shapes.keys() - made.tensors.keys())
    if wrong or not all(growth in (1, 2) for growth in grown):
        raise ModelError(f"{file} holds no tiny decoder that is known here (TAEHV's layers are): see {some(wrong)}")
    return made


def check_decoder_fits(file: Path, shape: TinyShape, vae: Mapping[str, Any], model: str) -> str:
    """What a user should hear of a decoder for a model: nothing, or that nobody can tell whose latents it is for.

    Args:
        vae: the configuration of the model's autoencoder.

    Raises:
        ModelError: it is for other latents.
    """
    kind = str(vae.get("_class_name"))
    if kind not in _AUTOENCODERS:
        raise ModelError(
            f"decoder {file.name} cannot be for {model}, whose latents are of {kind}; tiny decoders are for those of "
            f"{', '.join(_AUTOENCODERS)}"
        )
    channels = vae.get("z_dim", vae.get("latent_channels", 16))
    side = vae.get("scale_factor_spatial", vae.get("spatial_compression_ratio", 8))
    frames = vae.get("scale_factor_temporal", vae.get("temporal_compression_ratio", 4))
    wanted, has = (channels, frames, side), (shape.latent_channels, shape.frames, shape.side)
    if wanted != has:
        raise ModelError(
            f"decoder {file.name} is for latents of another model: of {has[0]} channels, {has[1]} frames and {has[2]} "
            f"pixels a side each, where those of {model} have {wanted[0]}, {wanted[1]} and {wanted[2]}"
        )
    named = next((for_whom for part, for_whom in _BY_NAME.items() if part in file.name.lower()), None)
    if named not in (None, _AUTOENCODERS[kind]):
        raise ModelError(
            f"decoder {file.name} is for {named}'s latents by its name, and {model} has {_AUTOENCODERS[kind]}'s"
        )
    if named is None:
        whose = _AUTOENCODERS[kind]
        return f"decoder {file.name}: neither its tensors nor its name tell whether it is for {whose}'s latents"
    return ""


class _MemoryBlock(nn.Module):
    """Convolutions over a frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sides = ((2 * width, width), (width, width), (width, width))
        layers = [layer for inner, outer in sides for layer in (nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, frames_TCHW: Tensor, before_TCHW: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.cat([frames_TCHW, before_TCHW], 1)) + frames_TCHW)


class _Grow(nn.Module):
    """Several frames of each."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * growth, 1, bias=False)

    def forward(self, frames_TCHW: Tensor) -> Tensor:
        channels = frames_TCHW.shape[1]
        return self.conv(frames_TCHW).unflatten(1, (-1, channels)).flatten(0, 1)


class _Limit(nn.Module):
    """Latents kept within -3..3, smoothly."""

    def forward(self, latents_TCHW: Tensor) -> Tensor:
        return torch.tanh(latents_TCHW / 3) * 3


class TinyDecoder(nn.Module):
    """Decodes latent frame by latent frame, each with a memory of the last: in memory that does not grow with a clip.

    Attributes:
        name, fingerprint: of its file.
        note: what a user should hear of it.
    """

    def __init__(self, shape: TinyShape, name: str = "", fingerprint: str = "", note: str = "") -> None:
        super().__init__()
        self.shape, self.name, self.fingerprint, self.note = shape, name, fingerprint, note
        layers: list[nn.Module] = [_Limit(), nn.Conv2d(shape.latent_channels, shape.widths[0], 3, padding=1), nn.ReLU()]
        for width, after, growth in zip(shape.widths, shape.widths[1:], shape.growth, strict=False):
            layers += [_MemoryBlock(width) for _ in range(3)]
            layers += [
                nn.Upsample(scale_factor=2),
                _Grow(width, growth),
                nn.Conv2d(width, after, 3, padding=1, bias=False),
            ]
        layers += [nn.ReLU(), nn.Conv2d(shape.widths[-1], 3 * shape.patch**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    @torch.inference_mode()
    def decode(self, latents_CTHW: Tensor) -> Tensor:
        """Frames ``[3, T, H, W]`` in -1..1, as diffusers' autoencoders give them, of latents as the transformer makes
        them, on their device."""
        weight = next(self.parameters())
        memory: dict[int, Tensor] = {}
        frames = [self._decode_one(one.to(weight)[None], memory).to(latents_CTHW) for one in latents_CTHW.unbind(1)]
        made_TCHW = torch.cat(frames)[self.shape.frames - 1 :]
        return made_TCHW.movedim(0, 1).clamp(0, 1) * 2 - 1

    def _decode_one(self, x_TCHW: Tensor, memory: dict[int, Tensor]) -> Tensor:
        for place, layer in enumerate(self.decoder):
            if isinstance(layer, _MemoryBlock):
                last = memory.get(place, torch.zeros_like(x_TCHW[:1]))
                memory[place] = x_TCHW[-1:]
                x_TCHW = layer(x_TCHW, torch.cat([last, x_TCHW[:-1]]))
            else:
                x_TCHW = layer(x_TCHW)
        return nn.functional.pixel_shuffle(x_TCHW, self.shape.patch)


def find_decoder(name: str, spec: ModelSpec) -> Path:
    """The file of a decoder that a request names; what lies on the hub is fetched.

    Raises:
        ModelError: there is none, or the hub cannot be reached.
    """
    found = hub_file(spec.tiny_decoder if name == "tiny" else name)
    return Path(name) if found is None else fetch_file(*found)


def load_decoder(
    name: str, spec: ModelSpec, vae: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> TinyDecoder:
    """The decoder that a request names, on the device.

    Args:
        vae: the configuration of the model's autoencoder.

    Raises:
        ModelError: it is missing or broken, or for another model's latents.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = find_decoder(name, spec)
    shape = read_tiny_shape(file)
    note = check_decoder_fits(file, shape, vae, spec.name)
    with torch.device("meta"):
        decoder = TinyDecoder(shape, file.name, fingerprint(file), note)
    try:
        tensors = {key: value.to(dtype) for key, value in load_file(file).items() if key in shape.tensors}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot load decoder {file.name}: {first_line(error)}") from error
    decoder.load_state_dict(tensors, assign=True)
    return decoder.to(device).eval()
