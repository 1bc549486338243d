"""A transformer in one file, safetensors and GGUF, beside the rest of its model: told, loaded and run."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import radial
from radial.errors import ModelError, RequestError
from radial.loading.load import load
from radial.models.find import find_model
from radial.models.weights import read_weights, weights_in
from radial.request import make_request

_REFINER = "individual_token_refiner.blocks.0.adaLN_modulation.1.bias"
SMALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "seed": 3, "prompt": "a fox"}

# From diffusers' names to those that Wan's authors gave.
NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn2": "cross_attn", "attn1": "self_attn", ".to_out.0.": ".o.", ".to_q.": ".q.", ".to_k.": ".k.",
    ".to_v.": ".v.", "proj_out": "head.head", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "norm2": "norm_x",
    "norm3": "norm2", "norm_x": "norm3",
}  # fmt: skip


def authors_name(name: str) -> str:
    if name == "scale_shift_table":
        return "head.modulation"
    name = name.replace("scale_shift_table", "modulation")
    for theirs, own in NAMES.items():
        name = name.replace(theirs, own)
    return name


@pytest.fixture
def base(wan_folder: Path, tmp_path: Path) -> Path:
    """The checkpoint without its transformer's weights."""
    folder = tmp_path / "base"
    shutil.copytree(wan_folder, folder, ignore=lambda where, names: [
        name for name in names if where.endswith("/transformer") and name.endswith(".safetensors")])  # fmt: skip
    return folder


def weights_of(wan_folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (wan_folder / "transformer").glob("*.safetensors")
    return load_file(file)


def frames(model: Path) -> Any:
    (video,) = radial.generate(make_request(model=str(model), **SMALL))
    return video


@pytest.mark.parametrize("names", ["authors'", "authors', with a prefix", "diffusers'"])
def test_safetensors_beside_the_rest_of_the_model(wan_folder: Path, base: Path, names: str) -> None:
    file = base / "finetuned.safetensors"
    prefix = "model.diffusion_model." if "prefix" in names else ""
    tensors = weights_of(wan_folder)
    if names != "diffusers'":
        tensors = {prefix + authors_name(name): tensor for name, tensor in tensors.items()}
    save_file(tensors, file)
    spec = find_model(str(file))
    assert (spec.source, spec.transformer_file, spec.layers) == (str(base), str(file), 3)
    stock, got = frames(wan_folder), frames(file)
    # Where a tensor lies in memory may change the order of a sum.
    assert np.abs(got.frames.astype(int) - stock.frames).max() <= 1
    assert got.receipt["model"]["name"] == str(file)
    assert got.receipt["model"]["fingerprint"] != stock.receipt["model"]["fingerprint"]
    # Another file is another model.
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, file)
    assert frames(file).receipt["model"]["fingerprint"] != got.receipt["model"]["fingerprint"]


def test_gguf_beside_the_rest_of_the_model(wan_folder: Path, base: Path) -> None:
    import gguf

    file = base / "model-Q8_0.gguf"
    writer = gguf.GGUFWriter(file, "wan")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in weights_of(wan_folder).items():
        values = tensor.numpy()
        if tensor.ndim == 2 and tensor.numel() >= 2048:
            writer.add_tensor(authors_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(authors_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    stock = load(make_request(model=str(wan_folder), **SMALL))
    model = load(make_request(model=str(file), **SMALL))
    assert type(model.pipe.transformer.blocks[0].attn1.to_q).__name__ == "GGUFLinear"
    own, whole = read_weights(file), weights_in(wan_folder).components["transformer"]
    assert sum(w.bytes(4) for w in own) < 0.5 * sum(w.bytes(4) for w in whole)
    assert {w.shape for w in own if w.name.endswith("self_attn.q.weight")} == {(64, 64)}
    latents = []
    for one in (stock, model):
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(1)
            made = one.pipe("a fox", height=64, width=64, num_frames=9, num_inference_steps=2, generator=generator,
                            output_type="latent")  # fmt: skip
            latents.append(made.frames)
    error = (latents[1] - latents[0]).norm() / latents[0].norm()
    assert 1e-5 < error < 0.05
    assert frames(file).frames.shape == (9, 64, 64, 3)
    with pytest.raises(RequestError, match="quantised already"):
        load(make_request(model=str(file), precision="eight_bit_weights", **SMALL))


@pytest.mark.parametrize(
    ("tensors", "source"),
    [
        ({"head.modulation": (2,), "patch_embedding.weight": (5120, 16, 1, 2, 2)}, "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        ({"head.modulation": (2,), "patch_embedding.weight": (1536, 16, 1, 2, 2)}, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ({f"txt_in.{_REFINER}": (2,)}, "hunyuanvideo-community/HunyuanVideo"),
    ],
)  # fmt: skip
def test_models_are_told_by_their_tensors(tmp_path: Path, tensors: dict[str, Any], source: str) -> None:
    file = tmp_path / "some.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    spec = find_model(str(file))
    assert (spec.source, spec.name, spec.own_components) == (source, str(file), ("transformer",))
    assert spec.num_frames == find_model(source).num_frames


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"head.modulation": (2,), "patch_embedding.weight": (3072, 48, 1, 2, 2)}, "wan2.2-5b.safetensors"),
        ({"head.modulation": (2,)}, "no-patches.safetensors"),
        ({"decoder.middle.0.residual.0.gamma": (2,), "decoder.upsamples.0.residual.0.gamma": (2,)}, "vae.safetensors"),
        ({"net.x_embedder.proj.1.weight": (2048, 68), "net.blocks.0.self_attn.q_proj.weight": (2,)}, "c2.safetensors"),
    ],
)  # fmt: skip
def test_what_is_nearly_a_model_is_none(tmp_path: Path, tensors: dict[str, Any], name: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / name)
    with pytest.raises(ModelError, match="can be told by its tensors"):
        find_model(str(tmp_path / name))


def test_one_of_two_transformers_is_refused(base: Path, tmp_path: Path) -> None:
    tensors = {"head.modulation": torch.zeros(2), "patch_embedding.weight": torch.zeros(5120, 16, 1, 2, 2)}
    save_file(tensors, tmp_path / "wan2.2_t2v_high_noise_14B.safetensors")
    with pytest.raises(ModelError, match="one of a model's two transformers"):
        find_model(str(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors"))
    (base / "transformer_2").mkdir()
    save_file(tensors, base / "low.safetensors")
    with pytest.raises(ModelError, match="has two transformers"):
        find_model(str(base / "low.safetensors"))


def test_weights_with_scales_are_refused(wan_folder: Path, base: Path) -> None:
    tensors = weights_of(wan_folder)
    save_file(tensors | {"blocks.0.attn1.to_q.scale_weight": torch.ones(1)}, base / "scaled.safetensors")
    with pytest.raises(ModelError, match=r"scales \(blocks\.0\.attn1\.to_q\.scale_weight\), which are not read"):
        find_model(str(base / "scaled.safetensors"))
    # Without scales, numbers of 8 bit are what they are.
    narrow = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in tensors.items()}
    save_file(narrow, base / "plain.safetensors")
    assert frames(base / "plain.safetensors").frames.shape == (9, 64, 64, 3)


def test_what_must_be_exact_stays_so_in_16_bit(wan_folder: Path, base: Path) -> None:
    file = base / "x.safetensors"
    save_file({authors_name(name): tensor for name, tensor in weights_of(wan_folder).items()}, file)
    own, stock = (
        load(make_request(model=str(model), dtype="bfloat16", **SMALL)).pipe.transformer for model in (file, wan_folder)
    )
    dtypes = {name: tensor.dtype for name, tensor in stock.named_parameters()}
    assert {name: tensor.dtype for name, tensor in own.named_parameters()} == dtypes
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    for name, tensor in stock.named_parameters():
        assert torch.equal(own.get_parameter(name), tensor)


def test_files_that_are_none_are_said(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match="can be told by its tensors"):
        find_model(str(file))
    (tmp_path / "some.gguf").write_bytes(b"no header at all")
    with pytest.raises(ModelError, match="it is no GGUF file"):
        find_model(str(tmp_path / "some.gguf"))
    (tmp_path / "list.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")
    with pytest.raises(ModelError, match="it is no safetensors file"):
        find_model(str(tmp_path / "list.safetensors"))


def test_eight_bit_weights_on_any_device(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from radial_kernels.fused import EightBitWeights

    monkeypatch.setattr("radial.loading.quantize.SMALLEST", 32 * 32)
    model = load(make_request(model=str(wan_folder), precision="eight_bit_weights", **SMALL))
    transformer, text_encoder = model.pipe.transformer, model.pipe.text_encoder
    assert type(transformer.blocks[0].attn1.to_q) is EightBitWeights
    assert type(transformer.proj_out) is torch.nn.Linear
    assert any(isinstance(module, EightBitWeights) for module in text_encoder.modules())
    stock = load(make_request(model=str(wan_folder), **SMALL))
    x = torch.randn(2, 5, 64)
    wanted, got = (one.pipe.transformer.blocks[0].attn1.to_q(x) for one in (stock, model))
    assert 1e-3 < (got - wanted).norm() / wanted.norm() < 0.05
    (video,) = radial.generate(make_request(model=str(wan_folder), precision="eight_bit_weights", **SMALL))
    assert video.receipt["request"]["precision"] == "eight_bit_weights"
