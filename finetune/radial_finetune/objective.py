"""What each family of models is trained to predict, in the conventions of its own pipeline.

Rectified flow throughout: x_sigma = (1 - sigma) x + sigma e. Wan and HunyuanVideo predict e - x at timestep 1000 sigma;
Mochi predicts x - e at timestep 1000 (1 - sigma).

Shapes: B batch, C channels, F latent frames, H, W latent height and width, L text tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from radial.errors import ModelError, RequestError
from radial.models.spec import ModelSpec
from radial_finetune.noise import Sampling

Text = dict[str, Tensor]  # what a transformer is told of captions, by the names of the pipeline
Expert = Literal["high", "low"]
_JOINT = r"(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"  # of clip and text together
_FEED_FORWARD = r"net\.(0\.proj|2)"


@dataclass(frozen=True)
class Objective(ABC):
    """A family's conventions.

    Attributes:
        layers: what of a transformer an adapter tunes, as patterns of module names: self-attention alone, all
            attention, or all products of the blocks, feed-forward layers among them; HunyuanVideo and Mochi have but
            one kind of attention, which text shares with the clip.
        norms: the norms within them that can be tuned along.
        sampling: how the authors draw noise levels, before they are shifted.
    """

    pipe: Any
    spec: ModelSpec

    sampling: ClassVar[Sampling] = "logit_normal"
    layers: ClassVar[dict[str, str]] = {}
    norms: ClassVar[dict[str, str]] = {
        "self": r".*\.norm_[qk]", "all": r".*\.norm(_added)?_[qk]", "blocks": r".*\.norm(_added)?_[qk]",
    }  # fmt: skip

    @abstractmethod
    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        """Latents as the transformer sees them, of pixels in -1..1."""

    @abstractmethod
    def encode_text(self, captions: list[str]) -> list[Text]:
        """What the pipeline tells the transformer of each caption, at the length that generation uses."""

    def stack_text(self, texts: list[Text]) -> Text:
        """A batch of what :meth:`encode_text` gave."""
        return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}

    @abstractmethod
    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        """The velocity from clip to noise, e - x, that the transformer predicts."""

    def prompt_arguments(self, text: Text, negative: Text) -> dict[str, Tensor]:
        """Arguments by which the pipeline takes texts that are encoded already."""
        return dict(text) | {f"negative_{name}": value for name, value in negative.items()}


class WanObjective(Objective):
    """Wan 2.1 and 2.2. Text is padded with zeros, which are seen: no mask."""

    layers: ClassVar = {
        "self": r"blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
        "all": r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
        "blocks": rf"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.{_FEED_FORWARD})",
    }
    norms: ClassVar = {
        "self": r".*\.attn1\.norm_[qk]", "all": r".*\.attn[12]\.norm_[qk]", "blocks": r".*\.attn[12]\.norm_[qk]",
    }  # fmt: skip

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        return _normalised(self.pipe.vae, pixels_BCFHW)

    def encode_text(self, captions: list[str]) -> list[Text]:
        embeds, _ = self.pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.spec.max_sequence_length,
            device=self.pipe.text_encoder.device,
        )  # fmt: skip
        words = [int(text.any(1).sum()) for text in embeds]  # zeros follow: they need not be kept
        return [{"prompt_embeds": text[: max(1, count)]} for text, count in zip(embeds, words, strict=True)]

    def stack_text(self, texts: list[Text]) -> Text:
        longest = self.spec.max_sequence_length
        words = (text["prompt_embeds"] for text in texts)
        return {"prompt_embeds": torch.stack([F.pad(w, (0, 0, 0, longest - len(w))) for w in words])}

    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        timestep = 1000 * sigma_B
        if self.pipe.config.get("expand_timesteps"):  # Wan 2.2 5 B: a timestep a token
            _, _, frames, height, width = noisy_BCFHW.shape
            patch = transformer.config.patch_size
            tokens = frames // patch[0] * (height // patch[1]) * (width // patch[2])
            timestep = timestep[:, None].expand(-1, tokens)
        return transformer(
            hidden_states=noisy_BCFHW, timestep=timestep, encoder_hidden_states=text["prompt_embeds"], return_dict=False
        )[0]


class HunyuanVideoObjective(Objective):
    """HunyuanVideo, whose guidance is distilled into an input: 1000 times the scale.

    The target is a plain velocity, which is what the model gives at a scale of 1; at another, training would pull it
    out of the space that guidance amplifies.
    """

    layers: ClassVar = {
        "self": r"(single_)?transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
        "all": rf"(transformer_blocks\.\d+\.attn\.{_JOINT}"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_out))",
        "blocks": rf"(transformer_blocks\.\d+\.(attn\.{_JOINT}|ff(_context)?\.{_FEED_FORWARD})"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))",
    }

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        return vae.encode(pixels_BCFHW).latent_dist.mode() * vae.config.scaling_factor

    def encode_text(self, captions: list[str]) -> list[Text]:
        embeds, pooled, mask = self.pipe.encode_prompt(
            captions, max_sequence_length=self.spec.max_sequence_length, device=self.pipe.text_encoder.device
        )
        return [
            {"prompt_embeds": one, "pooled_prompt_embeds": two, "prompt_attention_mask": three}
            for one, two, three in zip(embeds, pooled, mask, strict=True)
        ]

    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        guidance = torch.full_like(sigma_B, 1000.0) if transformer.config.guidance_embeds else None
        return transformer(
            hidden_states=noisy_BCFHW, timestep=1000 * sigma_B, encoder_hidden_states=text["prompt_embeds"],
            encoder_attention_mask=text["prompt_attention_mask"], pooled_projections=text["pooled_prompt_embeds"],
            guidance=guidance, return_dict=False,
        )[0]  # fmt: skip

    def prompt_arguments(self, text: Text, negative: Text) -> dict[str, Tensor]:
        return dict(text)  # guidance is an input: there is no second, negative pass


class MochiObjective(Objective):
    """Mochi, whose time runs from noise to clip, and whose velocity points that way too."""

    sampling: ClassVar[Sampling] = "uniform"  # as genmo's own fine-tuning draws them
    layers: ClassVar = {
        "self": r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)",
        "all": rf"transformer_blocks\.\d+\.attn1\.{_JOINT}",
        "blocks": rf"transformer_blocks\.\d+\.(attn1\.{_JOINT}|ff(_context)?\.{_FEED_FORWARD})",
    }

    def encode_latents(self, pixels_BCFHW: Tensor) -> Tensor:
        return _normalised(self.pipe.vae, pixels_BCFHW) * self.pipe.vae.config.scaling_factor

    def encode_text(self, captions: list[str]) -> list[Text]:
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


_OBJECTIVES: dict[str, type[Objective]] = {
    "WanTransformer3DModel": WanObjective,
    "HunyuanVideoTransformer3DModel": HunyuanVideoObjective,
    "MochiTransformer3DModel": MochiObjective,
}


def objective_of(kind: str) -> type[Objective]:
    """How transformers of a class are trained.

    Raises:
        ModelError: that is not known here.
    """
    if kind not in _OBJECTIVES:
        raise ModelError(f"fine-tuning knows the objectives of {', '.join(_OBJECTIVES)}, not of {kind}")
    return _OBJECTIVES[kind]


def find_objective(pipe: Any, spec: ModelSpec) -> Objective:
    """How a loaded pipeline's model is trained.

    Raises:
        ModelError: its conventions are not known here, or it starts from an image.
    """
    objective = objective_of(type(pipe.transformer).__name__)
    latents = getattr(pipe.vae.config, "z_dim", None) or pipe.vae.config.latent_channels
    if pipe.transformer.config.in_channels != latents:
        raise ModelError(f"{spec.name} starts from an image; fine-tuning trains models that start from text alone")
    return objective(pipe, spec)


def velocity_loss(
    objective: Objective, transformer: Any, x_BCFHW: Tensor, text: Text, noise_BCFHW: Tensor, sigma_B: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity in float32, a value for each clip and latent frame: ``[B, F]``."""
    noisy, target = add_noise(x_BCFHW, noise_BCFHW, sigma_B)
    like = {name: value.to(transformer.dtype) if value.is_floating_point() else value for name, value in text.items()}
    predicted = objective.predict(transformer, noisy.to(transformer.dtype), like, sigma_B)
    return (predicted.float() - target.float()).square().mean((1, 3, 4))


def add_noise(x_BCFHW: Tensor, noise_BCFHW: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents, and the velocity from clip to noise."""
    sigma = sigma_B.view(-1, 1, 1, 1, 1).to(x_BCFHW.dtype)
    return (1 - sigma) * x_BCFHW + sigma * noise_BCFHW, noise_BCFHW - x_BCFHW


def expert_span(pipe: Any, expert: Expert | None) -> tuple[str, tuple[float, float]]:
    """The transformer that a run tunes, and the noise levels it is for.

    Raises:
        RequestError: the model has two experts and none was chosen, or the other way round.
    """
    boundary = pipe.config.get("boundary_ratio")
    if boundary is None or getattr(pipe, "transformer_2", None) is None:
        if expert is not None:
            raise RequestError(f"expert {expert!r} is for models with two transformers; leave it out")
        return "transformer", (0.0, 1.0)
    if expert is None:
        raise RequestError("this model has two experts: tune one at a time, expert = 'high' or 'low'")
    return ("transformer", (boundary, 1.0)) if expert == "high" else ("transformer_2", (0.0, boundary))


def _normalised(vae: Any, pixels_BCFHW: Tensor) -> Tensor:
    """Latents with the mean and deviation that the autoencoder's configuration gives for each channel."""
    latents_BCFHW: Tensor = vae.encode(pixels_BCFHW).latent_dist.mode()
    if vae.config.get("latents_mean") is None:
        return latents_BCFHW
    mean, std = (
        torch.tensor(values, dtype=latents_BCFHW.dtype, device=latents_BCFHW.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents_BCFHW - mean) / std
