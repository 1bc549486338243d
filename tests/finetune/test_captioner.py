"""Captions by a vision language model of real classes: what it is shown, what is written, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_hub
import numpy as np
import pytest
from clip_files import CUT, write_video
from PIL import Image
from tiny_captioner import WORDS, build_captioner

from radial import ModelError, OutputError, RequestError
from radial.loading.load import LoadedModel
from radial_app.cli import main as cli
from radial_finetune.data import captioner as captioning
from radial_finetune.data.captioner import files_to_caption, load_captioner, spread_frames
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import find_sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_captioner(tmp_path_factory.mktemp("models") / "llava")


def shade(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8).repeat(12, 0).repeat(12, 1)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for number in range(3):
        write_video(tmp_path / f"{number}.mp4", np.stack([np.roll(shade(number), i, 1) for i in range(12)]))
        Image.fromarray(shade(number + 5)).save(tmp_path / f"picture{number}.png")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", "caption", *arguments, "--device", "cpu", "--max-new-tokens", "12"])
    return int(stop.value.code or 0), "".join(capsys.readouterr())


def texts_in(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.glob("*.txt"))}


def test_frames_are_spread_over_a_clip(tmp_path: Path) -> None:
    """One from the middle of each part, of clips of any length; each frame once where there are no more."""
    for count, frames in ((1, 3), (3, 3), (7, 3), (40, 4), (240, 5), (240, 1)):
        levels = np.linspace(10, 240, count).round()
        write_video(tmp_path / "a.mp4", (levels[:, None, None, None] * np.ones((1, 32, 32, 3))).astype(np.uint8))
        shown = [float(frame.mean()) for frame in spread_frames(tmp_path / "a.mp4", frames)]
        if count < frames:
            assert len(shown) == count
            continue
        want = [levels[int((part + 0.5) * count / frames)] for part in range(frames)]
        assert np.abs(np.array(shown) - want).max() < 240 / count + 240 / frames / 4 + 3, (count, frames)


def test_every_clip_is_described(
    folder: Path, clips: Path, capsys: pytest.CaptureFixture[str], model: LoadedModel
) -> None:
    """Each by its own frames, on a line, with the trigger before it; ready to prepare."""
    code, told = run(capsys, str(clips), "--model", str(folder), "--trigger", "zwx", "--frames", "2")
    assert code == 0, told
    texts = texts_in(clips)
    assert set(texts) == {f"{name}.txt" for n in range(3) for name in (str(n), f"picture{n}")}
    assert all(text.startswith("zwx, ") and text.count("\n") == 1 for text in texts.values())
    assert all(set(text.removeprefix("zwx, ").split()) <= set(WORDS) for text in texts.values())
    assert len(set(texts.values())) > 3  # of random weights, yet not blind
    assert "file 1 of 6: 0.mp4" in told
    assert str(clips / "0.txt") in told
    assert prepare(find_sources(clips), clips / "cache", model, CUT).kept == 6


def test_captions_that_are_there_stay(folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "0.txt").write_text("my own words")
    (clips / "1.1.txt").write_text("my own, too")
    code, told = run(capsys, str(clips), "--model", str(folder))
    assert code == 0, told
    texts = texts_in(clips)
    assert texts["0.txt"] == "my own words"
    assert "1.txt" not in texts
    code, told = run(capsys, str(clips), "--model", "of/no-use")
    assert code == 0
    assert "every clip has a caption; --overwrite" in told
    code, told = run(capsys, str(clips), "--model", str(folder), "--overwrite")
    assert code == 0, told
    assert texts_in(clips)["0.txt"] != "my own words"
    with pytest.raises(OutputError, match=r"0\.txt exists"):
        captioning.write_caption(clips / "0.mp4", "late", overwrite=False)


def test_it_goes_on_where_it_was_stopped(
    folder: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = captioning.Captioner.describe
    described: list[str] = []

    def stopped(self: Any, file: Path) -> str:
        if len(described) == 4:
            raise KeyboardInterrupt
        described.append(file.name)
        return plain(self, file)

    monkeypatch.setattr(captioning.Captioner, "describe", stopped)
    code, _ = run(capsys, str(clips), "--model", str(folder))
    assert code != 0
    whole = texts_in(clips)
    assert len(whole) == 4
    assert not list(clips.glob(".*partial*"))
    monkeypatch.setattr(captioning.Captioner, "describe", lambda self, f: (described.append(f.name), plain(self, f))[1])
    described.clear()
    code, _ = run(capsys, str(clips), "--model", str(folder))
    assert code == 0
    assert len(described) == 2
    assert whole.items() < texts_in(clips).items()


def test_files_that_cannot_be_read_are_named_and_the_rest_is_written(
    folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "1.mp4").write_bytes(b"no video")
    (clips / "picture1.png").write_bytes(b"no picture")
    code, told = run(capsys, str(clips), "--model", str(folder))
    assert code != 0
    assert "2 of 6 have no caption, such as this: 1.mp4 is not a video" in " ".join(told.split())
    assert set(texts_in(clips)) == {"0.txt", "2.txt", "picture0.txt", "picture2.txt"}


def test_frames_are_shown_with_the_prompt(folder: Path, clips: Path) -> None:
    """As the model's own chat template has it: as many pictures as frames, and the words."""
    asked: list[dict[str, Any]] = []
    captioner = load_captioner(str(folder), "cpu", prompt="describe the clip", frames=5, max_new_tokens=4)
    plain = captioner.processor.apply_chat_template

    class Watched:
        def apply_chat_template(self, messages: Any, **how: Any) -> Any:
            found = plain(messages, **how)
            asked.append(dict(found))
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(captioner.processor, name)

    from dataclasses import replace

    replace(captioner, processor=Watched()).describe(clips / "0.mp4")
    assert asked[0]["pixel_values"].shape == (5, 3, 32, 32)
    words = captioner.processor.tokenizer.decode(asked[0]["input_ids"][0])
    assert words.count("<image>") == 5 * 4
    assert "describe the clip ASSISTANT :" in words


def test_models_that_are_none_are_named(folder: Path, wan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--model takes a folder or a hub id like org/name, not 'llava'"):
        load_captioner("llava", "cpu")
    with pytest.raises(ModelError, match="is no model of transformers with weights as safetensors"):
        load_captioner(str(wan_folder), "cpu")
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is no model of transformers with weights as safetensors"):
        load_captioner(str(pickled), "cpu")
    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    config = json.loads((foreign / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    (foreign / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": code}))
    (foreign / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnConfig: ...\nclass OwnModel: ...\n"
    )
    with pytest.raises(ModelError, match="code of its own, which is not run"):
        load_captioner(str(foreign), "cpu")
    assert not (tmp_path / "ran").exists()
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        load_captioner(str(silent), "cpu")


def test_models_of_the_hub_come_without_what_is_of_no_use(folder: Path, tmp_path: Path) -> None:
    """And are taken from here once they came, without asking."""
    repository = tmp_path / "repository"
    shutil.copytree(folder, repository)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "own.py", "README.md"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"of no use")
    code = (
        "from radial.models.hub.download import transformers_folder\n"
        "told = []\n"
        "print(transformers_folder('some/llava', lambda done, total: told.append((done, total))))\n"
        "print(*told[-1] if told else (0, 0))\n"
    )
    with fake_hub.serve("some/llava", repository) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        told = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment | changes)
            for changes in ({}, {"HF_HUB_OFFLINE": "1"})
        ]
        sent = set(hub.sent)
    assert all(one.returncode == 0 for one in told), told
    (here, progress), (again, nothing) = (one.stdout.splitlines() for one in told)
    assert here == again
    assert sent == {file.name for file in Path(here).iterdir()} == {file.name for file in folder.iterdir()}
    done, total = map(int, progress.split())
    assert done == total > (folder / "model.safetensors").stat().st_size
    assert nothing == "0 0"
    load_captioner(here, "cpu")


def test_a_processor_that_wants_torchvision_says_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    """As those that also take videos do; in a process where there is none, whatever is installed."""
    shutil.copytree(folder, tmp_path / "qwen")
    config = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    (tmp_path / "qwen" / "config.json").write_text(json.dumps(config))
    names = {"processor_class": "Qwen2VLProcessor", "image_processor_type": "Qwen2VLImageProcessor"}
    (tmp_path / "qwen" / "preprocessor_config.json").write_text(json.dumps(names))
    (tmp_path / "qwen" / "processor_config.json").write_text(json.dumps(names))
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from radial_finetune.data.captioner import load_captioner\n"
        f"load_captioner({str(tmp_path / 'qwen')!r}, 'cpu')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert "ModelError" in told.stderr
    assert "needs torchvision: pip install 'radial-video[caption]'" in told.stderr


def test_folders_that_cannot_be_captioned_are_named(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="none is no folder"):
        files_to_caption(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="empty has no videos or pictures"):
        files_to_caption(tmp_path / "empty")
    (clips / "metadata.csv").write_text("file,caption\n0.mp4,a\n")
    with pytest.raises(RequestError, match=r"has a metadata\.csv, which counts in place of texts"):
        files_to_caption(clips)


def test_what_it_is_asked_is_bounded(folder: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, message in (
        ("--prompt", "", "--prompt takes 1 to 4000 letters, not 0"),
        ("--prompt", "a" * 4001, "--prompt takes 1 to 4000 letters, not 4001"),
        ("--trigger", "a\nb", "--trigger takes a word or a few, on one line"),
        ("--frames", "65", "Invalid value for '--frames'"),
    ):
        code, told = run(capsys, str(clips), "--model", str(folder), option, value)
        assert code == 2
        assert message in " ".join(told.split())
