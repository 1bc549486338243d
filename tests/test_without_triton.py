"""On machines that Triton is not made for, as macOS and Windows: everything works but its kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from radial.video.clip import read_frames
from radial_finetune.world.__main__ import write_clips

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All that is installed here but Triton, and the packages of this repository."""
    site = tmp_path_factory.mktemp("site")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("triton", "__editable__")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    paths = [site, ROOT, *(ROOT / name for name in ("kernels", "app", "finetune", "assets"))]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def run(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """Run Python without the packages that it would find by itself: what it printed."""
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_environment_lacks_it(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import importlib.util as u, torch, diffusers; print(u.find_spec('triton'), torch.__version__)"
    assert run(environment, tmp_path, "-c", code).startswith("None ")


def test_a_video_is_made_the_same(environment: dict[str, str], tmp_path: Path) -> None:
    made = ["-m", "radial_app", "generate", "a red circle", "--seed", "3", "--num-frames", "9",
            "--num-inference-steps", "3", "--dense-steps", "1"]  # fmt: skip
    run(environment, tmp_path, *made, "--output", "without.mp4")
    subprocess.run([sys.executable, *made, "--output", "with.mp4"], cwd=tmp_path, check=True, capture_output=True)
    assert (read_frames(tmp_path / "without.mp4") == read_frames(tmp_path / "with.mp4")).all()


def test_kernels_are_refused_by_name(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import torch
from radial import BlockPlan, TokenGrid
from radial_kernels.block_sparse import attention
plan = BlockPlan.build(TokenGrid(4, 4, 4), block_size=16)
q = torch.randn(1, 64, 2, 16, requires_grad=True)
attention(q, q, q, plan).sum().backward()
for backend in ("triton", "hopper"):
    try:
        attention(q, q, q, plan, backend=backend)
    except ValueError as error:
        print(error)
"""
    out = run(environment, tmp_path, "-c", code)
    assert out.count("needs the triton package; use auto, or one of gather, reference") == 2


def test_an_adapter_is_tuned(environment: dict[str, str], tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 3, [13], 128, 128, 16, 0.5, seed=3)
    prepare = ("-m", "radial_app", "finetune", "prepare", "clips", "--out", "cache", "--model", "tiny")
    run(environment, tmp_path, *prepare, "--bucket", "13x128x128", "--batch-size", "1", "--static-threshold", "0")
    settings = {
        "data": "cache",
        "output": "run",
        "model": "tiny",
        "rank": 1,
        "steps": 1,
        "held_out": 1,
        "batch_size": 1,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (tmp_path / "run.toml").write_text("\n".join([*lines, "trackers = []"]))
    run(environment, tmp_path, "-m", "radial_app", "finetune", "run", "run.toml")
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
