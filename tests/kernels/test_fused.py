"""Fused kernels against their formulas in fp64, and what runs in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DEVICE
from torch import Tensor, nn

from radial_kernels.fused import (
    EightBitLinear,
    gated_residual,
    gelu_beside,
    norm_rotary,
    reference,
    refuse_eight_bit,
    residual_norm,
)
from radial_kernels.fused.eight_bit_linear import quantise_rows
from radial_kernels.fused.norms import runs_fused

DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(DEVICE, dtype)


def doubled(*values: Any) -> Any:
    return [value.double() if isinstance(value, Tensor) else value for value in values]


def near(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    assert got.isfinite().all()
    return bool((got.double() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max().clamp(min=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 5, 48), (2, 3, 100), (2, 7, 5120)])
@pytest.mark.parametrize("a_token", [False, True])
def test_residual_and_norm(dtype: torch.dtype, shape: tuple[int, int, int], a_token: bool, nan_memory: None) -> None:
    batch, tokens, channels = shape
    x, y = normal(*shape, dtype=dtype) * 3 + 1, normal(*shape, dtype=dtype, seed=1)
    # As a block has them: parts of one tensor, a clip's or a token's.
    table = normal(batch, tokens if a_token else 1, 6, channels, seed=2)
    gate, scale, shift = table[:, :, 0], table[:, :, 3], table[:, :, 5]
    weight, bias = normal(channels, seed=3), normal(channels, seed=4)
    assert runs_fused(x)
    assert near(gated_residual(x, y, gate), x.double() + y.double() * gate.double(), dtype)
    for added in (None, y):
        for gated in (None, gate) if added is not None else (None,):
            for affine in ((None, None), (weight, bias)):
                for modulation in ((None, None), (scale, shift)):
                    stream, normed = residual_norm(x, added, gated, weight_C=affine[0], bias_C=affine[1],
                                                   scale=modulation[0], shift=modulation[1], eps=1e-5)  # fmt: skip
                    wide = doubled(x, added, gated, *affine, *modulation)
                    grown = 0 if added is None else wide[1] * (1 if gated is None else wide[2])
                    assert near(stream, wide[0] + grown, dtype)
                    # The norm is of the stream as it was rounded.
                    formula = torch.nn.functional.layer_norm(stream.double(), (channels,), *wide[3:5], eps=1e-5)
                    if modulation[0] is not None:
                        formula = formula * (1 + wide[5]) + wide[6]
                    assert near(normed, formula, dtype)
                    assert added is not None or stream.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "heads"), [((1, 5, 48), 3), ((2, 3, 96), 1), ((2, 4, 1536), 12), ((2, 3, 72), 3)])
@pytest.mark.parametrize("a_head", [False, True])
@pytest.mark.parametrize("still", [0, 2])
def test_norm_and_rotation(
    dtype: torch.dtype, shape: tuple[int, int, int], heads: int, a_head: bool, still: int, nan_memory: None
) -> None:
    _, tokens, channels = shape
    dim = channels // heads
    x = normal(*shape[:2], 3 * channels, dtype=dtype)[..., channels : 2 * channels]  # as of a joint projection
    weight = normal(dim if a_head else channels, seed=1)
    angles = normal(tokens, dim // 2, seed=2).repeat_interleave(2, 1)
    cos, sin = angles[: tokens - still].cos(), angles[: tokens - still].sin()
    angles[tokens - still :] = 0  # tokens at the end that are not turned
    got = norm_rotary(x, weight, cos, sin, 1e-6)
    wide = x.double().unflatten(-1, (-1, len(weight)))
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.double()).flatten(2)
    turned = torch.view_as_complex(normed.unflatten(-1, (heads, dim // 2, 2)).contiguous())
    turned = turned * torch.polar(torch.ones_like(angles[:, ::2]).double(), angles[:, ::2].double())[:, None]
    assert near(got, torch.view_as_real(turned).flatten(2), dtype)


def test_formulas_run_where_a_gradient_is_wanted() -> None:
    x = normal(1, 4, 32).requires_grad_()
    weight, gate = normal(32, seed=1).requires_grad_(), normal(1, 1, 32, seed=2)
    stream, normed = residual_norm(x, x * 2, gate, weight_C=weight)
    angles = normal(4, 8, seed=3).repeat_interleave(2, 1)
    turned = norm_rotary(x, weight, angles.cos(), angles.sin())
    (stream.sum() + normed.sum() + turned.sum()).backward()
    assert x.grad is not None
    assert weight.grad is not None
    with torch.no_grad():
        for got, wanted in zip(residual_norm(x, x * 2, gate, weight_C=weight), (stream, normed), strict=True):
            assert near(got, wanted.double(), torch.float32)
        assert near(norm_rotary(x, weight, angles.cos(), angles.sin()), turned.double(), torch.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_in_eight_bit(bias: bool) -> None:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias).to(DEVICE, dtype)
    with torch.no_grad():
        linear.weight[3] *= 1000  # a row of large weights spoils no other
        x = normal(2, 33, 64, dtype=dtype)
        x[0, 0] *= 1000
        got, wanted = EightBitLinear.of(linear)(x), linear(x)
    for rows in (slice(0, 3), slice(3, 4)):
        for entry in (x[0, 1:], x[0, :1]):
            part = (got[0, : len(entry), rows], wanted[0, : len(entry), rows])
            assert part[0].shape == part[1].shape
    error = (got - wanted)[1][:, 4:].float().norm() / wanted[1][:, 4:].float().norm()
    assert 1e-4 < error < 0.06
    large = (got - wanted)[1][:, 3].float().norm() / wanted[1][:, 3].float().norm()
    assert large < 0.06
    assert got.dtype == dtype
    if DEVICE == "cpu":
        assert "no 8-bit products" in (refuse_eight_bit(torch.device("cpu")) or "")


def test_a_gelu_on_the_way_into_eight_bits() -> None:
    x = normal(7, 160) * 3
    x[0, :4] = torch.tensor([-1e4, 1e4, 0.0, -0.0])
    rows, scale = quantise_rows(x, gelu=True)
    wanted = torch.nn.functional.gelu(x.double(), approximate="tanh")
    assert ((rows.double() * scale.double() - wanted).norm() / wanted.norm()) < 0.04
    assert (rows[1:].float().abs().amax(1) == 448).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "first", "inner"), [(3, 16, 48), (5, 20, 300), (2, 3072, 12288)])
def test_columns_and_the_gelu_of_others(
    dtype: torch.dtype, rows: int, first: int, inner: int, nan_memory: None
) -> None:
    joint = normal(rows, first + inner + 8, dtype=dtype) * 3
    beside, x = joint[:, :first], joint[:, first : first + inner]  # with strides of their own
    wanted = torch.cat([beside.double(), torch.nn.functional.gelu(x.double(), approximate="tanh")], 1)
    assert near(gelu_beside(x, beside), wanted, dtype)
    eight, scale = quantise_rows(x, gelu=True, first_MC=beside)
    assert eight.shape == wanted.shape
    assert ((eight.double() * scale.double() - wanted).norm() / wanted.norm()) < 0.04


def test_rows_of_zeros_stay_zeros() -> None:
    got, scale = reference.quantise_rows(torch.zeros(2, 16))
    assert scale.isfinite().all()
    assert (got.float() == 0).all()
