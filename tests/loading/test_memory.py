"""What a run needs, which layout fits, that all of them compute the same, and decoding when memory runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

import radial
from radial.errors import ModelError, RequestError
from radial.generation.decoding import decode_with_fallback
from radial.loading.load import load, profile_of
from radial.loading.memory import choose_profile, place
from radial.loading.needs import PROFILES, Needs, Profile, fit_profile, needs_of
from radial.loading.quantize import narrow_linears, round_weights
from radial.models.checkpoint import read_folder
from radial.models.table import MODELS
from radial.models.weights import Weight, Weights, weights_in
from radial.request import GenerationRequest, make_request
from radial_kernels.fused import EightBitWeights

SMALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "seed": 3}
CPU = torch.device("cpu")


def request(folder: Path, **changes: Any) -> GenerationRequest:
    return make_request(**{"prompt": "a fox", "model": str(folder), **SMALL, **changes}).resolve()


def test_needs_are_read_from_the_files(wan_folder: Path) -> None:
    asked = request(wan_folder)
    spec = read_folder(wan_folder)
    needs = needs_of(asked, spec, weights_in(wan_folder), 2)
    model = load(asked)
    for name, size in (("transformer", 2), ("text_encoder", 2), ("vae", 4)):  # the autoencoder stays exact
        assert needs.weights[name] == size * sum(p.numel() for p in getattr(model.pipe, name).parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.pipe.transformer.blocks]
    assert needs.block == 2 * max(blocks)
    longer = needs_of(request(wan_folder, num_frames=33), spec, weights_in(wan_folder), 2)
    assert longer.clip > needs.clip
    assert longer.frames > needs.frames
    narrow = needs_of(request(wan_folder, precision="eight_bit"), spec, weights_in(wan_folder), 2)
    # Layers as small as these are not narrowed.
    assert narrow.weights["transformer"] == needs.weights["transformer"]
    assert sorted(map(needs.vram, PROFILES), reverse=True) == [needs.vram(profile) for profile in PROFILES]


@pytest.mark.parametrize("precision", ["eight_bit", "eight_bit_weights"])
@pytest.mark.parametrize("kind", ["WanTransformer3DModel", "HunyuanVideoTransformer3DModel", "UMT5EncoderModel"])
def test_what_8_bit_takes_is_told_as_it_is(kind: str, precision: str) -> None:
    """By names and shapes alone, of models at their real width: little more than it is, and no less."""
    import diffusers
    import transformers

    encoder = kind == "UMT5EncoderModel"
    with torch.device("meta"):
        if encoder:
            config = transformers.UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=3,
                                             num_heads=64, is_encoder_decoder=False)  # fmt: skip
            model: Any = transformers.UMT5EncoderModel(config).bfloat16()
        else:
            sizes = {"num_layers": 3} | ({"num_single_layers": 3} if "Hunyuan" in kind else {})
            model = getattr(diffusers, kind)(**sizes).bfloat16()
    name = "text_encoder" if encoder else "transformer"
    # A file holds a shared tensor once.
    tensors = tuple(Weight(n, tuple(p.shape)) for n, p in model.named_parameters())
    weights = Weights({name: tensors}, {"num_attention_heads": 24, "attention_head_dim": 128})
    asked = make_request(prompt="x", model="wan2.1-14b", precision=precision).resolve()
    needs = needs_of(asked, MODELS["wan2.1-14b"], weights, 2)
    if not encoder or precision == "eight_bit_weights":
        assert narrow_linears(model, kind=EightBitWeights) > 12
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    assert 0.999 * real < needs.weights[name] < 1.06 * real  # scales are next to nothing


def test_several_processes_take_less_each() -> None:
    whole = LARGE.vram("full")
    two, eight = (LARGE.shared_by(n, 104).vram("full") for n in (2, 8))
    assert eight < two < whole
    assert LARGE.shared_by(2, 104).decode_tiled == LARGE.decode_tiled + LARGE.frames // 3
    assert LARGE.shared_by(8, 104).decode > LARGE.decode // 8 + LARGE.frames // 3


def test_a_file_that_is_none_is_said(wan_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "a.safetensors").write_bytes(b"12345678 but no header")
    with pytest.raises(ModelError, match=r"transformer/a\.safetensors"):
        weights_in(tmp_path)


# A model of 14 B as 8-bit numbers, and 720p clips: gigabytes.
GB = 10**9
LARGE = Needs({"transformer": 28 * GB, "text_encoder": 11 * GB, "vae": GB}, GB, 8 * GB, 12 * GB, 3 * GB, GB)


@pytest.mark.parametrize(
    ("asked", "free", "chosen"),
    [
        ("auto", 80, "full"), ("auto", 45, "balanced"), ("auto", 24, "low"), ("auto", 10, "lowest"),
        ("balanced", 80, "balanced"), ("lowest", 80, "lowest"),
    ],
)  # fmt: skip
def test_the_fastest_that_fits_is_taken(wan_folder: Path, asked: str, free: int, chosen: Profile) -> None:
    spec = read_folder(wan_folder)
    assert fit_profile(request(wan_folder, memory=asked), spec, LARGE, free * GB, "cuda:0") == chosen


def test_what_does_not_fit_is_refused_with_what_would(wan_folder: Path) -> None:
    spec = read_folder(wan_folder)
    with pytest.raises(RequestError, match=r"about 53.0 GB .* with memory full.*memory low fits \(12.0 GB"):
        fit_profile(request(wan_folder, memory="full"), spec, LARGE, 24 * GB, "cuda:0")
    with pytest.raises(RequestError, match=r"cuda:0 has 8\.0 GB free; with memory lowest \d+ frames of this size fit"):
        fit_profile(request(wan_folder, num_frames=33), spec, LARGE, 8 * GB, "cuda:0")
    with pytest.raises(RequestError, match="no length of this size fits"):
        fit_profile(request(wan_folder), spec, LARGE, 1 * GB, "cuda:0")
    assert choose_profile(request(wan_folder), spec, wan_folder, torch.bfloat16, CPU) == "full"
    with pytest.raises(RequestError, match="memory low is for GPUs"):
        load(request(wan_folder, memory="low"))
    with pytest.raises(RequestError, match="memory low is for GPUs"):
        profile_of(request(wan_folder, memory="low"))
    with pytest.raises(RequestError, match="precision eight_bit cannot be: cpu has no 8-bit products"):
        load(request(wan_folder, precision="eight_bit"))


@pytest.mark.parametrize("profile", ["low", "lowest"])
def test_layouts_compute_the_same(wan_folder: Path, profile: Profile) -> None:
    from radial.attention.families.find import find_family

    asked = request(wan_folder, height=32, width=32, num_inference_steps=1)  # Triton's interpreter counts each
    (whole,) = radial.generate(asked)
    model = load(asked)
    if profile == "low":
        find_family(model.pipe.transformer).fuse(model.pipe.transformer)
    place(model.pipe, profile, CPU)
    model.pipe.vae.disable_tiling()
    (laid_out,) = radial.generate(asked, model=model)
    assert np.abs(laid_out.frames.astype(int) - whole.frames).max() <= 1


class Scarce:
    """Stands in the way of an autoencoder's decoding until it works in tiles, or on numbers of 32 bits."""

    def __init__(self, vae: Any, until: str) -> None:
        self.vae, self.until, self.stock, self.calls = vae, until, vae.decode, 0

    def __call__(self, latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        self.calls += 1
        enough = {"tiles": self.vae.use_tiling, "cpu": latents.dtype is torch.float32, "never": False}[self.until]
        if not enough:
            raise torch.OutOfMemoryError("none left")
        return self.stock(latents, *args, **options)


@pytest.mark.parametrize(("until", "calls"), [("tiles", 2), ("cpu", 3)])
def test_decoding_does_not_give_up(wan_folder: Path, until: str, calls: int) -> None:
    model = load(request(wan_folder))
    vae = model.pipe.vae.to(torch.bfloat16)
    scarce = Scarce(vae, until)
    vae.decode = scarce
    notes: list[str] = []
    latents = torch.randn(1, vae.config.z_dim, 2, 4, 4, dtype=torch.bfloat16)
    with torch.no_grad(), decode_with_fallback(vae, lambda: None, notes.append):
        assert vae.decode(latents).sample.isfinite().all()
    assert scarce.calls == calls
    assert "in tiles" in notes[0]
    assert ("on the CPU" in notes[-1]) == (until == "cpu")
    # All is as it was.
    assert vae.decode is scarce
    assert (vae.dtype, vae.use_tiling) == (torch.bfloat16, False)
    scarce.until = "never"
    with decode_with_fallback(vae, lambda: None, notes.append), pytest.raises(torch.OutOfMemoryError):
        vae.decode(latents)


def test_a_clip_is_not_lost_where_memory_runs_out(wan_folder: Path) -> None:
    asked = request(wan_folder)
    model = load(asked)
    (whole,) = radial.generate(asked, model=model)
    model.pipe.vae.decode = Scarce(model.pipe.vae, "tiles")
    notes: list[str] = []
    (clip,) = radial.generate(asked, model=model, on_event=lambda event: notes.append(event.note))
    assert any("in tiles" in note for note in notes)
    assert np.abs(clip.frames.astype(int) - whole.frames).max() <= 1  # one tile holds all of it


def test_rounded_weights_are_those_that_loading_rounds(wan_folder: Path) -> None:
    folder = wan_folder / "transformer"
    want = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    got = WanTransformer3DModel.from_pretrained(folder)
    round_weights(got, torch.bfloat16)
    dtypes = {name: value.dtype for name, value in want.named_parameters()}
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    assert {name: value.dtype for name, value in got.named_parameters()} == dtypes
    assert all(torch.equal(value, got.get_parameter(name)) for name, value in want.named_parameters())
