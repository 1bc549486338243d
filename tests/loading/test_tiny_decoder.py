"""Tiny decoders from their files: as their formula, whatever the length, and refused for latents of another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import CASES
from torch import Tensor
from torch.nn import functional as F

from radial import ModelError, RequestError
from radial.generation.pipeline import generate
from radial.generation.preview import preview_frame
from radial.generation.resume import Step
from radial.loading.load import load
from radial.loading.memory_check import find_weights
from radial.loading.needs import needs_of
from radial.loading.tiny_decoder import TinyShape, check_decoder_fits, load_decoder, read_tiny_shape
from radial.models.find import find_model, hub_file
from radial.models.table import MODELS
from radial.request import make_request

WAN = TinyShape(16, (12, 10, 8, 8), (1, 2, 2), 1)
WAN_VAE = {"_class_name": "AutoencoderKLWan", "z_dim": 16, "scale_factor_spatial": 8, "scale_factor_temporal": 4}


def write(file: Path, shape: TinyShape, **changes: Any) -> Path:
    """A file with such a decoder, and a part of an encoder, as published files have."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(sides, generator=generator) / max(1, np.prod(sides[1:])) ** 0.5
        for name, sides in shape.tensors.items()
    }
    tensors["decoder.22.bias"] += 0.5
    tensors["encoder.0.weight"] = torch.zeros(64, 3, 3, 3)
    save_file({name: x for name, x in (tensors | changes).items() if x is not None}, file)
    return file


def formula(file: Path, shape: TinyShape, latents_CTHW: Tensor) -> Tensor:
    """All frames at once, in float64: ``[T, 3, H, W]`` in 0..1."""
    from safetensors.torch import load_file

    given = {name: x.double() for name, x in load_file(file).items()}

    def layer(name: str, x: Tensor) -> Tensor:
        weight = given[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, given.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    x = layer("1", 3 * torch.tanh(latents_CTHW.double().movedim(1, 0) / 3)).relu()
    for stage, growth in enumerate(shape.growth):
        first = 3 + 6 * stage
        for block in range(first, first + 3):
            both = torch.cat([x, torch.cat([torch.zeros_like(x[:1]), x[:-1]])], 1)
            inner = layer(f"{block}.conv.2", layer(f"{block}.conv.0", both).relu()).relu()
            x = (layer(f"{block}.conv.4", inner) + x).relu()
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        grown = layer(f"{first + 4}.conv", x)
        x = grown.reshape(len(x) * growth, -1, *grown.shape[2:])
        x = layer(f"{first + 5}", x)
    x = F.pixel_shuffle(layer("22", x.relu()), shape.patch)
    return x[shape.frames - 1 :].clamp(0, 1)


@pytest.mark.parametrize(
    ("shape", "vae"),
    [
        (WAN, WAN_VAE),
        (TinyShape(48, (12, 10, 8, 8), (1, 2, 2), 2), WAN_VAE | {"z_dim": 48, "scale_factor_spatial": 16}),
        (
            TinyShape(32, (8, 8, 8, 8), (1, 2, 2), 2),
            {
                "_class_name": "AutoencoderKLHunyuanVideo15", "latent_channels": 32, "spatial_compression_ratio": 16,
                "temporal_compression_ratio": 4,
            },
        ),
    ],
    ids=["wan2.1", "wan2.2-ti2v", "hunyuan1.5"],
)  # fmt: skip
@pytest.mark.parametrize("frames", [1, 5])
def test_frame_by_frame_is_the_formula(shape: TinyShape, vae: dict[str, Any], frames: int, tmp_path: Path) -> None:
    file = write(tmp_path / "tae.safetensors", shape)
    assert read_tiny_shape(file) == shape
    decoder = load_decoder(str(file), find_model("wan2.1-14b"), vae, torch.device("cpu"), torch.float32)
    assert "neither its tensors nor its name" in decoder.note
    latents = torch.randn(shape.latent_channels, frames, 3, 5, generator=torch.Generator().manual_seed(1))
    made = decoder.decode(latents)
    wanted = formula(file, shape, latents)
    assert made.shape == (3, 4 * (frames - 1) + 1, 3 * shape.side, 5 * shape.side)
    assert wanted.std() > 0.05
    assert torch.allclose(made.movedim(0, 1).double() / 2 + 0.5, wanted, atol=1e-5)


def test_a_clip_and_its_looks_are_decoded_by_it(tmp_path: Path) -> None:
    case = CASES["wan"]
    case.build().save_pretrained(tmp_path / "wan")
    request = make_request(
        prompt="a", model=str(tmp_path / "wan"), height=64, width=96, num_frames=17, seed=3, num_inference_steps=2,
    ).resolve()  # fmt: skip
    model = load(request)
    shape = TinyShape(model.pipe.vae.config.z_dim, (12, 10, 8, 8), (1, 2, 2), 1)
    file = write(tmp_path / "taew2_1.safetensors", shape)
    drafted, kept, looks = request.with_values(decoder=str(file)), {}, []
    drafted.check_files()

    def on_step(step: Step) -> Any:
        kept["latents"] = step.snapshot().latents
        looks.append(preview_frame(model.pipe, step.clean_latents()))
        return "go on"

    (draft,) = generate(drafted, model=model, on_step=on_step)
    wanted = formula(file, shape, kept["latents"][0]).movedim(1, -1).numpy()
    assert np.abs(draft.frames / 255 - wanted).max() < 0.003
    assert draft.receipt["decoder"]["name"] == "taew2_1.safetensors"
    alone = formula(file, shape, kept["latents"][0][:, 2:3]).movedim(1, -1).numpy()[0]
    assert np.abs(looks[-1] / 255 - alone).max() < 0.003
    (whole,) = generate(request, model=model)  # the model is as it was
    assert "decoder" not in whole.receipt
    assert not np.array_equal(whole.frames, draft.frames)


@pytest.mark.parametrize(
    ("shape", "name", "vae", "message"),
    [
        (WAN, "taew2_1", WAN_VAE | {"z_dim": 48, "scale_factor_spatial": 16},
         "of 16 channels, 4 frames and 8 pixels a side each, where those of m have 48, 4 and 16"),
        (WAN, "taehv", WAN_VAE, "is for HunyuanVideo's latents by its name, and m has Wan's"),
        (WAN, "taew2_1", {"_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": 16}, "is for Wan's latents"),
        (WAN, "tae", {"_class_name": "AutoencoderKLMochi"}, "whose latents are of AutoencoderKLMochi"),
    ],
)  # fmt: skip
def test_other_models_latents(shape: TinyShape, name: str, vae: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_decoder_fits(Path(f"{name}.safetensors"), shape, vae, "m")


def test_files_that_are_none(tmp_path: Path) -> None:
    lacking = write(tmp_path / "a.safetensors", WAN, **{"decoder.9.conv.2.bias": None})
    with pytest.raises(ModelError, match=r"no tiny decoder that is known here .*: see decoder\.9\.conv\.2\.bias"):
        read_tiny_shape(lacking)
    wide = write(tmp_path / "b.safetensors", WAN, **{"decoder.3.skip.weight": torch.zeros(2, 2, 1, 1)})
    with pytest.raises(ModelError, match=r"see decoder\.3\.skip\.weight"):
        read_tiny_shape(wide)
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match=r"it lacks 'decoder\.1\.weight'"):
        read_tiny_shape(tmp_path / "c.safetensors")
    (tmp_path / "d.pth").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"is no \.safetensors file; pickled weights are not loaded"):
        read_tiny_shape(tmp_path / "d.pth")
    with pytest.raises(RequestError, match=r"decoder must be full, tiny, a .* not 'small'"):
        make_request(prompt="a", decoder="small").check_files()
    with pytest.raises(RequestError, match="no tiny decoder is known by name for mochi"):
        make_request(prompt="a", model="mochi", decoder="tiny").resolve()


def test_named_decoders_and_what_they_need() -> None:
    named = {spec.tiny_decoder for spec in MODELS.values()} - {""}
    assert all(hub_file(one) for one in named)
    for spec in MODELS.values():  # of one latent space: that of Wan 2.1, and that of Wan 2.2's 5 B
        wanted = {(4, 16, 16): "taew2_1", (4, 32, 32): "taew2_2"}.get(spec.stride, "")
        assert not spec.tiny_decoder or f"/{wanted}." in spec.tiny_decoder
        assert bool(spec.tiny_decoder) == spec.name.startswith(("anyflow", "wan", "skyreels"))
    full = make_request(prompt="a", model="wan2.1-14b", num_frames=81).resolve()
    spec, weights = find_weights(full)
    assert weights is not None
    needs = [needs_of(one, spec, weights, 2) for one in (full, full.with_values(decoder="tiny"))]
    assert needs[1].decode < needs[0].decode / 3
