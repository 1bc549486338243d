"""What earlier versions wrote, which people have: queues, snapshots, clips and adapters. See before/README.md."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from radial.generation.pipeline import describe_run, generate
from radial.generation.snapshot import read_snapshot
from radial.generation.watch import Event
from radial.loading.load import LoadedModel, load
from radial.models.lora_settings import read_adapter_settings
from radial.request import GenerationRequest, make_request
from radial.video.clip import read_receipt
from radial_app.cli.receipts import request_of
from radial_app.jobs.job import changed_request, digest_of, make_output
from radial_app.jobs.store import JobStore

BEFORE = Path(__file__).parent / "before"
WEIGHTS = "f464c04ee73509f7"  # of the bundled model then
RECEIPT = json.loads((BEFORE / "receipt.json").read_text())


@pytest.fixture(scope="module")
def request_before() -> GenerationRequest:
    return make_request(**RECEIPT["request"])


@pytest.fixture(scope="module")
def tiny(request_before: GenerationRequest) -> LoadedModel:
    return load(request_before)


def test_a_queue(data_folder: Path, request_before: GenerationRequest) -> None:
    shutil.copy(BEFORE / "jobs.db", data_folder / "jobs.db")
    with JobStore(data_folder) as store:
        jobs = {job.state: job for job in store.find()}
        assert set(jobs) == {"done", "paused", "queued", "failed", "running", "cancelled"}
        assert not any(job.problem for job in jobs.values())
        assert {job.owner for job in jobs.values()} == {"ada"}
        assert jobs["done"].request == jobs["paused"].request == request_before
        assert store.receipts(jobs["done"].id) == [RECEIPT]
        assert store.job_of_file("/home/ada/videos/a-large-red-star.mp4") == (jobs["done"].id, 0)
        assert (jobs["failed"].error, jobs["failed"].request.num_videos) == ("out of memory", 2)
        assert [lora.path for lora in jobs["queued"].request.loras] == ["bundled:tiny-long"]
        store.recover()  # its worker is long gone
        assert store.get(jobs["running"].id).state == "queued"
        claimed = store.claim("cpu-1-bbbbbb")
        assert claimed is not None
        assert claimed.id == jobs["queued"].id


def test_a_snapshot(request_before: GenerationRequest, tiny: LoadedModel) -> None:
    file, resolved = BEFORE / "snapshot.safetensors", request_before.resolve()
    assert read_snapshot(file, describe_run(resolved, tiny)) is None  # the text encoder is another since: begun anew
    then = replace(tiny, fingerprint=WEIGHTS)
    snapshot = read_snapshot(file, describe_run(resolved, then))
    assert snapshot is not None
    assert (snapshot.step, snapshot.steps) == (2, 4)
    told: list[Event] = []
    (resumed,) = generate(request_before, model=then, snapshot=snapshot, on_event=told.append)
    assert [event.step for event in told if event.stage == "denoise" and event.step] == [2, 3, 4]
    (whole,) = generate(request_before, model=tiny)
    # Its two steps were computed on another machine, perhaps, and with words told a little otherwise.
    assert np.abs(resumed.frames.astype(int) - whole.frames).mean() < 6
    assert resumed.receipt["attention"] == whole.receipt["attention"] == RECEIPT["attention"]


def test_a_clip(request_before: GenerationRequest) -> None:
    receipt = read_receipt(BEFORE / "clip.mp4")
    assert {name: receipt[name] for name in RECEIPT} == RECEIPT
    request, _ = request_of(BEFORE / "clip.mp4")
    assert request == request_before.resolve()
    said = {name: value for name, value in request.model_dump(mode="json").items() if name in RECEIPT["request"]}
    assert said == RECEIPT["request"]  # nothing it said has changed


def test_an_adapter(tiny: LoadedModel) -> None:
    settings = read_adapter_settings(BEFORE / "adapter.safetensors")
    assert settings is not None
    assert (settings.rank, settings.native_frames, settings.target_frames, settings.attention) == (1, 33, 13, "radial")
    request = make_request(prompt="a", seed=1, loras=[{"path": str(BEFORE / "adapter.safetensors")}]).resolve()
    assert (request.num_frames, request.dense_steps, request.block_size) == (13, 2, 16)
    model = load(request)
    assert model.notes == ()
    assert model.loras[0]["name"] == "adapter.safetensors"


def test_a_file_of_jobs_that_was_begun_is_known_again() -> None:
    """`radial render --resume` goes by digests of what is written; these are from before."""
    written = make_request(prompt="a red circle", num_frames=33, seed=3)
    assert digest_of(written, make_output(folder="/o")) == "fe87e4567f682c424311e879"
    assert digest_of(written.with_values(sink_frames=0), make_output(folder="/o")) != "fe87e4567f682c424311e879"


def test_a_job_that_is_edited_takes_the_other_models_attention(data_folder: Path) -> None:
    """What followed from the old model by default does not stay with the new one."""
    before = make_request(prompt="a", model="wan2.1-14b", seed=1).resolve()
    after = changed_request(before, {"model": "hunyuan-video"})
    assert (before.sink_frames, after.sink_frames) == (1, 0)
    assert after.attention_settings == make_request(prompt="a", model="hunyuan-video").resolve().attention_settings
    kept = changed_request(before.with_values(sink_frames=3), {"num_frames": 161})
    assert kept.sink_frames == 3
