"""The bundled model: whole, small enough to ship, and able to do what the README promises."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from radial.generation.pipeline import generate
from radial.models.table import CONTROL_FILE
from radial.request import make_request
from radial.video.clip import Video
from radial_finetune.evaluate.control import held_out_controls, score_control
from radial_finetune.evaluate.score import score_clip
from radial_finetune.world import Figure, Scene

FOLDER = Path(str(files("radial_assets"))) / "tiny"


def test_files_are_small_and_safe() -> None:
    paths = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} == {".json", ".safetensors", ".txt"}
    assert max(path.stat().st_size for path in paths) < 16_000_000
    assert sum(path.stat().st_size for path in paths) < 32_000_000


def test_it_is_of_wans_classes() -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]


def test_it_draws_what_the_prompt_says() -> None:
    """Two prompts at fixed seeds through radial attention, the second in fewer steps, read back by the evaluation's own
    measure."""
    asked: dict[str, tuple[tuple[str, str, str], dict[str, int]]] = {
        "a large red star moves from left to right on a black background": (("star", "red", "right"), {}),
        "a large blue circle grows on a white background": (("circle", "blue", "grow"), {"num_inference_steps": 10}),
    }
    for prompt, ((shape, colour, motion), fewer) in asked.items():
        (video,) = generate(make_request(prompt=prompt, seed=11, **fewer))
        assert video.frames.shape == (33, 128, 128, 3)
        assert 0.5 < video.receipt["attention"]["computed_share"] < 1
        (score,) = score_clip(video.frames, Scene((Figure(shape, colour, "large", motion, "normal"),), "black"))
        assert score.seen == (colour, shape, motion)


def test_it_goes_on_for_four_times_as_long() -> None:
    """One motion over the whole of a long clip, with the adapter that comes along; a loop would be none."""
    notes: list[str] = []
    request = make_request(
        prompt="a large red star moves from left to right on a black background", num_frames=129, seed=3,
        num_inference_steps=5,
    )  # fmt: skip
    (video,) = generate(request, on_event=lambda event: notes.append(event.note) if event.note else None)
    assert notes == ["as the bundled adapter for longer clips was tuned: 129 frames, decay 1, 2 dense layers"]
    assert video.receipt["loras"][0]["name"] == "tiny-long.safetensors"
    assert 0.4 < video.receipt["attention"]["density"] < 0.6
    (score,) = score_clip(video.frames, Scene((Figure("star", "red", "large", "right", "normal"),), "black"))
    assert score.seen == ("red", "star", "right")
    assert score.whole_motion
    assert score.persistence > 0.95
    assert score.repetition < 0.05


@pytest.mark.skipif(not CONTROL_FILE.is_file(), reason="the package has no control for the bundled model")
def test_a_figure_goes_where_a_clip_says(tmp_path: Path) -> None:
    assert CONTROL_FILE.stat().st_size < 16_000_000
    (drawn,) = held_out_controls("path", 1)
    signal_THWC = drawn.signal()
    assert signal_THWC is not None
    Video(signal_THWC, 16).write(tmp_path / "path.mp4")
    request = make_request(
        prompt=drawn.prompt, model="tiny-control", control_video=str(tmp_path / "path.mp4"), seed=0,
        num_inference_steps=8,
    )  # fmt: skip
    (video,) = generate(request)
    score = score_control(video.frames, drawn)
    assert score.figure
    assert score.colour
    assert score.path is not None
    assert score.path < 0.05
