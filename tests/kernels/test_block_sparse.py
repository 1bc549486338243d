"""Block-sparse attention against the formula in fp64.

On the CPU the Triton kernel runs in Triton's interpreter, which computes bf16 wrongly: bf16 is tested on a GPU only.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from cases import DEVICE, error, lists_of, random_inputs, random_lists
from torch import Tensor
from torch.nn import functional as F

from radial_kernels.block_sparse import BlockLists, attention, choose_backend, join_lists, merge, reference
from radial_kernels.block_sparse.lists import transpose_lists

ROOT = Path(__file__).parent.parent.parent


def exact(q: Tensor, k: Tensor, v: Tensor, lists: tuple[Tensor, Tensor], block: int) -> Tensor:
    """The formula in fp64 on the same, already rounded inputs."""
    return attention(q.double(), k.double(), v.double(), BlockLists(*lists, block_size=block), backend="reference")


SHAPES = [
    # batch, queries, keys, heads, head dim, block
    (1, 64, 64, 1, 64, 16),
    (2, 63, 63, 3, 64, 16),
    (1, 130, 130, 2, 128, 64),
    (2, 97, 161, 2, 32, 32),
    (1, 200, 75, 1, 96, 64),
    (1, 1, 129, 2, 40, 128),
    (1, 257, 257, 1, 256, 128),
]


def shape_name(shape: tuple[int, ...]) -> str:
    return "B{}-S{}-T{}-H{}-D{}-K{}".format(*shape)


TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
@pytest.mark.parametrize("backend", ["reference", "gather", "triton"])
def test_forward(backend: str, shape: tuple[int, ...], dtype: torch.dtype, nan_memory: None) -> None:
    batch, queries, keys, heads, dim, block = shape
    q, k, v = random_inputs(batch, queries, keys, heads, dim, dtype)
    lists = random_lists(queries, keys, block)
    got = attention(q, k, v, BlockLists(*lists, block_size=block), backend=backend)
    assert got.shape == q.shape
    assert got.dtype == dtype
    assert error(got, exact(q, k, v, lists, block)) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
@pytest.mark.parametrize("descriptors", [True, False], ids=["descriptors", "pointers"])
def test_forward_bf16(shape: tuple[int, ...], descriptors: bool, nan_memory: None) -> None:
    from radial_kernels.block_sparse.portable import forward

    batch, queries, keys, heads, dim, block = shape
    q, k, v = random_inputs(batch, queries, keys, heads, dim, torch.bfloat16)
    lists = random_lists(queries, keys, block)
    got, _ = forward.attention(q, k, v, *lists, block, dim**-0.5, use_descriptors=descriptors)
    assert error(got, exact(q, k, v, lists, block)) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
def test_bf16_is_as_exact_as_dense_attention() -> None:
    """On a full mask: at most one and a half times the error of torch's own attention."""
    q, k, v = random_inputs(1, 1000, 1000, 4, 128, torch.bfloat16)
    rows = -(-1000 // 128)
    lists = (
        torch.arange(0, rows * rows + 1, rows, dtype=torch.int32, device=DEVICE),
        torch.arange(rows, dtype=torch.int32, device=DEVICE).repeat(rows),
    )
    want = exact(q, k, v, lists, 128)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert error(attention(q, k, v, BlockLists(*lists), backend="triton"), want) < 1.5 * error(dense, want)


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_strided_inputs_need_no_copy(backend: str, nan_memory: None) -> None:
    """Heads before tokens, and slices of one joint projection, as models make them."""
    lists = random_lists(50, 50, 16)
    joint = torch.randn(2, 50, 3, 2, 64, device=DEVICE)
    q, k, v = joint.unbind(2)
    want = exact(q, k, v, lists, 16)
    assert error(attention(q, k, v, BlockLists(*lists, block_size=16), backend=backend), want) < 2e-6
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    assert error(attention(q, k, v, BlockLists(*lists, block_size=16), backend=backend), want) < 2e-6


@pytest.mark.parametrize("backend", ["reference", "gather", "triton"])
def test_rows_without_keys_give_zeros(backend: str, nan_memory: None) -> None:
    q, k, v = random_inputs(1, 70, 70, 2, 32, torch.float32)
    lists = random_lists(70, 70, 16, empty_rows=(1, 4))
    got = attention(q, k, v, BlockLists(*lists, block_size=16), backend=backend)
    assert (got[:, 16:32] == 0).all()
    assert (got[:, 64:] == 0).all()
    assert error(got, exact(q, k, v, lists, 16)) < 2e-6


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_large_logits_do_not_overflow(backend: str) -> None:
    q, k, v = random_inputs(1, 48, 48, 1, 32, torch.float32)
    lists = random_lists(48, 48, 16)
    got = attention(q * 100, k * 100, v, BlockLists(*lists, block_size=16), backend=backend)
    assert error(got, exact(q * 100, k * 100, v, lists, 16)) < 1e-4


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_gradients(backend: str) -> None:
    q, k, v = random_inputs(2, 53, 70, 2, 32, torch.float32)
    lists = random_lists(53, 70, 16)
    weight = torch.randn_like(q)
    wanted = [x.double().requires_grad_() for x in (q, k, v)]
    # Autograd through the formula itself, not through our operator's backward.
    out, lse = reference.attention(*wanted, *lists, 16, 32**-0.5)
    ((out * weight.double()).sum() + lse.sin().sum()).backward()
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*ours, BlockLists(*lists, block_size=16), backend=backend, return_lse=True)
    ((out * weight).sum() + lse.sin().sum()).backward()
    for got, want in zip(ours, wanted, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert error(got.grad, want.grad) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=shape_name)
def test_triton_gradients_at_every_shape(shape: tuple[int, ...], nan_memory: None) -> None:
    """Half precision, transposed lists given, blocks taken in another order, an empty row."""
    batch, queries, keys, heads, dim, block = shape
    q, k, v = random_inputs(batch, queries, keys, heads, dim, torch.float16)
    lists = random_lists(queries, keys, block, empty_rows=(1,) if queries > block else ())
    by_column = transpose_lists(*lists, -(-keys // block))
    order = torch.arange(len(by_column[0]) - 1, device=DEVICE, dtype=torch.int32).flip(0)
    weight = torch.randn_like(q)
    wanted = [x.double().requires_grad_() for x in (q, k, v)]
    (reference.attention(*wanted, *lists, block, dim**-0.5)[0] * weight.double()).sum().backward()
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    blocks = BlockLists(*lists, *by_column, column_order=order, block_size=block)
    out = attention(*ours, blocks, backend="triton")
    (out * weight).sum().backward()
    for got, want in zip(ours, wanted, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert error(got.grad, want.grad) < 3e-3


@pytest.mark.parametrize("backend", ["reference", "gather", "triton"])
def test_log_sum_exp(backend: str, nan_memory: None) -> None:
    q, k, v = random_inputs(2, 53, 70, 2, 32, torch.float32)
    lists = random_lists(53, 70, 16, empty_rows=(2,))
    got = attention(q, k, v, BlockLists(*lists, block_size=16), backend=backend, return_lse=True)[1]
    want = reference.attention(*(x.double() for x in (q, k, v)), *lists, 16, 32**-0.5)[1]
    assert got.shape == (2, 2, 53)
    assert got.dtype == torch.float32
    assert (got[..., 32:48] == float("-inf")).all()
    assert torch.allclose(got.double(), want, atol=2e-5)


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_merged_parts_equal_the_whole(backend: str) -> None:
    """Attention over two disjoint sets of key blocks, joined; row 2 has no key in the first set, row 3 none at all."""
    q, k, v = random_inputs(2, 70, 70, 2, 32, torch.float32)
    whole = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    whole[3] = False
    first = whole & (torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) < 0.5)
    first[2] = False
    parts = [
        attention(q, k, v, BlockLists.of_mask(mask.to(DEVICE), 16), backend=backend, return_lse=True)
        for mask in (first, whole & ~first)
    ]
    out, lse = merge([out for out, _ in parts], [lse for _, lse in parts])
    wanted, wanted_lse = reference.attention(*(x.double() for x in (q, k, v)), *lists_of(whole), 16, 32**-0.5)
    assert error(out, wanted) < 2e-6
    assert torch.allclose(lse.double(), wanted_lse, atol=2e-5)


def test_merge_is_differentiable() -> None:
    """In outputs and log-sum-exps, also where a part has no key, or none has."""
    outs = [torch.randn(1, 4, 2, 8, dtype=torch.double, requires_grad=True) for _ in range(2)]
    lses = [torch.randn(1, 2, 4, dtype=torch.double) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda *x: merge(x[:2], x[2:]), (*outs, *(x.clone().requires_grad_() for x in lses)), fast_mode=True
    )
    lses[0][0, 0, 1] = lses[1][0, 1, 2] = lses[0][0, 0, 3] = lses[1][0, 0, 3] = float("-inf")
    for lse in lses:
        lse.requires_grad_()
    out, lse = merge(outs, lses)
    (out.sum() + lse.sin().nan_to_num().sum()).backward()
    for x in (*outs, *lses):
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_merge_names_what_does_not_fit() -> None:
    out, lse = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match="one log-sum-exp for each output, not 1 for 2"):
        merge([out, out], [lse])
    with pytest.raises(ValueError, match="agree in shape"):
        merge([out, out[:, :2]], [lse, lse])


@pytest.mark.parametrize("backend", ["reference", "gather", "triton"])
@pytest.mark.parametrize("plans", ["batch", "head", "both"])
def test_plans_of_their_own(backend: str, plans: str, nan_memory: None) -> None:
    """A plan for each batch entry, each head, or both: as if each were computed alone, gradients too."""
    q, k, v = random_inputs(2, 53, 70, 3, 32, torch.float32)
    batch_plans, head_plans = (2 if plans != "head" else 1), (3 if plans != "batch" else 1)
    masks = torch.rand(batch_plans, head_plans, 4, 5, generator=torch.Generator().manual_seed(5)) < 0.5
    lists = lists_of(masks if plans != "batch" else masks[:, 0])
    BlockLists(*lists, block_size=16).to("cpu").check(70)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    got = attention(*ours, BlockLists(*lists, block_size=16), backend=backend)
    got.sin().sum().backward()
    for b, h in itertools.product(range(2), range(3)):
        one = [x[b : b + 1, :, h : h + 1].double().requires_grad_() for x in (q, k, v)]
        own = lists_of(masks[b % batch_plans, h % head_plans])
        want = reference.attention(*one, *own, 16, 32**-0.5)[0]
        want.sin().sum().backward()
        assert error(got[b : b + 1, :, h : h + 1], want) < 2e-6
        for x, y in zip(ours, one, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            assert error(x.grad[b : b + 1, :, h : h + 1], y.grad) < 1e-5


def test_transposed_lists_name_the_same_blocks() -> None:
    masks = torch.rand(2, 3, 7, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    offsets, indices = transpose_lists(*lists_of(masks), 4)
    want_offsets, want_indices = lists_of(masks.mT)
    assert torch.equal(offsets, want_offsets)
    assert torch.equal(indices, want_indices)


@pytest.mark.parametrize("backend", ["reference", "gather", "triton"])
def test_sequences_joined_are_as_alone(backend: str, nan_memory: None) -> None:
    """Outputs and gradients, by one list; what is in one changes no bit of another."""
    lengths, block, generator = (20, 16, 5), 16, torch.Generator().manual_seed(0)
    parts = [BlockLists(*random_lists(n, n, block), block_size=block) for n in lengths]
    lists = join_lists([parts[0].with_columns(20), *parts[1:]], lengths)
    clips = [torch.randn(4, 1, n, 1, 16, generator=generator).to(DEVICE) for n in lengths]

    def attend(clips: list[Tensor]) -> list[Tensor]:
        """Of each clip its output and the gradients of q, k and v."""
        x = torch.cat([F.pad(clip, (0, 0, 0, 0, 0, -clip.shape[2] % block)) for clip in clips], 2)
        q, k, v = (part.requires_grad_() for part in x[:3].clone())
        out = attention(q, k, v, lists, backend=backend)
        grads = torch.autograd.grad(out, (q, k, v), x[3])
        starts = accumulate((-(-n // block) * block for n in lengths), initial=0)
        return [
            torch.stack([out, *grads])[:, :, start : start + n].detach()
            for start, n in zip(starts, lengths, strict=False)
        ]

    joined = attend(clips)
    for found, clip, part in zip(joined, clips, parts, strict=True):
        q, k, v = (x.clone().requires_grad_() for x in clip[:3])
        out = attention(q, k, v, part, backend=backend)
        alone = torch.stack([out, *torch.autograd.grad(out, (q, k, v), clip[3])])
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    if backend == "reference":  # the whole formula, in which nothing times NaN is NaN
        return
    broken = attend([clips[0], clips[1] * torch.nan, *clips[2:]])
    assert broken[1].isnan().all()
    for place, (found, before) in enumerate(zip(broken, joined, strict=True)):
        assert place == 1 or torch.equal(found, before)


def test_what_joined_lists_do_not_hold() -> None:
    plan = BlockLists(*random_lists(40, 40, 16), block_size=16)
    with pytest.raises(ValueError, match="joined by one plan for all heads, of one block size"):
        join_lists([plan, replace(plan, block_size=32)], [40, 40])
    q, k, v = random_inputs(1, 48, 48, 1, 16, torch.float32)
    with pytest.raises(ValueError, match=r"key_ends must be int32 \[3\] on .*, not torch.int64 \[3\]"):
        attention(q, k, v, replace(plan, key_ends=torch.tensor([40, 40, 40], device=DEVICE)))
    with pytest.raises(ValueError, match="have no far field, and none of them in 8 bit"):
        attention(q, k, v, join_lists([plan], [40]), eight_bit=True)


def test_gradcheck() -> None:
    q, k, v = (x.double().requires_grad_() for x in random_inputs(1, 20, 20, 1, 8, torch.float32))
    lists = random_lists(20, 20, 16)
    assert torch.autograd.gradcheck(
        lambda *x: attention(*x, BlockLists(*lists, block_size=16), backend="gather"), (q, k, v)
    )


@pytest.mark.parametrize("backend", ["reference", "gather", "triton"])
def test_operator_is_well_registered(backend: str) -> None:
    q, k, v = (x.requires_grad_() for x in random_inputs(1, 40, 40, 1, 16, torch.float32))
    torch.library.opcheck(
        torch.ops.radial.block_sparse_attention.default,
        (q, k, v, *random_lists(40, 40, 16), None, None, None, 16, 0.25, backend, True),
    )


def test_compiles_without_graph_breaks() -> None:
    q, k, v = random_inputs(1, 40, 40, 1, 16, torch.float32)
    lists = random_lists(40, 40, 16)

    def run(q: Tensor) -> Tensor:
        return attention(q * 2, k, v, BlockLists(*lists, block_size=16)) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(q), run(q))


def test_kernels_compile_for_every_architecture() -> None:
    """Ahead of time and without a GPU, in a process of its own: here the interpreter has taken over."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernels.py"
    subprocess.run([sys.executable, str(script)], env=environment, check=True, cwd=ROOT, timeout=1800)


def test_backends_are_chosen_by_name() -> None:
    cpu = torch.empty(1)
    assert choose_backend(cpu) == "gather"
    assert choose_backend(cpu, "reference") == "reference"
    with pytest.raises(ValueError, match=r"unknown backend 'cudnn'; the backends are auto, reference, gather"):
        choose_backend(cpu, "cudnn")


def test_triton_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend triton needs a GPU"):
        choose_backend(torch.empty(1), "triton")


def _wrong_inputs() -> dict[str, tuple[dict[str, object], str]]:
    q = torch.zeros(1, 32, 2, 16)
    offsets, columns = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    lists = BlockLists(offsets, columns, block_size=16)
    good = {"q": q, "k": q, "v": q, "lists": lists}

    def other(**changes: object) -> dict[str, object]:
        return good | {"lists": replace(lists, **changes)}  # type: ignore[arg-type]

    return {
        "three dimensions": (good | {"q": q[0]}, "must be"),
        "other heads": (good | {"k": q[:, :, :1], "v": q[:, :, :1]}, "agree in batch, heads"),
        "k unlike v": (good | {"v": q[:, :16]}, "k like v"),
        "mixed dtypes": (good | {"k": q.half()}, "one floating dtype"),
        "whole numbers": (good | {"q": q.int(), "k": q.int(), "v": q.int()}, "one floating dtype"),
        "head dim too large": (good | {x: torch.zeros(1, 32, 2, 300) for x in "qkv"}, "at most 256"),
        "last dimension strided": (good | {"q": torch.zeros(1, 32, 16, 2).transpose(2, 3)}, "contiguous"),
        "long lists": (other(row_offsets=offsets.long()), "int32"),
        "wrong rows": (other(row_offsets=offsets[:2]), "need 3 row_offsets"),
        "plans for another batch": (other(row_offsets=offsets.repeat(2, 1)), "for each of 1 batch entries"),
        "half a transpose": (other(column_offsets=offsets), "belong together"),
        "order of other columns": (other(column_order=offsets), "column_order must be int32"),
        "nothing": (good | {"q": q[:, :0]}, "must not be empty"),
        "wrong block": (other(block_size=24), "block_size must be"),
        "scale not a number": (good | {"scale": float("nan")}, "scale must be finite"),
    }


@pytest.mark.parametrize("name", _wrong_inputs())
def test_wrong_inputs_are_named(name: str) -> None:
    arguments, message = _wrong_inputs()[name]
    with pytest.raises(ValueError, match=message):
        attention(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offsets", "columns", "message"),
    [
        ([0, 2, 1], [0, 1], "row_offsets must"),
        ([0, 1, 3], [0, 1], "row_offsets must"),
        ([0, 1, 2], [0, 2], r"must lie in 0\.\.1"),
        ([0, 1, 2], [-1, 0], r"must lie in 0\.\.1"),
        ([0, 2, 4], [0, 1, 1, 0], "ascend"),
        ([0, 2, 2], [1, 1], "ascend"),
    ],
)
def test_wrong_lists_are_named(offsets: list[int], columns: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockLists(
            torch.tensor(offsets, dtype=torch.int32), torch.tensor(columns, dtype=torch.int32), block_size=16
        ).check(32)


def test_good_lists_pass() -> None:
    for queries, keys, block in itertools.product((30, 100), (50, 64), (16, 32)):
        BlockLists(*random_lists(queries, keys, block, empty_rows=(0,)), block_size=block).to("cpu").check(keys)


def test_lists_of_a_mask_are_its_blocks() -> None:
    mask = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(9)) < 0.5
    for part in (mask, mask[:, 0], mask[0, 0]):
        lists, plain = BlockLists.of_mask(part, 16).check(70), lists_of(part)
        assert torch.equal(lists.row_offsets, plain[0].cpu())
        assert torch.equal(lists.column_indices, plain[1].cpu())
        assert (lists.rows, lists.kept_blocks) == (4, int(part.sum()))
        assert lists.share_kept(70) == pytest.approx(part.float().mean().item())
        both = lists.with_columns(70)
        assert both.column_offsets is not None
        assert both.column_offsets.shape == (*part.shape[:-2], 6)
