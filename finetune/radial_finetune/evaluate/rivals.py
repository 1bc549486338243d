"""Ways to longer clips without any tuning, to measure against: windows over the noise, the last frame as the next first
one, attention that decays beyond the native reach, native clips that are shown more slowly.

Shapes: B clips, C channels, F latent frames, H height and W width, L text tokens, D width; N tokens of a clip.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from radial.video.flow import dense_flow, grey
from radial_finetune.data.clips import Frames

NATIVE, STRIDE = 9, 4  # latent frames of a window, and from one window to the next
_DECAY = 0.9  # of UltraViCo, as in the authors' code


def window_starts(frames: int) -> list[int]:
    """First latent frames of windows that cover a clip, the last one flush with its end."""
    starts = list(range(0, max(1, frames - NATIVE + 1), STRIDE))
    return starts if starts[-1] + NATIVE >= frames else [*starts, frames - NATIVE]


@contextlib.contextmanager
def windows(transformer: Any, texts: dict[int, Sequence[Tensor]]) -> Iterator[None]:
    """Each step denoises windows of the native length, whose velocities are blended where they overlap.

    Args:
        texts: by the address of the text ``[B, L, D]`` of a whole clip, a text for each window.
    """
    plain = transformer.forward

    def forward(hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **more: Any) -> Any:
        frames = hidden_states.shape[2]
        starts = window_starts(frames)
        own = texts.get(encoder_hidden_states.data_ptr())
        total = torch.zeros_like(hidden_states, dtype=torch.float32)
        weight = torch.zeros(frames, device=hidden_states.device)
        ramp = 1.0 - (torch.arange(NATIVE, device=hidden_states.device) - (NATIVE - 1) / 2).abs() / (NATIVE / 2 + 0.5)
        for number, start in enumerate(starts):
            text = encoder_hidden_states if own is None else own[number]
            part = hidden_states[:, :, start : start + NATIVE]
            (velocity,) = plain(hidden_states=part, timestep=timestep, encoder_hidden_states=text,
                                **more | {"return_dict": False})  # fmt: skip
            total[:, :, start : start + NATIVE] += velocity.float() * ramp.view(1, 1, -1, 1, 1)
            weight[start : start + NATIVE] += ramp
        return ((total / weight.view(1, 1, -1, 1, 1)).to(hidden_states.dtype),)

    transformer.forward = forward
    try:
        yield
    finally:
        transformer.forward = plain


def free_noise(noise_BCFHW: Tensor, generator: torch.Generator) -> Tensor:
    """Noise that repeats its first window's frames in other orders (FreeNoise, arXiv 2310.15169)."""
    noise = noise_BCFHW.clone()
    frames = noise.shape[2]
    for start in range(NATIVE, frames, STRIDE):
        first = start - NATIVE
        order = first + torch.randperm(STRIDE, generator=generator)
        count = min(STRIDE, frames - start)
        noise[:, :, start : start + count] = noise[:, :, order[:count]]
    return noise


@torch.inference_mode()
def extend(
    pipe: Any, prompts: Sequence[Sequence[str]], arguments: dict[str, Any], seeds: Sequence[int]
) -> list[Frames]:
    """A native clip for each event, one after the other, each begun with the last frame of the one before.

    Args:
        prompts: by event, one a clip.
    """
    device, dtype = pipe.transformer.device, pipe.vae.dtype
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(values, device=device).view(shape) for values in
                 (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))  # fmt: skip
    pixels: list[Any] = []
    for number, texts in enumerate(prompts):
        generators = [torch.Generator("cpu").manual_seed(seed + 1_000_003 * number) for seed in seeds]
        known: Tensor | None = None
        if pixels:
            last = torch.from_numpy(pixels[-1][:, -1]).to(device, dtype).permute(0, 3, 1, 2)[:, :, None] * 2 - 1
            known = (pipe.vae.encode(last).latent_dist.mode().float() - mean) / std

        def hold(pipe: Any, step: int, timestep: Any, state: dict[str, Tensor], known: Tensor | None = known) -> Any:
            if known is not None:
                sigma = pipe.scheduler.sigmas[step + 1].to(device)
                latents = state["latents"]
                noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(step)).to(device)
                latents[:, :, :1] = ((1 - sigma) * known + sigma * noise).to(latents.dtype)
            return state

        clip = pipe(prompt=list(texts), generator=generators, output_type="np", callback_on_step_end=hold,
                    **arguments).frames  # fmt: skip
        pixels.append(clip if not pixels else clip[:, 1:])
    whole = np.concatenate(pixels, axis=1)
    return [(clip * 255).round().clip(0, 255).astype(np.uint8) for clip in whole]


def shown_slower(frames_THWC: Frames, num_frames: int) -> Frames:
    """A clip at more frames: between two of them, both moved along the optical flow from one to the other, blended."""
    shades = [grey(frame) for frame in frames_THWC]
    rows, columns = np.mgrid[: frames_THWC.shape[1], : frames_THWC.shape[2]].astype(np.float32)
    made, ways = [], {}
    for place in np.linspace(0, len(frames_THWC) - 1, num_frames):
        first, share = int(place), float(place - int(place))
        if share < 1e-6:
            made.append(frames_THWC[first])
            continue
        if first not in ways:
            now, following = shades[first : first + 2]
            ways[first] = dense_flow(now, following), dense_flow(following, now)
        forth, back = ways[first]
        one = cv2.remap(frames_THWC[first], columns - share * forth[..., 0], rows - share * forth[..., 1],
                        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        two = cv2.remap(frames_THWC[first + 1], columns - (1 - share) * back[..., 0], rows - (1 - share) * back[..., 1],
                        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        made.append(cv2.addWeighted(one, 1 - share, two, share, 0))
    return np.stack(made)


class _Decaying:
    """Self-attention of Wan whose positive logits beyond half of the native reach are damped (UltraViCo, as in the
    authors' code): queries of the first frame see no key beyond the native length."""

    def __init__(self, native: int = NATIVE, decay: float = _DECAY) -> None:
        self._native, self._decay = native, decay

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None,
        rotary_emb: Any = None, tokens_a_frame: int = 64,
    ) -> Tensor:  # fmt: skip
        query, key, value = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        cos, sin = (table[..., ::2] for table in rotary_emb)

        def turn(x: Tensor) -> Tensor:
            a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)

        query, key = turn(query), turn(key)
        count = query.shape[1]
        place = torch.arange(count, device=query.device)
        far = (place[:, None] - place[None]).abs() > self._native * tokens_a_frame // 2
        unseen = (place[:, None] <= tokens_a_frame) & (place[None] > self._native * tokens_a_frame)
        out = []
        for q, k, v in zip(query, key, value, strict=True):  # a clip at a time: the logits are whole
            logits = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
            logits = torch.where(far & (logits > 0), self._decay * logits, logits)
            logits = logits.masked_fill(unseen, -1e4).float().softmax(-1).to(v.dtype)
            out.append(torch.einsum("hnm,mhd->nhd", logits, v))
        mixed = torch.stack(out).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](mixed))


@contextlib.contextmanager
def decaying(transformer: Any) -> Iterator[None]:
    """UltraViCo's attention in every layer, for the clips made meanwhile."""
    before = [block.attn1.processor for block in transformer.blocks]
    for block in transformer.blocks:
        block.attn1.processor = _Decaying()
    try:
        yield
    finally:
        for block, processor in zip(transformer.blocks, before, strict=True):
            block.attn1.processor = processor
