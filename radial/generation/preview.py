"""A look at a clip while it is denoised: one of its latent frames, decoded alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from radial.video.encoding import Frames


def preview_frame(pipe: Any, latents: Tensor) -> Frames | None:
    """The middle of a clip as uint8 ``[H, W, 3]``, from latents ``[1, C, T, H, W]`` as the denoising loop holds them.

    None for pipelines that pack their latents in another way: only the whole pipeline knows how to decode those.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or latents.dim() != 5:
        return None
    if latents.shape[1] != vae.config.get("z_dim", vae.config.get("latent_channels")):
        return None
    middle = latents.shape[2] // 2
    chosen = latents[:1, :, middle : middle + 1].to(vae.device, vae.dtype)
    try:
        with torch.inference_mode():
            # Its class's: its own may have the whole ranks decode, or go on on the CPU when memory runs out.
            image = type(vae).decode(vae, _unscale(vae, chosen), return_dict=False)[0]
    except (RuntimeError, ValueError, TypeError):  # an autoencoder that takes no single frame; out of memory
        return None
    if image.dim() != 5 or image.shape[1] != 3:
        return None
    pixels = (image[0, :, -1].float() / 2 + 0.5).clamp(0, 1)
    return (pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _unscale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the autoencoder made them."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1, 1)
        return latents * latents.new_tensor(std).view(shape) + latents.new_tensor(mean).view(shape)
    factor: float = vae.config.get("scaling_factor") or 1.0
    return latents / factor
