"""The far field, exact attention's complement as means of blocks, against the formula in fp64."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from cases import DEVICE, error, random_inputs, random_lists
from torch import Tensor

from radial_kernels.block_sparse import BlockLists, PooledLists, attention, merge, reference
from radial_kernels.block_sparse.backends import flash_attention_installed
from radial_kernels.block_sparse.tail import gather
from radial_kernels.block_sparse.tail.lists import pack, unpack

SHAPES = [
    # batch, queries, keys, heads, head dim, block
    (1, 70, 90, 2, 64, 32),
    (2, 97, 161, 1, 32, 64),
    (1, 40, 75, 1, 96, 16),
    (1, 1, 129, 1, 40, 64),
    (1, 20, 1100, 1, 16, 16),  # 69 pooled keys: more than one word
    (1, 130, 200, 1, 256, 128),
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
LSE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BACKENDS = ["reference", "gather", "triton"]


def shape_name(shape: tuple[int, ...]) -> str:
    return "B{}-S{}-T{}-H{}-D{}-K{}".format(*shape)


def case(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, empty_rows: tuple[int, ...] = (), density: float = 0.5
) -> tuple[tuple[Tensor, Tensor, Tensor], BlockLists, PooledLists]:
    """Inputs, random lists and all that these leave out."""
    batch, queries, keys, heads, dim, block = shape
    inputs = random_inputs(batch, queries, keys, heads, dim, dtype)
    lists = BlockLists(*random_lists(queries, keys, block, density, empty_rows=empty_rows), block_size=block)
    return inputs, lists, PooledLists.complement(lists, keys)


def formula(
    inputs: tuple[Tensor, ...], lists: BlockLists, tail: PooledLists, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The formula on the same inputs, in fp64 if they are: no operator, so that autograd goes through itself."""
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    by_rows = (lists.row_offsets, lists.column_indices, lists.block_size)
    return reference.attention(*inputs, *by_rows, scale, pooled_RP=tail.mask(), spans=tail.spans, order=tail.order)


def by_hand(q: Tensor, k: Tensor, v: Tensor, kept: list[int], block: int) -> Tensor:
    """One query of one head, spelled out block by block."""
    logits, values = [], []
    for index in range(-(-len(k) // block)):
        keys, its_values = (x[index * block : (index + 1) * block] for x in (k, v))
        if index in kept:
            logits.append(keys @ q * len(q) ** -0.5)
            values.append(its_values)
        else:
            logits.append((keys.mean(0) @ q * len(q) ** -0.5 + torch.tensor(len(keys)).log())[None])
            values.append(its_values.mean(0)[None])
    return torch.cat(logits).softmax(0) @ torch.cat(values)


def test_the_formula_is_as_by_hand() -> None:
    (q, k, v), lists, tail = case((2, 40, 75, 2, 16, 16))
    got = formula((q.double(), k.double(), v.double()), lists, tail)[0]
    for b, position, head in ((0, 0, 0), (1, 17, 1), (0, 39, 1)):
        row = position // 16
        kept = lists.column_indices[lists.row_offsets[row] : lists.row_offsets[row + 1]].tolist()
        assert 0 < len(kept) < 5
        inputs = q[b, position, head], k[b, :, head], v[b, :, head]
        want = by_hand(*(x.double().cpu() for x in inputs), kept, 16)
        assert torch.allclose(got[b, position, head].cpu(), want)


def test_equal_keys_in_a_block_make_the_far_field_exact() -> None:
    """A mean stands for its keys: where those are alike, nothing is lost, ragged last block included."""
    (q, k, v), lists, tail = case((1, 70, 70, 1, 32, 32))
    k, v = (x[:, ::32].repeat_interleave(32, 1)[:, :70] for x in (k, v))
    full = BlockLists.of_mask(torch.ones(3, 3, dtype=torch.bool, device=DEVICE), 32)
    want, want_lse = attention(q, k, v, full, backend="reference", return_lse=True)
    for backend in BACKENDS:
        got, lse = attention(q, k, v, lists, tail=tail, backend=backend, return_lse=True)
        assert error(got, want.double()) < 2e-6
        assert torch.allclose(lse, want_lse, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES[:4]), *((shape, torch.float16) for shape in SHAPES[2:])],
    ids=lambda x: shape_name(x) if isinstance(x, tuple) else str(x).removeprefix("torch."),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward(backend: str, shape: tuple[int, ...], dtype: torch.dtype, nan_memory: None) -> None:
    density = 0.1 if shape[2] > 1000 else 0.5
    check(*case(shape, dtype, (1,) if shape[1] > shape[-1] else (), density), backend)


def check(inputs: tuple[Tensor, ...], lists: BlockLists, tail: PooledLists, backend: str) -> None:
    """Output, log-sum-exp and gradients through both, against the formula and autograd through it."""
    dtype = inputs[0].dtype
    weight = torch.randn_like(inputs[0])
    wanted = [x.double().requires_grad_() for x in inputs]
    want, want_lse = formula(tuple(wanted), lists, tail)
    ((want * weight.double()).sum() + want_lse.sin().sum()).backward()
    ours = [x.clone().requires_grad_() for x in inputs]
    out, lse = attention(*ours, lists, tail=tail, backend=backend, return_lse=True)
    ((out * weight).sum() + lse.sin().sum()).backward()
    assert (out.shape, out.dtype, lse.dtype) == (inputs[0].shape, dtype, torch.float32)
    assert error(out, want) < TOLERANCE[dtype]
    assert torch.allclose(lse.double(), want_lse, atol=LSE_TOLERANCE[dtype])
    for got, other in zip(ours, wanted, strict=True):
        assert got.grad is not None
        assert other.grad is not None
        assert got.grad.dtype == dtype
        assert error(got.grad, other.grad) < GRADIENT_TOLERANCE[dtype]


def test_gather_takes_rows_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> None:
    monkeypatch.setattr(gather, "_LOGITS", 2 * 2 * 16 * 6 * 2)  # two rows of the five
    check(*case((2, 75, 90, 2, 32, 16)), "gather")


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_empty_and_missing_rows(backend: str, nan_memory: None) -> None:
    """Row 0 has no far field, row 1 no list, row 2 nothing at all."""
    q, k, v = random_inputs(1, 48, 70, 1, 32, torch.float32)
    kept = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    kept[0], kept[1:] = True, False
    pooled = ~kept
    pooled[2] = False
    lists = BlockLists.of_mask(kept.to(DEVICE), 16)
    tail = PooledLists.of_masks({1: pooled.to(DEVICE)}, 70, 16).check(lists)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*ours, lists, tail=tail, backend=backend, return_lse=True)
    exact = attention(q, k, v, lists, backend=backend)
    wanted = [x.double().requires_grad_() for x in (q, k, v)]
    want, want_lse = formula(tuple(wanted), lists, tail)
    assert torch.allclose(out[:, :16], exact[:, :16], atol=1e-6)
    assert backend != "triton" or torch.equal(out[:, :16], exact[:, :16])
    assert (out[:, 32:] == 0).all()
    assert (lse[..., 32:] == float("-inf")).all()
    assert error(out, want) < 2e-6
    assert torch.allclose(lse.double(), want_lse, atol=2e-5)
    out.sin().sum().backward()
    want[:, :32].sin().sum().backward()
    for got, other in zip(ours, wanted, strict=True):
        assert got.grad is not None
        assert other.grad is not None
        assert error(got.grad, other.grad.nan_to_num(0.0)) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("plans", ["batch", "both", "shared lists"])
def test_plans_of_their_own(backend: str, plans: str, nan_memory: None) -> None:
    """A plan for each batch entry, or each entry's head; or pooled lists of each head beside lists for all."""
    q, k, v = random_inputs(2, 53, 90, 2, 16, torch.float32)
    batch_plans, head_plans = (2 if plans in ("batch", "both") else 1), (2 if plans != "batch" else 1)
    kept = torch.rand(batch_plans, head_plans, 2, 3, generator=torch.Generator().manual_seed(5)) < 0.5
    pooled = ~kept
    if plans == "shared lists":
        kept = kept[:, :1]
        pooled &= ~kept
    masks = [mask[:, 0] if plans == "batch" else mask for mask in (kept, pooled)]
    lists = BlockLists.of_mask((masks[0][0, 0] if plans == "shared lists" else masks[0]).to(DEVICE), 32)
    tail = PooledLists.of_masks({1: masks[1].to(DEVICE)}, 90, 32).check(lists)
    if plans != "shared lists":
        assert torch.equal(tail.bits, PooledLists.complement(lists, 90).bits)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    got = attention(*ours, lists, tail=tail, backend=backend)
    got.sin().sum().backward()
    for b, h in itertools.product(range(2), range(2)):
        one = [x[b : b + 1, :, h : h + 1].double().requires_grad_() for x in (q, k, v)]
        own = [mask[b % mask.shape[0], h % mask.shape[1]].to(DEVICE) for mask in (kept, pooled)]
        own_lists = BlockLists.of_mask(own[0], 32)
        want = formula(tuple(one), own_lists, PooledLists.of_masks({1: own[1]}, 90, 32))[0]
        want.sin().sum().backward()
        assert error(got[b : b + 1, :, h : h + 1], want) < 2e-6
        for x, y in zip(ours, one, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            assert error(x.grad[b : b + 1, :, h : h + 1], y.grad) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pyramid_of_means(backend: str, nan_memory: None) -> None:
    """Coarser with distance: several levels, and spans that end past the last key."""
    inputs, lists, _ = case((1, 170, 170, 1, 32, 16), torch.float16, density=0.1)
    tail = PooledLists.pyramid(lists, 170, spans=(1, 2, 4), reach=1).check(lists)
    used = tail.mask().any(-2)
    assert [bool(part.any()) for part in used.split([11, 6, 3])] == [True] * 3
    check(inputs, lists, tail, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pyramid_by_columns(backend: str, nan_memory: None) -> None:
    """Blocks of one column come together wherever they lie, and none of two; the ragged last one too."""
    inputs, lists, _ = case((1, 185, 185, 1, 32, 16), torch.float16, density=0.1)
    columns, times = torch.arange(12) % 2, torch.arange(12) // 2 * 1.0
    tail = PooledLists.pyramid(lists, 185, spans=(1, 2, 4), reach=1, columns=columns, times=times).check(lists)
    assert tail.order is not None
    assert tail.order.tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    left_out, fine, pairs, fours = (~kept_mask(lists, 12)).cpu(), *tail.mask().cpu().split([12, 6, 3], 1)
    assert pairs.any()
    assert not fours[:, 1].any()  # of both columns
    for row, pair in pairs.nonzero().tolist():
        blocks = tail.order[2 * pair : 2 * pair + 2].cpu()
        assert left_out[row, blocks].all()
        assert not fine[row, blocks].any()
        assert (times[blocks] - times[row]).abs().min() >= 2
    check(inputs, lists, tail, backend)


def kept_mask(lists: BlockLists, columns: int) -> Tensor:
    return reference.token_mask(lists.row_offsets, lists.column_indices, lists.rows, columns, 1)


def test_a_pyramid_covers_each_block_once_and_grows_slowly() -> None:
    """Every key is attended to exactly once, and pooled keys a row grow with the logarithm."""
    most = []
    for blocks in (64, 128, 256):
        near = torch.arange(blocks)
        kept = (near[:, None] - near).abs() < 2
        lists = BlockLists.of_mask(kept.to(DEVICE), 16)
        tail = PooledLists.pyramid(lists, blocks * 16 - 5, spans=(1, 2, 4, 8, 16, 32, 64, 128))
        mask = tail.check(lists).mask().cpu()
        sizes = [-(-blocks // span) for span in tail.spans]
        spread = [
            part.repeat_interleave(span, 1)[:, :blocks]
            for part, span in zip(mask.split(sizes, 1), tail.spans, strict=True)
        ]
        assert (torch.stack(spread).sum(0) + kept.int() == 1).all()
        most.append(int(mask.sum(1).max()))
    steps = [b - a for a, b in itertools.pairwise(most)]
    assert all(step <= 8 for step in steps), most
    assert most[-1] < 64


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_strided_inputs_need_no_copy(backend: str, nan_memory: None) -> None:
    _, lists, tail = case((2, 50, 50, 2, 64, 32))
    q, k, v = torch.randn(2, 50, 3, 2, 64, device=DEVICE).unbind(2)
    want = formula((q.double(), k.double(), v.double()), lists, tail)[0]
    assert error(attention(q, k, v, lists, tail=tail, backend=backend), want) < 2e-6
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    assert error(attention(q, k, v, lists, tail=tail, backend=backend), want) < 2e-6


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_large_logits_do_not_overflow(backend: str) -> None:
    (q, k, v), lists, tail = case((1, 48, 48, 1, 32, 16))
    want = formula((q.double() * 100, k.double() * 100, v.double()), lists, tail)[0]
    assert error(attention(q * 100, k * 100, v, lists, tail=tail, backend=backend), want) < 1e-4


def test_gradients_are_deterministic() -> None:
    inputs, lists, tail = case((1, 40, 70, 1, 16, 32))

    def gradients() -> list[Tensor]:
        ours = [x.clone().requires_grad_() for x in inputs]
        attention(*ours, lists, tail=tail, backend="triton").sin().sum().backward()
        return [x.grad for x in ours if x.grad is not None]

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_the_far_field_alone_merges_with_the_near(backend: str) -> None:
    """With empty lists the far field is a part of a whole like any other; merge passes gradients through both."""
    (q, k, v), lists, tail = case((1, 40, 70, 1, 16, 32), empty_rows=(1,))
    nothing = BlockLists.of_mask(torch.zeros(2, 3, dtype=torch.bool, device=DEVICE), 32)

    def gradients(run: object) -> tuple[Tensor, Tensor, list[Tensor]]:
        ours = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = run(*ours)  # type: ignore[operator]
        (out.sin().sum() + lse.sin().sum()).backward()
        return out, lse, [x.grad for x in ours if x.grad is not None]

    def parts(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        near = attention(*inputs, lists, backend=backend, return_lse=True)
        far = attention(*inputs, nothing, tail=tail, backend=backend, return_lse=True)
        return merge([near[0], far[0]], [near[1], far[1]])

    got, want = (
        gradients(run) for run in (parts, lambda *x: attention(*x, lists, tail=tail, backend=backend, return_lse=True))
    )
    assert torch.allclose(got[0], want[0], atol=1e-5)
    assert torch.allclose(got[1], want[1], atol=1e-5)
    for first, second in zip(got[2], want[2], strict=True):
        assert error(first, second.double()) < 1e-5


@pytest.mark.parametrize("block", [32, 64])
def test_eight_bit_exact_part(block: int, nan_memory: None) -> None:
    (q, k, v), lists, tail = case((1, 150, 150, 1, 64, block), torch.float16)
    doubles = (q.double(), k.double(), v.double())
    want, want_lse = formula(doubles, lists, tail)
    with torch.no_grad():
        out, lse = attention(q, k, v, lists, tail=tail, backend="triton", eight_bit=True, return_lse=True)
        exact = attention(q, k, v, lists, backend="triton", eight_bit=True)
    # The far field is in full precision: no more error than eight bits give without one.
    assert error(out, want) < 1.1 * error(exact, attention(*doubles, lists, backend="reference"))
    assert (lse.double() - want_lse).abs().max() < 0.02
    with pytest.raises(ValueError, match="eight_bit has no gradients"):
        attention(q.requires_grad_(), k, v, lists, tail=tail, backend="triton", eight_bit=True)


def test_gradcheck() -> None:
    """Second level: a pair of blocks that one row attends to as one mean."""
    inputs, _, _ = case((1, 20, 40, 1, 8, 16))
    kept = torch.tensor([[False, False, True], [False, True, False]], device=DEVICE)
    lists = BlockLists.of_mask(kept, 16)
    blocks, pairs = ~kept, torch.zeros(2, 2, dtype=torch.bool, device=DEVICE)
    blocks[0], pairs[0, 0] = False, True
    tail = PooledLists.of_masks({1: blocks, 2: pairs}, 40, 16).check(lists)
    doubles = tuple(x.double().requires_grad_() for x in inputs)
    for backend in ("reference", "gather"):
        run = partial(attention, lists=lists, tail=tail, backend=backend, return_lse=True)
        assert torch.autograd.gradcheck(run, doubles, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *x: formula(x, lists, tail), doubles, fast_mode=True)


@pytest.mark.parametrize("backend", ["gather", "triton"])
def test_operator_is_well_registered(backend: str) -> None:
    inputs, lists, tail = case((1, 40, 40, 1, 16, 32))
    arguments = (
        *(x.requires_grad_() for x in inputs), lists.row_offsets, lists.column_indices, None, None, None,
        tail.bits, tail.row_offsets, tail.word_indices, tail.column_offsets, tail.row_indices, tail.counts, None, [1],
        32, 0.25, backend, False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.radial.block_sparse_attention_with_tail.default, arguments)


def test_compiles_without_graph_breaks() -> None:
    (q, k, v), lists, tail = case((1, 40, 40, 1, 16, 16))

    def run(q: Tensor, k: Tensor) -> Tensor:
        return attention(q * 2, k, v, lists, tail=tail) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    ours, plain = ([x.clone().requires_grad_() for x in (q, k)] for _ in range(2))
    got, want = compiled(*ours), run(*plain)
    assert torch.allclose(got, want)
    got.sin().sum().backward()
    want.sin().sum().backward()
    for first, second in zip(ours, plain, strict=True):
        assert first.grad is not None
        assert second.grad is not None
        assert torch.allclose(first.grad, second.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1000, 1000, 4, 128, 128)], ids=shape_name)
@pytest.mark.parametrize("descriptors", [True, False], ids=["descriptors", "pointers"])
def test_bf16(shape: tuple[int, ...], descriptors: bool, monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> None:
    from radial_kernels.block_sparse.tail import backward, forward

    if not descriptors:
        for module in (forward, backward):
            monkeypatch.setattr(module, "descriptors_fit", lambda *_: False)
    check(*case(shape, torch.bfloat16), "triton")


HOPPER = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs an H100 or H200"
)


@pytest.mark.gpu
@HOPPER
@pytest.mark.parametrize("dim", [64, 128])
def test_after_the_hopper_kernels(dim: int, nan_memory: None) -> None:
    """The exact part by ``hopper``; lists by columns given, as plans have them."""
    inputs, lists, tail = case((1, 1000, 1000, 2, dim, 128), torch.bfloat16, empty_rows=(2,))
    check(inputs, lists.with_columns(1000), tail, "hopper")


@pytest.mark.gpu
@HOPPER
@pytest.mark.parametrize("exact", ["eight_bit", "flash"])
def test_after_other_kernels_of_the_architecture(exact: str, nan_memory: None) -> None:
    if exact == "flash" and not flash_attention_installed():
        pytest.skip("flash-attn-4 not installed")
    inputs, lists, tail = case((1, 1000, 1000, 2, 128, 128), torch.bfloat16, empty_rows=(2,))
    options: dict[str, Any] = {"backend": "flash"} if exact == "flash" else {"backend": "hopper", "eight_bit": True}
    got, lse = attention(*inputs, lists, tail=tail, return_lse=True, **options)
    want, want_lse = formula(tuple(x.double() for x in inputs), lists, tail)
    assert error(got, want) < (0.06 if exact == "eight_bit" else TOLERANCE[torch.bfloat16])
    assert torch.allclose(lse.double(), want_lse, atol=0.05)


def test_bits_are_packed_and_unpacked() -> None:
    mask = torch.rand(3, 2, 130, generator=torch.Generator().manual_seed(2)) < 0.5
    bits = pack(mask)
    assert (bits.shape, bits.dtype) == ((3, 2, 3), torch.int64)
    assert torch.equal(unpack(bits, 130), mask)
    for place in (0, 5, 63):
        assert pack(torch.arange(64) == place).tolist() == [1 << place if place < 63 else -(1 << 63)]


@pytest.mark.parametrize("plans", [(), (2,), (2, 3)])
def test_the_complement_is_what_lists_leave_out(plans: tuple[int, ...]) -> None:
    kept = torch.rand(*plans, 4, 70, generator=torch.Generator().manual_seed(4)) < 0.5
    kept[..., 0, :] = True
    lists = BlockLists.of_mask(kept, 16)
    tail = PooledLists.complement(lists, 70 * 16 - 3).check(lists)
    assert torch.equal(tail.mask(), ~kept)
    assert tail.counts.tolist() == [16.0] * 69 + [13.0]
    own = PooledLists.of_masks({1: ~kept}, 70 * 16 - 3, 16)
    for name in ("bits", "row_offsets", "word_indices", "column_offsets", "row_indices", "counts"):
        assert torch.equal(getattr(tail, name), getattr(own, name)), name
    words = (tail.bits != 0).flatten(0, -3) if plans else (tail.bits != 0)[None]
    assert len(tail.word_indices) == int(words.sum())  # row 0 has none listed


def test_made_while_sampling_it_serves_training() -> None:
    inputs, _, _ = case((1, 40, 40, 1, 16, 16))
    with torch.inference_mode():
        mask = torch.eye(3, dtype=torch.bool, device=DEVICE)
    lists = BlockLists.of_mask(mask.clone(), 16)
    with torch.inference_mode():
        tails = [
            PooledLists.complement(lists, 40),
            PooledLists.of_masks({1: ~mask}, 40, 16),
            PooledLists.pyramid(lists, 40),
        ]
    for tail in tails:
        ours = [x.clone().requires_grad_() for x in inputs]
        attention(*ours, lists, tail=tail).sum().backward()
        assert ours[0].grad is not None


def test_keys_attended_to_twice_are_named() -> None:
    kept = torch.eye(4, dtype=torch.bool)
    lists = BlockLists.of_mask(kept, 16)
    pooled = ~kept
    pooled[2, 2] = True
    with pytest.raises(ValueError, match="row 2 attends to block 2 of keys more than once"):
        PooledLists.of_masks({1: pooled}, 64, 16).check(lists)
    pairs = torch.tensor([[False, False]] * 3 + [[True, False]])
    with pytest.raises(ValueError, match="row 3 attends to block 0 of keys more than once"):
        PooledLists.of_masks({1: ~kept, 2: pairs}, 64, 16).check(lists)


def test_wrong_far_fields_are_named() -> None:
    (q, k, v), lists, tail = case((1, 40, 40, 2, 16, 16))
    with pytest.raises(ValueError, match="the far field is of 70 keys"):
        attention(q, k, v, lists, tail=PooledLists.complement(lists, 70))
    per_head = PooledLists.of_masks({1: tail.mask().expand(1, 3, 3, 3)}, 40, 16)
    with pytest.raises(ValueError, match="for 2 heads"):
        attention(q, k, v, lists, tail=per_head)
    with pytest.raises(ValueError, match=r"need a bool mask \[\.\.\., rows, 2\] for span 2"):
        PooledLists.of_masks({2: tail.mask()}, 40, 16)
    with pytest.raises(ValueError, match="agree in all dimensions but the last"):
        PooledLists.of_masks({1: tail.mask(), 2: tail.mask()[:2, :2]}, 40, 16)
    with pytest.raises(ValueError, match="must ascend from 1"):
        PooledLists.pyramid(lists, 40, spans=(2, 4))
    with pytest.raises(ValueError, match="as many blocks of queries as of keys, not 3 and 5"):
        PooledLists.pyramid(lists, 70)
