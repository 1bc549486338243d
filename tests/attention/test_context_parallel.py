"""Clips that processes share: the same clip and gradients as alone, for every family whose clips can be shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_cases import CASES

import radial
from radial import ContextParallel, ModelError, RequestError
from radial.attention.context_parallel import Shards, peer_failures, sharding_of
from radial.attention.families.find import find_family
from radial.errors import ProcessLost
from radial.plans.layout import Layout, TokenGrid

SHARED = (
    "WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel",
    "ChronoEditTransformer3DModel", "HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel",
    "MochiTransformer3DModel", "LTXVideoTransformer3DModel", "CogVideoXTransformer3DModel",
    "MiniMaxH3Transformer3DModel",
)  # fmt: skip


def test_processes_share_a_clip() -> None:
    """Over gloo: three processes, one of which has no head at all, and two of the three; no length divides."""
    script = Path(__file__).with_name("shared_clips.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run([*command, str(script), *SHARED], capture_output=True, text=True, timeout=1800,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(one["processes"], one["kind"]) for one in found] == [(2, SHARED[0]), *((3, kind) for kind in SHARED)]
    for entry in found:
        assert entry["output"] < 1e-5, entry
        assert entry["gradients"] < 1e-5, entry


@pytest.mark.parametrize("kind", sorted(set(CASES) - set(SHARED)))
def test_says_whose_clips_cannot_be_shared(kind: str) -> None:
    transformer = CASES[kind].build()
    with pytest.raises(ModelError, match=f"{kind} cannot be shared"):
        radial.apply(transformer, parallel=ContextParallel(None, 0, 2))
    assert not any("Radial" in type(m.processor).__name__ for m in transformer.modules() if hasattr(m, "processor"))


@pytest.mark.parametrize("kind", SHARED)
def test_plans_name_what_is_there(kind: str) -> None:
    transformer = CASES[kind].build()
    assert all(transformer.get_submodule(name) for name in sharding_of(transformer, find_family(transformer)))


def test_shares_are_near_equal() -> None:
    parallel = ContextParallel(None, 1, 4)
    assert parallel.shares(10) == [3, 3, 2, 2]
    assert parallel.shares(2) == [1, 1, 0, 0]
    assert torch.equal(parallel.split(torch.arange(10), 0), torch.tensor([3, 4, 5]))
    with pytest.raises(RequestError, match="3 tokens cannot be shared by 4 processes"):
        Shards(torch.nn.Identity(), {}, parallel).begin_call(
            torch.nn.Identity(), Layout.of(TokenGrid(3, 1, 1), after=9), (), {}
        )


def test_only_what_a_connection_raises_is_a_peer_that_died() -> None:
    for own in (torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error")):
        with pytest.raises(type(own), match="CUDA"), peer_failures():
            raise own
    with pytest.raises(ProcessLost, match=r"has died \(Connection closed by peer"), peer_failures():
        raise RuntimeError("Connection closed by peer")
