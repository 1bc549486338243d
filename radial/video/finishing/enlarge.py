"""More pixels: by the Lanczos filter, or by an upscaler that a file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from radial.errors import ModelError, RequestError, first_line
from radial.video.colour import Frame
from radial.video.finishing.latents import check_latent_upsampler

_LATENT = {"initial_conv.weight", "res_blocks.0.conv1.weight", "post_upsample_res_blocks.0.conv1.weight"}
Enlarge = Callable[[Frame], Frame]
_TILE, _SHARED = 512, 16  # pixels that an upscaler sees at a time, and that two tiles share at each side


def resized(frame: Frame, height: int, width: int) -> Frame:
    """A frame at another size: by Lanczos where it grows, by the mean of areas where it shrinks."""
    import cv2

    if frame.shape[:2] == (height, width):
        return frame
    grows = height * width > frame.shape[0] * frame.shape[1]
    way = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=way), np.uint8)


def check_upscaler_file(path: Path) -> None:
    """Raise RequestError where a file is missing, or of a kind that is not opened, or a folder holds no upsampler of
    latents."""
    if path.is_dir():
        check_latent_upsampler(path)
        return
    if path.suffix.lower() != ".safetensors":
        raise RequestError(
            f"upscaler must be a .safetensors file, not {path.name!r}: others may run code when opened; or a folder "
            "that is here, with an upsampler of latents"
        )
    if not path.is_file():
        raise RequestError(f"no such file: {path}")


def _names_in(path: Path) -> set[str]:
    """The names of a file's tensors.

    Raises:
        RequestError: it is no file of safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path} is no file of safetensors: {first_line(error)}") from error


def load_upscaler(path: Path, device: str = "auto") -> tuple[Enlarge, int]:
    """What an upscaler's file, of ESRGAN's kind or any other that spandrel knows, makes of a frame, and how many times
    as wide and high that is.

    Raises:
        RequestError: the file is missing, pickled, or holds no upscaler.
        ModelError: spandrel is not installed.
    """
    check_upscaler_file(path)
    if _names_in(path) >= _LATENT:
        raise RequestError(
            f"{path} upsamples latents, as LTX-Video's do, and cannot tell of which autoencoder: give the folder that "
            "holds it as latent_upsampler beside that vae, or a file of ESRGAN's kind"
        )
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:  # torchvision, which it wants, may not fit the torch that is here
        raise ModelError(
            f"an upscaler's file needs spandrel ({first_line(error)}): pip install 'radial-video[upscale]'"
        ) from error
    from safetensors.torch import load_file

    try:
        found = spandrel.ModelLoader().load_from_state_dict(load_file(path))
    except (spandrel.UnsupportedModelError, RuntimeError, ValueError, KeyError) as error:
        raise RequestError(f"{path} holds no upscaler that spandrel knows") from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise RequestError(f"{path} holds a {found.architecture.name}, which makes no picture of a picture")
    if found.scale < 2:
        raise RequestError(f"{path} holds a {found.architecture.name} that keeps the size: no upscaler")
    found.to(device).eval()
    return lambda frame: _in_tiles(found, frame, device), int(found.scale)


def _in_tiles(model: Any, frame: Frame, device: str) -> Frame:
    """A frame tile by tile, each with something of its neighbours around it, which is cut off again."""
    import torch

    height, width, _ = frame.shape
    scale = model.scale
    made = np.empty((height * scale, width * scale, 3), np.uint8)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            above, beside = min(top, _SHARED), min(left, _SHARED)
            seen = frame[top - above : top + _TILE + _SHARED, left - beside : left + _TILE + _SHARED]
            pixels_1CHW = torch.from_numpy(seen.copy()).to(device).permute(2, 0, 1)[None].float() / 255
            with torch.inference_mode():
                larger = model(pixels_1CHW)[0].clamp(0, 1).permute(1, 2, 0)
            inner = larger[above * scale :, beside * scale :][: _TILE * scale, : _TILE * scale]
            part = made[top * scale : (top + _TILE) * scale, left * scale : (left + _TILE) * scale]
            part[:] = (inner[: len(part), : part.shape[1]] * 255).round().byte().cpu().numpy()
    return made
