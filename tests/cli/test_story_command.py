"""``radial story``: what it makes of its lines, and what it says of lines and films that it cannot take."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radial import Video
from radial.video.clip import read_frames, read_receipt
from radial_app.cli import main as cli


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["story", *words])
    told = capsys.readouterr()
    return int(stop.value.code or 0), told.out, " ".join(told.err.split())


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_lines_become_a_film_that_goes_on(
    capsys: pytest.CaptureFixture[str], lines: Any, wan_folder: Path, tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    own = ["--model", str(wan_folder), "--size", "32x32", "--fps", "16", "--num-inference-steps", "1", "--causal",
           "--chunk-frames", "1", "--window-frames", "2", "--seconds", "0.5"]  # fmt: skip
    lines("anna: a red star\nanna: spins")
    code, out, err = run(capsys, "-", *own, "--output", str(film), "--json")
    assert code == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert [one["segment"] for one in told[:-1]] == [0, 0, 1, 1]
    assert told[-1] == {"path": str(film)}
    before = read_receipt(film)
    assert len(read_frames(film)) == 17

    (tmp_path / "more.yaml").write_text("- {name: anna, prompt: falls, seconds: 0.25}")
    code, out, err = run(capsys, str(tmp_path / "more.yaml"), "--continue", str(film), "--quiet")
    assert (code, out.strip()) == (0, str(film)), err
    receipt = read_receipt(film)
    assert len(read_frames(film)) == 21
    assert receipt["request"]["seed"] == before["request"]["seed"], "a drawn seed stays"
    assert [line["prompt"] for line in receipt["story"]["lines"]] == ["anna: a red star", "anna: spins", "anna: falls"]
    assert receipt["story"]["lines"][-1]["returns"]

    lines("a ring")
    code, _, err = run(capsys, "-", "--continue", str(film), "--seed", "3")
    assert (code, "leave out --seed" in err) == (2, True)
    code, _, err = run(capsys, "-", *own, "--output", str(film))
    assert (code, "exists; pass --overwrite" in err) == (2, True)
    with pytest.raises(SystemExit) as stop:
        cli.main(["rerun", str(film)])
    assert stop.value.code == 2
    assert "the film of a story" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "problem"),
    [
        ("a star\n\na ring", ["--output", "f.mp4"], "line 2 is empty"),
        ("a star", [], "give --output"),
        ("a star", ["--output", "f.webm"], "must end in .mp4"),
        ("a star", ["--output", "f.mp4", "--model", "mochi"], "mochi cannot make a story; models that can: tiny"),
        ("a star", ["--output", "f.mp4", "--remember", "radial"], "window by window, without a memory"),
        ("a star", ["--output", "f.mp4", "--causal", "--read-decay", "99"], "--read-decay must be above 0 and at most"),
        ("a star", ["--output", "f.mp4", "--causal", "--rectify-every", "4"], "--rectify-every 4 counts only with"),
        ("a star", ["--output", "f.mp4", "--causal", "--memory-thinning", "3"], "a power of two such as 2, not 3"),
    ],
)
def test_what_it_cannot_take(
    capsys: pytest.CaptureFixture[str], lines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str,
    words: list[str], problem: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    lines(text)
    code, _, err = run(capsys, "-", *words)
    assert code == 2
    assert problem in err


def test_a_film_of_other_weights_is_made_anew_only_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], lines: Any, wan_folder: Path, tmp_path: Path
) -> None:
    model, film = tmp_path / "model", tmp_path / "film.mp4"
    shutil.copytree(wan_folder, model)
    lines("a red star")
    code, _, err = run(
        capsys, "-", "--model", str(model), "--size", "32x32", "--fps", "16", "--num-inference-steps", "1",
        "--causal", "--chunk-frames", "1", "--window-frames", "2", "--seconds", "0.3", "--output", str(film), "--quiet",
    )  # fmt: skip
    assert code == 0, err
    pieces = {file: file.read_bytes() for file in (tmp_path / "film.story").rglob("*.safetensors")}
    (weights,) = (model / "transformer").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    lines("a blue ring")
    code, _, err = run(capsys, "-", "--continue", str(film), "--quiet")
    assert (code, "(weights: not as it was); take another --output, or --overwrite" in err) == (2, True), err
    assert pieces == {file: file.read_bytes() for file in (tmp_path / "film.story").rglob("*.safetensors")}
    lines("a blue ring")
    code, _, err = run(capsys, "-", "--continue", str(film), "--overwrite", "--quiet")
    assert code == 0, err
    assert len(read_frames(film)) > 5
    assert pieces != {file: file.read_bytes() for file in pieces}


def test_a_clip_is_no_film_of_a_story(capsys: pytest.CaptureFixture[str], lines: Any, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    Video(np.zeros((5, 32, 32, 3), np.uint8), 16, {"radial": "1", "request": {"prompt": "a"}}).write(clip)
    lines("a ring")
    code, _, err = run(capsys, "-", "--continue", str(clip))
    assert code == 2
    assert "this is a clip, and no film of a story" in err
