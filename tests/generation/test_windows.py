"""Clips that come window by window are their pipelines' own, told as one run, and go on from any of its steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import CASES

from radial.generation.pipeline import generate
from radial.generation.resume import Step
from radial.generation.snapshot import Snapshot, read_snapshot
from radial.generation.watch import Event
from radial.loading.load import LoadedModel, load
from radial.models.find import find_model
from radial.request import make_request

CLIP = {"height": 32, "width": 48}
LARGE = {"height": 64, "width": 96}  # where there is something to leave out


def as_bytes(made: Any) -> Any:
    return (made * 255).round().clip(0, 255).astype("uint8")


def keep_all(kept: dict[int, Snapshot], folder: Path) -> Any:
    """Takes a snapshot of every step, by way of a file."""

    def on_step(step: Step) -> str:
        step.snapshot().write(folder / "kept.safetensors")
        found = read_snapshot(folder / "kept.safetensors", step.snapshot().about)
        assert found is not None
        kept[step.step] = found
        assert step.can_finish == (step.step > step.steps - 2)
        return "go on" if step.can_finish else "finish"  # which is for the last window

    return on_step


def run(model: LoadedModel, **arguments: Any) -> Any:
    """A clip of the pipeline itself."""
    given = {"prompt": "a red circle", "num_inference_steps": 2, "output_type": "np", **CLIP,
             "max_sequence_length": model.spec.max_sequence_length}  # fmt: skip
    with torch.inference_mode():
        return as_bytes(model.pipe(**given | arguments, generator=torch.Generator().manual_seed(4)).frames[0])


def test_wan_animate(tmp_path: Path) -> None:
    """From a picture, poses and faces, with guidance by a second call, and radial."""
    CASES["wan-animate"].build().save_pretrained(tmp_path / "animate")
    (tmp_path / "clip").mkdir()
    frames = [np.full((32, 48, 3), 20 * index, np.uint8) for index in range(13)]
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{index:02d}.png")
    Image.new("RGB", (48, 32), "red").save(tmp_path / "red.png")
    fields = {"prompt": "a red circle", "model": str(tmp_path / "animate"), "seed": 4, "num_inference_steps": 2,
              "references": str(tmp_path / "red.png"), "control_video": str(tmp_path / "clip"),
              "face_video": str(tmp_path / "clip"), **CLIP, "num_frames": 13}  # fmt: skip
    request = make_request(**fields, attention="dense", guidance_scale=3.0).resolve()
    model = load(request)
    assert [model.spec.windows(frames) for frames in (77, 81, 153, 157)] == [1, 2, 2, 3]
    model = replace(model, spec=replace(model.spec, window_frames=9, new_frames=8))
    events: list[Event] = []
    kept: dict[int, Snapshot] = {}
    (video,) = generate(request, model=model, on_event=events.append, on_step=keep_all(kept, tmp_path))
    told = [(event.stage, event.step) for event in events if not event.note]
    assert told[-6:] == [("denoise", 0), *(("denoise", step) for step in range(1, 5)), ("decode", 0)]
    assert any("13 frames come in 2 windows of up to 9" in event.note for event in events)
    clip = [Image.fromarray(frame) for frame in frames]
    made = run(
        model, negative_prompt="", image=Image.open(tmp_path / "red.png"), pose_video=clip, segment_frame_length=9,
        face_video=[frame.resize((16, 16)) for frame in clip], guidance_scale=3.0,
    )  # fmt: skip
    assert np.array_equal(video.frames, made)
    assert [(one.step, one.steps) for one in kept.values()] == [(step, 4) for step in (1, 2, 3, 4)]
    for done in (1, 2, 3):
        (resumed,) = generate(request, model=model, snapshot=kept[done])
        assert np.array_equal(resumed.frames, video.frames), done
    (sparse,) = generate(make_request(**fields | LARGE, attention="radial", dense_steps=0), model=model)
    assert sparse.receipt["attention"]["computed_share"] < 1
    assert set(sparse.receipt["inputs"]) == {"references.0", "control_video", "face_video"}


@pytest.fixture(scope="module")
def framepack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("framepack")
    CASES["framepack"].build().save_pretrained(folder / "model")
    CASES["framepack"].build().save_pretrained(folder / "model-F1")
    for colour in ("red", "blue"):
        Image.new("RGB", (48, 32), colour).save(folder / f"{colour}.png")
    return folder


def test_framepack(framepack: Path) -> None:
    """From its end back to the image that it starts from, with guidance by a second call, and radial."""
    fields = {"prompt": "a red circle", "model": str(framepack / "model"), "seed": 4, "num_inference_steps": 2, **CLIP,
              "image": str(framepack / "red.png"), "last_image": str(framepack / "blue.png"), "num_frames": 73,
              "true_cfg_scale": 3.0, "negative_prompt": "blurry"}  # fmt: skip
    request = make_request(**fields, attention="dense").resolve()
    model = load(request)
    assert model.notes == ("model is taken for framepack; F1 has the same parts, and the folder's name would tell",)
    assert [model.spec.windows(frames) for frames in (37, 73, 145)] == [1, 2, 4]
    events: list[Event] = []
    kept: dict[int, Snapshot] = {}
    (video,) = generate(request, model=model, on_event=events.append, on_step=keep_all(kept, framepack))
    assert [event.step for event in events if event.stage == "denoise"] == [0, 1, 2, 3, 4]
    made = run(
        model, image=Image.open(framepack / "red.png"), last_image=Image.open(framepack / "blue.png"), num_frames=66,
        latent_window_size=9, guidance_scale=10.0, true_cfg_scale=3.0, negative_prompt="blurry",
    )  # fmt: skip
    assert np.array_equal(video.frames, made)
    (resumed,) = generate(request, model=model, snapshot=kept[3], on_event=events.append)
    assert np.array_equal(resumed.frames, video.frames)
    assert [event.step for event in events if event.stage == "denoise"][5:] == [0, 3, 4]
    (sparse,) = generate(
        make_request(**fields | LARGE | {"num_frames": 37, "true_cfg_scale": None}, decay=0.2, dense_steps=0),
        model=model,
    )
    assert sparse.receipt["attention"]["computed_share"] < 1


def test_framepack_f1(framepack: Path) -> None:
    """Onwards from its image."""
    request = make_request(
        prompt="a red circle", model=str(framepack / "model-F1"), seed=4, num_inference_steps=2, attention="dense",
        image=str(framepack / "red.png"), num_frames=37, **CLIP,
    ).resolve()  # fmt: skip
    spec = find_model(request.model)
    assert (spec.guidance_scale, spec.takes_last_image, spec.stride) == (10.0, False, (36, 16, 16))
    model = load(request)
    (video,) = generate(request, model=model)
    image = Image.open(framepack / "red.png")
    made = run(model, image=image, num_frames=33, guidance_scale=10.0, sampling_type="vanilla")
    assert np.array_equal(video.frames, made)
