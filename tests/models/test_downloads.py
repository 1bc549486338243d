"""Models from a hub: a small one on this machine, spoken to by the hub's own client, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_pipelines import CASES

from radial.models.hub.download import is_wanted

NAME = "someone/small-wan"


@pytest.fixture
def hub(wan_folder: Path, tmp_path: Path) -> Iterator[fake_hub.Hub]:
    folder = tmp_path / "repository"
    shutil.copytree(wan_folder, folder)
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (folder / "README.md").write_text("# small")
    (folder / "examples").mkdir()
    (folder / "examples" / "clip.mp4").write_bytes(b"0" * 1000)
    # Something to wait for: a second shard's worth of bytes that no model reads.
    save_file({"x": np.arange(6 << 20, dtype=np.float32)}, folder / "text_encoder" / "zz.safetensors")
    with fake_hub.serve(NAME, folder) as served:
        yield served


class Home:
    """A user with an empty cache whose hub is this one."""

    def __init__(self, hub: fake_hub.Hub, folder: Path) -> None:
        self.cache = folder / "home"
        self.folder = folder
        self.environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(self.cache), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5", "RADIAL_DATA_DIR": str(folder / "data"),
        }  # fmt: skip
        self.environment.pop("HF_HUB_OFFLINE", None)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "radial_app", *arguments], cwd=self.folder, env=self.environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    def run(self, *arguments: str) -> tuple[int | None, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=1800)
        return process.returncode, out, err


@pytest.fixture
def home(hub: fake_hub.Hub, tmp_path: Path) -> Home:
    return Home(hub, tmp_path)


def test_a_download_that_is_cut_off_goes_on_and_works_without_the_hub(hub: fake_hub.Hub, home: Home) -> None:
    hub.pause = 0.03
    told = home.folder / "told.json"
    process = home.start("download", NAME, "--tell", str(told))
    deadline = time.monotonic() + 1800
    while not (told.exists() and json.loads(told.read_text())["done"] > 11 << 20):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = {file for file in hub.files if hub.sent.get(file, 0) >= (hub.folder / file).stat().st_size}
    assert whole
    (part,) = home.cache.rglob("*.incomplete")
    held = part.stat().st_size
    assert held >= 10 << 20  # what the client writes at once
    hub.pause = 0.0
    before = dict(hub.sent)
    code, out, err = home.run("download", NAME, "--tell", str(told))
    assert code == 0, err
    assert "MB are here" in err
    # What had come did not come again, within a file too, and nothing came that is of no use here.
    cut = "text_encoder/zz.safetensors"
    assert hub.sent[cut] - before[cut] == (hub.folder / cut).stat().st_size - held
    assert all(hub.sent[file] == before[file] for file in whole)
    assert not set(hub.sent) & {"transformer/diffusion_pytorch_model.bin", "README.md", "examples/clip.mp4",
                                "transformer/diffusion_pytorch_model.fp16.safetensors"}  # fmt: skip
    folder = Path(out.strip())
    assert (folder / "transformer" / "config.json").is_file()
    progress = json.loads(told.read_text())
    assert progress["done"] == progress["total"] > 24 << 20
    assert not list(home.cache.rglob("*.incomplete"))

    sent = dict(hub.sent)
    code, out, err = home.run("generate", "a fox", "--offline", "--model", NAME, "--height", "32", "--width", "32",
                              "--num-frames", "5", "--num-inference-steps", "2", "--output", "fox.mp4")  # fmt: skip
    assert code == 0, err
    assert hub.sent == sent
    assert (home.folder / "fox.mp4").is_file()


def test_a_file_that_came_damaged_is_thrown_away(hub: fake_hub.Hub, home: Home) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    blobs = home.cache / "hub" / "models--someone--small-wan" / "blobs"
    part = blobs / f"{hub.digest(name)}.incomplete"
    blobs.mkdir(parents=True)
    part.write_bytes(b"of something else")
    code, _, err = home.run("download", NAME)
    assert (code, f"{name} of {NAME} came damaged" in err) == (1, True), err
    assert not part.exists()
    part.write_bytes(bytes(1 << 24))  # more than there is
    code, out, err = home.run("download", NAME)
    assert code == 0, err
    assert (Path(out.strip()) / name).read_bytes() == (hub.folder / name).read_bytes()


def test_what_cannot_be_fetched_is_said_before(hub: fake_hub.Hub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = home.run("download", "someone/else")
    assert (code, "the Hugging Face hub has no such model" in err) == (1, True), err
    code, _, err = home.run("download", NAME, "--offline")
    assert (code, "the Hugging Face hub is not asked" in err) == (1, True), err
    code, _, err = home.run("generate", "a fox", "--model", NAME, "--offline")
    assert (code, "the Hugging Face hub is not asked" in err) == (1, True), err
    # A disk with less room than the model takes.
    home.environment["PYTHONPATH"] = str(home.folder)
    small = "import shutil, types\nshutil.disk_usage = lambda path: types.SimpleNamespace(free=1 << 30)\n"
    (home.folder / "sitecustomize.py").write_text(small)
    code, _, err = home.run("download", NAME)
    assert code == 1
    assert "GB more" in err
    assert "set HF_HOME" in err
    assert not [name for name in hub.sent if name.endswith(".safetensors")]
    assert home.run("download", "tiny")[0] == 0


def test_only_what_diffusers_readsis_wanted() -> None:
    sizes = dict.fromkeys([
        "model_index.json", "transformer/a-00001-of-00002.safetensors", "transformer/a.safetensors.index.json",
        "transformer/a.fp16.safetensors", "transformer/a.bin", "transformer/a.bin.index.json", "vae/a.fp16.safetensors",
        "tokenizer/spiece.model", "tokenizer/tokenizer.json", ".gitattributes", "assets/demo.mp4", "LICENSE.txt",
        "deep/er/a.safetensors",
    ], 1)  # fmt: skip
    assert [name for name in sizes if is_wanted(name, sizes)] == [
        "model_index.json", "transformer/a-00001-of-00002.safetensors", "transformer/a.safetensors.index.json",
        "vae/a.fp16.safetensors", "tokenizer/spiece.model", "tokenizer/tokenizer.json",
    ]  # fmt: skip


def test_what_a_model_needs_is_told_before_it_comes(hub: fake_hub.Hub, tmp_path: Path) -> None:
    home = Home(hub, tmp_path)
    code, out, err = home.run("estimate", "--model", NAME, "--num-frames", "9", "--height", "64", "--width", "64",
                              "--json")  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["disk"] < 1 << 16  # its configurations
    assert told["download"] > 1 << 21
    assert told["memory"]["full"]["gpu"] > told["memory"]["lowest"]["gpu"]
    assert told["seconds_on_h100"] > 0
    weights = {name: sent for name, sent in hub.sent.items() if name.endswith(".safetensors")}
    assert sum(weights.values()) < told["download"] / 2  # headers alone


def test_a_transformer_in_one_file_spares_the_hubs(hub: fake_hub.Hub, tmp_path: Path) -> None:
    """All of a model but its transformer's weights: what a file of one's own stands in for."""
    home = Home(hub, tmp_path)
    script = tmp_path / "script.py"
    script.write_text(f"""
from pathlib import Path
from radial.models.hub.download import download, find_local
assert find_local({NAME!r}, ("transformer",)) is None
folder = download({NAME!r}, without=("transformer",))
assert find_local({NAME!r}, ("transformer",)) == folder
assert find_local({NAME!r}) is None
print(sorted(path.name for path in (folder / "transformer").iterdir()))
""")
    done = subprocess.run([sys.executable, str(script)], env=home.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['config.json']\n"
    assert not any(name.startswith("transformer/") and name.endswith(".safetensors") for name in hub.sent)


def test_a_model_of_the_hub_is_known_by_its_own_files(tmp_path: Path) -> None:
    """Its class says what it can make before a byte of its weights is here."""
    CASES["allegro"].build().save_pretrained(tmp_path / "repository")
    with fake_hub.serve("someone/their-allegro", tmp_path / "repository") as hub:
        home = Home(hub, tmp_path)
        size = ("--height", "64", "--width", "64", "--block-size", "16")
        code, _, err = home.run("inspect", "--model", "someone/their-allegro", "--num-frames", "88", *size)
        assert code == 0, err  # 88 frames are none that a Wan makes
        code, _, err = home.run("inspect", "--model", "someone/their-allegro", "--num-frames", "81", *size)
        assert code == 2
        assert "--num-frames must be a multiple of 4 for someone/their-allegro" in err
        assert not [name for name in hub.sent if name.endswith(".safetensors")]
