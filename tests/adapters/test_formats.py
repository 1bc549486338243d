"""Every way of writing an adapter, in every family, against what it says computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from originals import original_state
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from radial import ModelError
from radial.adapters.apply import load_loras
from radial.adapters.expert import expert_in, told_expert
from radial.adapters.file import read_adapter
from radial.models.lora_settings import Lora

State = dict[str, Tensor]
RANK, ALPHA, WEIGHT = 4, 3.0, 0.7
FAMILIES = [
    "wan", "wan-i2v", "wan-vace", "wan-animate", "skyreels-v2", "hunyuan-video", "hunyuan-video15", "framepack", "ltx",
    "ltx2", "mochi", "cosmos", "cogvideox", "allegro", "easyanimate", "kandinsky5",
]  # fmt: skip
# How trainers write the name of a layer.
NAMES: dict[str, Callable[[str], str]] = {
    "ComfyUI": lambda name: f"diffusion_model.{name}",
    "kohya, musubi": lambda name: f"lora_unet_{name.replace('.', '_')}",
    "VideoX-Fun": lambda name: f"lora_unet__{name.replace('.', '_')}",
    "DiffSynth": lambda name: name,
    "DiffSynth's pipeline": lambda name: f"pipe.dit.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "single file": lambda name: f"model.diffusion_model.{name}",
}


def weights_of(transformer: nn.Module) -> State:
    """What a transformer computes with, adapters added to the weights, by diffusers' names."""
    state = {}
    for name, parameter in transformer.named_parameters():
        if "lora_" not in name:
            state[name.replace(".base_layer", "")] = parameter.detach().clone()
    for name, layer in transformer.named_modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.active_adapters:
                down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                change = (up.flatten(1) @ down.flatten(1)).reshape(state[f"{name}.weight"].shape)
                state[f"{name}.weight"] += layer.scaling[adapter] * change
                if layer.lora_B[adapter].bias is not None:
                    state[f"{name}.bias"] += layer.scaling[adapter] * layer.lora_B[adapter].bias
    return state


def tiny(case: str) -> tuple[Any, str, State]:
    """A pipeline, its transformer's class, and that one's weights by its authors' names."""
    pipe = tiny_pipelines.CASES[case].build()
    kind = type(pipe.transformer).__name__
    return pipe, kind, original_state(kind, weights_of(pipe.transformer))


def layers_in(state: State, *, most: int = 10_000) -> list[str]:
    """Layers with a matrix, by the authors' names."""
    found = [
        name.removesuffix(".weight") for name, value in state.items() if name.endswith(".weight") and value.ndim > 1
    ]
    return [name for name in found if "_embedding_" not in name and name != "cond_type_embedding"][:most]


def low_rank(whole: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Down and up of a change to a weight; of a convolution's as convolutions."""
    out, into, *kernel = whole.shape
    down = torch.randn(RANK, into, *kernel, generator=generator) * 0.1
    return down, torch.randn(out, RANK, *(1,) * len(kernel), generator=generator) * 0.1


def product(up: Tensor, down: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def loaded(pipe: Any, state: State, path: Path, **metadata: str) -> tuple[str, ...]:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata or None)
    return load_loras(pipe, (Lora(path=str(path), weight=WEIGHT),))


def close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(
    ("case", "names"),
    [(case, names) for case in FAMILIES for names in ("kohya, musubi", "DiffSynth")]
    + [(case, names) for case in ("wan-i2v", "hunyuan-video") for names in NAMES if "kohya" not in names],
)
def test_low_rank_of_every_layer(case: str, names: str, tmp_path: Path) -> None:
    pipe, kind, before = tiny(case)
    generator, state, expected = torch.Generator().manual_seed(1), {}, dict(before)
    with_alpha = names in ("kohya, musubi", "VideoX-Fun")
    for layer in layers_in(before):
        down, up = low_rank(before[f"{layer}.weight"], generator)
        name, default = NAMES[names](layer), ".default" if "DiffSynth" in names else ""
        if with_alpha:
            state |= {
                f"{name}.lora_down.weight": down,
                f"{name}.lora_up.weight": up,
                f"{name}.alpha": torch.tensor(ALPHA),
            }
        else:
            state |= {f"{name}.lora_A{default}.weight": down, f"{name}.lora_B{default}.weight": up}
        scale = WEIGHT * (ALPHA / RANK if with_alpha else 1.0)
        expected[f"{layer}.weight"] = before[f"{layer}.weight"] + scale * product(up, down)
    assert loaded(pipe, state, tmp_path / "a.safetensors") == ()
    close(original_state(kind, weights_of(pipe.transformer)), expected)


@pytest.mark.parametrize("case", FAMILIES)
def test_diffusers_names_and_its_metadata(case: str, tmp_path: Path) -> None:
    pipe, _, _ = tiny(case)
    before = weights_of(pipe.transformer)
    generator, state, expected = torch.Generator().manual_seed(2), {}, dict(before)
    odd = ""
    for name in (name.removesuffix(".weight") for name, value in before.items() if name.endswith(".weight")):
        if not isinstance(pipe.transformer.get_submodule(name), nn.Linear):
            continue
        odd = odd or name
        down, up = low_rank(before[f"{name}.weight"], generator)
        state |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        alpha = 8 if name == odd else 16
        expected[f"{name}.weight"] = before[f"{name}.weight"] + WEIGHT * alpha / RANK * product(up, down)
    said = {"transformer.r": RANK, "transformer.lora_alpha": 16, "transformer.alpha_pattern": {odd: 8}}
    assert loaded(pipe, state, tmp_path / "a.safetensors", lora_adapter_metadata=json.dumps(said)) == ()
    close(weights_of(pipe.transformer), expected)


def dora(up: Tensor, down: Tensor, whole: Tensor, magnitude: Tensor) -> Tensor:
    """The weight that DoRA puts in a weight's place."""
    after = whole.flatten(1) + ALPHA / RANK * product(up, down).flatten(1)
    magnitude = magnitude.reshape(1, -1) if magnitude.shape[0] == 1 else magnitude.reshape(-1, 1)
    norm = after.norm(dim=0 if magnitude.shape[0] == 1 else 1, keepdim=True)
    return (after * magnitude / norm).reshape(whole.shape)


def with_dora(name: str, whole: Tensor, generator: torch.Generator) -> tuple[State, Tensor]:
    down, up = low_rank(whole, generator)
    magnitude = whole.flatten(1).norm(dim=1).reshape(-1, *(1,) * (whole.ndim - 1)) * 1.5
    state = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA),
             f"{name}.dora_scale": magnitude}  # fmt: skip
    return state, dora(up, down, whole, magnitude) - whole


def with_magnitude_vector(name: str, whole: Tensor, generator: torch.Generator) -> tuple[State, Tensor]:
    down, up = low_rank(whole, generator)
    magnitude = whole.flatten(1).norm(dim=1) * 0.7
    state = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": torch.tensor(ALPHA),
             f"{name}.lora_magnitude_vector": magnitude}  # fmt: skip
    return state, dora(up, down, whole, magnitude[:, None]) - whole


def with_input_dora(name: str, whole: Tensor, generator: torch.Generator) -> tuple[State, Tensor]:
    """As LyCORIS wrote it at first: a magnitude for each column."""
    whole = whole.flatten(1)
    down, up = low_rank(whole, generator)
    magnitude = whole.norm(dim=0)[None] * 1.2
    state = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA),
             f"{name}.dora_scale": magnitude}  # fmt: skip
    return state, dora(up, down, whole, magnitude) - whole


def with_loha(name: str, whole: Tensor, generator: torch.Generator) -> tuple[State, Tensor]:
    whole = whole.flatten(1)
    (b1, a1), (b2, a2) = low_rank(whole, generator), low_rank(whole, generator)
    state = {f"{name}.hada_w1_a": a1, f"{name}.hada_w1_b": b1, f"{name}.hada_w2_a": a2, f"{name}.hada_w2_b": b2,
             f"{name}.alpha": torch.tensor(ALPHA)}  # fmt: skip
    return state, ALPHA / RANK * (a1 @ b1) * (a2 @ b2)


def with_lokr(name: str, whole: Tensor, generator: torch.Generator) -> tuple[State, Tensor]:
    """The first factor whole, the second of low rank; one of all others is whole on both sides, where alpha is idle."""
    out, into = whole.flatten(1).shape
    first = torch.randn(2, 2, generator=generator) * 0.1
    second = torch.empty(out // 2, into // 2)
    down, up = low_rank(second, generator)
    if len(name) % 2:
        state = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": product(up, down)}
        return state | {f"{name}.alpha": torch.tensor(9e9)}, torch.kron(first, product(up, down))
    state = {f"{name}.lokr_w1": first, f"{name}.lokr_w2_a": up, f"{name}.lokr_w2_b": down}
    return state | {f"{name}.alpha": torch.tensor(ALPHA)}, ALPHA / RANK * torch.kron(first, product(up, down))


def with_difference(name: str, whole: Tensor, generator: torch.Generator) -> tuple[State, Tensor]:
    difference = torch.randn(whole.shape, generator=generator) * 0.1
    return {f"{name}.diff": difference}, difference


KINDS = [with_dora, with_magnitude_vector, with_input_dora, with_loha, with_lokr, with_difference]


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("case", ["wan-i2v", "hunyuan-video", "hunyuan-video15", "ltx", "mochi"])
@pytest.mark.parametrize("names", ["ComfyUI"])
def test_other_kinds_of_change(case: str, names: str, write: Any, tmp_path: Path) -> None:
    pipe, kind, before = tiny(case)
    generator, state, expected = torch.Generator().manual_seed(3), {}, dict(before)
    for layer in layers_in(before):
        whole = before[f"{layer}.weight"]
        if any(side % 2 for side in whole.flatten(1).shape):
            continue
        written, change = write(NAMES[names](layer), whole, generator)
        state |= written
        expected[f"{layer}.weight"] = whole + WEIGHT * change.reshape(whole.shape)
    assert loaded(pipe, state, tmp_path / "a.safetensors") == ()
    close(original_state(kind, weights_of(pipe.transformer)), expected)


@pytest.mark.parametrize("case", ["wan-i2v", "wan-flf", "wan-vace", "hunyuan-video", "hunyuan-video15"])
def test_differences_of_all_there_is(case: str, tmp_path: Path) -> None:
    """As lightx2v, CausVid and FusionX have them: norms, biases, modulation, embedders, beside LoRA of the layer."""
    pipe, kind, before = tiny(case)
    generator, state, expected = torch.Generator().manual_seed(4), {}, dict(before)
    for name, value in before.items():
        difference = torch.randn(value.shape, generator=generator) * 0.1
        layer, _, parameter = name.rpartition(".")
        if parameter == "weight":
            key = f"{layer}.diff"
        elif parameter == "bias":
            key = f"{layer}.diff_b"
        else:  # one that stands alone: the modulation of a block, and the places of images
            key = f"{layer}.diff_m" if parameter == "modulation" else f"{name}.diff"
        state[f"diffusion_model.{key}"] = difference
        expected[name] = value + WEIGHT * difference
    for layer in layers_in(before, most=9):
        down, up = low_rank(before[f"{layer}.weight"], generator)
        state |= {f"diffusion_model.{layer}.lora_down.weight": down, f"diffusion_model.{layer}.lora_up.weight": up}
        expected[f"{layer}.weight"] = expected[f"{layer}.weight"] + WEIGHT * product(up, down)
    assert loaded(pipe, state, tmp_path / "a.safetensors") == ()
    close(original_state(kind, weights_of(pipe.transformer)), expected)


def test_tucker_and_several_ranks(tmp_path: Path) -> None:
    pipe, kind, before = tiny("wan")
    generator, expected = torch.Generator().manual_seed(5), dict(before)
    mid = torch.randn(RANK, RANK, 1, 2, 2, generator=generator)
    down, up = torch.randn(RANK, 16, 1, 1, 1, generator=generator), torch.randn(64, RANK, 1, 1, 1, generator=generator)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid, "alpha": torch.tensor(ALPHA)}
    state = {f"lora_unet_patch_embedding.{part}": value for part, value in parts.items()}
    change = torch.einsum("or,rsthw,si->oithw", up[..., 0, 0, 0], mid, down[..., 0, 0, 0])
    expected["patch_embedding.weight"] = before["patch_embedding.weight"] + WEIGHT * ALPHA / RANK * change
    for rank, layer in enumerate(("blocks.0.self_attn.q", "blocks.1.self_attn.q", "blocks.1.ffn.0"), start=1):
        whole = before[f"{layer}.weight"]
        a, b = (
            torch.randn(rank, whole.shape[1], generator=generator),
            torch.randn(whole.shape[0], rank, generator=generator),
        )
        state |= {f"diffusion_model.{layer}.lora_A.weight": a, f"diffusion_model.{layer}.lora_B.weight": b}
        expected[f"{layer}.weight"] = whole + WEIGHT * b @ a
    assert loaded(pipe, state, tmp_path / "a.safetensors") == ()
    close(original_state(kind, weights_of(pipe.transformer)), expected)


def test_numbers_of_eight_bit_count_as_they_are(tmp_path: Path) -> None:
    pipe, kind, before = tiny("wan")
    generator = torch.Generator().manual_seed(6)
    down, up = (part.to(torch.float8_e4m3fn) for part in low_rank(before["blocks.0.self_attn.q.weight"], generator))
    state = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": down,
             "diffusion_model.blocks.0.self_attn.q.lora_B.weight": up}  # fmt: skip
    assert loaded(pipe, state, tmp_path / "a.safetensors") == ()
    change = WEIGHT * product(up.float(), down.float())
    expected = before | {"blocks.0.self_attn.q.weight": before["blocks.0.self_attn.q.weight"] + change}
    close(original_state(kind, weights_of(pipe.transformer)), expected)


def test_what_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    pipe, _, _ = tiny("wan")
    pair = {"lora_down.weight": torch.ones(2, 64), "lora_up.weight": torch.ones(64, 2)}

    def of(name: str, **other: Tensor) -> State:
        return {f"{name}.{part}": value.clone() for part, value in (pair | other).items()}

    state = (
        of("lora_unet_blocks_0_self_attn_q") | of("lora_unet_blocks_9_self_attn_q") | of("lora_te_text_model_layers_0")
    )
    state |= of("diffusion_model.blocks.1.self_attn.k", **{"lora_up.weight": torch.ones(128, 2)})
    state |= {"diffusion_model.blocks.2.self_attn.v.lora_down.weight": torch.ones(2, 64)}
    state |= {"diffusion_model.blocks.2.self_attn.strange": torch.ones(1)}
    state |= of("diffusion_model.patch_embedding", **{"lora_down.weight": torch.ones(2, 36, 1, 2, 2),
                                                      "lora_up.weight": torch.ones(64, 2, 1, 1, 1)})  # fmt: skip
    (note,) = loaded(pipe, state, tmp_path / "mixed.safetensors")
    for told in (
        "1 of its 6 layers act", "blocks_9_self_attn_q: no such layer in this model",
        "te_text_model_layers_0: for a text encoder, which takes none here",
        "blocks.1.self_attn.k: it is for 128 x 64 numbers, the model's layer has 64 x 64",
        "patch_embedding: it is for 64 x 36 x 1 x 2 x 2 numbers, the model's layer has 64 x 16 x 1 x 2 x 2",
        "blocks.2.self_attn.v: a part without its other half", "strange: no part of a LoRA that is known",
    ):  # fmt: skip
        assert told in note, (told, note)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"lora_unet_blocks_0_self_attn_q.oft_blocks": (2, 4, 4)}, "changes layers by OFT"),
        ({"lora_unet_blocks_0_self_attn_q.a1.weight": (2, 4)}, "changes layers by GLoRA"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (2, 64), "x.scale_weight": (1,)}, "scales apart"),
        ({"double_blocks.0.img_attn_qkv.lora_A.weight": (2, 64), "double_blocks.0.img_attn_qkv.lora_B.weight": (9, 2)},
         "double_blocks.0.img_attn_qkv: no such layer in this model"),
        ({"lora_unet_blocks_0_self_attn_q.hada_w1_a": (2, 2)}, "a part without its other half"),
        ({"vae.weight": (2,)}, "is no LoRA: its keys are like vae.weight"),
    ],
)  # fmt: skip
def test_what_cannot_act_is_refused(keys: dict[str, tuple[int, ...]], told: str, tmp_path: Path) -> None:
    pipe, _, _ = tiny("wan")
    before = weights_of(pipe.transformer)
    with pytest.raises(ModelError, match="LoRA") as caught:
        loaded(pipe, {name: torch.ones(shape) for name, shape in keys.items()}, tmp_path / "a.safetensors")
    assert told in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(pipe.transformer).items())


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "high"),
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise", "low"),
        ("wan22-style-HighNoise-000010", "high"),
        ("Wan22_A14B_T2V_LOW_Lightning_4steps_lora_rank64_fp16", "low"),
        ("low_vram_high_noise", "high"),
        ("Wan_2_2_I2V_A14B_HIGH_lightx2v_4step_lora_v1030_rank_64_bf16", "high"),
        ("23High noise-style", "high"),
        ("style-22-L-e8", "low"),
        ("H.264_fix", None),
        ("L_shaped", None),
        ("orbit_shot_highres", None),
        ("low-rank-style", None),
        ("highway_drive", None),
        ("style_high_low", None),
        ("slow_motion", None),
    ],
)
def test_names_of_files_say_which_noise(name: str, expert: str | None) -> None:
    assert expert_in(name) == expert


def two_experts(tmp_path: Path, *names: str) -> tuple[Any, list[str]]:
    state = {f"diffusion_model.blocks.0.self_attn.q.{part}.weight": torch.ones(*shape)
             for part, shape in (("lora_A", (2, 64)), ("lora_B", (64, 2)))}  # fmt: skip
    files = []
    for name in names:
        save_file(state, tmp_path / f"{name}.safetensors")
        files.append(str(tmp_path / f"{name}.safetensors"))
    return tiny_pipelines.CASES["wan22"].build(), files


def acting(pipe: Any) -> tuple[set[str], set[str]]:
    """Adapters of the transformer for high noise, and of that for low noise."""
    first, second = ({name for layer in t.modules() if isinstance(layer, LoraLayer) for name in layer.active_adapters}
                     for t in (pipe.transformer, pipe.transformer_2))  # fmt: skip
    return first, second


def test_each_of_a_pair_acts_on_its_own_transformer(tmp_path: Path) -> None:
    pipe, (high, low, plain) = two_experts(tmp_path, "x_high_noise", "x_low_noise", "plain")
    notes = load_loras(pipe, (Lora(path=low), Lora(path=high), Lora(path=plain)))
    assert acting(pipe) == ({"lora_1", "lora_2"}, {"lora_0", "lora_2"})
    assert "plain.safetensors acts on both transformers: its name says neither" in notes[2]


def test_half_a_pair_is_told_and_a_flag_decides(tmp_path: Path) -> None:
    pipe, (high, plain) = two_experts(tmp_path, "x_high_noise", "plain")
    notes = load_loras(pipe, (Lora(path=high),))
    assert acting(pipe) == ({"lora_0"}, set())
    assert notes[-1] == "only the high-noise half of a pair is given: the low-noise transformer runs without one"
    pipe, _ = two_experts(tmp_path)
    load_loras(pipe, (Lora(path=plain, expert="low"), Lora(path=high, expert="low")))
    assert acting(pipe) == (set(), {"lora_0", "lora_1"})
    single, _, _ = tiny("wan")
    with pytest.raises(ModelError, match="this model has one transformer alone; leave @low out"):
        load_loras(single, (Lora(path=plain, expert="low"),))


@pytest.mark.parametrize(
    ("first", "second"),
    [("transformer.", "transformer_2."), ("diffusion_model.transformer_1.", "diffusion_model.transformer_2.")],
)
def test_a_file_for_both_is_shared_out_by_its_keys(first: str, second: str, tmp_path: Path) -> None:
    pipe, _ = two_experts(tmp_path)
    state = {f"{prefix}blocks.0.attn1.to_q.{part}.weight": torch.ones(*shape) * value
             for prefix, value in ((first, 1.0), (second, 2.0))
             for part, shape in (("lora_A", (2, 64)), ("lora_B", (64, 2)))}  # fmt: skip
    assert loaded(pipe, state, tmp_path / "both.safetensors") == ()
    assert acting(pipe) == ({"lora_0"}, {"lora_0"})
    found = [
        t.blocks[0].attn1.to_q.lora_A["lora_0"].weight.mean().item() for t in (pipe.transformer, pipe.transformer_2)
    ]
    assert found == [1.0, 2.0]


def test_keys_for_a_transformer_that_is_not_there_are_refused(tmp_path: Path) -> None:
    pipe, _, _ = tiny("wan")
    name = "transformer_2.blocks.0.attn1.to_q"
    with pytest.raises(ModelError, match="does not fit this model: its keys are for another transformer"):
        loaded(pipe, {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": torch.ones(64, 2)},
               tmp_path / "low.safetensors")  # fmt: skip


def test_peft_files_say_their_alpha_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 64)}, file)
    assert read_adapter(file).scale_of("blocks.0.self_attn.q", "transformer", 4, None) == 1
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 12, "r": 4, "use_rslora": True}))
    assert read_adapter(file).scale_of("blocks.0.self_attn.q", "transformer", 4, None) == 6
    assert read_adapter(file).scale_of("blocks.0.self_attn.q", "transformer", 4, 2.0) == 0.5


@pytest.mark.parametrize(
    ("beside", "more", "scale"),
    [
        ({}, {}, 1.0),
        ({"alpha": 6, "r": 4}, {}, 1.5),  # PEFT's
        ({}, {"lokr_factor": torch.tensor(8), "diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(4.0)}, 0.125),
        ({}, {"diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(4.0)}, 1.0),  # LyCORIS'
    ],
)
def test_whole_factors_of_lokr_by_who_wrote_them(beside: Any, more: State, scale: float, tmp_path: Path) -> None:
    pipe, kind, before = tiny("wan")
    first, second = torch.randn(2, 2), torch.randn(32, 32)
    name = "diffusion_model.blocks.0.self_attn.q"
    (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
    state = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second} | more
    assert loaded(pipe, state, tmp_path / "adapter_model.safetensors") == ()
    whole = before["blocks.0.self_attn.q.weight"] + WEIGHT * scale * torch.kron(first, second)
    close(original_state(kind, weights_of(pipe.transformer)), before | {"blocks.0.self_attn.q.weight": whole})


def test_two_transformers_have_alphas_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "both.safetensors"
    said = {"transformer.lora_alpha": 8, "transformer_2.lora_alpha": 2}
    save_file({"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 64)}, file,
              {"lora_adapter_metadata": json.dumps(said)})  # fmt: skip
    read = read_adapter(file)
    assert [read.scale_of("blocks.0.attn1.to_q", part, 4, None) for part in ("transformer", "transformer_2")] == [
        2,
        0.5,
    ]


@pytest.mark.parametrize(("timesteps", "expert"), [("875,1000", "high"), ("0,875", "low"), ("0,1000", None)])
def test_timesteps_of_training_say_which_noise(timesteps: str, expert: str | None, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file({"blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 64)}, file, {"modelspec.timestep_range": timesteps})
    assert told_expert(read_adapter(file)) == expert


COMFY = {  # its name of a layer, the authors'
    "double_blocks.0.img_attn.qkv": "double_blocks.0.img_attn_qkv",
    "double_blocks.0.txt_mlp.2": "double_blocks.0.txt_mlp.fc2",
    "double_blocks.0.img_mod.lin": "double_blocks.0.img_mod.linear",
    "single_blocks.0.modulation.lin": "single_blocks.0.modulation.linear",
    "time_in.in_layer": "time_in.mlp.0",
    "guidance_in.out_layer": "guidance_in.mlp.2",
    "vector_in.in_layer": "vector_in.in_layer",
    "txt_in.t_embedder.out_layer": "txt_in.t_embedder.mlp.2",
    "txt_in.c_embedder.in_layer": "txt_in.c_embedder.linear_1",
    "txt_in.individual_token_refiner.blocks.0.mlp.0": "txt_in.individual_token_refiner.blocks.0.mlp.fc1",
    "txt_in.individual_token_refiner.blocks.0.self_attn.qkv": "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
}


def test_comfys_own_names(tmp_path: Path) -> None:
    pipe, kind, before = tiny("hunyuan-video")
    generator, state, expected = torch.Generator().manual_seed(7), {}, dict(before)
    for comfy, layer in COMFY.items():
        down, up = low_rank(before[f"{layer}.weight"], generator)
        state |= {f"diffusion_model.{comfy}.lora_A.weight": down, f"diffusion_model.{comfy}.lora_B.weight": up}
        expected[f"{layer}.weight"] = before[f"{layer}.weight"] + WEIGHT * product(up, down)
    assert loaded(pipe, state, tmp_path / "a.safetensors") == ()
    close(original_state(kind, weights_of(pipe.transformer)), expected)


def test_queries_keys_and_values_in_one_of_hunyuan_video_15(tmp_path: Path) -> None:
    pipe, _, _ = tiny("hunyuan-video15")
    before = weights_of(pipe.transformer)
    width = before["transformer_blocks.0.attn.to_q.weight"].shape[0]
    down, up = torch.randn(RANK, width), torch.randn(3 * width, RANK)
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    assert loaded(pipe, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "a.safetensors") == ()
    found = weights_of(pipe.transformer)
    for part, rows in zip("qkv", up.split(width), strict=True):
        weight = f"transformer_blocks.0.attn.to_{part}.weight"
        assert torch.allclose(found[weight], before[weight] + WEIGHT * rows @ down, atol=1e-5)
