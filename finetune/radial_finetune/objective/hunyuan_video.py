"""HunyuanVideo, from text and from an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from radial_finetune.objective.base import FEED_FORWARD, JOINT, Objective, Start, Text, Whether, without_first


class HunyuanVideoObjective(Objective):
    """HunyuanVideo, whose guidance is distilled into an input: 1000 times the scale.

    The target is a plain velocity, which is what the model gives at a scale of 1; at another, training would pull it
    out of the space that guidance amplifies.
    """

    layers: ClassVar = {
        "self": r"(single_)?transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
        "all": rf"(transformer_blocks\.\d+\.attn\.{JOINT}"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_out))",
        "blocks": rf"(transformer_blocks\.\d+\.(attn\.{JOINT}|ff(_context)?\.{FEED_FORWARD})"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))",
    }

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        vae = self.pipe.vae  # the likeliest, as HunyuanVideo-I2V's own trainer keeps them (hyvae_extract)
        return vae.encode(pixels_BCFHW).latent_dist.mode() * vae.config.scaling_factor

    def decode_latents(self, latents_BCFHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels: Tensor = vae.decode(latents_BCFHW / vae.config.scaling_factor).sample
        return pixels

    def encode_text(self, captions: list[str], images: Sequence[Image.Image] = ()) -> list[Text]:
        embeds, pooled, mask = self.pipe.encode_prompt(
            captions, max_sequence_length=self.spec.max_sequence_length, device=self.pipe.text_encoder.device
        )
        return [
            {"prompt_embeds": one, "pooled_prompt_embeds": two, "prompt_attention_mask": three}
            for one, two, three in zip(embeds, pooled, mask, strict=True)
        ]

    def predict(
        self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor, guidance_scale: float = 1.0
    ) -> Tensor:
        call = self.call(transformer, noisy_BCFHW, text, sigma_B, guidance_scale)
        predicted: Tensor = transformer(**call, return_dict=False)[0]
        return predicted

    def call(
        self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor, guidance_scale: float = 1.0
    ) -> dict[str, Any]:
        told = self.guides_by_input(transformer.config)
        return {
            "hidden_states": noisy_BCFHW, "timestep": 1000 * sigma_B, "encoder_hidden_states": text["prompt_embeds"],
            "encoder_attention_mask": text["prompt_attention_mask"], "pooled_projections": text["pooled_prompt_embeds"],
            "guidance": torch.full_like(sigma_B, 1000.0 * guidance_scale) if told else None,
        }  # fmt: skip

    def predict_guided(
        self, transformer: Any, noisy_BCFHW: Tensor, text: Text, negative: Text, sigma_B: Tensor, scale: float
    ) -> Tensor:
        if not self.guides_by_input(transformer.config):
            return super().predict_guided(transformer, noisy_BCFHW, text, negative, sigma_B, scale)
        return self.predict(transformer, noisy_BCFHW, text, sigma_B, scale).float()

    def guides_by_input(self, transformer_config: Any) -> bool:
        return bool(transformer_config.guidance_embeds)

    def prompt_arguments(self, text: Text, negative: Text) -> dict[str, Tensor]:
        return dict(text)  # guidance is an input: there is no second, negative pass


class HunyuanVideoImageObjective(HunyuanVideoObjective):
    """HunyuanVideo from an image, which its language model sees beside the caption. The first latent frame is given: in
    place of the noisy one (``token_replace``, at timestep 0 within the transformer), or beside the noise, with a mask
    (``latent_concat``)."""

    text_sees_frames: ClassVar = True
    takes_pictures: ClassVar = False

    @property
    def first_frame(self) -> Whether:
        return "always"

    @property
    def _replaces(self) -> bool:
        return bool(self.pipe.transformer.config.image_condition_type == "token_replace")

    def encode_text(self, captions: list[str], images: Sequence[Image.Image] = ()) -> list[Text]:
        texts = []
        for caption, image in zip(captions, images, strict=True):  # one by one: the pipeline cuts one long prompt only
            embeds, pooled, mask = self.pipe.encode_prompt(
                image, [caption], max_sequence_length=self.spec.max_sequence_length,
                device=self.pipe.text_encoder.device, image_embed_interleave=4 if self._replaces else 2,
            )  # fmt: skip
            texts.append(
                {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0], "prompt_attention_mask": mask[0]}
            )
        return texts

    @torch.inference_mode()
    def encode_start(self, frames_FHWC: NDArray[np.uint8]) -> Start:
        return {"first_latent": encode_first(self, frames_FHWC)}

    def start_of(self, latents_CFHW: Tensor, start: Start, *, first: bool, last: bool) -> Start:
        if self._replaces:
            return {"first_latent": start["first_latent"]}
        return {"condition": given_first(latents_CFHW, start["first_latent"])}

    def counted(self, losses_BF: Tensor, text: Text) -> Tensor:
        return without_first(losses_BF) if self._replaces else losses_BF

    def call(
        self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor, guidance_scale: float = 1.0
    ) -> dict[str, Any]:
        if self._replaces:
            seen = torch.cat([text["first_latent"], noisy_BCFHW[:, :, 1:]], 2)
        else:
            seen = torch.cat([noisy_BCFHW, text["condition"]], 1)
        return super().call(transformer, seen, text, sigma_B, guidance_scale)


def encode_first(objective: Objective, frames_FHWC: NDArray[np.uint8]) -> Tensor:
    """The likeliest latents of a clip's first frame alone: within the clip, norms over all frames would let it see the
    others."""
    vae = objective.pipe.vae
    first = torch.from_numpy(frames_FHWC[:1]).permute(3, 0, 1, 2)[None].to(vae.device, vae.dtype)
    return objective.encode_latents(first / 127.5 - 1)[0]


def given_first(latents_CFHW: Tensor, first_latent: Tensor) -> Tensor:
    """What lies beside the noise of a clip whose first latent frame is given: that frame, and a mask of it."""
    condition_CFHW = latents_CFHW.new_zeros(len(latents_CFHW) + 1, *latents_CFHW.shape[1:])
    condition_CFHW[:-1, :1] = first_latent
    condition_CFHW[-1, 0] = 1.0
    return condition_CFHW
