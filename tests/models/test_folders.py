"""Checkpoints without a name of ours: their own files say what they are and how they are to be run."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from radial.errors import ModelError, RequestError
from radial.loading.load import load
from radial.models.architecture import named_architectures
from radial.models.checkpoint import read_folder
from radial.models.find import find_model
from radial.models.table import MODELS
from radial.request import make_request

WAN_VAE = {"_class_name": "AutoencoderKLWan", "scale_factor_temporal": 4, "scale_factor_spatial": 8, "z_dim": 16}
UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
LTX_VAE = {"_class_name": "AutoencoderKLLTXVideo", "block_out_channels": [128, 256, 512, 512], "scaling_factor": 1.0,
           "patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]}  # fmt: skip


def write(
    folder: Path, model: str, *, vae: dict[str, Any] = WAN_VAE, scheduler: dict[str, Any] = UNIPC, **index: Any
) -> Path:
    """The configurations of a hub's checkpoint, as diffusers writes them, of a named model's transformer."""
    one = named_architectures()[model]
    spec = MODELS[model]
    with torch.device("meta"):
        whole = dict(getattr(diffusers, one.kind).from_config(json.loads(one.config)).config)
    config = whole | {"_class_name": one.kind, "_diffusers_version": "0.35.0.dev0"}
    parts = {"transformer": ["diffusers", one.kind], "vae": ["diffusers", vae["_class_name"]],
             "scheduler": ["diffusers", scheduler["_class_name"]]}  # fmt: skip
    if spec.has_two_transformers:
        parts["transformer_2"] = parts["transformer"]
    written = {"model_index.json": {"_class_name": spec.text_pipeline or spec.image_pipeline} | parts | index,
               "transformer/config.json": config, "vae/config.json": vae,
               "scheduler/scheduler_config.json": scheduler}  # fmt: skip
    for name, content in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("model", "index"),
    [
        ("wan2.1-1.3b", {}), ("wan2.1-14b", {}), ("wan2.1-i2v-14b-480p", {}), ("wan2.1-i2v-14b-720p", {}),
        ("wan2.1-flf2v-14b", {}), ("wan2.1-vace-1.3b", {}), ("wan2.1-vace-14b", {}),
        ("wan2.2-a14b", {"boundary_ratio": 0.875}), ("wan2.2-i2v-a14b", {"boundary_ratio": 0.9}),
        ("wan2.2-ti2v-5b", {"expand_timesteps": True}), ("skyreels-v2-14b", {}), ("skyreels-v2-i2v-14b", {}),
        ("skyreels-v2-df-1.3b", {}),
    ],
)  # fmt: skip
def test_wans_of_every_kind_have_their_authors_settings(model: str, index: dict[str, Any], tmp_path: Path) -> None:
    vae = WAN_VAE | ({"scale_factor_spatial": 16, "z_dim": 48} if model == "wan2.2-ti2v-5b" else {})
    folder = write(tmp_path / ("mine-720p" if "720p" in model else "mine"), model, vae=vae, **index)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(UNIPC | {"flow_shift": 3.0}))
    found, named = read_folder(folder, weights=False), MODELS[model]
    for name in (
        "height", "width", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2",
        "flow_shift",
        "small_flow_shift", "negative_prompt", "pattern", "schedule", "stride", "layers", "takes_last_image",
        "image_pipeline", "text_pipeline", "has_two_transformers", "is_flow", "exact_autoencoder",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(named, name), name
    assert found.name == str(folder)


def test_a_shift_of_its_own_is_kept(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", "wan2.1-14b", scheduler=UNIPC | {"flow_shift": 8.0})
    assert read_folder(folder, weights=False).flow_shift is None
    folder = write(tmp_path / "other", "wan2.1-14b", scheduler=EULER | {"shift": 6.5})
    assert read_folder(folder, weights=False).shift_for(480, 832, False) is None


def test_a_distilled_models_guidance_is_its_guiders(tmp_path: Path) -> None:
    vae = {
        "_class_name": "AutoencoderKLHunyuanVideo15",
        "spatial_compression_ratio": 16,
        "temporal_compression_ratio": 4,
    }
    folder = write(tmp_path / "distilled", "hunyuan-video-1.5", vae=vae, scheduler=EULER | {"shift": 5.0},
                   guider=["diffusers", "ClassifierFreeGuidance"])  # fmt: skip
    assert read_folder(folder, weights=False).guidance_scale == 6
    (folder / "guider").mkdir()
    (folder / "guider" / "guider_config.json").write_text(json.dumps({"guidance_scale": 1.0}))
    assert read_folder(folder, weights=False).guidance_scale == 1


def test_ltx_videos_first_checkpoint_says_its_strides_by_parts(tmp_path: Path) -> None:
    folder = write(tmp_path / "ltx", "ltx-video", vae=LTX_VAE, scheduler=EULER)
    assert read_folder(folder, weights=False).stride == (8, 32, 32)


def test_attention_that_a_model_was_trained_with_and_has_no_other(tmp_path: Path) -> None:
    folder = write(tmp_path / "pro", "wan2.1-14b")
    config = json.loads((folder / "transformer" / "config.json").read_text()) | {"attention_type": "nabla"}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="attends by NABLA"):
        read_folder(folder, weights=False)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("Wan2.1-14B", "wan2.1-14b"), ("wan2.2-t2v-a14b", "wan2.2-a14b"), ("hunyan-video", "hunyuan-video"),
        ("ltx2", "ltx-2"), ("cogvideox5b", "cogvideox-5b"),
    ],
)  # fmt: skip
def test_a_slip_finds_the_nearest_names(slip: str, meant: str) -> None:
    with pytest.raises(RequestError, match=rf"unknown model '{slip}'; do you mean .*{meant}") as caught:
        find_model(slip)
    assert str(caught.value).count(" or ") <= 4


@pytest.mark.parametrize(
    ("component", "change", "told"),
    [
        ("transformer", lambda state: state.pop("blocks.0.attn1.to_q.weight"),
         r"transformer of .* lacks blocks\.0\.attn1\.to_q"),
        ("transformer", lambda state: state.update({f"model.{k}": state.pop(k) for k in list(state)}),
         r"lacks scale_shift_table"),
        ("transformer", lambda state: state.update({"proj_out.weight": state["proj_out.weight"][:8]}),
         r"has in other shapes proj_out\.weight \(8, 64\), not \(64, 64\)"),
        ("vae", lambda state: state.pop("decoder.conv_in.weight"), r"vae of .* lacks decoder\.conv_in\.weight"),
        ("text_encoder", lambda state: state.pop("encoder.block.0.layer.0.SelfAttention.q.weight"),
         r"text_encoder of .* lacks encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_tensors_missing_is_one_line(
    component: str, change: Any, told: str, wan_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(wan_folder, folder)
    (file,) = (folder / component).glob("*.safetensors")
    state = load_file(file)
    change(state)
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    with pytest.raises(ModelError, match=told):
        load(make_request(prompt="a", model=str(folder)))


def test_images_are_brought_to_the_sizes_that_diffusers_chooses() -> None:
    import numpy as np
    from diffusers.pipelines.hunyuan_video1_5.image_processor import generate_crop_size_list, get_closest_ratio

    for side in (480, 640, 720, 960):
        spec = replace(MODELS["hunyuan-video-1.5-i2v"], bucket_side=side)
        sizes = generate_crop_size_list(side, spec.stride[1])
        ratios = np.array([round(h / w, 5) for h, w in sizes])
        for height, width in itertools.product(range(64, 2000, 97), range(64, 2000, 89)):
            wanted, _ = get_closest_ratio(height, width, ratios, sizes)
            assert spec.bucket(height, width) == wanted, (side, height, width)
