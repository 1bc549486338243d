"""On machines that Triton is not made for, as macOS and Windows: everything works but its kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from radial.video.clip import read_frames
from radial_app.cli import main as cli
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


# What the tests below look at, by one process: each takes many seconds to start.
DRIVER = """
import contextlib, importlib.util, io, json, sys
import torch
from radial import BlockPlan, TokenGrid
from radial_app.cli.main import main
from radial_kernels.block_sparse import attention

refused = []
plan = BlockPlan.build(TokenGrid(4, 4, 4), block_size=16)
q = torch.randn(1, 64, 2, 16, requires_grad=True)
attention(q, q, q, plan).sum().backward()
for backend in ("triton", "hopper"):
    try:
        attention(q, q, q, plan, backend=backend)
    except ValueError as error:
        refused.append(str(error))
ended = []
for arguments in json.loads(sys.argv[1]):
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            main(arguments)
    except SystemExit as end:
        ended.append([end.code, told.getvalue()])
found = importlib.util.find_spec("triton") is not None or "triton" in sys.modules
json.dump({"triton": found, "refused": refused, "ended": ended}, sys.stdout)
"""
CLIP = ["generate", "a red circle", "--seed", "3", "--num-frames", "9", "--num-inference-steps", "3",
        "--dense-steps", "1"]  # fmt: skip
PREPARE = ["finetune", "prepare", "clips", "--out", "cache", "--model", "tiny", "--bucket", "13x128x128",
           "--batch-size", "1", "--static-threshold", "0"]  # fmt: skip
TRAIN = {"data": "cache", "output": "run", "model": "tiny", "rank": 1, "steps": 1, "held_out": 1, "batch_size": 1}


@pytest.fixture(scope="module")
def done(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder, and what was told by a process that made a clip and an adapter there without Triton."""
    folder = tmp_path_factory.mktemp("without")
    write_clips(folder / "clips", 3, [13], 128, 128, 16, 0.5, seed=3)
    lines = [f"{name} = {json.dumps(value)}" for name, value in TRAIN.items()]
    (folder / "run.toml").write_text("\n".join([*lines, "trackers = []"]))
    commands = [[*CLIP, "--output", "without.mp4"], PREPARE, ["finetune", "run", "run.toml"]]
    # -S: without the packages that Python would find by itself.
    ended = subprocess.run(
        [sys.executable, "-S", "-c", DRIVER, json.dumps(commands)], cwd=folder, capture_output=True, text=True,
        env=environment | {"RADIAL_DATA_DIR": str(folder / "data")}, timeout=1800,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout)


def test_the_environment_lacks_it(done: tuple[Path, dict[str, Any]]) -> None:
    assert not done[1]["triton"]


def test_a_video_is_made_the_same(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, told = done
    assert told["ended"][0][0] == 0, told["ended"][0]
    with pytest.raises(SystemExit) as stop:
        cli.main([*CLIP, "--output", str(tmp_path / "with.mp4")])
    assert not stop.value.code
    assert (read_frames(folder / "without.mp4") == read_frames(tmp_path / "with.mp4")).all()


def test_kernels_are_refused_by_name(done: tuple[Path, dict[str, Any]]) -> None:
    refused = done[1]["refused"]
    assert len(refused) == 2
    assert all("needs the triton package; use auto, or one of gather, reference" in one for one in refused)


def test_an_adapter_is_tuned(done: tuple[Path, dict[str, Any]]) -> None:
    folder, told = done
    assert [code for code, _ in told["ended"][1:]] == [0, 0], told["ended"]
    assert (folder / "run" / "adapter.safetensors").is_file()
