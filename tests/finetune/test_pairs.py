"""Clips held against others: known values, growth with the fault, and what is told where they do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from clip_files import write_video
from test_measures import FPS, across, flickering, scene

from radial.errors import RequestError
from radial.video.fidelity import fidelity
from radial_app.cli.main import main
from radial_finetune.evaluate.pairs import differences, hold_against, multiscale, pair_up


def pixels(frames: Any) -> Any:
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def test_a_clip_against_itself_is_the_same() -> None:
    clip = pixels(scene()[:6])
    same = hold_against(clip, clip, FPS)
    assert (same.psnr, same.tof, same.frames) == (100, 0, 6)
    assert same.ssim == pytest.approx(1)
    assert same.ms_ssim == pytest.approx(1)


def test_worse_is_worse_by_every_measure() -> None:
    clip = pixels(scene()[:8])
    noise = np.random.default_rng(0).normal(size=clip.shape)
    found = [hold_against(pixels(clip + level * noise), clip, FPS) for level in (4, 8, 16)]
    for name in ("psnr", "ssim", "ms_ssim"):
        values = [getattr(one, name) for one in found]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 3
    psnr, ssim = fidelity(pixels(clip + 4 * noise), clip)
    assert found[0].psnr == pytest.approx(psnr)
    assert found[0].ssim == pytest.approx(ssim)


def test_other_motion_is_seen_in_flow() -> None:
    """tOF grows as the disc moves otherwise, and hardly where it moves so in another light."""
    clip = pixels(scene()[:12])
    faster = [hold_against(pixels(scene(across(0.8 + more))[:12]), clip, FPS).tof for more in (0.2, 0.4, 0.8)]
    assert faster == sorted(faster)
    lighter = hold_against(pixels(0.9 * scene()[:12] + 10), clip, FPS)
    assert lighter.tof < faster[0] / 2


def test_multiscale_similarity_is_that_of_its_authors() -> None:
    """By its formula, with windows of 11 of deviation 1.5, at the scales that a frame is large enough for."""
    rng = np.random.default_rng(1)
    one = pixels(cv2.GaussianBlur(rng.normal(size=(192, 192, 3)), (0, 0), 3) * 300 + 120)
    two = pixels(one + rng.normal(scale=12, size=one.shape))
    weights, c1, c2 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333), (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def inner(x: Any) -> Any:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    values = []
    for channel in range(3):
        x, y = (image[..., channel].astype(np.float64) for image in (one, two))
        value = 1.0
        for scale, weight in enumerate(weights):
            mean_x, mean_y = inner(x), inner(y)
            spread = inner(x * x) - mean_x**2 + inner(y * y) - mean_y**2
            contrast = (2 * (inner(x * y) - mean_x * mean_y) + c2) / (spread + c2)
            light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            value *= float((contrast * light if scale == 4 else contrast).mean()) ** weight
            x, y = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) for image in (x, y))
        values.append(value)
    similarity = multiscale()
    assert similarity(one, two) == pytest.approx(np.mean(values), abs=2e-3)
    for side in (22, 48, 100, 176, 240):
        assert similarity(one[:side, :side], one[:side, :side]) == pytest.approx(1)
    assert similarity(one[:20, :20], one[:20, :20]) is None


def test_differences_of_pairs_have_intervals() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=40)
    pairs = [({"a": x + 1 + e, "b": None, "c": x}, {"a": x, "b": 1.0, "c": x})
             for x, e in zip(base, rng.normal(scale=0.1, size=40), strict=True)]  # fmt: skip
    found = differences(pairs)
    mean, low, high = found["a"]
    assert low < mean < high
    assert high - low < 0.1  # the spread of the clips is none of the difference
    assert abs(mean - 1) < 0.1
    assert found["c"] == (0, 0, 0)
    assert "b" not in found


def test_what_does_not_fit_is_told() -> None:
    clip = pixels(scene()[:4])
    with pytest.raises(RequestError, match="not of 64x64 and 32x64"):
        hold_against(clip, clip[:, :, :32], FPS)
    with pytest.raises(RequestError, match="two frames and more"):
        hold_against(clip, clip[:1], FPS)
    assert pair_up(["a", "b"], ["c"]) == [("a", "c"), ("b", "c")]
    assert pair_up(["a", "b"], ["c", "d"]) == [("a", "c"), ("b", "d")]
    with pytest.raises(RequestError, match="one for each: there are 3 files, and 2"):
        pair_up(["a", "b", "c"], ["c", "d"])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(RequestError, match=r"pip install 'radial-video\[measure\]'"):
        multiscale()


def test_the_command_holds_files_against_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = {"a": scene(), "b": scene(seed=1), "a_flickers": flickering(6), "b_noisy": scene(seed=1) + 4}
    for name, frames in clips.items():
        write_video(tmp_path / f"{name}.mp4", pixels(frames[:20]))
    files = {name: str(tmp_path / f"{name}.mp4") for name in clips}
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "clips", files["a_flickers"], files["b_noisy"], "--against", files["a"], "--against",
              files["b"], "--out", str(tmp_path / "out")])  # fmt: skip
    assert stopped.value.code == 0
    assert "2 pairs" in capsys.readouterr().out
    values = json.loads((tmp_path / "out" / "against.json").read_text())
    assert set(values["pairs"]) == {"a_flickers.mp4 against a.mp4", "b_noisy.mp4 against b.mp4"}
    assert values["pairs"]["a_flickers.mp4 against a.mp4"]["frames"] == 20
    mean, low, high = values["differences"]["flicker"]
    assert low < mean < high
    assert set(json.loads((tmp_path / "out" / "clips.json").read_text())) == {f"{name}.mp4" for name in clips}
