"""A look at a clip while it is denoised: one of its latent frames, decoded alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from radial.generation.decoding import decode_tiny, unscale
from radial.video.encoding import Frames

_FRAMES_FIRST = {"AnyFlowPipeline"}  # pipelines whose latents are [B, T, C, H, W] while they are denoised


def preview_frame(pipe: Any, latents: Tensor) -> Frames | None:
    """The middle of a clip as uint8 ``[H, W, 3]``, from latents ``[1, C, T, H, W]`` as the denoising loop holds them.

    None for pipelines that pack their latents in another way: only the whole pipeline knows how to decode those.
    """
    if type(pipe).__name__ in _FRAMES_FIRST and latents.dim() == 5:
        latents = latents.transpose(1, 2)
    vae = getattr(pipe, "vae", None)
    if vae is None or latents.dim() != 5:
        return None
    if latents.shape[1] != vae.config.get("z_dim", vae.config.get("latent_channels")):
        return None
    middle = latents.shape[2] // 2
    chosen = latents[:1, :, middle : middle + 1].to(vae.dtype)
    try:
        with torch.inference_mode(), _beside(vae, latents.device):
            if (decoder := vars(vae).get("tiny_decoder")) is not None:
                image = decode_tiny(vae, decoder, unscale(vae, chosen))
            else:
                # Its class's: its own may have all ranks decode, or go on on the CPU when memory runs out.
                image = type(vae).decode(vae, unscale(vae, chosen), return_dict=False)[0]
    except (RuntimeError, ValueError, TypeError):  # an autoencoder that takes no single frame; out of memory
        return None
    if image.dim() != 5 or image.shape[1] != 3:
        return None
    pixels = (image[0, :, -1].float() / 2 + 0.5).clamp(0, 1)
    return (pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()


@contextlib.contextmanager
def _beside(vae: Any, device: torch.device) -> Iterator[None]:
    """An autoencoder on the device where the clip is, and back to where it was.

    Its offloading hook would throw the transformer off the GPU, whose turn it is.
    """
    hook, own = vae.__dict__.pop("_hf_hook", None), vae.device
    try:
        if own != device:
            vae.to(device)
        yield
    finally:
        if own != device:
            vae.to(own)
        if hook is not None:
            vae._hf_hook = hook
