"""The short form of benchmarks/attack.py: a server of its own is attacked, and nothing gives way."""

from __future__ import annotations

from pathlib import Path

import attack
import pytest


def test_nothing_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADIAL_COLD", "1")  # the server's memory is limited, which is no fork's own
    rounds = attack.run(tmp_path, requests=60, short=True)
    assert len(rounds) == 12
    assert sum(one.tried for one in rounds) > 1_200
    faults = {one.name: one.faults[:5] for one in rounds if one.faults}
    # How long somebody waited says more about a busy machine than about the server.
    faults = {name: [fault for fault in found if "another waits" not in fault] for name, found in faults.items()}
    assert not {name: found for name, found in faults.items() if found}
