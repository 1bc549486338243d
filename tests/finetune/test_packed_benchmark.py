"""The short form of benchmarks/packed.py."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_it_runs_at_a_small_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("packed_benchmark", ROOT / "benchmarks" / "packed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "packed_benchmark", module)
    spec.loader.exec_module(module)
    ceilings = [
        len(grids) * max(one.tokens for one in grids) ** 2 / sum(one.tokens**2 for one in grids)
        for grids in module.REAL.mixes.values()
    ]
    assert [round(one, 2) for one in ceilings[:2]] == [2.46, 3.62]
    monkeypatch.setattr(sys, "argv", ["packed.py", "--tiny", "--rounds", "1", "--part", "attention", "tuning"])
    module.main()
    told = capsys.readouterr().out
    for name in ("padded", "one by one", "packed", "radial", "one list", "buckets", "packs"):
        assert re.search(rf"^  {name} +[\d.]", told, re.MULTILINE), name
    assert "ceiling 2.00x" in told
