"""The bundled model's video autoencoder: diffusers' AutoencoderKLWan at small size, trained on shape clips."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from radial_finetune.pretrain.graph import capture
from radial_finetune.pretrain.muon import Muon
from radial_finetune.world import draw_scene, render, tracks

CONFIG = {
    "base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
KL_WEIGHT = 2e-4


def encode_clip(vae: AutoencoderKLWan, clip_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents, ``[B, z_dim, (T - 1) // 4 + 1, H / 8, W / 8]``.

    The same numbers as ``vae.encode``, which feeds its causal network four frames at a time to bound memory; here
    the frames after the first go in at once, which is many times faster for small clips.
    """
    clip_BCTHW = patchify(clip_BCTHW, vae.config.patch_size)
    vae.clear_cache()
    chunks = []
    for frames in (clip_BCTHW[:, :, :1], clip_BCTHW[:, :, 1:]):
        if frames.shape[2]:
            vae._enc_conv_idx = [0]
            chunks.append(vae.encoder(frames, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    vae.clear_cache()
    mean, log_variance = vae.quant_conv(torch.cat(chunks, 2)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def decode_latents(vae: AutoencoderKLWan, latents_BCTHW: Tensor) -> Tensor:
    """The clip of raw latents, as ``vae.decode`` gives it (before its clamp), in two passes."""
    latents_BCTHW = vae.post_quant_conv(latents_BCTHW)
    vae.clear_cache()
    chunks = []
    for index, frames in enumerate((latents_BCTHW[:, :, :1], latents_BCTHW[:, :, 1:])):
        if frames.shape[2]:
            vae._conv_idx = [0]
            chunks.append(vae.decoder(frames, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), vae.config.patch_size)


class ClipStore:
    """Rendered clips and the centres of their figures on the device, to cut training samples from."""

    def __init__(self, count: int, rng: random.Random, device: torch.device) -> None:
        clips, centres = [], []
        for start in range(0, count, 64):
            scenes = [draw_scene(rng, 1 + rng.randrange(2)) for _ in range(min(64, count - start))]
            clips.append(((render(scenes, 33, 128, 128, device) + 1) * 127.5).round().to(torch.uint8))
            for scene in scenes:
                path = rng.choice(tracks(scene, 33, 128, 128))
                centres.append(torch.tensor([path.x, path.y]))
        self.clips_NCTHW = torch.cat(clips)
        self.centres_N2T = torch.stack(centres).to(device)

    def sample(self, count: int, frames: int, size: int) -> Tensor:
        """Random cubes of ``frames`` x ``size`` x ``size`` about a figure, so that few are bare ground."""
        device = self.clips_NCTHW.device
        total, _, length, height, width = self.clips_NCTHW.shape
        clip = torch.randint(total, (count,), device=device)
        first = torch.randint(length - frames + 1, (count,), device=device)
        centre_B2 = (
            self.centres_N2T[clip, :, first + frames // 2] + size * (torch.rand(count, 2, device=device) - 0.5) / 2
        )
        left = (centre_B2[:, 0] - size / 2).long().clamp(0, width - size)
        top = (centre_B2[:, 1] - size / 2).long().clamp(0, height - size)
        time_index = (first[:, None] + torch.arange(frames, device=device))[:, None, :, None, None]
        rows = (top[:, None] + torch.arange(size, device=device))[:, None, None, :, None]
        columns = (left[:, None] + torch.arange(size, device=device))[:, None, None, None, :]
        channels = torch.arange(3, device=device)[None, :, None, None, None]
        cubes = self.clips_NCTHW[clip[:, None, None, None, None], channels, time_index, rows, columns]
        return cubes.float() / 127.5 - 1


def train_autoencoder(
    seconds: float,
    device: torch.device,
    seed: int = 0,
    batch_size: int = 24,
    clips: int = 1536,
    log: Callable[[str], None] = print,
) -> AutoencoderKLWan:
    """Train for a span of time: 64-pixel crops around the figures first, whole frames for the last third."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    on_gpu = device.type == "cuda"
    torch.backends.cudnn.benchmark = on_gpu
    torch.backends.cudnn.benchmark_limit = 3  # trying every algorithm for every shape takes half a minute
    vae = AutoencoderKLWan(**CONFIG).to(device)
    vae.train()
    vae.requires_grad_(True)
    matrices = [p for p in vae.parameters() if p.ndim >= 4 and min(p.shape[0], p[0].numel()) >= 16]
    chosen = {id(p) for p in matrices}
    others = [p for p in vae.parameters() if id(p) not in chosen]
    muon = Muon(matrices, lr=0.0, weight_decay=0.0)
    adam = torch.optim.AdamW(
        others, lr=torch.tensor(0.0, device=device), betas=(0.9, 0.95), weight_decay=0.0, capturable=on_gpu
    )
    store = ClipStore(clips, rng, device)
    squared_error = torch.zeros((), device=device)

    def step_on(count: int, frames: int, size: int) -> Callable[[], None]:
        def train_step() -> None:
            vae.zero_grad(set_to_none=True)
            clip = store.sample(count, frames, size)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
                mean, log_variance = encode_clip(vae, clip)
                latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
                decoded = decode_latents(vae, latents).float()
            mean, log_variance = mean.float(), log_variance.float()
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            (_reconstruction_loss(decoded, clip) + KL_WEIGHT * divergence).backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0, foreach=True)
            muon.step()
            adam.step()
            squared_error.copy_((decoded.detach().clamp(-1, 1) - clip).square().mean())

        return capture(train_step) if on_gpu else train_step

    start, step, last_log, whole = time.monotonic(), 0, 0.0, False
    train_step = step_on(batch_size, 17, 64)
    while (done := (time.monotonic() - start) / seconds) < 1:
        if done > 0.67 and not whole:
            whole, train_step = True, step_on(max(batch_size // 4, 1), 33, 128)
        rate = min(1.0, step / 100) * min(1.0, (1 - done) / 0.6)
        muon.lr.fill_(2e-3 * rate)
        adam.param_groups[0]["lr"].fill_(2e-3 * rate)
        train_step()
        step += 1
        if step % 20 == 0 and time.monotonic() - last_log > 10:
            last_log = time.monotonic()
            log(f"autoencoder {done:4.0%} step {step} psnr {-10 * torch.log10(squared_error / 4).item():.1f} dB")
    vae.eval().requires_grad_(False)
    _measure_latent_scale(vae, rng, device)
    psnr = reconstruction_psnr(vae, rng, device)
    log(f"autoencoder done: {step} steps, {psnr:.1f} dB over held-out clips of 33 frames")
    torch.backends.cudnn.benchmark = False
    return vae


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, rng: random.Random, device: torch.device, clips: int = 8) -> float:
    """Mean PSNR in dB over whole clips, through the real chunked encode and decode."""
    clip = render([draw_scene(rng, 1 + i % 2) for i in range(clips)], 33, 128, 128, device)
    decoded = vae.decode(vae.encode(clip).latent_dist.mode()).sample
    return float((-10 * torch.log10((decoded - clip).square().mean((1, 2, 3, 4)) / 4)).mean())


def _reconstruction_loss(decoded: Tensor, clip: Tensor) -> Tensor:
    """L1 + 2 MSE, and L1 on image gradients, which keeps the points of stars and the arms of crosses sharp."""
    error = decoded - clip
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + edges


@torch.no_grad()
def _measure_latent_scale(vae: AutoencoderKLWan, rng: random.Random, device: torch.device) -> None:
    """Write the per-channel mean and deviation of the latents into the config, as Wan's pipelines expect them.

    A channel that the autoencoder leaves to noise gets the noise's deviation: its faint remains then stay near
    zero, and the denoiser need not learn them at full scale.
    """
    means, variances = [], []
    for _ in range(8):
        clip = render(
            [draw_scene(rng, 1 + i % 2) for i in range(8 if device.type == "cuda" else 1)], 33, 128, 128, device
        )
        mean, log_variance = encode_clip(vae, clip)
        means.append(mean)
        variances.append(log_variance.exp())
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    noise = torch.cat(variances).transpose(0, 1).flatten(1).mean(1)
    signal = latents.var(1)
    idle = signal < 0.05 * noise
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in latents.mean(1).tolist()],
        latents_std=[round(v, 5) for v in torch.where(idle, signal + noise, signal).sqrt().tolist()],
    )
