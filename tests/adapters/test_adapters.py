"""Adapters in the three ways of naming layers, several at once, and those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from radial import ModelError
from radial.adapters.apply import load_loras
from radial.adapters.file import read_adapter
from radial.generation.pipeline import generate
from radial.loading.load import load
from radial.models.lora_settings import Lora
from radial.request import make_request

SMALL = {"prompt": "a red circle", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 3}
MODULES = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}


def weights(seed: int = 0, rank: int = 4, width: int = 64) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """Down and up matrices of every self-attention layer of the tiny Wan model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (block, module): (
            torch.randn(rank, width, generator=generator) * 0.3, torch.randn(width, rank, generator=generator) * 0.3
        )
        for block in range(3)
        for module in MODULES
    }  # fmt: skip


def write(path: Path, form: str, seed: int = 0) -> Path:
    state = {}
    for (block, module), (down, up) in weights(seed).items():
        if form == "diffusers":
            name = f"transformer.blocks.{block}.attn1.{module}"
            state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        elif form == "comfy":
            name = f"diffusion_model.blocks.{block}.self_attn.{MODULES[module]}"
            state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        else:
            name = f"lora_unet_blocks_{block}_self_attn_{MODULES[module]}"
            alpha = torch.tensor(float(len(down)))
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def frames_with(folder: Path, *loras: tuple[Path, float]) -> Any:
    chosen = [{"path": str(path), "weight": weight} for path, weight in loras]
    (video,) = generate(make_request(**SMALL, model=str(folder), loras=chosen))
    return video.frames


def test_three_ways_of_naming_layers_are_one(wan_folder: Path, tmp_path: Path) -> None:
    plain = frames_with(wan_folder)
    files = [write(tmp_path / f"{form}.safetensors", form) for form in ("diffusers", "comfy", "kohya")]
    first, *others = (frames_with(wan_folder, (file, 1.0)) for file in files)
    assert not np.array_equal(first, plain)
    assert all(np.abs(other.astype(int) - first).max() <= 1 for other in others)


def test_several_add_up_in_any_order(wan_folder: Path, tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{seed}.safetensors", "diffusers", seed) for seed in (1, 2))
    both = frames_with(wan_folder, (one, 0.7), (two, -0.4))
    turned = frames_with(wan_folder, (two, -0.4), (one, 0.7))
    assert np.abs(both.astype(int) - turned).max() <= 1
    assert not np.array_equal(both, frames_with(wan_folder, (one, 0.7)))
    assert (
        np.abs(frames_with(wan_folder, (one, 0.7), (two, 0.0)).astype(int) - frames_with(wan_folder, (one, 0.7))).max()
        <= 1
    )


def test_both_experts_take_it(wan22: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", "comfy")
    (note,) = load_loras(wan22, (Lora(path=str(file), weight=0.5),))
    assert "acts on both transformers" in note
    for transformer in (wan22.transformer, wan22.transformer_2):
        assert "lora_0" in transformer.blocks[2].attn1.to_q.lora_A


def test_what_does_not_fit_is_named(wan_folder: Path, tmp_path: Path) -> None:
    other = {"transformer.single_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 64)}
    other |= {"transformer.single_blocks.0.attn.to_q.lora_B.weight": torch.zeros(64, 4)}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors does not fit this model"):
        frames_with(wan_folder, (tmp_path / "other.safetensors", 1.0))
    save_file({"vae.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match=r"vae\.safetensors is no LoRA: its keys are like vae\.weight"):
        read_adapter(tmp_path / "vae.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match=r"torn\.safetensors cannot be read"):
        read_adapter(tmp_path / "torn.safetensors")
    narrow = read_adapter(write(tmp_path / "a.safetensors", "diffusers")).tensors()
    wide = {key: value.repeat(1, 2) if "lora_A" in key else value.repeat(2, 1) for key, value in narrow.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match=r"wide\.safetensors does not fit this model"):
        frames_with(wan_folder, (tmp_path / "wide.safetensors", 1.0))


def test_layers_that_find_no_place_are_told(wan_folder: Path, tmp_path: Path) -> None:
    state = read_adapter(write(tmp_path / "a.safetensors", "diffusers")).tensors()
    state |= {key.replace("blocks.0", "blocks.7"): value.clone() for key, value in state.items() if "blocks.0" in key}
    save_file(state, tmp_path / "deeper.safetensors")
    model = load(make_request(**SMALL, model=str(wan_folder), loras=[{"path": str(tmp_path / "deeper.safetensors")}]))
    assert model.notes == (
        "LoRA deeper.safetensors: 12 of its 16 layers act; left out: blocks.7.attn1.to_k, blocks.7.attn1.to_out.0, "
        "blocks.7.attn1.to_q, blocks.7.attn1.to_v: no such layer in this model",
    )
