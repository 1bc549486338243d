"""HunyuanVideo 1.5, from text and from an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from radial_finetune.objective.base import FEED_FORWARD, JOINT, Objective, Start, Text, Whether
from radial_finetune.objective.hunyuan_video import encode_first, given_first


class HunyuanVideo15Objective(Objective):
    """HunyuanVideo 1.5. Beside the noise are latents of an image and a mask of the frames that are given, and beside
    the text what an encoder sees of that image; from text, all of these are zeros.

    As the authors train it (Tencent-Hunyuan/HunyuanVideo-1.5: train.py): noise levels at a shift of 3, whatever the
    sampler's is, latents drawn at every step, and a loss of all frames, given ones too.
    """

    training_shift: ClassVar = 3.0
    draws_latents: ClassVar = True
    layers: ClassVar = {
        "self": r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
        "all": rf"transformer_blocks\.\d+\.attn\.{JOINT}",
        "blocks": rf"transformer_blocks\.\d+\.(attn\.{JOINT}|ff(_context)?\.{FEED_FORWARD})",
    }

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        return self.encode_drawn(pixels_BCFHW)[0]

    def encode_drawn(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor | None]:
        vae = self.pipe.vae
        likely, factor = vae.encode(pixels_BCFHW).latent_dist, vae.config.scaling_factor
        return likely.mode() * factor, likely.std * factor

    def decode_latents(self, latents_BCFHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels: Tensor = vae.decode(latents_BCFHW / vae.config.scaling_factor).sample
        return pixels

    def encode_text(self, captions: list[str], images: Sequence[Image.Image] = ()) -> list[Text]:
        words, seen, quoted, seen_of_quoted = self.pipe.encode_prompt(
            captions, device=self.pipe.text_encoder.device, batch_size=len(captions)
        )
        return [
            _cut("prompt_embeds", "prompt_embeds_mask", words[i], seen[i])
            | _cut("prompt_embeds_2", "prompt_embeds_mask_2", quoted[i], seen_of_quoted[i])
            for i in range(len(captions))
        ]

    def stack_text(self, texts: list[Text]) -> Text:
        lengths = {"": self.pipe.tokenizer_max_length, "_2": self.pipe.tokenizer_2_max_length}
        batch: Text = {}
        for end, longest in lengths.items():
            embeds, masks = f"prompt_embeds{end}", f"prompt_embeds_mask{end}"
            batch[embeds] = torch.stack([F.pad(t[embeds], (0, 0, 0, longest - len(t[embeds]))) for t in texts])
            batch[masks] = torch.stack([F.pad(t[masks], (0, longest - len(t[masks]))) for t in texts])
        return batch

    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        predicted: Tensor = transformer(**self.call(transformer, noisy_BCFHW, text, sigma_B), return_dict=False)[0]
        return predicted

    def call(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> dict[str, Any]:
        batch, channels, *grid = noisy_BCFHW.shape
        condition, embeds = text.get("condition"), text.get("image_embeds")
        if condition is None or embeds is None:
            condition = noisy_BCFHW.new_zeros(batch, channels + 1, *grid)
            embeds = noisy_BCFHW.new_zeros(batch, self.pipe.vision_num_semantic_tokens, self.pipe.vision_states_dim)
        return {
            "hidden_states": torch.cat([noisy_BCFHW, condition], 1), "image_embeds": embeds,
            "timestep": (1000 * sigma_B).to(noisy_BCFHW.dtype),  # whose numbers its embedding computes in
            "encoder_hidden_states": text["prompt_embeds"], "encoder_attention_mask": text["prompt_embeds_mask"],
            "encoder_hidden_states_2": text["prompt_embeds_2"],
            "encoder_attention_mask_2": text["prompt_embeds_mask_2"],
        }  # fmt: skip


class HunyuanVideo15ImageObjective(HunyuanVideo15Objective):
    """HunyuanVideo 1.5 from an image. Pictures train as from text, as the authors' own do."""

    @property
    def first_frame(self) -> Whether:
        return "always"

    @torch.inference_mode()
    def encode_start(self, frames_FHWC: NDArray[np.uint8]) -> Start:
        encoder = self.pipe.image_encoder
        embeds = self.pipe.encode_image(Image.fromarray(frames_FHWC[0]), 1, encoder.device, encoder.dtype)
        # As the pipeline encodes it: drawn latents of the clip are not what generation is given.
        return {"first_latent": encode_first(self, frames_FHWC), "image_embeds": embeds[0]}

    def start_of(self, latents_CFHW: Tensor, start: Start, *, first: bool, last: bool) -> Start:
        told = {"condition": given_first(latents_CFHW, start["first_latent"]), "image_embeds": start["image_embeds"]}
        if latents_CFHW.shape[1] > 1:
            return told
        return {name: torch.zeros_like(value) for name, value in told.items()}  # a picture, of which all is predicted


def _cut(embeds: str, mask: str, words_LD: Tensor, seen_L: Tensor) -> Text:
    """A text without the padding behind its last word, which the transformer takes zeros for; a row at least."""
    seen_L = seen_L.bool()
    places = seen_L.nonzero()
    length = int(places[-1]) + 1 if len(places) else 1
    return {embeds: words_LD[:length], mask: seen_L[:length]}
