"""Clips and what steers them, drawn as training goes and encoded as ``WanVACEPipeline`` encodes them.

Shapes: B clips, C latent channels, T frames (latent where C is there), R pictures of references, H rows, W columns,
L text tokens, D their width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from radial_finetune.pretrain.autoencoder import encode_clip
from radial_finetune.pretrain.text import encode_text
from radial_finetune.world.render import render
from radial_finetune.world.steered import Pixels, Steered, draw_steered

GREY = 128  # what VACE is shown where a clip is made anew
# How often each task is drawn, by itself and beside a picture of the figure.
_SHARES = {"path": 0.24, "canny": 0.14, "grey": 0.1, "flow": 0.06, "inpaint": 0.22, "keyframes": 0.18, "text": 0.06}
_BESIDE_PICTURE = {"path": 0.35, "canny": 0.1, "grey": 0.1, "text": 0.45}


@dataclass(frozen=True)
class Example:
    """A clip, with those pictures of it that are drawn on the CPU."""

    drawn: Steered
    signal_THWC: Pixels | None
    hole_THW: NDArray[np.bool_] | None
    reference_HWC: Pixels | None


class Examples(IterableDataset[Example]):
    """Endless examples, others in each process that draws them.

    Args:
        referenced: whether each has a picture of its figure.
    """

    def __init__(self, num_frames: int, side: int, referenced: bool, seed: str) -> None:
        self.num_frames, self.side, self.referenced, self.seed = num_frames, side, referenced, seed

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        rng = random.Random(f"control {self.seed} {self.referenced} {0 if worker is None else worker.id}")
        shares = _BESIDE_PICTURE if self.referenced else _SHARES
        while True:
            (task,) = rng.choices(list(shares), list(shares.values()))
            drawn = draw_steered(rng, task, self.num_frames, self.side, referenced=self.referenced)
            yield Example(drawn, drawn.signal(), drawn.hole(), drawn.reference())


def load_examples(examples: Examples, batch_size: int, processes: int) -> Iterator[list[Example]]:
    """Batches of examples, drawn ahead by so many processes; none draws them when they are asked for."""
    ahead: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": 2} if processes else {}
    loader: DataLoader[Example] = DataLoader(
        examples, batch_size, num_workers=processes, collate_fn=list, worker_init_fn=_use_one_thread, **ahead
    )
    return iter(loader)


def _use_one_thread(worker: int) -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


class Encoder:
    """Latents, conditions and words of examples, on a device.

    Args:
        vae: in float32; computes in bfloat16 on a GPU.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: UMT5EncoderModel,
        device: torch.device,
    ) -> None:
        self.vae, self.tokenizer, self.text_encoder, self.device = vae, tokenizer, text_encoder, device
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        self.empty_LD = encode_text(tokenizer, text_encoder, [""], device)[0]

    @torch.no_grad()
    def encode(self, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents ``[B, C, R + T, H, W]``, conditions ``[B, 2 C + 64, R + T, H, W]`` and text ``[B, L, D]`` of
        examples of one size that all have a picture, or none."""
        members = [example.drawn for example in examples]
        clip_BCTHW = self._true_clips(members)
        video_BCTHW, anew_B1THW = self._conditions(examples, clip_BCTHW)
        latents = self.latents_of(clip_BCTHW)
        kept, made = self.latents_of(video_BCTHW * ~anew_B1THW), self.latents_of(video_BCTHW * anew_B1THW)
        masks = masks_of(anew_B1THW, self.vae.config.scale_factor_spatial, self.vae.config.scale_factor_temporal)
        pictures = [one.reference_HWC for one in examples if one.reference_HWC is not None]
        if pictures:
            picture = self.latents_of(self._signed(np.stack(pictures)).permute(0, 3, 1, 2)[:, :, None])
            latents, kept = torch.cat([picture, latents], 2), torch.cat([picture, kept], 2)
            made = torch.cat([torch.zeros_like(picture), made], 2)
            masks = torch.cat([torch.zeros_like(masks[:, :, :1]), masks], 2)
        text = encode_text(self.tokenizer, self.text_encoder, [one.prompt for one in members], self.device)
        return latents, torch.cat([kept, made, masks], 1), text

    def latents_of(self, clip_BCTHW: Tensor) -> Tensor:
        """Normalised latents of clips in -1..1."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latents = encode_clip(self.vae, clip_BCTHW)[0].float()
        return (latents - self.mean) / self.std

    def _true_clips(self, members: list[Steered]) -> Tensor:
        first = members[0]
        clip_BCTHW = render([one.scene for one in members], first.num_frames, first.side, first.side, self.device,
                            [one.truth for one in members])  # fmt: skip
        return ((clip_BCTHW + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1

    def _conditions(self, examples: list[Example], clip_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """What the model is shown, and where a clip is made anew."""
        video_BCTHW = torch.full_like(clip_BCTHW, GREY / 127.5 - 1)
        anew_B1THW = torch.ones_like(clip_BCTHW[:, :1], dtype=torch.bool)
        for row, example in enumerate(examples):
            if example.signal_THWC is not None:
                video_BCTHW[row] = self._signed(example.signal_THWC).permute(3, 0, 1, 2)
            if example.hole_THW is not None:
                anew_B1THW[row, 0] = torch.from_numpy(example.hole_THW).to(self.device)
                video_BCTHW[row] = torch.where(anew_B1THW[row], video_BCTHW[row], clip_BCTHW[row])
            for frame in example.drawn.keyframes:
                video_BCTHW[row, :, frame], anew_B1THW[row, :, frame] = clip_BCTHW[row, :, frame], False
        return video_BCTHW, anew_B1THW

    def _signed(self, pixels: Pixels) -> Tensor:
        return torch.from_numpy(pixels).to(self.device).float() / 127.5 - 1


def masks_of(anew_B1THW: Tensor, spatial: int, temporal: int) -> Tensor:
    """Masks as VACE reads them: the pixels of each latent place as channels, of the frame nearest to each latent."""
    batch, _, count, height, width = anew_B1THW.shape
    tiles = anew_B1THW[:, 0].float().view(batch, count, height // spatial, spatial, width // spatial, spatial)
    masks_BCTHW = tiles.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    size = ((count + temporal - 1) // temporal, height // spatial, width // spatial)
    return F.interpolate(masks_BCTHW, size=size, mode="nearest-exact")


class ControlPool:
    """Encoded examples on the device; while it fills, only those that are there are drawn from, then the oldest are
    replaced.

    Args:
        size: examples that it holds at most.
    """

    def __init__(self, encoder: Encoder, examples: Iterator[list[Example]], size: int) -> None:
        self.encoder, self.examples, self.size = encoder, examples, size
        on_gpu = encoder.device.type == "cuda"
        first = encoder.encode(next(examples))
        self.kept = tuple(
            torch.zeros(size, *one.shape[1:], device=one.device, dtype=torch.bfloat16 if on_gpu else one.dtype)
            for one in first
        )
        self.cursor, self.filled = 0, torch.zeros((), device=encoder.device)
        self._add(first)

    @property
    def is_full(self) -> bool:
        return self.cursor >= self.size

    def refill(self) -> None:
        """Add another batch."""
        self._add(self.encoder.encode(next(self.examples)))

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """Latents, conditions and text of some; what a captured graph may call."""
        rows = (torch.rand(count, device=self.filled.device) * self.filled).long()
        return tuple(one[rows].float() for one in self.kept)

    def _add(self, encoded: tuple[Tensor, ...]) -> None:
        count = min(len(encoded[0]), self.size)
        rows = (torch.arange(count, device=self.filled.device) + self.cursor) % self.size
        for kept, new in zip(self.kept, encoded, strict=True):
            kept[rows] = new[:count].to(kept.dtype)
        self.cursor += count
        self.filled.fill_(min(self.cursor, self.size))
