"""What a family's conventions are asked for.

Shapes: B batch, C channels, F latent frames, H, W latent height and width, L text tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from radial.errors import ModelError
from radial.models.spec import ModelSpec
from radial_finetune.noise import Sampling

Text = dict[str, Tensor]  # what a transformer is told of captions, by the names of the pipeline
Start = dict[str, Tensor]  # what it is told of the frames that a clip starts from and ends on
Whether = Literal["never", "choice", "always"]
Expert = Literal["high", "low"]
JOINT = r"(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"  # of clip and text together
FEED_FORWARD = r"net\.(0\.proj|2)"


@dataclass(frozen=True)
class Objective(ABC):
    """A family's conventions.

    Attributes:
        layers: what of a transformer an adapter tunes, as patterns of module names: self-attention alone, all
            attention, or all products of the blocks, feed-forward layers among them; HunyuanVideo and Mochi have but
            one kind of attention, which text shares with the clip.
        norms: the norms within them that can be tuned along.
        sampling: how the authors draw noise levels, before they are shifted.
        training_shift: how far they shift them in training, where that is another than the sampler's.
        text_sees_frames: whether captions are encoded together with the frame that a clip starts from.
        takes_pictures: whether there is something to learn of clips of one frame.
        draws_latents: whether each step draws a clip's latents anew from what the autoencoder holds likely, as the
            authors' trainer does; others take the likeliest.
    """

    pipe: Any
    spec: ModelSpec

    sampling: ClassVar[Sampling] = "logit_normal"
    training_shift: ClassVar[float | None] = None
    text_sees_frames: ClassVar[bool] = False
    takes_pictures: ClassVar[bool] = True
    draws_latents: ClassVar[bool] = False
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

    def encode_drawn(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents, and how far drawn ones deviate from them, where steps draw them."""
        return self.encode_latents(pixels_BCFHW), None

    @abstractmethod
    def decode_latents(self, latents_BCFHW: Tensor) -> Tensor:
        """Pixels in -1..1 of such latents, as the pipeline decodes them."""

    @abstractmethod
    def encode_text(self, captions: list[str], images: Sequence[Image.Image] = ()) -> list[Text]:
        """What the pipeline tells the transformer of each caption, at the length that generation uses.

        Args:
            images: the frame that each clip starts from, where text sees them.
        """

    def stack_text(self, texts: list[Text]) -> Text:
        """A batch of what :meth:`encode_text` gave."""
        return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}

    def join_texts(self, texts: list[Text]) -> Text:
        """One text of several that follow one another within a clip.

        Raises:
            ModelError: the model cannot read another text at another time.
        """
        raise ModelError(f"{self.spec.name} cannot read another text at another time of a clip")

    def call(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> dict[str, Any]:
        """The arguments of a call by which the transformer predicts the velocity from clip to noise.

        Raises:
            ModelError: the model's conventions are other ones, as where clips cannot be packed.
        """
        raise ModelError(f"{self.spec.name} cannot be tuned on packed clips: leave packed out")

    @abstractmethod
    def predict(self, transformer: Any, noisy_BCFHW: Tensor, text: Text, sigma_B: Tensor) -> Tensor:
        """The velocity from clip to noise, e - x, that the transformer predicts."""

    def predict_guided(
        self, transformer: Any, noisy_BCFHW: Tensor, text: Text, negative: Text, sigma_B: Tensor, scale: float
    ) -> Tensor:
        """The velocity with guidance of a scale, as the pipeline guides, in float32.

        Args:
            negative: an entry of what captions say, for words to avoid; all else is the clip's own.
        """
        if scale <= 1:
            return self.predict(transformer, noisy_BCFHW, text, sigma_B).float()
        both = {
            name: torch.cat([negative[name].expand_as(value) if name in negative else value, value])
            for name, value in text.items()
        }
        avoided, wanted = (
            self.predict(transformer, noisy_BCFHW.repeat(2, 1, 1, 1, 1), both, sigma_B.repeat(2)).float().chunk(2)
        )
        return avoided + scale * (wanted - avoided)

    def guides_by_input(self, transformer_config: Any) -> bool:
        """Whether guidance is a number that the transformer is told, and no second pass."""
        return False

    def prompt_arguments(self, text: Text, negative: Text) -> dict[str, Tensor]:
        """Arguments by which the pipeline takes texts that are encoded already."""
        return dict(text) | {f"negative_{name}": value for name, value in negative.items()}


def normalised(vae: Any, pixels_BCFHW: Tensor) -> Tensor:
    """Latents with the mean and deviation that the autoencoder's configuration gives for each channel."""
    latents_BCFHW: Tensor = vae.encode(pixels_BCFHW).latent_dist.mode()
    mean, std = scale_of(vae, latents_BCFHW)
    return (latents_BCFHW - mean) / std


def denormalised(vae: Any, latents_BCFHW: Tensor) -> Tensor:
    """What an autoencoder decodes, of latents with its mean and deviation."""
    mean, std = scale_of(vae, latents_BCFHW)
    return latents_BCFHW * std + mean


def scale_of(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel; 0 and 1 where the configuration gives none."""
    config = vae.config
    given = ([0.0], [1.0]) if config.get("latents_mean") is None else (config.latents_mean, config.latents_std)
    mean, std = (torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1) for values in given)
    return mean, std


def without_first(losses_BF: Tensor) -> Tensor:
    """Losses with nothing of the first latent frame, and so much more of the others that their mean is theirs."""
    frames = losses_BF.shape[1]
    weights_F = torch.full_like(losses_BF[0], frames / (frames - 1))
    weights_F[0] = 0.0
    return losses_BF * weights_F
