"""Latent frames into pixels as they come: the causal autoencoder goes on from the features of the frames before, so
that where one chunk ends and the next begins does not show.

Shapes: C channels, F latent frames, H and W latent rows and columns; T frames of pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from radial.errors import ModelError
from radial.generation.decoding import unscale
from radial.video.encoding import Frames


class ChunkDecoder:
    """Diffusers' ``AutoencoderKLWan``, decoding one clip in parts.

    Raises:
        ModelError: it is another autoencoder.
    """

    def __init__(self, vae: Any) -> None:
        if type(vae).__name__ != "AutoencoderKLWan":
            raise ModelError(f"{type(vae).__name__} does not decode a film part by part; Wan's autoencoder does")
        self._vae = vae
        vae.clear_cache()
        self._features: list[Any] = list(vae._feat_map)
        self._begun = False
        self.remembers = 2 * sum(
            module.kernel_size[0] > 1 for module in vae.decoder.modules() if isinstance(module, torch.nn.Conv3d)
        )
        """Latent frames back beyond which nothing counts: each of its convolutions sees two frames before its own."""

    @torch.inference_mode()
    def decode(self, latents_CFHW: Tensor) -> Frames:
        """The frames of the latents that come next, uint8 ``[T, H, W, 3]``."""
        vae = self._vae
        if hasattr(vae, "_hf_hook"):  # it waits in the host's memory
            vae._hf_hook.pre_forward(vae)
        latents = unscale(vae, latents_CFHW[None].to(vae.dtype))
        features, parts = vae.post_quant_conv(latents), []
        for place in range(features.shape[2]):
            first = {} if self._begun else {"first_chunk": True}
            parts.append(
                vae.decoder(features[:, :, place : place + 1], feat_cache=self._features, feat_idx=[0], **first)
            )
            self._begun = True
        pixels = torch.cat(parts, 2)
        if vae.config.patch_size is not None:
            from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

            pixels = unpatchify(pixels, vae.config.patch_size)
        frames: Frames = _to_uint8(pixels[0].clamp(-1, 1).float())
        return frames


def _to_uint8(pixels_CTHW: Tensor) -> Any:
    shown = (pixels_CTHW.permute(1, 2, 3, 0).cpu().numpy() / 2 + 0.5) * 255
    return np.ascontiguousarray(shown.round().clip(0, 255).astype(np.uint8))
