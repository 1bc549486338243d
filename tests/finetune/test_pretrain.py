"""The training of the bundled model, at the smallest size: every stage runs, saves, and goes on where it stopped."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import nn

from radial_finetune.pretrain import __main__ as pretrain
from radial_finetune.pretrain import autoencoder, denoiser
from radial_finetune.pretrain.muon import Muon, orthogonalize
from radial_finetune.pretrain.text import TEXT_LENGTH, encode_text, train_text_encoder, train_tokenizer
from radial_finetune.world import draw_scene, render

CPU = torch.device("cpu")


def test_orthogonalize_pushes_singular_values_to_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (2, 40, 24)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_muon_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(16, 24), nn.Parameter(torch.zeros(16, 24))
    optimizer = Muon([weight], lr=0.3)
    for _ in range(200):
        (weight - target).square().mean().backward()
        optimizer.step()
        weight.grad = None
        optimizer.lr *= 0.98
    assert (weight - target).square().mean() < 0.05 * target.square().mean()


def test_whole_clip_coding_equals_the_chunked_one() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**autoencoder.CONFIG).eval()
    clip = render([draw_scene(random.Random(1), 2)], 13, 64, 64)
    with torch.no_grad():
        mean, _ = autoencoder.encode_clip(vae, clip)
        assert mean.shape == (1, 16, 4, 8, 8)
        assert torch.allclose(mean, vae.encode(clip).latent_dist.mode(), atol=1e-5)
        decoded = autoencoder.decode_latents(vae, mean)
        assert torch.allclose(decoded.clamp(-1, 1), vae.decode(mean).sample, atol=1e-5)


def test_text_is_embedded_as_the_pipeline_embeds_it() -> None:
    tokenizer = train_tokenizer(captions=200)
    encoder = train_text_encoder(tokenizer, 2, CPU, batch_size=16, log=lambda line: None)
    texts = ["a red circle rises on black", "", "a zebra 字"]
    ours = encode_text(tokenizer, encoder, texts, CPU)
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=None, scheduler=None, transformer=None, transformer_2=None
    )
    theirs, _ = pipe.encode_prompt(
        texts, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH, device=CPU
    )
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_training_attention_is_the_stock_one() -> None:
    torch.manual_seed(0)
    model = denoiser.WanTransformer3DModel(**denoiser.CONFIG | {"num_layers": 1})
    inputs = (torch.randn(1, 16, 3, 8, 8), torch.tensor([500.0]), torch.randn(1, 8, 128))
    stock = model(*inputs, return_dict=False)[0]
    model.blocks[0].attn1.set_processor(denoiser.SelfAttention())
    assert torch.allclose(model(*inputs, return_dict=False)[0], stock, atol=1e-5)


def test_one_command_makes_a_pipeline_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stages in a few seconds; a second call with more time resumes the denoiser's steps."""
    monkeypatch.setitem(autoencoder.CONFIG, "base_dim", 8)
    monkeypatch.setitem(denoiser.CONFIG, "num_layers", 1)
    monkeypatch.setattr(autoencoder, "_measure_latent_scale", measure_quickly)
    monkeypatch.setattr(autoencoder, "reconstruction_psnr", lambda *_: 0.0)

    def train(seconds: int) -> str:
        arguments = f"--out {tmp_path} --device cpu --batch-size 2 --pool-size 4 --autoencoder-seconds 3"
        arguments += f" --text-seconds 2 --denoiser-seconds {seconds} --autoencoder-clips 4"
        monkeypatch.setattr(sys, "argv", ["pretrain", *arguments.split()])
        pretrain.main()
        return capsys.readouterr().out

    first, second = train(3), train(6)
    assert "autoencoder done" in first
    assert "autoencoder done" not in second
    assert int(second.split("denoiser done: ")[1].split()[0]) > int(first.split("denoiser done: ")[1].split()[0]) > 0
    pipe = WanPipeline.from_pretrained(tmp_path / "tiny")
    frames = pipe(
        "a red circle", height=32, width=32, num_frames=5, num_inference_steps=1, max_sequence_length=64
    ).frames
    assert frames.shape == (1, 5, 32, 32, 3)
    assert not list(tmp_path.glob(".*"))


def measure_quickly(vae: AutoencoderKLWan, rng: random.Random, device: torch.device) -> None:
    vae.register_to_config(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
