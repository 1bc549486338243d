"""All of it by the command line, as a user goes: clips, a cache, a run that is killed and goes on, an adapter that
generation uses, and measures of what it makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from radial.video.clip import read_receipt
from radial_app.cli import main as cli
from radial_finetune.training.checkpoints import list_checkpoints
from radial_finetune.world.__main__ import write_clips


def test_from_clips_to_a_longer_video(
    tmp_path: Path, wan_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def radial(*arguments: str, code: int = 0) -> str:
        """Run the command line: what it printed."""
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        told = "".join(capsys.readouterr())
        assert int(stop.value.code or 0) == code, told
        return told

    write_clips(tmp_path / "clips", 8, [13, 25], 48, 48, 16, 0.5, seed=3)
    (tmp_path / "clips" / "torn.mp4").write_bytes((tmp_path / "clips" / "00000.mp4").read_bytes()[:700])
    (tmp_path / "clips" / "torn.txt").write_text("a clip that was cut off")
    told = radial("finetune", "prepare", "clips", "--out", "cache", "--model", str(wan_folder), "--bucket", "13x32x32",
                  "--bucket", "25x32x32", "--batch-size", "2", "--static-threshold", "0")  # fmt: skip
    assert "torn.mp4" in told
    assert "file 1 of 9: 00000.mp4" in told  # no terminal shows a bar here
    assert json.loads((tmp_path / "cache" / "report.json").read_text())["kept"] == 8

    (tmp_path / "run.toml").write_text(f"""
        data = "cache"
        output = "run"
        model = {json.dumps(str(wan_folder))}
        rank = 4
        steps = 20
        batch_size = 2
        learning_rate = 5e-3
        held_out = 2
        validate_every = 10
        checkpoint_every = 2
        trackers = []
        [[curriculum]]
        num_frames = 13
        steps = 8
        [[curriculum]]
        num_frames = 25
        steps = 12
    """)
    told = radial("finetune", "run", "run.toml", "--set", "rnak=4", code=2)
    assert "unknown key 'rnak', did you mean 'rank'?" in told
    # Slowed down to be caught: one of the two cores is enough for a run this small.
    run = subprocess.Popen(
        [sys.executable, "-m", "radial_app", "finetune", "run", "run.toml"], cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 1800
    while not list_checkpoints(tmp_path / "run"):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert list_checkpoints(tmp_path / "run")
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    told = radial("finetune", "run", "run.toml", "--resume")
    assert "held-out loss" in told
    assert "step 20 of 20: loss 1." in told

    told_of = json.loads(radial("finetune", "info", "run/adapter.safetensors"))
    assert (told_of["run"]["step"], told_of["run"]["learning_rate"]) == (20, 5e-3)
    settings = told_of["settings"]
    assert (settings["target_frames"], settings["rank"]) == (25, 4)
    radial("finetune", "convert", "run/adapter.safetensors", "--output", "comfy.safetensors")
    common = ["a red circle rises", "--model", str(wan_folder), "--height", "32", "--width", "32", "--seed", "1",
              "--num-inference-steps", "2"]  # fmt: skip
    for name, adapter in (("own", "run/adapter.safetensors"), ("comfy", "comfy.safetensors")):
        told = radial("generate", *common, "--lora", adapter, "--output", f"{name}.mp4")
        assert "as the adapter was tuned: 25 frames" in told
        assert read_receipt(tmp_path / f"{name}.mp4")["request"]["num_frames"] == 25
    told = radial("evaluate", "clips", "own.mp4", "comfy.mp4", "--out", "measures")
    measured = json.loads((tmp_path / "measures" / "clips.json").read_text())
    assert measured["own.mp4"] == measured["comfy.mp4"]  # the same adapter by either names
    told = radial("finetune", "merge", "run/adapter.safetensors", "--model", str(wan_folder), "--output", "merged",
                  "--dtype", "float32")  # fmt: skip
    radial("generate", *common[:1], "--model", "merged", *common[3:], "--num-frames", "25",
           "--output", "merged.mp4")  # fmt: skip
    assert (tmp_path / "merged.mp4").exists()
