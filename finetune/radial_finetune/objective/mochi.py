"""Mochi, from text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from radial_finetune.noise import Sampling
from radial_finetune.objective.base import FEED_FORWARD, JOINT, Objective, Text, denormalised, scale_of


class MochiObjective(Objective):
    """Mochi, whose time runs from noise to clip, and whose velocity points that way too."""

    # As genmo's own fine-tuning draws noise levels, and latents, of which it keeps mean and variance (genmoai/mochi:
    # demos/fine_tuner).
    sampling: ClassVar[Sampling] = "uniform"
    draws_latents: ClassVar = True
    layers: ClassVar = {
        "self": r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
        "all": rf"transformer_blocks\.\d+\.attn1\.{JOINT}",
        "blocks": rf"transformer_blocks\.\d+\.(attn1\.{JOINT}|ff(_context)?\.{FEED_FORWARD})",
    }

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        return self.encode_drawn(pixels_BCFHW)[0]

    def encode_drawn(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor | None]:
        vae = self.pipe.vae
        likely = vae.encode(pixels_BCFHW).latent_dist
        mean, std = scale_of(vae, likely.mean)
        factor = vae.config.scaling_factor
        return (likely.mode() - mean) / std * factor, likely.std / std * factor

    def decode_latents(self, latents_BCFHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels: Tensor = vae.decode(denormalised(vae, latents_BCFHW / vae.config.scaling_factor)).sample
        return pixels

    def encode_text(self, captions: list[str], images: Sequence[Image.Image] = ()) -> list[Text]:
        texts = []
        for caption in captions:  # one by one: where empty prompts are zeros, the pipeline makes a whole batch zeros
            embeds, mask, _, _ = self.pipe.encode_prompt(
                caption, do_classifier_free_guidance=False, max_sequence_length=self.spec.max_sequence_length,
                device=self.pipe.text_encoder.device,
            )  # fmt: skip
            texts.append({"prompt_embeds": embeds[0], "prompt_attention_mask": mask[0]})
        return texts

    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        return -transformer(
            hidden_states=noisy_BCFHW, encoder_hidden_states=text["prompt_embeds"], timestep=1000 * (1 - sigma_B),
            encoder_attention_mask=text["prompt_attention_mask"], return_dict=False,
        )[0]  # fmt: skip
