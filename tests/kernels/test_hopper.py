"""The kernels of the Hopper architecture, ours and FlashAttention-4's, against the formula in fp64, at every ragged
end, with NaN-filled outputs, on an H100 or H200."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import error, lists_of, random_inputs, random_lists
from torch import Tensor

from radial_kernels.block_sparse import BlockLists, attention, reference
from radial_kernels.block_sparse.backends import flash_attention_installed
from radial_kernels.block_sparse.lists import transpose_lists

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs an H100 or H200"
    ),
]

SHAPES = [
    # batch, queries, keys, heads, head dim
    (1, 128, 128, 1, 128),
    (2, 130, 257, 3, 64),
    (1, 1000, 77, 2, 128),
    (1, 1, 120, 2, 128),
    (2, 639, 640, 2, 64),
    (1, 2049, 1999, 2, 128),
]
WITH_FLASH = pytest.mark.skipif(not flash_attention_installed(), reason="flash-attn-4 not installed")
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 6e-3}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-S{}-T{}-H{}-D{}".format(*s))
def test_outputs_and_gradients(shape: tuple[int, ...], dtype: torch.dtype, nan_memory: None) -> None:
    batch, queries, keys, heads, dim = shape
    inputs = random_inputs(batch, queries, keys, heads, dim, dtype)
    lists = random_lists(queries, keys, 128, empty_rows=(1,) if queries > 256 else ())
    column_offsets, row_indices = transpose_lists(*lists, -(-keys // 128))
    order = column_offsets.diff().argsort(descending=True).to(torch.int32)
    weight, lse_weight = torch.randn_like(inputs[0]), torch.randn(batch, heads, queries, device="cuda")
    empty = torch.zeros(queries, dtype=torch.bool, device="cuda")
    empty[128:256] = queries > 256

    wanted = [x.double().requires_grad_() for x in inputs]
    want, want_lse = reference.attention(*wanted, *lists, 128, dim**-0.5)
    ((want * weight.double()).sum() + (want_lse * lse_weight.double())[..., ~empty].sum()).backward()
    ours = [x.clone().requires_grad_() for x in inputs]
    got, lse = attention(
        *ours, BlockLists(*lists, column_offsets=column_offsets, row_indices=row_indices, column_order=order),
        backend="hopper", return_lse=True,
    )  # fmt: skip
    ((got * weight).sum() + (lse * lse_weight)[..., ~empty].sum()).backward()

    assert error(got, want) < TOLERANCE[dtype]
    assert (got[:, empty] == 0).all()
    assert (lse[..., empty] == float("-inf")).all()
    assert torch.allclose(lse[..., ~empty].double(), want_lse[..., ~empty], atol=1e-4)
    for x, y in zip(ours, wanted, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        assert error(x.grad, y.grad) < 3 * TOLERANCE[dtype]


@WITH_FLASH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-S{}-T{}-H{}-D{}".format(*s))
def test_flash_outputs(shape: tuple[int, ...], dtype: torch.dtype, nan_memory: None) -> None:
    batch, queries, keys, heads, dim = shape
    q, k, v = random_inputs(batch, queries, keys, heads, dim, dtype)
    lists = random_lists(queries, keys, 128, empty_rows=(1,) if queries > 256 else ())
    want, want_lse = reference.attention(q.double(), k.double(), v.double(), *lists, 128, dim**-0.5)
    got, lse = attention(q, k, v, BlockLists(*lists), backend="flash", return_lse=True)
    some = want_lse.isfinite()
    assert error(got, want) < TOLERANCE[dtype]
    assert torch.equal(some, lse.isfinite())
    assert torch.allclose(lse[some].double(), want_lse[some], atol=1e-4)
    with pytest.raises(ValueError, match="no deterministic gradients"):
        attention(q.requires_grad_(), k, v, BlockLists(*lists), backend="flash")


@WITH_FLASH
def test_flash_plans_of_their_own(nan_memory: None) -> None:
    q, k, v = random_inputs(2, 530, 700, 3, 64, torch.float16)
    masks = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    got = attention(q, k, v, BlockLists(*lists_of(masks)), backend="flash")
    assert error(got, attention(q, k, v, BlockLists(*lists_of(masks)), backend="hopper").double()) < 1e-3


def test_gradients_repeat_bit_for_bit() -> None:
    q, k, v = (x.requires_grad_() for x in random_inputs(1, 1500, 1500, 4, 128, torch.bfloat16))
    lists = random_lists(1500, 1500, 128)
    runs = []
    for _ in range(3):
        out = attention(q, k, v, BlockLists(*lists), backend="hopper")
        runs.append(torch.autograd.grad(out.sin().sum(), (q, k, v)))
    for again in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], again, strict=True))


def test_strided_inputs_need_no_copy(nan_memory: None) -> None:
    lists = random_lists(300, 300, 128)
    joint = torch.randn(2, 300, 3, 2, 64, device="cuda", dtype=torch.bfloat16)
    q, k, v = joint.unbind(2)
    want = reference.attention(q.double(), k.double(), v.double(), *lists, 128, 64**-0.5)[0]
    assert error(attention(q, k, v, BlockLists(*lists), backend="hopper"), want) < 6e-3
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    assert error(attention(q, k, v, BlockLists(*lists), backend="hopper"), want) < 6e-3


@pytest.mark.parametrize("plans", [(2, 1), (1, 3), (2, 3)])
def test_plans_of_their_own(plans: tuple[int, int], nan_memory: None) -> None:
    q, k, v = random_inputs(2, 530, 700, 3, 64, torch.float16)
    masks = torch.rand(*plans, 5, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    lists = lists_of(masks)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    got = attention(*ours, BlockLists(*lists), backend="hopper")
    got.sin().sum().backward()
    for b, h in itertools.product(range(2), range(3)):
        one = [x[b : b + 1, :, h : h + 1].double().requires_grad_() for x in (q, k, v)]
        want = reference.attention(*one, *lists_of(masks[b % plans[0], h % plans[1]]), 128, 64**-0.5)[0]
        want.sin().sum().backward()
        assert error(got[b : b + 1, :, h : h + 1], want) < 1e-3
        for x, y in zip(ours, one, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            assert error(x.grad[b : b + 1, :, h : h + 1], y.grad) < 3e-3


def test_as_exact_as_dense_attention() -> None:
    """On a full mask: at most one and a half times the error of torch's own attention."""
    q, k, v = random_inputs(1, 1000, 1000, 4, 128, torch.bfloat16)
    lists = lists_of(torch.ones(8, 8, dtype=torch.bool))
    want = reference.attention(q.double(), k.double(), v.double(), *lists, 128, 128**-0.5)[0]
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert error(attention(q, k, v, BlockLists(*lists), backend="hopper"), want) < 1.5 * error(dense, want)


def test_runs_in_a_cuda_graph_and_compiled() -> None:
    q, k, v = random_inputs(1, 500, 500, 2, 128, torch.bfloat16)
    lists = random_lists(500, 500, 128)

    def run(q: Tensor) -> Tensor:
        return attention(q * 2, k, v, BlockLists(*lists)) + 1

    want = run(q)
    assert torch.equal(torch.compile(run, fullgraph=True)(q), want)
    graph = torch.cuda.CUDAGraph()
    still = q.clone()
    with torch.cuda.graph(graph):
        captured = run(still)
    still.copy_(q.flip(1))
    graph.replay()
    assert torch.equal(captured, run(q.flip(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 64}, "blocks of 128 tokens, not 64"),
        ({"dtype": torch.float32}, "computes in float16 and bfloat16, not torch.float32"),
        ({"dim": 96}, "head dims 64 and 128, not 96"),
        ({"odd": True}, "start on 16 bytes"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, object], message: str) -> None:
    dim, block = options.get("dim", 64), options.get("block_size", 128)
    assert isinstance(dim, int)
    assert isinstance(block, int)
    x = torch.zeros(1, 128, 2, dim + 8, device="cuda", dtype=options.get("dtype", torch.float16))  # type: ignore[call-overload]
    x = x[..., 1 : dim + 1] if options.get("odd") else x[..., :dim]
    with pytest.raises(ValueError, match=message):
        attention(x, x, x, BlockLists(*random_lists(128, 128, block), block_size=block), backend="hopper")
    assert (
        attention(x, x, x, BlockLists(*random_lists(128, 128, block), block_size=block)).shape == x.shape
    )  # auto finds another
