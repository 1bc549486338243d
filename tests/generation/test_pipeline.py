"""The verbs of generation: events in order, seeds that mean the same, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from radial import ModelError, RequestError
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.loading.load import choose_device, fingerprint, load
from radial.request import GenerationRequest, make_request

SMALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 3}


def request(folder: Path, **fields: object) -> GenerationRequest:
    return make_request(**{"prompt": "a red circle", "model": str(folder), **SMALL, **fields})


def test_events_in_order(wan_folder: Path) -> None:
    events: list[Event] = []
    videos = list(generate(request(wan_folder, num_videos=2), on_event=events.append))
    assert [video.receipt["request"]["seed"] for video in videos] == [3, 4]
    stages = [(event.video, event.stage, event.step) for event in events]
    one = [("encode", 0), ("denoise", 0), ("denoise", 1), ("denoise", 2), ("decode", 0)]
    assert stages == [(0, "load", 0)] + [(video, *rest) for video in (0, 1) for rest in one]


def test_a_loaded_model_is_reused_and_left_as_it_was(wan_folder: Path) -> None:
    model = load(request(wan_folder))
    events: list[Event] = []
    (radial,) = generate(request(wan_folder), model=model, on_event=events.append)
    assert "load" not in {event.stage for event in events}
    assert all(type(block.attn1.processor) is WanAttnProcessor for block in model.pipe.transformer.blocks)
    (again,) = generate(request(wan_folder), model=model)
    assert np.array_equal(radial.frames, again.frames)
    (dense,) = generate(request(wan_folder, attention="dense"), model=model)
    assert dense.receipt["attention"] == {"kind": "dense", "computed_share": 1.0}


def test_wrong_sizes_fail_before_anything_is_loaded(wan_folder: Path) -> None:
    events: list[Event] = []
    with pytest.raises(RequestError, match="nearest"):
        next(generate(request(wan_folder, height=40), on_event=events.append))
    assert events == []


def test_other_pipelines_are_refused(tmp_path: Path, wan_folder: Path) -> None:
    import shutil

    folder = shutil.copytree(wan_folder, tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"WanPipeline"', '"DDPMPipeline"'))
    with pytest.raises(ModelError, match="holds a DDPMPipeline; radial drives Allegro"):
        load(request(folder))


def test_a_model_that_is_nowhere() -> None:
    with pytest.raises(ModelError, match="no folder runs/tinny here, and the Hugging Face hub"):
        load(make_request(prompt="a", model="runs/tinny"))


def test_the_checkpoints_own_strides_count(tmp_path: Path, wan_folder: Path) -> None:
    """As for Wan 2.2 5B, whose autoencoder makes larger steps than most."""
    import json
    import shutil

    folder = shutil.copytree(wan_folder, tmp_path / "coarse")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scale_factor_spatial": 16}))
    with pytest.raises(RequestError, match="multiple of 32"):
        load(request(folder, height=48))


def test_fingerprints_tell_checkpoints_apart(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    first = fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("not a part of the model")
    assert fingerprint(tmp_path) == first
    (tmp_path / "a.safetensors").write_bytes(b"x" * 99 + b"y")
    assert fingerprint(tmp_path) != first


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(RequestError, match="no device 'tpu' here"):
        choose_device("tpu")
