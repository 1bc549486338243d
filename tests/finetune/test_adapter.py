"""An adapter's file: read by every program alike, by either names, and generation sets itself by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import CASES

import radial
from radial import ModelError, RequestError
from radial.adapters.apply import load_loras
from radial.advice import advise
from radial.generation.pipeline import generate
from radial.models.lora_settings import AdapterSettings, Lora, adapter_file, parse_lora, read_adapter_settings
from radial.models.table import MODELS
from radial.request import make_request
from radial_app.cli import main as cli
from radial_finetune.adapter.file import export_state, write_adapter
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.names import convert_names
from radial_finetune.adapter.place import add_adapter
from radial_finetune.merge import merge
from radial_finetune.objective import HunyuanVideo15Objective, HunyuanVideoObjective, MochiObjective, WanObjective
from radial_finetune.training.config import make_config
from radial_finetune.training.train import finetune

PLAIN = AdapterForm(2, 2)
FORMS = {
    "lora": PLAIN, "blocks": AdapterForm(2, 3, "blocks"), "rslora": AdapterForm(4, 3, rslora=True),
    "dora": AdapterForm(2, 3, "blocks", "dora"), "lokr": AdapterForm(2, 3, "blocks", "lokr", factor=4),
}  # fmt: skip
OBJECTIVES = {
    "wan": WanObjective, "hunyuan-video": HunyuanVideoObjective, "mochi": MochiObjective,
    "hunyuan-video15": HunyuanVideo15Objective,
}  # fmt: skip


def tuned(family: str, form: AdapterForm = PLAIN) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """A tiny pipeline, an adapter of random weights for it by diffusers' names, and what it makes with it."""
    pipe = CASES[family].build()
    parameters = add_adapter(pipe.transformer, OBJECTIVES[family], form)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.mul_(1.3) if "magnitude" in name else parameter.normal_(std=0.3)
    return pipe, export_state(parameters, {}, form.scale), latents(pipe, family)


def latents(pipe: Any, family: str) -> torch.Tensor:
    case = CASES[family]
    with torch.inference_mode():
        return case.latents(pipe(**case.call(pipe), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("form", FORMS, ids=FORMS)
@pytest.mark.parametrize("family", OBJECTIVES)
def test_adapters_by_either_names_do_the_same(family: str, form: str, tmp_path: Path) -> None:
    """What was trained, loaded into a fresh pipeline from diffusers' names, from ComfyUI's, and from these and back."""
    _, state, want = tuned(family, FORMS[form])
    plain = latents(CASES[family].build(), family)
    assert not torch.allclose(plain, want, atol=1e-3)
    files = {"diffusers": state}
    if form != "lokr" or family == "wan":  # the others' authors have larger layers, of which LoKr is no part
        files["comfy"] = convert_names(state, "comfy")
        files["back"] = convert_names(files["comfy"], "diffusers")
        assert all(key.startswith("diffusion_model.") for key in files["comfy"])
        assert set(files["back"]) == set(state)
        assert all(torch.equal(files["back"][key], state[key]) for key in state)
    for name, keys in files.items():
        fresh = CASES[family].build()
        file = write_adapter(tmp_path / f"{name}.safetensors", keys, {})
        load_loras(fresh, (Lora(path=str(file)),))
        assert torch.allclose(latents(fresh, family), want, atol=1e-4), name


@pytest.mark.parametrize("form", ["lora", "dora"])
def test_diffusers_reads_the_file_itself(form: str, tmp_path: Path) -> None:
    _, state, want = tuned("wan", FORMS[form])
    fresh = CASES["wan"].build()
    fresh.load_lora_weights(str(write_adapter(tmp_path / "x.safetensors", state, {})))
    assert torch.allclose(latents(fresh, "wan"), want, atol=1e-4)


@pytest.mark.parametrize("form", FORMS, ids=FORMS)
@pytest.mark.parametrize("family", OBJECTIVES)
def test_an_adapter_changes_nothing_before_it_is_trained(family: str, form: str) -> None:
    pipe = CASES[family].build()
    parameters = add_adapter(pipe.transformer, OBJECTIVES[family], FORMS[form])
    assert torch.allclose(latents(pipe, family), latents(CASES[family].build(), family), atol=1e-5)
    kinds = {name.split(".net.")[0].split(".")[-1] for name in parameters if ".net." in name}
    assert bool(kinds) == (FORMS[form].layers == "blocks")  # feed-forward layers


def test_what_cannot_be_written_by_the_authors_names_is_refused() -> None:
    """HunyuanVideo's single blocks have queries, keys, values and a feed-forward layer in one."""
    half = AdapterForm(2, 2, "all", "dora")
    with pytest.raises(ModelError, match=r"DoRA changes only a part of it.*layers = \"blocks\""):
        convert_names(tuned("hunyuan-video", half)[1], "comfy")
    for family in ("hunyuan-video", "mochi"):
        with pytest.raises(ModelError, match="in which only LoRA and DoRA can be rewritten"):
            convert_names(tuned(family, AdapterForm(2, 2, "all", "lokr"))[1], "comfy")
    layer = "transformer.transformer_blocks.0.ff.net.2.lora_A.weight"
    with pytest.raises(ModelError, match="may be of HunyuanVideoTransformer3DModel or of MochiTransformer3DModel"):
        convert_names({layer: torch.zeros(1, 1)}, "comfy")


def test_fused_projections_hold_three_adapters_side_by_side() -> None:
    """On the original's fused layer, the one adapter adds what the three add: computed here as matrices."""
    _, state, _ = tuned("hunyuan-video")
    comfy = convert_names(state, "comfy")
    a, b = (comfy[f"diffusion_model.double_blocks.0.img_attn_qkv.lora_{x}.weight"] for x in "AB")
    parts = [
        state[f"transformer.transformer_blocks.0.attn.to_{x}.lora_B.weight"]
        @ state[f"transformer.transformer_blocks.0.attn.to_{x}.lora_A.weight"]
        for x in "qkv"
    ]
    assert torch.allclose(b @ a, torch.cat(parts), atol=1e-5)
    # Single blocks project the feed-forward layer along: nothing is added to it.
    a, b = (comfy[f"diffusion_model.single_blocks.0.linear1.lora_{x}.weight"] for x in "AB")
    width = parts[0].shape[0]
    assert (b @ a).shape[0] == 7 * width
    assert not (b @ a)[3 * width :].any()


def test_names_of_neither_kind_are_refused() -> None:
    with pytest.raises(ModelError, match="is named neither as diffusers nor as ComfyUI"):
        convert_names({"lora_unet_blocks_0.lora_A.weight": torch.zeros(1)}, "comfy")
    with pytest.raises(ModelError, match="has no name in ComfyUI that is known here"):
        convert_names({"transformer.blocks.0.odd.net.2.lora_A.weight": torch.zeros(1)}, "comfy")


def test_alpha_is_in_the_file(cache: Path, wan_folder: Path, tmp_path: Path) -> None:
    """Whatever reads the file scales it as it was trained, knowing no alpha."""
    config = make_config(
        data=str(cache), output=str(tmp_path), model=str(wan_folder), rank=4, alpha=1.0, layers="self", steps=2,
        learning_rate=1e-2, trackers=(),
    )  # fmt: skip
    written = load_file(finetune(config))
    trained = load_file(tmp_path / "step-000002" / "weights.safetensors")
    name = "blocks.1.attn1.to_q"
    assert torch.equal(written[f"transformer.{name}.lora_A.weight"], trained[f"{name}.lora_A.radial.weight"])
    assert torch.allclose(written[f"transformer.{name}.lora_B.weight"], trained[f"{name}.lora_B.radial.weight"] / 4)
    assert len(written) == 2 * 3 * 4
    settings = read_adapter_settings(tmp_path / "adapter.safetensors")
    assert settings is not None
    assert settings.alpha == 1.0


def test_settings_for_longer_clips_are_taken_over(tmp_path: Path) -> None:
    state = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 64)}
    file = write_adapter(tmp_path / "long.safetensors", state, {
        "target_frames": 129, "decay": 0.5, "sink_frames": 0, "dense_layers": 2, "dense_steps": 4, "riflex": True,
        "flow_shift": 6.0, "later": "unknown",
    })  # fmt: skip
    lora = [{"path": str(file)}]
    taken = make_request(prompt="a", loras=lora).resolve()
    assert (taken.num_frames, taken.decay, taken.dense_layers, taken.riflex) == (129, 0.5, 2, True)
    assert (taken.dense_steps, taken.flow_shift, taken.attention) == (4, 6.0, "radial")
    assert make_request(prompt="a", loras=lora, num_inference_steps=5).resolve().dense_steps == 1  # the same share
    attention = taken.attention_settings
    assert (attention.sink_frames, attention.dense_steps) == (0, 4)
    assert make_request(prompt="a", loras=lora, riflex=False).resolve().riflex is False
    own = make_request(prompt="a", loras=lora, num_frames=33, decay=0.7, dense_layers=0, flow_shift=2.0).resolve()
    assert (own.num_frames, own.decay, own.dense_layers, own.flow_shift) == (33, 0.7, 0, 2.0)
    notes = advise(make_request(prompt="a", loras=lora, num_frames=257).resolve(), MODELS["tiny"])
    assert notes[0] == "as the adapter was tuned: decay 0.5, 2 dense layers, riflex, flow shift 6"
    assert "257 frames are beyond the 129 that the adapter was tuned for" in notes[1]
    assert advise(own, MODELS["tiny"])[0] == "as the adapter was tuned: riflex"
    assert advise(own, MODELS["tiny"])[1] == (
        "otherwise than the adapter was tuned: 33 frames, decay 0.7, 0 dense layers, flow shift 2"
    )
    dense = make_request(prompt="a", loras=lora, num_frames=129, attention="dense", riflex=False, flow_shift=6.0)
    told = advise(dense.resolve(), MODELS["tiny"])
    assert told[0] == "as the adapter was tuned: 129 frames, dense attention, flow shift 6"
    assert told[1] == "otherwise than the adapter was tuned: no riflex"
    assert read_adapter_settings(tmp_path / "none.safetensors") is None
    assert AdapterSettings().riflex is False


def test_a_longer_clip_takes_the_models_own_adapter() -> None:
    spec = MODELS["tiny"]
    asked = make_request(prompt="a red circle rises", num_frames=129)
    taken = asked.resolve()
    assert [lora.path for lora in taken.loras] == ["bundled:tiny-long"]
    assert taken.resolve() == taken.model_copy(update={"seed": taken.resolve().seed})
    (note,) = advise(taken, spec)
    assert note == "as the bundled adapter for longer clips was tuned: 129 frames, decay 1, 2 dense layers"
    assert make_request(prompt="a").resolve().loras == ()  # at the native length, none
    without = asked.model_copy(update={"long_adapter": False}).resolve()
    assert without.loras == ()
    assert "129 frames are beyond the 33" in advise(without, spec)[0]
    settings = read_adapter_settings(adapter_file("bundled:tiny-long"))
    assert settings is not None
    assert (settings.base_model, settings.target_frames, settings.native_frames) == ("tiny", 129, 33)
    assert parse_lora("bundled:tiny-long:0.5") == {"path": "bundled:tiny-long", "weight": 0.5}
    assert parse_lora("bundled:tiny-long") == {"path": "bundled:tiny-long"}
    with pytest.raises(ModelError, match="names no adapter that comes with the package"):
        make_request(prompt="a", loras=[{"path": "bundled:../../tiny/vae/x"}]).resolve()
    assert make_request(prompt="a", num_frames=34, snap=True).resolve().loras == ()  # 33 are native
    assert make_request(prompt="a", num_frames=128, snap=True).resolve().loras
    with pytest.raises(ModelError, match="no LoRA file"):
        radial.load(make_request(prompt="a", loras=[{"path": "bundled:none"}]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("target_frames", "129"), ("dense_steps", [1]), ("decay", "big"), ("attention", "foo"), ("block_size", 7),
     ("target_frames", 100_000_001), ("flow_shift", float("nan")), ("riflex", 1)],
)  # fmt: skip
def test_what_a_file_says_of_itself_is_checked(name: str, value: object, tmp_path: Path) -> None:
    state = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 64)}
    file = write_adapter(tmp_path / "odd.safetensors", state, {name: value})
    with pytest.raises(ModelError, match=rf"odd\.safetensors says {name} = "):
        make_request(prompt="a", loras=[{"path": str(file)}]).resolve()


def test_merged_weights_do_what_the_adapter_did(wan_folder: Path, cache: Path, tmp_path: Path) -> None:
    config = make_config(
        data=str(cache), output=str(tmp_path / "run"), model=str(wan_folder), rank=4, steps=4, learning_rate=3e-2,
        norms=True, trackers=(), attention="dense",
    )  # fmt: skip
    adapter = finetune(config)
    common = {"prompt": "a", "height": 32, "width": 32, "num_frames": 9, "seed": 1, "num_inference_steps": 2,
              "attention": "dense"}  # fmt: skip
    lora = {"path": str(adapter), "weight": 0.7}
    (want,) = generate(make_request(**common, model=str(wan_folder), loras=[lora]))
    folder = merge(str(wan_folder), [lora], tmp_path / "merged", torch.float32)
    (got,) = generate(make_request(**common, model=str(folder)))
    assert np.abs(got.frames.astype(int) - want.frames).max() <= 1
    (plain,) = generate(make_request(**common, model=str(wan_folder)))
    assert np.abs(plain.frames.astype(int) - want.frames).max() > 1
    with pytest.raises(RequestError, match="merged exists; take another --output"):
        merge(str(wan_folder), [lora], tmp_path / "merged", torch.float32)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "WanPipeline"


@pytest.mark.parametrize("family", ["wan", "hunyuan-video"])
def test_another_trainers_adapter_is_converted(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As musubi-tuner writes it: the authors' names with underscores, alpha apart, nothing of what it was made for."""
    _, state, _ = tuned(family)
    kohya = {}
    for key, value in convert_names(state, "comfy").items():
        layer, _, part = key.removeprefix("diffusion_model.").partition(".lora_")
        name = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{name}.{'lora_down' if part.startswith('A') else 'lora_up'}.weight"] = value
        rank = value.shape[0] if part.startswith("A") else value.shape[1]
        kohya[f"{name}.alpha"] = torch.tensor(float(rank) / 2)
    given, output = tmp_path / "musubi.safetensors", tmp_path / "plain.safetensors"
    save_file(kohya, given)
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", "convert", str(given), "--output", str(output), "--names", "diffusers"])
    assert not stop.value.code, capsys.readouterr()
    plain = load_file(output)
    assert plain.keys() == state.keys()
    for key, value in state.items():
        if "lora_B" in key:
            down = key.replace("lora_B", "lora_A")
            assert torch.allclose(plain[key] @ plain[down], value @ state[down] / 2, atol=1e-5), key


def test_feed_forward_layers_are_converted() -> None:
    state = {f"transformer.blocks.1.ffn.{name}.lora_A.weight": torch.ones(1) for name in ("net.0.proj", "net.2")}
    comfy = convert_names(state, "comfy")
    assert sorted(comfy) == [f"diffusion_model.blocks.1.ffn.{n}.lora_A.weight" for n in (0, 2)]
    assert convert_names(comfy, "diffusers").keys() == state.keys()


def test_a_file_is_for_whom_the_umask_says(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    file = write_adapter(
        tmp_path / "x.safetensors", {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.zeros(1)}, {}
    )
    assert file.stat().st_mode == plain.stat().st_mode
