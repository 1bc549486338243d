"""Fused blocks and 8-bit linear layers against the stock transformer, with whatever else is put on its layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from family_cases import CASES
from peft import LoraConfig
from torch import nn

import radial
from radial import RadialPattern, Schedule
from radial.attention.families.find import find_family
from radial.loading.quantize import narrow_linears
from radial_kernels.fused import EightBitLinear

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 16,
    "freq_dim": 16, "ffn_dim": 64, "num_layers": 2, "rope_max_seq_len": 64,
}  # fmt: skip


def build(**changes: Any) -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(**SMALL | changes).eval()


def inputs(tokens: int | None = None, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    timestep = torch.tensor([500, 300]) if tokens is None else torch.arange(2 * tokens).view(2, tokens)
    x = torch.randn(2, 4, 3, 6, 8, generator=generator)
    text = torch.randn(2, 12, 16, generator=generator)
    return {"hidden_states": x, "timestep": timestep, "encoder_hidden_states": text, "return_dict": False} | more


def fuse(transformer: nn.Module) -> int:
    return find_family(transformer).fuse(transformer)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, inputs()),
        ({"cross_attn_norm": False}, inputs()),
        ({}, inputs(tokens=3 * 3 * 4)),  # Wan 2.2 5B: a noise level a token
        ({"added_kv_proj_dim": 32, "image_dim": 8},
         inputs(encoder_hidden_states_image=torch.ones(2, 5, 8), encoder_hidden_states=torch.ones(2, 512, 16))),
    ],
)  # fmt: skip
def test_fused_blocks_compute_what_stock_ones_do(changes: dict[str, Any], given: dict[str, Any]) -> None:
    transformer = build(**changes)
    with torch.no_grad():
        stock = transformer(**given)[0]
        assert fuse(transformer) == 2
        assert error(transformer(**given)[0], stock) < 1e-6
        # What they do is no coincidence: the processor and the forward are ours.
        assert type(transformer.blocks[0].attn1.processor).__name__ == "FusedWanAttnProcessor"
        assert type(transformer.blocks[0].attn2.processor).__name__ == "WanAttnProcessor"


def build_hunyuan(kind: str = "HunyuanVideoTransformer3DModel", **changes: Any) -> Any:
    # Heads as long as a power of two, so that the kernel itself computes their norm.
    sizes = {"attention_head_dim": 16, "rope_axes_dim": (4, 6, 6), "num_layers": 1, "num_single_layers": 1}
    case = CASES[kind]
    latents = (8 if "Framepack" in kind else 6, 4, 8)  # the former brings a history of its own
    return replace(case, tiny=case.tiny | sizes | changes, latents=latents)


@pytest.mark.parametrize(
    ("kind", "changes", "forwards"),
    [
        ("HunyuanVideoTransformer3DModel", {}, ["_forward", "_single_forward"]),
        ("HunyuanVideoTransformer3DModel", {"attention_head_dim": 24, "rope_axes_dim": (8, 8, 8)}, None),
        ("HunyuanVideoTransformer3DModel", {"image_condition_type": "token_replace"}, ["forward"] * 2),
        ("HunyuanVideoFramepackTransformer3DModel", {}, None),
    ],
)
def test_hunyuan_videos_blocks_compute_what_stock_ones_do(
    kind: str, changes: dict[str, Any], forwards: list[str] | None
) -> None:
    case = build_hunyuan(kind, **changes)
    transformer = case.build()
    given = case.inputs(transformer, case.latents, 2) | {"return_dict": False}
    kept = RadialPattern(decay=0.05, sink_frames=0)
    attend = {"pattern": kept, "block_size": 16}
    with torch.no_grad():
        stock = transformer(**given)[0]
        with radial.apply(transformer, **attend):
            radially = transformer(**given)[0]
        assert error(radially, stock) > 1e-4
        assert fuse(transformer) == 2
        assert error(transformer(**given)[0], stock) < 1e-6
        with radial.apply(transformer, **attend):
            assert error(transformer(**given)[0], radially) < 1e-6
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    assert all(type(block.attn.processor).__name__ == "FusedHunyuanVideoAttnProcessor" for block in blocks)
    assert forwards is None or [block.forward.__name__ for block in blocks] == forwards


def test_hunyuan_videos_blocks_in_eight_bit_and_with_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radial.loading.quantize.SMALLEST", 32 * 32)
    case = build_hunyuan()
    transformer = case.build()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj_mlp"], init_lora_weights=False))
    given = case.inputs(transformer, case.latents, 1) | {"return_dict": False}
    with torch.no_grad():
        stock = transformer(**given)[0]
        fuse(transformer)
        assert error(transformer(**given)[0], stock) < 1e-6
        assert narrow_linears(transformer) > 12
        assert 1e-3 < error(transformer(**given)[0], stock) < 0.1
    assert type(transformer.single_transformer_blocks[0].proj_out) is EightBitLinear


def test_radial_attention_and_adapters_go_with_them() -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    plain, fused = build(), build()
    for transformer in (plain, fused):
        torch.manual_seed(3)
        transformer.add_adapter(config)
    fuse(fused)
    kept = RadialPattern(decay=0.05, sink_frames=0)
    outputs = []
    for transformer in (plain, fused):
        with radial.apply(transformer, pattern=kept, schedule=Schedule(dense_layers=1), block_size=16) as installed:
            with torch.no_grad():
                outputs.append(transformer(**inputs())[0])
            assert installed.plan is not None
            assert installed.plan.density < 1
    assert error(outputs[1], outputs[0]) < 1e-6
    with torch.no_grad():
        assert error(fused(**inputs())[0], outputs[1]) > 1e-4  # dense again

    # Training runs through the formulas.
    losses = []
    for transformer in (plain, fused):
        transformer(**inputs())[0].square().sum().backward()
        losses.append({n: p.grad for n, p in transformer.named_parameters() if p.grad is not None})
    assert losses[0].keys() == losses[1].keys()
    assert all(error(losses[1][name], losses[0][name]) < 1e-4 for name in losses[0] if "lora_B" in name)


def test_large_layers_are_narrowed_and_adapters_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radial.loading.quantize.SMALLEST", 32 * 32)
    transformer = build()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    with torch.no_grad():
        stock = transformer(**inputs())[0]
        # Four of each attention and two of the feed-forward, in two blocks.
        assert narrow_linears(transformer) == 20
        narrow = transformer(**inputs())[0]
    assert 1e-3 < error(narrow, stock) < 0.1
    # Fused blocks round an input of several layers once, and a GELU on the way: no other result but by rounding.
    fuse(transformer)
    with torch.no_grad():
        fused = transformer(**inputs())[0]
    assert error(fused, narrow) < 0.02
    assert error(fused, stock) < 0.1
    query = transformer.blocks[0].attn1.to_q
    assert type(query.base_layer) is EightBitLinear
    assert type(query.lora_A["default"]) is nn.Linear
    assert type(transformer.proj_out) is nn.Linear


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [12, 40])
def test_at_real_width_on_a_gpu(heads: int) -> None:
    from radial_kernels.fused import refuse_eight_bit

    torch.manual_seed(0)
    with torch.device("cuda"):
        transformer = WanTransformer3DModel(num_attention_heads=heads, ffn_dim=8960, num_layers=2).bfloat16().eval()
        for name, parameter in transformer.named_parameters():
            if any(part in name.split(".") for part in WanTransformer3DModel._keep_in_fp32_modules):
                parameter.data = parameter.data.float()
        x, text = torch.randn(2, 16, 5, 30, 52).bfloat16(), torch.randn(2, 512, 4096).bfloat16()
    given = {"hidden_states": x, "timestep": torch.tensor([500, 3], device="cuda"), "encoder_hidden_states": text,
             "return_dict": False}  # fmt: skip
    with torch.no_grad():
        stock = transformer(**given)[0].float()
        exact = transformer.float()(**{k: v.float() if k != "timestep" and k != "return_dict" else v
                                       for k, v in given.items()})[0]  # fmt: skip
        rounding = error(stock, exact)
        transformer.bfloat16()
        for name, parameter in transformer.named_parameters():
            if any(part in name.split(".") for part in WanTransformer3DModel._keep_in_fp32_modules):
                parameter.data = parameter.data.float()
        fuse(transformer)
        fused = transformer(**given)[0].float()
        print(f"{heads} heads: bf16 {rounding:.2e}, fused {error(fused, exact):.2e}")
        assert error(fused, exact) < 1.2 * rounding
        if refuse_eight_bit(torch.device("cuda")) is None:
            assert narrow_linears(transformer) == 20
            narrow = error(transformer(**given)[0].float(), exact)
            print(f"8-bit products {narrow:.2e}")
            assert rounding < narrow < 0.1
