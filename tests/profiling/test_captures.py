"""Ways to attend, judged on captured queries, keys and values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from radial import RequestError, TokenGrid
from radial.plans.layout import Layout
from radial.plans.planner import Site
from radial.profiling import captures
from radial.profiling.captures import Capture, judge, judge_folder, ways
from radial_finetune.evaluate.cli import app
from radial_kernels.block_sparse import PooledLists
from radial_kernels.block_sparse.reference import attention, token_mask

GRID, BEFORE, AFTER, BLOCK = TokenGrid(9, 4, 6), 5, 7, 16
LAYOUT = Layout.of(GRID, before=BEFORE, after=AFTER)


def drawn(seed: int = 0, heads: int = 3) -> dict[str, torch.Tensor]:
    """Places attend to their like: what lies near is alike."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, LAYOUT.tokens, heads, 32, generator=generator).cumsum(1) * 0.3
    return {name: base + torch.randn(base.shape, generator=generator) for name in "qkv"}


@pytest.mark.parametrize("index", range(4))
def test_figures_are_those_of_the_formula(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of the clip against the reference in fp64, means included, whatever the order of tokens."""
    monkeypatch.setattr(captures, "ROWS", 99)
    way = ways(0.3, [0.3], BLOCK)[index]
    parts = drawn()
    found = judge(Capture("a", *parts.values()), LAYOUT, way, BLOCK)
    layout = captures.in_columns(LAYOUT, BLOCK) if way.columns else LAYOUT
    q, k, v = (captures._turned(x, layout) if way.columns else x for x in parts.values())
    lists = way.planner.lists(Site(layout, 1, 0, "", q.device), q, k)
    pooled = PooledLists.complement(lists, LAYOUT.tokens) if way.mean else None
    double = [x.double() for x in (q, k, v)]
    blocks = -(-LAYOUT.tokens // BLOCK)
    kept = captures.kept_blocks(lists, torch.arange(blocks), blocks)
    ours, _ = attention(
        *double, lists.row_offsets, lists.column_indices, BLOCK, 32**-0.5, pooled_RP=None if pooled is None else ~kept
    )
    real, _ = attention(*double, torch.arange(0, blocks**2 + 1, blocks, dtype=torch.int32),
                               torch.arange(blocks, dtype=torch.int32).repeat(blocks), BLOCK, 32**-0.5)  # fmt: skip
    rows = slice(16, 208)  # blocks of the clip's tokens alone
    assert found.error == pytest.approx(
        float((ours - real)[:, rows].square().sum() / real[:, rows].square().sum()), rel=1e-3
    )
    weights = (torch.einsum("bshd,bthd->bhst", double[0], double[1]) * 32**-0.5).softmax(-1)
    mask = token_mask(lists.row_offsets, lists.column_indices, LAYOUT.tokens, LAYOUT.tokens, BLOCK)
    assert found.recall == pytest.approx(float((weights * mask)[:, :, rows].sum(-1).mean()), rel=1e-4)
    assert found.density == pytest.approx(float(kept[..., 1:13, :].float().mean()), rel=1e-6)


def test_a_folder_of_captures(tmp_path: Path) -> None:
    """Several of a file, heads before tokens, grouped queries and half precision; the command tells and writes."""
    one, other = drawn(1), {name: x.half() for name, x in drawn(2).items()}
    save_file({f"blocks.3.{name}": x.transpose(1, 2).contiguous() for name, x in one.items()}
              | {f"blocks.5.{name}": x for name, x in other.items()}, tmp_path / "a.safetensors")  # fmt: skip
    (tmp_path / "deep").mkdir()
    query = {"query": one["q"][0], "key": one["k"][0, :, :1].contiguous(), "value": one["v"][0, :, :1].contiguous()}
    save_file(query, tmp_path / "deep" / "b.safetensors")
    arguments = ["attention", "--captures", str(tmp_path), "--grid", "9x4x6", "--before", "5", "--block-size", "16",
                 "--density", "0.3", "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "3 captures" in done.output
    told = json.loads((tmp_path / "out" / "captures.json").read_text())
    assert len(told) == 3
    assert told == captures.told(judge_folder(tmp_path, "9x4x6", 5, None, [0.3], 16, "cpu"))
    alone = judge(Capture("", *one.values()), LAYOUT, ways(1.0, [0.3], 16)[2], 16)
    assert told[f"{tmp_path / 'a.safetensors'} (blocks.3)"]["adaptive 0.3, columns, means"] == pytest.approx(
        {"density": alone.density, "recall": alone.recall, "error": alone.error}
    )
    for judged in told.values():
        assert judged["adaptive 0.3, columns, means"]["error"] < judged["random 0.3, columns, means"]["error"]


def test_captures_that_cannot_be_judged_say_why(tmp_path: Path) -> None:
    def refused(why: str, tensors: dict[str, torch.Tensor] | None = None, grid: str = "9x4x6", **more: float) -> None:
        file = tmp_path / "x.safetensors"
        if tensors is not None:
            save_file({name: x.contiguous() for name, x in tensors.items()}, file)
        with pytest.raises(RequestError, match=why):
            judge_folder(tmp_path, grid, 5, None, [more.get("density", 0.3)], int(more.get("block_size", 16)), "cpu")
        file.unlink(missing_ok=True)

    parts = drawn()
    (tmp_path / "c.pt").write_bytes(b"pickle")
    refused(r"none in .*files of other kinds are not read")
    refused("x.safetensors holds no capture", {"hidden": parts["q"]})
    refused("x.safetensors has no v beside", {"q": parts["q"], "k": parts["k"]})
    refused("228 tokens, fewer than the 240 of a clip of 10x4x6 and 5 before it", parts, "10x4x6")
    refused("holds no attention of a sequence to itself", parts | {"k": parts["k"][:, 1:]})
    refused("holds what is no number", parts | {"v": parts["v"] * float("inf")})
    refused(r"q of .* must be numbers \[batch, tokens, heads, head dim\]", parts | {"q": parts["q"][0, 0]})
    refused("grid must be latent frames x rows x columns", parts, "9x4")
    refused("density must be from", parts, density=1.5)
    refused("block_size must be", parts, block_size=17)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    refused("x.safetensors is no safetensors file")
