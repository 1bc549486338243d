"""Measures say what they claim to: each fault is made, and seen by its own measure."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from clip_files import write_video
from PIL import Image

from radial import Video
from radial.generation.acceleration.together import generate_together
from radial.loading.load import LoadedModel
from radial.request import make_request
from radial.video.fidelity import fidelity
from radial_app.cli.main import main
from radial_finetune.evaluate import shapes
from radial_finetune.evaluate.compare import compare
from radial_finetune.evaluate.measures import measure
from radial_finetune.world import draw_scene, render
from radial_finetune.world.render import to_pixels

FPS = 16


@pytest.fixture(scope="module")
def clip() -> Any:
    """A figure that crosses the frame in five seconds."""
    rng = random.Random(0)
    scene = next(s for s in iter(lambda: draw_scene(rng), None) if s.figures[0].motion == "right")
    return to_pixels(render([scene], 81, 64, 64)[0])


def test_each_fault_is_seen_by_its_measure(clip: Any) -> None:
    plain = asdict(measure(clip, FPS))
    assert len(plain["seconds"]["motion"]) == 5
    assert plain["subject_drift"] < 2
    assert plain["cuts"] == 0
    assert plain["repetition"] < 0.05

    ramp = np.linspace(0, 1, 81)[:, None, None, None]
    noise = np.random.default_rng(0).normal(scale=8, size=clip.shape)
    swapped = clip.copy()
    swapped[50:] = swapped[50:][..., [2, 0, 1]]
    faults: dict[str, tuple[Any, str, float]] = {
        "frozen": (np.repeat(clip[:1], 81, 0), "motion", -0.5 * plain["motion"]),
        "noisy": (clip + noise, "flicker", 3.0),
        "darker": (clip * (1 - 0.5 * ramp), "luminance_drift", -10.0),
        "washed out": (clip * (1 - 0.9 * ramp) + clip.mean(-1, keepdims=True) * 0.9 * ramp, "saturation_drift", -1.0),
        "flatter": (clip * (1 - 0.8 * ramp) + clip.mean() * 0.8 * ramp, "contrast_drift", -5.0),
        "blurred": (np.stack([cv2.GaussianBlur(f, (0, 0), 0.1 + i / 20) for i, f in enumerate(clip)]),
                    "sharpness_drift", -0.3),
        "looped": (np.concatenate([clip[:20]] * 4 + [clip[:1]]), "repetition", 0.5),
        "another": (swapped, "subject_drift", 20.0),
        "cut": (np.concatenate([clip[:40], 255 - clip[40:]]), "cuts", 0.5),
    }  # fmt: skip
    for fault, (frames, name, least) in faults.items():
        changed = asdict(measure(np.clip(frames, 0, 255).astype(np.uint8), FPS))
        assert (changed[name] - plain[name]) * np.sign(least) > abs(least), (fault, changed[name], plain[name])


def test_twice_as_fast_is_twice_the_motion(clip: Any) -> None:
    slow, fast = (measure(clip[::step], FPS).motion for step in (1, 2))
    assert fast == pytest.approx(2 * slow, rel=0.25)


def test_two_clips_are_compared_as_known(clip: Any) -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(clip.astype(int) + rng.integers(-4, 5, clip.shape), 0, 255).astype(np.uint8)
    mse = ((noisy.astype(float) - clip) ** 2).reshape(81, -1).mean(1)
    assert fidelity(noisy, clip)[0] == pytest.approx(float(np.mean(10 * np.log10(255**2 / mse))))
    assert fidelity(clip, clip)[0] == 100.0
    assert fidelity(clip, clip)[1] == pytest.approx(1.0)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in clip])
    assert 0 < fidelity(blurred, clip)[1] < fidelity(noisy, clip)[1] + 0.2 < 1.2


def test_radial_against_dense(model: LoadedModel, wan_folder: Path) -> None:
    request = make_request(prompt="a", model=str(wan_folder), height=64, width=64, num_frames=17, seed=1,
                           num_inference_steps=4, dense_layers=1, dense_steps=1)  # fmt: skip
    whole = compare(request.model_copy(update={"num_frames": 5}), model)  # two latent frames: all is kept
    assert whole.mean_attention_error < 1e-6
    assert whole.psnr > 45
    sparse = compare(request.model_copy(update={"decay": 0.05}), model)
    assert len(sparse.attention_error) == 3  # the first step is dense
    per_step = {len(step) for step in sparse.attention_error}
    assert per_step == {2 * 2}  # two sparse layers, both sides of guidance
    assert sparse.mean_attention_error > 1e-4
    assert sparse.psnr < 100
    again = compare(request.model_copy(update={"decay": 0.05}), model)
    assert np.array_equal(again.dense, sparse.dense)
    assert again.attention_error == sparse.attention_error


def test_intervals_hold_what_they_should() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        mean, low, high = shapes.bootstrap(rng.binomial(1, 0.7, 64).astype(float), samples=400)
        assert low <= mean <= high
        inside += low <= 0.7 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_ground_truth_is_the_ceiling() -> None:
    members = shapes.held_out(2)
    assert [len(scene.figures) for scene, _ in members] == [1, 1, 2, 2]
    assert shapes.held_out(2)[0][1] == members[0][1]
    with shapes.scoring(1) as score:
        result = shapes.score_truth(members, 33, score)
    assert result.interval("prompt") == (1.0, 1.0, 1.0)
    table = shapes.to_markdown({"truth": result}, ["prompt", "repetition"])
    assert "| truth | 100.0 (100.0 to 100.0) | 0.0 (0.0 to 0." in table


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0


def test_the_command_measures_files(clip: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, frames in (("one", clip), ("two", clip[::-1])):
        write_video(tmp_path / f"{name}.mp4", frames)
    run("evaluate", "clips", str(tmp_path / "one.mp4"), str(tmp_path / "two.mp4"), "--out", str(tmp_path / "out"))
    assert "one.mp4" in capsys.readouterr().out
    values = json.loads((tmp_path / "out" / "clips.json").read_text())
    assert set(values) == {"one.mp4", "two.mp4"}
    assert values["one.mp4"]["motion"] > 0
    with Image.open(tmp_path / "out" / "clips.png") as picture:
        assert min(picture.size) > 300
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for bad in ("none.mp4", "bad.mp4"):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", "clips", str(tmp_path / bad)])
        assert stopped.value.code in (1, 2)


def test_a_batch_of_clips_is_a_pack_of_them(model: LoadedModel, wan_folder: Path) -> None:
    request = make_request(prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, decay=0.3,
                           num_inference_steps=2, dense_steps=1).resolve()  # fmt: skip
    prompts = ["a red circle", "a", "a circle"]
    batch = shapes.generate_clips(request, model, prompts, 3, first_seed=5)
    alike = [request.model_copy(update={"prompt": one, "seed": 5 + number}) for number, one in enumerate(prompts)]
    for one, other in zip(batch, generate_together(alike, model=model), strict=True):
        assert isinstance(other, Video)
        assert other.receipt["packed"] == 3
        assert np.abs(one.astype(int) - other.frames).max() <= 1


def test_the_command_holds_a_model_against_the_world(
    wan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", "shapes", "--model", str(wan_folder), "--num-frames", "9", "--prompts", "1", "--attention",
        "radial", "--num-inference-steps", "1", "--out", str(tmp_path))  # fmt: skip
    values = json.loads((tmp_path / "shapes.json").read_text())["values"]
    assert set(values) == {f"{k}, {n}" for k in ("ground truth", "radial") for n in ("one figure", "two figures")}
    assert (tmp_path / "shapes.png").exists()
    assert "persistence" in capsys.readouterr().out


def test_the_command_compares_attention(wan_folder: Path, tmp_path: Path) -> None:
    run("evaluate", "attention", "a red circle", "--model", str(wan_folder), "--num-frames", "9", "--height", "32",
        "--width", "32", "--num-inference-steps", "2", "--out", str(tmp_path))  # fmt: skip
    values = json.loads((tmp_path / "attention.json").read_text())
    assert values["psnr"] > 0
    assert {p.name for p in tmp_path.iterdir()} == {"attention.json", "attention.png", "dense.mp4", "radial.mp4"}
