"""The first run of every named model on a fresh machine: its name, a hub, an empty cache, a file at the end."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import numpy as np
import pytest
from PIL import Image
from truthful import CASE_OF, write_checkpoint, write_pieces

from radial.input_files import KINDS
from radial.models.table import MODELS
from radial.video.clip import Video, read_frames, read_receipt
from radial.video.sound import read_sound

OFFERED = [name for name, spec in MODELS.items() if spec.starts_from and name != "tiny"]
LACKING = {name: [p for p in MODELS[name].packages if importlib.util.find_spec(p) is None] for name in OFFERED}
# One process runs them one after the other, as a user would; starting each anew would take minutes.
DRIVER = """
import contextlib, io, json, sys
from radial_app.cli.main import main
results = {}
for name, arguments in json.load(open(sys.argv[1])).items():
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            main(arguments)
    except SystemExit as ended:
        results[name] = [ended.code, told.getvalue()]
json.dump(results, open(sys.argv[2], "w"))
"""


def arguments_for(name: str, folder: Path) -> list[str]:
    spec = MODELS[name]
    sizes = {"wan2.2-ti2v-5b": (128, 192), "hunyuan-video-1.5-i2v": (480, 848)}
    size = sizes.get(name, (64, 96))
    # What is as large as its pipeline wants it is as short as can be.
    frames = (1 if size[0] > 128 else 2) * spec.stride[0] + spec.first_frame if name != "allegro" else 16
    words = ["generate", "a red circle moves to the left", "--model", name, "--height", str(size[0]), "--width",
             str(size[1]), "--num-frames", str(frames), "--num-inference-steps", "2", "--snap", "--quiet",
             "--output", str(folder / f"{name}.mp4")]  # fmt: skip
    for field in spec.needs:
        file = "control.mp4" if KINDS[field] == "clip" else "start.png"
        words += [f"--{field.replace('_', '-')}", str(folder / file)]
    return words


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("first")
    Image.new("RGB", (96, 64), "red").save(folder / "start.png")
    Video(np.zeros((9, 64, 96, 3), np.uint8), 8).write(folder / "control.mp4")
    sources = {}
    for name in OFFERED:
        if MODELS[name].pieces:
            sources |= write_pieces(name, folder / "hub" / name)
        else:
            sources[MODELS[name].source] = write_checkpoint(name, folder / "hub" / name)
    with fake_hub.serve_all(sources) as hubs:
        environment = os.environ | {
            "HF_ENDPOINT": next(iter(hubs.values())).url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1",
            "RADIAL_DATA_DIR": str(folder / "data"),
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)
        (folder / "commands.json").write_text(json.dumps({name: arguments_for(name, folder) for name in OFFERED}))
        (folder / "driver.py").write_text(DRIVER)
        subprocess.run(
            [sys.executable, "driver.py", str(folder / "commands.json"), str(folder / "results.json")], cwd=folder,
            env=environment, check=True, timeout=1800,
        )  # fmt: skip
        yield json.loads((folder / "results.json").read_text()), folder, hubs


def test_every_offered_model_has_a_copy() -> None:
    assert CASE_OF.keys() == set(OFFERED)


@pytest.mark.parametrize("name", OFFERED)
def test_the_first_run(name: str, first_runs: tuple[dict[str, Any], Path, dict[str, fake_hub.Hub]]) -> None:
    results, folder, hubs = first_runs
    code, told = results[name]
    if LACKING[name]:
        assert code == 1
        assert f"{name} needs {' and '.join(LACKING[name])}: pip install {' '.join(LACKING[name])}" in told
        assert not hubs[MODELS[name].source].sent, "nothing may be downloaded before that is said"
        return
    assert code == 0, told
    file = folder / f"{name}.mp4"
    receipt = read_receipt(file)
    assert receipt["model"]["name"] == name
    assert read_frames(file).shape[0] == receipt["request"]["num_frames"]
    for field in ("negative_prompt", "guidance_scale", "guidance_scale_2"):
        assert receipt["request"][field] == getattr(MODELS[name], field)
    assert receipt["request"]["flow_shift"] == MODELS[name].shift_for(64, 96, not MODELS[name].text_pipeline)
    assert (read_sound(file) is not None) == (name in ("ltx-2", "minimax-h3"))
    assert not any(
        sent.endswith(("README.md", ".png")) or "transformer_ref" in sent for sent in hubs[MODELS[name].source].sent
    )


def test_terms_are_asked_for_before_anything_is_fetched(tmp_path: Path) -> None:
    folder = write_checkpoint("wan2.1-1.3b", tmp_path / "hub")
    with fake_hub.serve(MODELS["wan2.1-1.3b"].source, folder) as hub:
        hub.gated = True
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        ended = subprocess.run(
            [sys.executable, "-m", "radial_app", "download", "wan2.1-1.3b"], env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        assert "wants you to accept its terms: do so on its page of the hub, then `hf auth login` here" in ended.stderr
        assert not any(name.endswith(".safetensors") for name in hub.sent)
