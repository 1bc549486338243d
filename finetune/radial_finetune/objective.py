"""What each family of models is trained to predict, in the conventions of its own pipeline.

Rectified flow throughout: x_sigma = (1 - sigma) x + sigma e. Wan and HunyuanVideo predict e - x at timestep 1000 sigma;
Mochi predicts x - e at timestep 1000 (1 - sigma).

Shapes: B batch, C channels, F latent frames, H, W latent height and width, L text tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from radial.errors import ModelError, RequestError
from radial.models.spec import ModelSpec
from radial_finetune.noise import Sampling

Text = dict[str, Tensor]  # what a transformer is told of captions, by the names of the pipeline
Start = dict[str, Tensor]  # what it is told of the frames that a clip starts from and ends on
Whether = Literal["never", "choice", "always"]
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

    @property
    def first_frame(self) -> Whether:
        """Whether clips start from their own first frame."""
        return "never"

    @property
    def last_frame(self) -> Whether:
        """Whether those that do end on their own last frame."""
        return "never"

    def encode_start(self, frames_FHWC: NDArray[np.uint8]) -> Start:
        """What a cache keeps, besides latents and text, for a clip to start from its frames."""
        return {}

    def start_of(self, latents_CFHW: Tensor, start: Start, *, first: bool, last: bool) -> Start:
        """What the transformer is told of a clip's frames, of what its cache keeps, for it to start from the first one
        and to end on the last one."""
        return {}

    def counted(self, losses_BF: Tensor, text: Text) -> Tensor:
        """The losses of what the model must predict; frames that it is given count nothing, and the others more."""
        return losses_BF

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
            a_frame = height // patch[1] * (width // patch[2])
            timestep = timestep[:, None].repeat(1, frames // patch[0] * a_frame)
            if "from_first" in text:  # the frame that it starts from is clean
                from_first_B = text["from_first"]
                timestep[:, :a_frame] = timestep[:, :a_frame].masked_fill(from_first_B[:, None], 0.0)
                clean = torch.where(from_first_B.view(-1, 1, 1, 1, 1), text["first_latent"], noisy_BCFHW[:, :, :1])
                noisy_BCFHW = torch.cat([clean, noisy_BCFHW[:, :, 1:]], 2)
        return transformer(
            hidden_states=noisy_BCFHW, timestep=timestep, encoder_hidden_states=text["prompt_embeds"], return_dict=False
        )[0]

    @property
    def first_frame(self) -> Whether:
        return "choice" if self.pipe.config.get("expand_timesteps") else "never"

    def start_of(self, latents_CFHW: Tensor, start: Start, *, first: bool, last: bool) -> Start:
        if self.first_frame == "never":
            return {}
        return {"first_latent": latents_CFHW[:, :1], "from_first": torch.tensor(first)}

    def counted(self, losses_BF: Tensor, text: Text) -> Tensor:
        frames = losses_BF.shape[1]
        if "from_first" not in text or frames == 1:
            return losses_BF
        weights_BF = torch.full_like(losses_BF, frames / (frames - 1))
        weights_BF[:, 0] = 0.0
        return torch.where(text["from_first"][:, None], losses_BF * weights_BF, losses_BF)


class WanImageObjective(WanObjective):
    """Wan 2.1 and 2.2 from an image, or from a first to a last one: beside the noise are a mask of the frames that are
    given and the latents of a clip with only these in it; Wan 2.1 sees them through CLIP, too."""

    layers: ClassVar = {
        "self": WanObjective.layers["self"],
        "all": r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)",
        "blocks": r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0|add_k_proj|add_v_proj)"
        rf"|ffn\.{_FEED_FORWARD})",
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
        start = {"condition": _normalised(vae, given)[0]}
        if last:  # all but the last latent frame stay: the autoencoder sees only what came before
            given[:, :, -1] = pixels[:, :, -1]
            start["last_condition"] = _normalised(vae, given)[0, :, -1:]
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

    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        embeds = text.get("image_embeds")
        return transformer(
            hidden_states=torch.cat([noisy_BCFHW, text["condition"]], 1), timestep=1000 * sigma_B,
            encoder_hidden_states=text["prompt_embeds"],
            encoder_hidden_states_image=None if embeds is None else embeds.flatten(0, 1),  # two an entry, one by one
            return_dict=False,
        )[0]  # fmt: skip


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


def objective_of(kind: str, config: Mapping[str, Any], latent_channels: int) -> type[Objective]:
    """How transformers of a class are trained, which have this configuration and predict so many channels.

    Raises:
        ModelError: that is not known here.
    """
    if kind not in _OBJECTIVES:
        raise ModelError(f"fine-tuning knows the objectives of {', '.join(_OBJECTIVES)}, not of {kind}")
    channels = config["in_channels"]
    if channels == latent_channels and config.get("image_condition_type") is None:
        return _OBJECTIVES[kind]
    if kind == "WanTransformer3DModel" and channels == 2 * latent_channels + 4:
        return WanImageObjective
    raise ModelError(
        f"this {kind} starts from an image, or follows something else besides text; fine-tuning trains models that "
        "start from text alone, and Wan's that start from an image"
    )


def stands_for_frames(spec: ModelSpec) -> dict[str, str]:
    """What a request must name for a model that always starts from an image, where that is each clip's own."""
    if spec.text_pipeline is not None or spec.image_pipeline is None:
        return {}
    own = "the first frame of each clip"
    return {"image": own} | ({"last_image": "the last frame of each clip"} if spec.needs_last_image else {})


def find_objective(pipe: Any, spec: ModelSpec) -> Objective:
    """How a loaded pipeline's model is trained.

    Raises:
        ModelError: its conventions are not known here.
    """
    latents = getattr(pipe.vae.config, "z_dim", None) or pipe.vae.config.latent_channels
    return objective_of(type(pipe.transformer).__name__, pipe.transformer.config, latents)(pipe, spec)


def velocity_loss(
    objective: Objective, transformer: Any, x_BCFHW: Tensor, text: Text, noise_BCFHW: Tensor, sigma_B: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity in float32, a value for each clip and latent frame: ``[B, F]``."""
    noisy, target = add_noise(x_BCFHW, noise_BCFHW, sigma_B)
    like = {name: value.to(transformer.dtype) if value.is_floating_point() else value for name, value in text.items()}
    predicted = objective.predict(transformer, noisy.to(transformer.dtype), like, sigma_B)
    return objective.counted((predicted.float() - target.float()).square().mean((1, 3, 4)), text)


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
