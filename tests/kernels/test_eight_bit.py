"""8-bit attention: its quantisation, and its error against the formula in fp64."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICE, error, lists_of, random_inputs, random_lists

from radial_kernels.block_sparse import BlockLists, attention, reference
from radial_kernels.block_sparse.portable.quantise import quantise_logits, quantise_values

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)

# Rounding to three bits of mantissa costs 2.6 % on normal inputs; Triton's interpreter cuts them off instead.
E4M3_STEP = 0.03 if DEVICE == "cuda" else 0.08

SHAPES = [
    # batch, queries, keys, heads, head dim, block
    (1, 64, 64, 1, 64, 32),
    (2, 97, 161, 2, 32, 32),
    (1, 130, 257, 2, 128, 128),
    (1, 200, 75, 1, 96, 64),
]


@pytest.mark.parametrize("interleaved", [False, True])
def test_quantised_inputs_are_near(interleaved: bool, nan_memory: None) -> None:
    q, k, v = random_inputs(2, 70, 90, 3, 32, torch.float32)
    k += 5  # smoothing takes a common offset away
    got = quantise_logits(q, k, 32)
    v[:, 32:64] *= 1e-3  # a block of small values keeps a scale of its own
    values = quantise_values(v, 32, interleaved=interleaved)
    spread = [x.repeat_interleave(32, 2) for x in (got.q_scale_BHR, got.k_scale_BHR)]
    q_again = got.q_BSHD * spread[0].mT[:, :70, :, None]
    k_again = got.k_BTHD * spread[1].mT[:, :90, :, None] + got.k_mean_BHD[:, None]
    assert error(q_again, q.double()) < 0.01
    assert error(k_again, k.double()) < 0.002
    place = torch.arange(96, device=DEVICE)
    token = place // 16 * 16 + place // 2 % 2 * 8 + place // 4 % 4 * 2 + place % 2 if interleaved else place
    v_again = torch.empty(2, 3, 32, 96, device=DEVICE)
    worth = values.shift_BHR.exp2() * values.scale_BH[..., None]
    v_again[..., token] = values.v_BHDP.float() * worth.repeat_interleave(32, 2)[:, :, None]
    again = v_again[..., :90].permute(0, 3, 1, 2)
    assert error(again, v.double()) < E4M3_STEP
    assert error(again[:, 32:64], v[:, 32:64].double()) < E4M3_STEP
    assert (values.shift_BHR <= 0).all()
    assert (v_again[..., 90:] == 0).all()


def _check(backend: str, shape: tuple[int, ...]) -> None:
    batch, queries, keys, heads, dim, block = shape
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    q, k, v = random_inputs(batch, queries, keys, heads, dim, dtype)
    k += 2
    lists = random_lists(queries, keys, block, empty_rows=(1,) if queries > block else ())
    got, lse = attention(
        q, k, v, BlockLists(*lists, block_size=block), backend=backend, eight_bit=True, return_lse=True
    )
    want, want_lse = reference.attention(q.double(), k.double(), v.double(), *lists, block, dim**-0.5)
    assert got.dtype == dtype
    assert error(got, want) < 2 * E4M3_STEP
    some = want_lse.isfinite()
    assert torch.equal(some, lse.isfinite())
    assert (lse[some] - want_lse[some]).abs().max() < 0.05
    if queries > block:
        assert (got[:, block : 2 * block] == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-S{}-T{}-H{}-D{}-K{}".format(*s))
def test_portable_error(shape: tuple[int, ...], nan_memory: None) -> None:
    _check("triton", shape)


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an H100 or H200")
@pytest.mark.parametrize("shape", [(1, 128, 128, 1, 128, 128), (2, 639, 1000, 2, 128, 128), (1, 1000, 333, 3, 64, 128)])
def test_hopper_error(shape: tuple[int, ...], nan_memory: None) -> None:
    _check("hopper", shape)


def test_values_in_sixteen_bits(nan_memory: None) -> None:
    """What GPUs before compute capability 8.9 compute: int8 logits alone cost 1.3 % on normal inputs."""
    from radial_kernels.block_sparse.portable import eight_bit

    q, k, v = random_inputs(1, 130, 140, 2, 64, torch.float16)
    lists = random_lists(130, 140, 32)
    got, _ = eight_bit.attention(q, k, v, *lists, 32, 0.125, eight_bit_values=False)
    assert error(got, reference.attention(q.double(), k.double(), v.double(), *lists, 32, 0.125)[0]) < 0.02


@pytest.mark.parametrize("backend", ["gather", "reference"])
def test_other_backends_are_refused(backend: str) -> None:
    x = torch.zeros(1, 64, 1, 32, device=DEVICE)
    lists = lists_of(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=f"eight_bit needs backend triton or hopper; {backend}"):
        attention(x, x, x, BlockLists(*lists, block_size=32), backend=backend, eight_bit=True)


def test_gradients_and_small_blocks_are_refused() -> None:
    x = torch.zeros(1, 64, 1, 32, device=DEVICE)
    small, large = (lists_of(torch.ones(n, n, dtype=torch.bool)) for n in (4, 2))
    with pytest.raises(ValueError, match="blocks of at least 32 tokens, not 16"):
        attention(x, x, x, BlockLists(*small, block_size=16), backend="triton", eight_bit=True)
    with pytest.raises(ValueError, match="eight_bit has no gradients"):
        attention(x.clone().requires_grad_(), x, x, BlockLists(*large, block_size=32), backend="triton", eight_bit=True)


def test_operator_is_well_registered() -> None:
    q, k, v = random_inputs(1, 64, 64, 1, 32, torch.float16)
    arguments = (q, k, v, *random_lists(64, 64, 32), 32, 0.2, "triton", True)
    torch.library.opcheck(torch.ops.radial.block_sparse_attention_eight_bit.default, arguments)
