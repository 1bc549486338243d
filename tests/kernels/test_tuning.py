"""Tuned tiles: what they are kept under, how they are found again, and the padded lists of the flash backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DEVICE, lists_of

from radial_kernels.block_sparse import BlockLists, attention
from radial_kernels.block_sparse.flash import pad_lists
from radial_kernels.block_sparse.portable import configurations, tuning
from radial_kernels.block_sparse.portable.configurations import Tiles, read_tuned, tuned_file, tuning_key


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RADIAL_TILES", str(tmp_path / "deep" / "tiles.json"))
    read_tuned.cache_clear()
    yield tuned_file()
    read_tuned.cache_clear()


def test_lengths_in_between_share_a_key() -> None:
    def key(tokens: int) -> str:
        return tuning_key("forward", torch.empty(1, tokens, 1, 128, dtype=torch.bfloat16))

    assert key(32768) == key(40000) == key(65535) == "forward bfloat16 128 cpu 32768"
    assert key(65536) != key(65535)
    assert key(460_800) == key(524_287)
    assert key(100) == key(4096)


def test_choices_are_added_and_read_again(file: Path) -> None:
    tuning.save({"one": Tiles(64, 64, 4, 2)}, file)
    tuning.save({"two": Tiles(32, 64, 8, 1)}, file)
    assert read_tuned(file) == {"one": Tiles(64, 64, 4, 2), "two": Tiles(32, 64, 8, 1)}
    assert [x.name for x in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("text", ["", "[]", '{"key": {"rows": 3}}', '{"key": 3}'])
def test_a_broken_file_is_named(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ValueError, match=r"tiles\.json does not hold tuned tiles"):
        read_tuned(file)


def test_the_fastest_that_runs_is_taken() -> None:
    slow, quick, broken = Tiles(32, 64, 4, 1), Tiles(64, 64, 4, 1), Tiles(128, 128, 8, 3)
    seconds = {slow: 2.0, quick: 1.0}
    runs: dict[Tiles, Any] = {tiles: (lambda tiles=tiles: seconds[tiles]) for tiles in (slow, broken, quick)}
    assert tuning.fastest(runs, lambda run: run()) == quick
    with pytest.raises(RuntimeError, match="no choice of tiles runs"):
        tuning.fastest({broken: runs[broken]}, lambda run: run())


@pytest.mark.gpu
def test_tuned_tiles_are_used(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = (Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2))
    key, tiles = tuning.tune("forward", torch.bfloat16, 64, 5000, few, heads=2)
    assert tiles in few
    tuning.save({key: Tiles(32, 32, 4, 1)}, file)
    q = torch.randn(1, 6000, 2, 64, device="cuda", dtype=torch.bfloat16)
    assert configurations.choose_tiles("forward", q, 128) == Tiles(32, 32, 4, 1)
    lists = tuning.band_lists(47, "cuda")
    assert attention(q, q, q, BlockLists(*lists), backend="triton").isfinite().all()
    for kind in tuning.KINDS:
        assert tuning.tune(kind, torch.bfloat16, 64, 1000, few[:1], heads=1)[1] == few[0]


def test_lists_are_padded_to_the_widest_row() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    counts, indices = pad_lists(*lists_of(mask))
    assert counts.tolist() == [[[2, 0, 3]]]
    assert indices.tolist() == [[[[0, 2, 0], [0, 0, 0], [0, 1, 2]]]]
    counts, indices = pad_lists(*lists_of(torch.stack([mask, ~mask])))
    assert counts.tolist() == [[[2, 0, 3]], [[1, 3, 0]]]
    assert indices[1, 0].tolist() == [[1, 0, 0], [0, 1, 2], [0, 0, 0]]
    empty = torch.zeros(2, dtype=torch.int32, device=DEVICE), torch.zeros(0, dtype=torch.int32, device=DEVICE)
    assert [x.tolist() for x in pad_lists(*empty)] == [[[[0]]], [[[[0]]]]]


def test_flash_is_refused_without_its_package() -> None:
    q = torch.zeros(1, 128, 1, 64)
    lists = lists_of(torch.ones(1, 1, dtype=torch.bool).cpu())
    with pytest.raises(ValueError, match=r"backend flash needs .*; use auto, or one of .*gather, reference"):
        attention(q, q, q, BlockLists(*(x.cpu() for x in lists)), backend="flash")
