"""Wan 2.1 and 2.2, from text, from a first and from a last frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from radial_finetune.objective.base import (
    FEED_FORWARD,
    Objective,
    Start,
    Text,
    Whether,
    denormalised,
    normalised,
    without_first,
)


class WanObjective(Objective):
    """Wan 2.1 and 2.2. Text is padded with zeros, which are seen: no mask."""

    layers: ClassVar = {
        "self": r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
        "all": r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
        "blocks": rf"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.{FEED_FORWARD})",
    }
    norms: ClassVar = {
        "self": r".*\.attn1\.norm_[qk]", "all": r".*\.attn[12]\.norm_[qk]", "blocks": r".*\.attn[12]\.norm_[qk]",
    }  # fmt: skip

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        return normalised(self.pipe.vae, pixels_BCFHW)

    def decode_latents(self, latents_BCFHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels: Tensor = vae.decode(denormalised(vae, latents_BCFHW)).sample
        return pixels

    def encode_text(self, captions: list[str], images: Sequence[Image.Image] = ()) -> list[Text]:
        embeds, _ = self.pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.spec.max_sequence_length,
            device=self.pipe.text_encoder.device,
        )  # fmt: skip
        words = [int(text.any(1).sum()) for text in embeds]  # zeros follow: they need not be kept
        return [{"prompt_embeds": text[: max(1, count)]} for text, count in zip(embeds, words, strict=True)]

    def stack_text(self, texts: list[Text]) -> Text:
        longest = self.spec.max_sequence_length
        words = [text["prompt_embeds"] for text in texts]
        most = max(len(w) if w.ndim == 3 else 1 for w in words)
        padded = (F.pad(w, (0, 0, 0, longest - w.shape[-2])) for w in words)
        # One text end to end with the next; the empty one stands for each.
        whole = [w.flatten(0, 1) if w.ndim == 3 else w.repeat(most, 1) for w in padded]
        return {"prompt_embeds": torch.stack(whole)}

    def join_texts(self, texts: list[Text]) -> Text:
        words = [text["prompt_embeds"] for text in texts]
        longest = max(len(w) for w in words)
        return {"prompt_embeds": torch.stack([F.pad(w, (0, 0, 0, longest - len(w))) for w in words])}

    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        predicted: Tensor = transformer(**self.call(transformer, noisy_BCFHW, text, sigma_B), return_dict=False)[0]
        return predicted

    def call(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> dict[str, Any]:
        timestep = 1000 * sigma_B
        if self.pipe.config.get("expand_timesteps"):  # Wan 2.2 5 B: a timestep a token
            _, _, frames, height, width = noisy_BCFHW.shape
            patch = transformer.config.patch_size
            a_frame = height // patch[1] * (width // patch[2])
            timestep = timestep[:, None].repeat(1, frames // patch[0] * a_frame)
            if "from_first" in text:  # the frame that it starts from is clean
                from_first_B = text["from_first"]
                timestep[:, :a_frame] = timestep[:, :a_frame].masked_fill(from_first_B[:, None], 0.0)
                clean = torch.where(from_first_B.view(-1, 1, 1, 1, 1), text["first_latent"], noisy_BCFHW[:, :, :1])
                noisy_BCFHW = torch.cat([clean, noisy_BCFHW[:, :, 1:]], 2)
        return {"hidden_states": noisy_BCFHW, "timestep": timestep, "encoder_hidden_states": text["prompt_embeds"]}

    @property
    def first_frame(self) -> Whether:
        return "choice" if self.pipe.config.get("expand_timesteps") else "never"

    def start_of(self, latents_CFHW: Tensor, start: Start, *, first: bool, last: bool) -> Start:
        if self.first_frame == "never":
            return {}
        first = first and latents_CFHW.shape[1] > 1  # of a picture, nothing would be left to predict
        return {"first_latent": latents_CFHW[:, :1], "from_first": torch.tensor(first)}

    def counted(self, losses_BF: Tensor, text: Text) -> Tensor:
        if "from_first" not in text or losses_BF.shape[1] == 1:
            return losses_BF
        return torch.where(text["from_first"][:, None], without_first(losses_BF), losses_BF)


class WanImageObjective(WanObjective):
    """Wan 2.1 and 2.2 from an image, or from a first to a last one: beside the noise are a mask of the frames that are
    given and the latents of a clip with only these in it; Wan 2.1 sees them through CLIP, too."""

    layers: ClassVar = {
        "self": WanObjective.layers["self"],
        "all": r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)",
        "blocks": r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)"
        rf"|ffn\.{FEED_FORWARD})",
    }
    norms: ClassVar = {
        "self": WanObjective.norms["self"], "all": r".*\.attn[12]\.norm(_added)?_[qk]",
        "blocks": r".*\.attn[12]\.norm(_added)?_[qk]",
    }  # fmt: skip

    @property
    def first_frame(self) -> Whether:
        return "always"

    @property
    def last_frame(self) -> Whether:
        config = self.pipe.transformer.config
        if config.pos_embed_seq_len is not None:  # made for two images
            return "always"
        return "choice" if config.image_dim is None else "never"

    @torch.inference_mode()
    def encode_start(self, frames_FHWC: NDArray[np.uint8]) -> Start:
        vae, last = self.pipe.vae, len(frames_FHWC) > 1 and self.last_frame != "never"
        pixels = torch.from_numpy(frames_FHWC).permute(3, 0, 1, 2)[None].to(vae.device, vae.dtype) / 127.5 - 1
        given = torch.zeros_like(pixels)
        given[:, :, 0] = pixels[:, :, 0]
        start = {"condition": normalised(vae, given)[0]}
        if last:  # all but the last latent frame stay: the autoencoder sees only what came before
            given[:, :, -1] = pixels[:, :, -1]
            start["last_condition"] = normalised(vae, given)[0, :, -1:]
        if self.pipe.transformer.config.image_dim is not None:
            seen = [frames_FHWC[0], *([frames_FHWC[-1]] if self.last_frame == "always" else [])]
            start["image_embeds"] = self.pipe.encode_image([Image.fromarray(frame) for frame in seen])
        return start

    def start_of(self, latents_CFHW: Tensor, start: Start, *, first: bool, last: bool) -> Start:
        condition_CFHW = start["condition"].clone()
        mask_CFHW = condition_CFHW.new_zeros(self.spec.stride[0], *condition_CFHW.shape[1:])
        mask_CFHW[:, 0] = 1.0
        if last and "last_condition" in start:
            condition_CFHW[:, -1:] = start["last_condition"]
            mask_CFHW[-1, -1] = 1.0
        told = {"condition": torch.cat([mask_CFHW, condition_CFHW])}
        return told | ({"image_embeds": start["image_embeds"]} if "image_embeds" in start else {})

    def call(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> dict[str, Any]:
        call = {
            "hidden_states": torch.cat([noisy_BCFHW, text["condition"]], 1), "timestep": 1000 * sigma_B,
            "encoder_hidden_states": text["prompt_embeds"],
        }  # fmt: skip
        if (embeds := text.get("image_embeds")) is not None:
            call["encoder_hidden_states_image"] = embeds.flatten(0, 1)  # two an entry, one by one
        return call
