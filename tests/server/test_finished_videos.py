"""Finishing over REST: of videos that are there and of those that are rendered, within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from radial.video.clip import Video, read_frames, read_receipt
from radial.video.finishing.steps import make_finish
from radial_app.jobs.finishing import finishing_of, request_of
from radial_app.jobs.job import Job, Output, ResultFile
from radial_app.jobs.results import digest_file
from radial_app.jobs.store import JobStore
from radial_app.server.finishing.bounds import upscalers
from radial_app.server.service import ServerPaths
from radial_app.worker.worker import Worker

SMALL = {
    "prompt": "x",
    "model": "small",
    "size": "32x32",
    "num_frames": 9,
    "fps": 16,
    "num_inference_steps": 1,
    "seed": 4,
}


def work(paths: ServerPaths) -> None:
    with JobStore(paths.data) as store:
        Worker(store, until_idle=True).run()


def problem_of(answer: Any) -> str:
    message: str = answer.json()["error"]["message"]
    return message


def test_after_a_render_and_of_a_video_that_is_there(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    created = client.post("/v1/videos", json=SMALL | {"finish": {"frames": 2}})
    assert created.status_code == 200, created.text
    id_ = created.json()["id"]
    assert (created.json()["finish"], created.json()["renders"]) == ({"frames": 2}, 1)
    listed = client.post(
        "/v1/lists", json={"text": "a\nb", "defaults": SMALL | {"finish": "frames=4"}, "dry_run": True}
    )
    assert len(listed.json()["data"]) == 2, listed.text
    work(paths)
    video = client.get(f"/v1/videos/{id_}").json()
    assert (video["status"], video["progress"]) == ("completed", 100)
    assert [(file["finished"], file["name"]) for file in video["files"]] == [
        (False, "x-4.mp4"),
        (True, "x-4-finished.mp4"),
    ]
    whole = client.get(f"/v1/videos/{id_}/content?index=1")
    (tmp_path / "got.mp4").write_bytes(whole.content)
    assert read_frames(tmp_path / "got.mp4").shape == (18, 32, 32, 3)
    assert client.get(f"/v1/videos/{id_}/receipt?index=1").json()["finishing"][0]["frames"] == 2

    other = client.post("/v1/videos", json=SMALL | {"seed": 5}).json()["id"]
    work(paths)
    wanted = {"scale": 2, "speed": 2, "join": [other]}
    queued = client.post(f"/v1/videos/{id_}/finish", json=wanted)
    assert queued.status_code == 200, queued.text
    told = queued.json()
    assert (told["size"], told["num_frames"], told["seconds"], told["renders"]) == ("64x64", 9, "0.5625", 0)
    gone = client.delete(f"/v1/videos/{other}")
    assert (gone.status_code, "waits to go on from this one" in problem_of(gone)) == (409, True)
    changed = client.patch(f"/v1/videos/{told['id']}", json={"request": {"seed": 9}})
    assert "finishes a clip and renders none" in problem_of(changed)
    work(paths)
    made = client.get(f"/v1/videos/{told['id']}").json()
    assert (made["status"], made["files"][0]["name"]) == ("completed", "x-4-finished-2.mp4")
    assert read_receipt(paths.outputs / "x-4-finished-2.mp4")["finishing"][0]["clips"] == ["x-4.mp4", "x-5.mp4"]
    command = client.get(f"/v1/videos/{told['id']}/command").json()["command"]
    assert command.startswith("radial finish ")
    assert command.endswith("--scale 2.0 --speed 2.0")
    assert client.delete(f"/v1/videos/{other}").status_code == 200


def test_what_cannot_be_is_one_line(client: TestClient, paths: ServerPaths) -> None:
    bad = {
        "frames": 3, "scale": 9, "upscaler": "../../secret.safetensors", "sound": "/etc/passwd", "aspect": "99:1",
        "nonsense": 1, "join": ["1234567890ab"],
    }  # fmt: skip
    with JobStore(paths.data) as store:
        clip = Video(np.full((8, 48, 64, 3), 90, np.uint8), 16).write(paths.outputs / "a.mp4")

        done = ResultFile(str(clip), digest_file(clip), 1, done=True)
        job = Job(
            id="", request=request_of([clip]), finish=finishing_of([clip], make_finish(frames=2)), output=Output()
        )
        (job,) = store.add([job])
        store.claim("w", only=job.id)
        store.record_file(job.id, 0, done)
        store.end(job.id, "done")
    for name, value in bad.items():
        answer = client.post(f"/v1/videos/{job.id}/finish", json={name: value})
        assert answer.status_code in (400, 404, 422), (name, answer.text)
        assert "\n" not in problem_of(answer)
    assert "nothing is to be done" in problem_of(client.post(f"/v1/videos/{job.id}/finish", json={}))
    large = client.post("/v1/videos", json=SMALL | {"finish": {"size": "9000x64"}})
    assert "9000x64 is too large" in problem_of(large)
    png = client.post("/v1/videos", json=SMALL | {"finish": {"frames": 2}, "file": {"format": "png"}})
    assert "a folder of frames is not finished" in problem_of(png)
    named = client.post("/v1/lists", json={"text": "a", "defaults": SMALL | {"finish": "sound=/etc/passwd"}})
    assert "upscaler and sound name files" in problem_of(named)
    assert client.get("/v1/upscalers").json() == []


def test_upscalers_of_a_server_are_files_and_folders_that_can_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "upscalers"
    for name, upsampler in (("ltx", "LTXLatentUpsamplerModel"), ("mixed", "LTX2LatentUpsamplerModel"), ("bare", "")):
        for part, kind in (("vae", "AutoencoderKLLTXVideo"), ("latent_upsampler", upsampler)):
            (folder / name / part).mkdir(parents=True)
            (folder / name / part / "config.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")
    for name in ("4x.safetensors", ".hidden.safetensors", "4x.pth"):
        (folder / name).touch()
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert upscalers(tmp_path) == {name: folder / name for name in ("4x.safetensors", "ltx")}
