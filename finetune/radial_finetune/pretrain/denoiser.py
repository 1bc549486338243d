"""The bundled model's denoiser: diffusers' WanTransformer3DModel at small size, trained by flow matching.

Shapes: B clips, L text tokens, C latent channels, T latent frames, H and W latent height and width.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from radial_finetune.pretrain.autoencoder import encode_clip
from radial_finetune.pretrain.graph import capture
from radial_finetune.pretrain.muon import Muon
from radial_finetune.pretrain.text import encode_text
from radial_finetune.world import describe, draw_scene, render

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 768,
    "num_layers": 12,
    "cross_attn_norm": True,
    "rope_max_seq_len": 1024,
}


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """How the denoiser is trained.

    Attributes:
        seconds: training time, without start-up; the learning rate falls to zero over its last ``cooldown`` share.
        pool_size: encoded clips kept at hand; the oldest are replaced by new ones all the time.
        refresh_every: steps between two batches of new clips.
        two_figures: share of clips with two figures at the start and at the end.
        flow_shift: shift of the noise levels towards noise, as at generation.
        caption_dropout: share of clips that see the empty prompt.
    """

    seconds: float
    batch_size: int = 64
    muon_lr: float = 4e-3
    adam_lr: float = 1.2e-3
    cooldown: float = 0.5
    ema: float = 0.999
    pool_size: int = 24_576
    refresh_every: int = 80
    two_figures: tuple[float, float] = (0.4, 0.6)
    flow_shift: float = 3.0
    caption_dropout: float = 0.1
    num_frames: int = 33
    size: int = 128
    seed: int = 0
    compile: bool = True
    save_every: float = 120.0  # seconds


class ClipPool:
    """Encoded clips and their prompt embeddings on the device, oldest replaced first."""

    def __init__(
        self,
        training: DenoiserTraining,
        vae: AutoencoderKLWan,
        tokenizer: PreTrainedTokenizerFast,
        encoder: UMT5EncoderModel,
        device: torch.device,
    ) -> None:
        self.training, self.vae, self.tokenizer, self.encoder, self.device = training, vae, tokenizer, encoder, device
        self.rng = random.Random(training.seed + 1)
        shape = lambda v: torch.tensor(v, device=device).view(1, -1, 1, 1, 1)  # noqa: E731
        self.mean, self.std = shape(vae.config.latents_mean), shape(vae.config.latents_std)
        self.empty_LD = encode_text(tokenizer, encoder, [""], device)[0]
        latents_BCTHW, text_BLD = self.draw(2, 0.5)
        size, store = training.pool_size, torch.bfloat16 if device.type == "cuda" else torch.float32
        self.latents = torch.empty(size, *latents_BCTHW.shape[1:], device=device, dtype=store)
        self.text = torch.empty(size, *text_BLD.shape[1:], device=device, dtype=store)
        self.cursor = 0

    @torch.no_grad()
    def draw(self, count: int, two_figures: float) -> tuple[Tensor, Tensor]:
        """New clips from the world: normalised latents and prompt embeddings."""
        scenes = [draw_scene(self.rng, 1 + (self.rng.random() < two_figures)) for _ in range(count)]
        texts = [describe(scene, self.rng).text for scene in scenes]
        clip = render(scenes, self.training.num_frames, self.training.size, self.training.size, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latents = encode_clip(self.vae, clip)[0].float()
        return (latents - self.mean) / self.std, encode_text(self.tokenizer, self.encoder, texts, self.device)

    def refill(self, count: int, two_figures: float) -> None:
        """Replace the ``count`` oldest clips."""
        latents, text = self.draw(count, two_figures)
        rows = (torch.arange(count, device=self.device) + self.cursor) % len(self.latents)
        self.latents[rows], self.text[rows] = latents.to(self.latents.dtype), text.to(self.text.dtype)
        self.cursor = (self.cursor + count) % len(self.latents)


def flow_loss(
    transformer: WanTransformer3DModel | WanVACETransformer3DModel,
    latents_BCTHW: Tensor,
    text_BLD: Tensor,
    flow_shift: float,
    **steering: Tensor,
) -> Tensor:
    """Flow matching: at x = (1 - sigma) latents + sigma noise the model predicts noise - latents (Wan's sign).

    Args:
        steering: what the transformer is told beside the text.
    """
    uniform = torch.rand(len(latents_BCTHW), device=latents_BCTHW.device)
    sigma = flow_shift * uniform / (1 + (flow_shift - 1) * uniform)
    noise = torch.randn_like(latents_BCTHW)
    noisy = torch.lerp(latents_BCTHW, noise, sigma.view(-1, 1, 1, 1, 1))
    with torch.autocast(latents_BCTHW.device.type, torch.bfloat16, enabled=latents_BCTHW.is_cuda, cache_enabled=False):
        (predicted,) = transformer(noisy, sigma * 1000, text_BLD, return_dict=False, **steering)
    return F.mse_loss(predicted.float(), noise - latents_BCTHW)


def train_denoiser(
    training: DenoiserTraining,
    vae: AutoencoderKLWan,
    tokenizer: PreTrainedTokenizerFast,
    encoder: UMT5EncoderModel,
    device: torch.device,
    folder: Path,
    log: Callable[[str], None] = print,
) -> WanTransformer3DModel:
    """Train for a span of time, saving to ``folder`` as it goes; a later call with the same folder goes on there.

    Returns the exponential moving average of the weights.
    """
    torch.manual_seed(training.seed)
    transformer = WanTransformer3DModel(**CONFIG).to(device)
    _initialize(transformer)
    weights = list(transformer.parameters())
    matrices = [p for name, p in transformer.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    muon = Muon(matrices, lr=0.0)
    on_gpu = device.type == "cuda"
    adam = torch.optim.AdamW(
        [p for p in weights if id(p) not in chosen],
        lr=torch.tensor(0.0, device=device),
        betas=(0.9, 0.98),
        weight_decay=0.0,
        capturable=on_gpu,
        fused=on_gpu,
    )
    average = [p.detach().clone() for p in weights]
    decay = torch.tensor(1.0, device=device)  # until the loop sets it: warming up must not touch the average
    step, spent = _resume(folder, transformer, muon, adam, average, device)
    if spent >= training.seconds:
        return _averaged(transformer, average)

    pool = ClipPool(training, vae, tokenizer, encoder, device)
    log(
        f"denoiser: {sum(p.numel() for p in weights) / 1e6:.1f} M weights; filling a pool of {training.pool_size} clips"
    )
    chunk = min(128, training.pool_size)
    for _ in range(0, training.pool_size, chunk):
        pool.refill(chunk, training.two_figures[0])
    for block in transformer.blocks:
        block.attn1.set_processor(SelfAttention())
    if training.compile:
        transformer.compile_repeated_blocks(fullgraph=True)

    losses = torch.zeros(2, device=device)  # sum since the last log, and count

    def train_step() -> None:
        rows = torch.randint(training.pool_size, (training.batch_size,), device=device)
        text = pool.text[rows].float()
        dropped = torch.rand(training.batch_size, 1, 1, device=device) < training.caption_dropout
        text = torch.where(dropped, pool.empty_LD, text)
        # Gradients are made anew, not zeroed and added to: within a captured graph they keep their place.
        transformer.zero_grad(set_to_none=True)
        loss = flow_loss(transformer, pool.latents[rows].float(), text, training.flow_shift)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        muon.step()
        adam.step()
        losses.add_(torch.stack([loss.detach(), torch.ones_like(loss.detach())]))
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, torch._foreach_mul([p.detach() for p in weights], 1 - decay))

    start = time.monotonic() - spent
    replay = capture(train_step) if on_gpu else train_step
    log(f"denoiser: start-up took {time.monotonic() - start - spent:.0f} s")
    start, first_step = time.monotonic() - spent, step
    last_log = last_save = time.monotonic()
    while (elapsed := time.monotonic() - start) < training.seconds:
        done = elapsed / training.seconds
        rate = min(1.0, (step + 1) / 300) * min(1.0, (1 - done) / training.cooldown)
        muon.lr.fill_(training.muon_lr * rate)
        adam.param_groups[0]["lr"].fill_(training.adam_lr * rate)
        decay.fill_(min(training.ema, (step + 1) / (step + 10)))
        replay()
        step += 1
        if step % training.refresh_every == 0:
            low, high = training.two_figures
            pool.refill(training.batch_size, low + (high - low) * min(1.0, 2 * done))
        if time.monotonic() - last_log > 15:
            total, count = losses.tolist()
            losses.zero_()
            pace = (time.monotonic() - start - spent) / max(step - first_step, 1)
            log(f"denoiser {done:4.0%} step {step} loss {total / max(count, 1):.4f} {1000 * pace:.1f} ms a step")
            last_log = time.monotonic()
        if time.monotonic() - last_save > training.save_every:
            last_save = time.monotonic()
            _save(folder, transformer, muon, adam, average, step, last_save - start)
    _save(folder, transformer, muon, adam, average, step, training.seconds)
    log(f"denoiser done: {step} steps")
    return _averaged(transformer, average)


class SelfAttention:
    """diffusers' Wan self-attention with the rotation written so that the compiler makes one fast kernel of it:
    the stock processor's assignment to every other element costs a third of a training step."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None, attention_mask: None, rotary_emb: Any
    ) -> Tensor:
        cos, sin = rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2]

        def rotate(x: Tensor) -> Tensor:
            even, odd = x.unflatten(2, (attn.heads, -1, 2)).unbind(-1)
            return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)

        query, key = rotate(attn.norm_q(attn.to_q(hidden_states))), rotate(attn.norm_k(attn.to_k(hidden_states)))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        query, key = query.type_as(value), key.type_as(value)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def _initialize(transformer: WanTransformer3DModel) -> None:
    """Start every residual branch and the output at zero, so the first steps are those of a shallow model."""
    with torch.no_grad():
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
        for block in transformer.blocks:
            block.attn2.to_out[0].weight.mul_(0.1)
            block.scale_shift_table.mul_(0.5)


def _averaged(transformer: WanTransformer3DModel, average: list[Tensor]) -> WanTransformer3DModel:
    transformer.set_attn_processor(WanAttnProcessor())
    with torch.no_grad():
        for weight, mean in zip(transformer.parameters(), average, strict=True):
            weight.copy_(mean)
    return transformer.eval().requires_grad_(False)


def _save(
    folder: Path,
    transformer: WanTransformer3DModel,
    muon: Muon,
    adam: torch.optim.AdamW,
    average: list[Tensor],
    step: int,
    seconds: float,
) -> None:
    """Everything a later call needs, under a temporary name first."""
    names = [name for name, _ in transformer.named_parameters()]
    state = {f"weight.{name}": p.detach() for name, p in transformer.named_parameters()}
    state |= {f"average.{name}": mean for name, mean in zip(names, average, strict=True)} | muon.state_dict()
    for index, moments in adam.state_dict()["state"].items():
        state |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "training.partial"
    save_file(
        {k: v.contiguous() for k, v in state.items()}, partial, metadata={"step": str(step), "seconds": str(seconds)}
    )
    partial.replace(folder / "training.safetensors")


def _resume(
    folder: Path,
    transformer: WanTransformer3DModel,
    muon: Muon,
    adam: torch.optim.AdamW,
    average: list[Tensor],
    device: torch.device,
) -> tuple[int, float]:
    """Load the last save, if there is one: its step and its seconds of training."""
    path = folder / "training.safetensors"
    if not path.exists():
        return 0, 0.0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path, device=str(device))
    with torch.no_grad():
        for (name, weight), mean in zip(transformer.named_parameters(), average, strict=True):
            weight.copy_(state[f"weight.{name}"])
            mean.copy_(state[f"average.{name}"])
    muon.load_state_dict(state)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
    return int(metadata["step"]), float(metadata["seconds"])
