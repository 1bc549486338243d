"""A transformer in one file, safetensors and GGUF, beside the rest of its model: told, loaded and run."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sparse import Tensors, authors_tensors, published, write_sparse

import radial
from radial.errors import ModelError, RequestError
from radial.loading.load import load
from radial.models import single_file
from radial.models.architecture import named_architectures
from radial.models.find import find_model
from radial.models.table import MODELS
from radial.models.weights import read_weights, weights_in
from radial.request import make_request

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
    assert (spec.source, spec.transformer_files, spec.layers) == (str(base), (str(file),), 3)
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
        elif "patch_embedding.weight" in name or "norm_q" in name:  # convolutions and norms, too, come in 16 bit
            wide = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(authors_name(name), gguf.quants.quantize(values, wide), raw_dtype=wide)
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
    # Beside packed weights a LoRA acts as beside others; what would be added to them is told.
    name = "diffusion_model.blocks.0.self_attn.q"
    parts = {f"{name}.lora_A.weight": torch.randn(4, 64) * 0.1, f"{name}.lora_B.weight": torch.randn(64, 4) * 0.1}
    more = {
        "diffusion_model.blocks.1.ffn.0.diff": torch.ones(64, 64),
        "diffusion_model.blocks.0.norm3.diff_b": torch.ones(64),
    }
    save_file(parts | more, base / "lora.safetensors")
    with_lora = load(make_request(model=str(file), **SMALL, loras=[{"path": str(base / "lora.safetensors")}]))
    assert with_lora.notes == (
        "LoRA lora.safetensors: 2 of its 3 layers act; left out: blocks.1.ffn.0: the model's weights are packed in a "
        "GGUF file, to which only plain LoRA is applied",
    )
    x = torch.randn(2, 64)
    plain, own = (one.pipe.transformer.blocks[0].attn1.to_q(x) for one in (model, with_lora))
    expected = x @ parts[f"{name}.lora_A.weight"].T @ parts[f"{name}.lora_B.weight"].T
    assert torch.allclose(own - plain, expected, atol=1e-4)


def shapes_in(model: str, prefix: str = "") -> Tensors:
    """What a file of a named model's authors holds."""
    return {f"{prefix}{name}": ("BF16", shape) for name, shape in authors_tensors(named_architectures()[model]).items()}


# Tensors alone do not tell these from the one behind them.
ALIKE = {
    "wan2.1-i2v-14b-720p": "wan2.1-i2v-14b-480p", "skyreels-v2-14b": "wan2.1-14b",
    "skyreels-v2-i2v-14b": "wan2.1-i2v-14b-480p", "hunyuan-video-i2v": "hunyuan-video",
    "hunyuan-video-1.5-i2v": "hunyuan-video-1.5", "ltx-video-0.9.5": "ltx-video",
    "cogvideox-fun-5b-pose": "cogvideox-5b-i2v", "framepack-f1": "framepack",
}  # fmt: skip
NAMED = {
    "wan2.1-i2v-14b-720p": "wan2.1_i2v_720p_14B_fp16", "skyreels-v2-14b": "SkyReels-V2-T2V-14B",
    "skyreels-v2-i2v-14b": "Wan2_1-SkyReels-V2-I2V-14B-540P",
    "hunyuan-video-i2v": "hunyuan_video_image_to_video_720p_bf16",
    "hunyuan-video-1.5-i2v": "hunyuanvideo1.5_480p_i2v", "ltx-video-0.9.5": "ltxv-2b-0.9.6-dev-04-25",
    "cogvideox-fun-5b-pose": "CogVideoX-Fun-V1.1-5b-Pose", "framepack-f1": "FramePack_F1_I2V_HY_20250503",
}  # fmt: skip


@pytest.mark.parametrize("model", ["wan2.1-i2v-14b-480p", "wan2.1-14b", "hunyuan-video", "cogvideox-5b", *NAMED])
def test_models_are_told_by_their_tensors_and_names(model: str, tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "some.safetensors", shapes_in(model, "model.diffusion_model."))
    spec = find_model(str(file))
    assert spec.source == MODELS[ALIKE.get(model, model)].source
    assert (spec.name, spec.own_components) == (str(file), ("transformer",))
    assert spec.num_frames == MODELS[ALIKE.get(model, model)].num_frames
    assert bool(spec.note) == (
        model in {"wan2.1-i2v-14b-480p", "wan2.1-14b", "hunyuan-video", "hunyuan-video-1.5", *ALIKE}
    )
    if model in NAMED:
        file = file.rename(tmp_path / f"{NAMED[model]}.safetensors")
        assert find_model(str(file)).source == MODELS[model].source


def test_names_tell_all_models_of_the_same_tensors() -> None:
    """All but one, which a name without a mark is taken for."""
    same: dict[Any, list[str]] = {}
    for model, one in named_architectures().items():
        same.setdefault((one.kind, frozenset(one.shapes.items())), []).append(model)
    assert {model: set(models) for models in same.values() for model in models if len(models) > 1}
    for models in same.values():
        assert len([model for model in models if model not in single_file._MARKS]) <= 1, models


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Wan2_2-T2V-A14B_{}_bf16", "wan2.2-a14b"), ("wan2.2_t2v_{}_noise_14B_fp16", "wan2.2-a14b"),
        ("Wan2_2-I2V-A14B-{}_fp8_e4m3fn", "wan2.2-i2v-a14b"), ("Wan2.2-I2V-A14B-{}Noise", "wan2.2-i2v-a14b"),
    ],
)  # fmt: skip
def test_two_transformers_are_two_files(name: str, model: str, tmp_path: Path) -> None:
    words = (
        ("HIGH", "LOW")
        if "_{}_bf" in name or "-{}_fp8" in name
        else ("High", "Low")
        if "Noise" in name
        else ("high", "low")
    )
    tensors = published("Wan2_2-T2V-A14B_HIGH_bf16") if model == "wan2.2-a14b" else shapes_in(model)
    high, low = (write_sparse(tmp_path / f"{name.format(word)}.safetensors", tensors) for word in words)
    for given in (str(high), str(low), f"{high},{low}", f"{low}, {high}"):
        spec = find_model(given)
        assert (spec.source, spec.transformer_files) == (MODELS[model].source, (str(high), str(low)))
        assert list(spec.own_weights) == ["transformer", "transformer_2"]
    low.unlink()
    with pytest.raises(
        ModelError, match=rf"is the transformer for high noise, and the other, {low.name}, is not beside"
    ):
        find_model(str(high))
    other = write_sparse(tmp_path / "other_low.safetensors", shapes_in("wan2.1-1.3b"))
    with pytest.raises(
        ModelError, match=rf"other_low\.safetensors is not {model}: that has no place for|of other shapes are"
    ):
        find_model(f"{high},{other}")
    plain = high.rename(tmp_path / "wan22-mine.safetensors")
    with pytest.raises(ModelError, match="there is no file"):
        find_model(f"{plain},{tmp_path / 'missing.safetensors'}")


@pytest.mark.parametrize(
    ("changed", "name", "told"),
    [
        ({"audio_proj.proj1.weight": (2, 2)}, "x",
         "is not wan2.1-14b but MultiTalk or InfiniteTalk: that has no place for audio"),
        ({"fps_embedding.weight": (2, 2)}, "x",
         "is not wan2.1-14b but SkyReels V2 diffusion forcing: that has no place"),
        ({"patch_embedding.weight": (5120, 48, 1, 2, 2), "ref_conv.weight": (2, 2)}, "x",
         "but Wan Fun Control with a reference image: that has no place for ref_conv.weight; of other shapes are "
         r"patch_embedding.weight (5120 x 48 x 1 x 2 x 2, not 5120 x 16 x 1 x 2 x 2)"),
        ({"patch_embedding.weight": (5120, 48, 1, 2, 2)}, "Wan2.1-Fun-14B-Control",
         "is not wan2.1-14b but Wan 2.1 Fun-Control, for whose control's latents diffusers has no pipeline: of other"),
        ({"head.head.weight": None, "head.head.bias": None}, "x", "the file lacks proj_out.weight, proj_out.bias"),
        ({}, "Phantom-Wan-14B", "is Phantom, by its name, which needs a pipeline"),
        ({}, "SkyReels-V2-DF-14B-540P", "is a model of diffusion forcing, by its name"),
    ],
)  # fmt: skip
def test_what_is_nearly_a_model_is_none(changed: dict[str, Any], name: str, told: str, tmp_path: Path) -> None:
    tensors = shapes_in("wan2.1-14b")
    for key, shape in changed.items():
        tensors.pop(key, None)
        if shape is not None:
            tensors[key] = ("BF16", shape)
    file = write_sparse(tmp_path / f"{name}.safetensors", tensors)
    with pytest.raises(ModelError) as caught:
        find_model(str(file))
    assert told in str(caught.value)


def test_models_of_videox_fun_are_told_by_their_names(tmp_path: Path) -> None:
    """From a first and, if given, a last image they are Wan's, with settings of their own; under no name told they are
    taken for Wan's, and from the hub they do not come."""
    file = write_sparse(tmp_path / "wan2.1_fun_inp_14B_bf16.safetensors", shapes_in("wan2.1-i2v-14b-480p"))
    spec = find_model(str(file))
    assert (spec.source, spec.takes_last_image) == (MODELS["wan2.1-i2v-14b-480p"].source, True)
    assert (spec.num_inference_steps, spec.guidance_scale, spec.shift_for(480, 832, True)) == (50, 6.0, 5.0)
    plain = find_model(str(file.rename(tmp_path / "wan.safetensors")))
    assert (plain.takes_last_image, plain.num_inference_steps) == (False, 40)
    for expert in ("high", "low"):
        write_sparse(tmp_path / f"Wan2.2-Fun-A14B-InP-{expert}-noise.safetensors", shapes_in("wan2.2-i2v-a14b"))
    pair = find_model(str(tmp_path / "Wan2.2-Fun-A14B-InP-high-noise.safetensors"))
    assert (len(pair.transformer_files), pair.guidance_scale, pair.source) == (2, 6.0, MODELS["wan2.2-i2v-a14b"].source)
    with pytest.raises(ModelError, match="give the file of its transformer, whose name is to say Fun and InP"):
        find_model("alibaba-pai/Wan2.1-Fun-14B-InP")
    with pytest.raises(ModelError, match=r"no pipeline of diffusers gives it; models that follow a clip: wan2\.1-vace"):
        find_model("alibaba-pai/Wan2.2-Fun-A14B-Control")


def test_a_published_file_of_another_model(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "s2v.safetensors", published("wan2.2_s2v_14B_bf16"))
    with pytest.raises(
        ModelError, match=r"s2v\.safetensors is not wan2.1-14b but Wan 2.2 S2V: that has no place for casual_audio"
    ):
        find_model(str(file))


@pytest.mark.parametrize(
    "tensors",
    [
        {"decoder.middle.0.residual.0.gamma": (2,), "decoder.upsamples.0.residual.0.gamma": (2,)},
        {"net.blocks.0.self_attn.q_proj.weight": (2, 2)},
        {"a": (2,)},
    ],
)
def test_what_is_no_transformer_is_said(tensors: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    write_sparse(tmp_path / "some.safetensors", {name: ("F32", shape) for name, shape in tensors.items()})
    with pytest.raises(ModelError, match="is no transformer of a video model that is known here: its tensors are like"):
        find_model(str(tmp_path / "some.safetensors"))


def test_a_missing_file_is_said_before_a_hub_is_asked(tmp_path: Path) -> None:
    for name in ("some/model.safetensors", str(tmp_path / "x.gguf"), "a.gguf,b.gguf"):
        with pytest.raises(ModelError, match="there is no file"):
            find_model(name)


def test_eight_bit_numbers_with_scales_count_with_them(wan_folder: Path, base: Path) -> None:
    """As Comfy-Org, Kijai (a number a tensor) and LightX2V (one a row) write them."""
    plain = weights_of(wan_folder)
    tensors: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    expected = dict(plain)
    for index, (name, tensor) in enumerate(plain.items()):
        if tensor.ndim != 2 or "blocks" not in name:
            tensors[authors_name(name)] = tensor
            continue
        layer = authors_name(name).removesuffix(".weight")
        scale = tensor.abs().amax(1, keepdim=True) / 448 if index % 2 else tensor.abs().max() / 448
        narrow = (tensor / scale).to(torch.float8_e4m3fn)
        tensors |= {f"{layer}.weight": narrow, f"{layer}.{'weight_scale' if index % 2 else 'scale_weight'}": scale}
        tensors |= {f"{layer}.scale_input": torch.ones(1)}
        expected[name] = narrow.float() * scale
    save_file(tensors, base / "scaled.safetensors")
    own = load(make_request(model=str(base / "scaled.safetensors"), **SMALL)).pipe.transformer
    for name, parameter in own.named_parameters():
        assert torch.allclose(parameter, expected[name], rtol=1e-6), name
    # Without scales, they are what they are.
    save_file(
        {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in plain.items()}, base / "x.safetensors"
    )
    assert frames(base / "x.safetensors").frames.shape == (9, 64, 64, 3)


@pytest.mark.parametrize(
    ("more", "metadata", "told"),
    [
        ({"b.weight": ("I8", (64, 64)), "b.weight_scale": ("F32", (64, 1))}, {}, "numbers of I8"),
        ({}, {"_quantization_metadata": '{"layers": {"a": {"format": "nvfp4"}}}'}, "is quantised as nvfp4"),
    ],
)  # fmt: skip
def test_other_quantised_numbers_are_refused(more: Any, metadata: dict[str, str], told: str, base: Path) -> None:
    write_sparse(base / "x.safetensors", {"a.weight": ("BF16", (2, 2))} | more, metadata)
    with pytest.raises(ModelError, match=told):
        find_model(str(base / "x.safetensors"))


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


@pytest.mark.slow
def test_the_page_of_formats_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "formats.md"
    assert page.read_text(encoding="utf-8") == formats.page(), "run: python benchmarks/formats.py > docs/formats.md"
