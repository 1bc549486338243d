"""The REST interface: jobs in and out, files only from their folders, whoever asks."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import serving

from radial.video.clip import Video, read_frames
from radial.video.encoding import Encoding
from radial_app.cli.jobs import where
from radial_app.cli.main import main
from radial_app.cli.receipts import request_of
from radial_app.jobs.job import ResultFile
from radial_app.jobs.results import publish_once
from radial_app.jobs.store import JobStore
from radial_app.server import uploads as inputs
from radial_app.server.access import COOKIE, MAX_BODY
from radial_app.server.accounts import Accounts, Throttle
from radial_app.server.app import make_app
from radial_app.server.finishing.bounds import WHILE_YOU_WAIT
from radial_app.server.limits import streams
from radial_app.server.service import ServerPaths

PASSWORD = "correct horse battery"


@pytest.fixture
def paths(tmp_path: Path) -> ServerPaths:
    return ServerPaths(tmp_path / "data", tmp_path / "out")


@pytest.fixture
def client(paths: ServerPaths) -> TestClient:
    paths.data.mkdir()
    return TestClient(make_app(paths), base_url="http://127.0.0.1")


def finish(paths: ServerPaths, job: str, pixels: int = 0, size: int = 32) -> ResultFile:
    """Render a queued job without a model."""
    with JobStore(paths.data) as store:
        claimed = store.claim("w", only=job)
        assert claimed is not None
        frames = np.full((5, size, size, 3), pixels, np.uint8)
        frames[:, :, : size // 2] = 255
        receipt = {"radial": "0", "request": claimed.request.model_dump(mode="json")}
        file = publish_once(store, claimed, 0, Video(frames, 8, receipt), 1.5)
        store.end(job, "done")
    return file


def png(width: int = 40, height: int = 30) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(content, "PNG")
    return content.getvalue()


def error_of(answer: Any) -> str:
    problem = answer.json()["error"]
    assert set(problem) == {"message", "type", "param", "code"}
    message: str = problem["message"]
    return message


def test_a_video_from_request_to_file(client: TestClient, paths: ServerPaths) -> None:
    created = client.post("/v1/videos", json={"prompt": "a red circle", "seed": 3, "size": "64x48", "seconds": 1})
    assert created.status_code == 200
    video = created.json()
    assert (video["object"], video["status"], video["size"], video["num_frames"]) == ("video", "queued", "64x48", 17)
    assert (video["request"]["seed"], video["seconds"]) == (3, "1.062")
    id_ = video["id"]
    assert client.get(f"/v1/videos/{id_}").json() == video
    assert [one["id"] for one in client.get("/v1/queue").json()["waiting"]] == [id_]
    assert client.get(f"/v1/videos/{id_}/content").status_code == 404
    finish(paths, id_)
    done = client.get(f"/v1/videos/{id_}").json()
    assert (done["status"], done["progress"], len(done["files"])) == ("completed", 100, 1)
    content = client.get(f"/v1/videos/{id_}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert content.content[4:8] == b"ftyp"
    part = client.get(f"/v1/videos/{id_}/content", headers={"range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)
    small = client.get(f"/v1/videos/{id_}/content?variant=thumbnail")
    assert Image.open(io.BytesIO(small.content)).format == "WEBP"
    assert client.get(f"/v1/videos/{id_}/receipt").json()["request"]["seed"] == 3
    assert [line["kind"] for line in client.get(f"/v1/videos/{id_}/log").json()][-1] == "state"
    listed = client.get("/v1/videos?show=done&search=RED").json()
    assert ([one["id"] for one in listed["data"]], listed["has_more"]) == ([id_], False)
    assert client.get("/v1/videos?search=blue%25").json()["data"] == []
    assert client.delete(f"/v1/videos/{id_}").json() == {"id": id_, "object": "video.deleted", "deleted": True}
    assert client.get(f"/v1/videos/{id_}").status_code == 404
    assert [path.suffix for path in (paths.outputs / ".trash").iterdir()] == [".mp4"]  # not gone for good


def test_a_file_that_another_job_replaced_stays(client: TestClient, paths: ServerPaths) -> None:
    ids = [client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"] for _ in range(2)]
    file = finish(paths, ids[0])
    with JobStore(paths.data) as store:
        store.claim("w", only=ids[1])
        store.record_file(ids[1], 0, file)
        store.end(ids[1], "done")
    client.delete(f"/v1/videos/{ids[0]}")
    assert client.get(f"/v1/videos/{ids[1]}/content").status_code == 200
    client.delete(f"/v1/videos/{ids[1]}")
    assert not Path(file.path).exists()


def test_openai_clients_send_forms(client: TestClient, paths: ServerPaths) -> None:
    """Without OpenAI's ``input_reference``, and with it where the model starts from an image."""
    form = {"prompt": "a cat", "model": "tiny", "seconds": "2", "loras": "[]"}
    assert client.post("/v1/videos", data=form).json()["num_frames"] == 33
    form = {"prompt": "a cat", "model": "wan2.2-ti2v-5b"}
    made = client.post("/v1/videos", data=form, files={"input_reference": ("cat.png", png())})
    (upload,) = (paths.data / "inputs" / "local").iterdir()
    assert made.json()["request"]["image"] == upload.name


BAD: list[tuple[Any, str]] = [
    ({"prompt": " "}, "prompt must not be empty"),
    ({"prompt": "a", "num_frames": 34}, "nearest are 33 and 37"),
    ({"prompt": "a", "steps": 3}, "unknown field 'steps'"),
    ({"prompt": "a", "guidance_scale": 1e9}, "guidance_scale must be less than or equal to 100"),
    ({"prompt": "a", "size": "64x48", "width": 64}, "size and width say the same: give one of them"),
    ({"prompt": "a", "seconds": 1, "num_frames": 33}, "seconds and num_frames say the same: give one of them"),
    ({"prompt": "a", "size": "a lot"}, "size"),
    ({"prompt": "a", "image": "/etc/passwd"}, "there is no upload '/etc/passwd'"),
    ({"prompt": "a", "extend": "../../jobs.db"}, "there is no upload"),
    ({"prompt": "a", "extend": "video:0123456789abcdef/0"}, "there is no video"),
    ({"prompt": "a", "image": "http://localhost/x.png"}, "there is no upload"),
    ({"prompt": "a", "control_video": "/etc/passwd"}, "there is no upload '/etc/passwd'"),
    ({"prompt": "a", "control_video": "../../jobs.db", "mask": "/etc/passwd"}, "there is no upload"),
    ({"prompt": "a", "enhance": "/etc"}, "enhance must be a language model of this server, not '/etc'; there is none"),
    ({"prompt": "a", "references": ["/etc/hostname"]}, "there is no upload '/etc/hostname'"),
    ({"prompt": "a", "references": "../a.png"}, "there is no upload '../a.png'"),
    ({"prompt": "a", "keyframes": ["0:/etc/issue"]}, "there is no upload '/etc/issue'"),
    ({"prompt": "a", "keyframes": [{"frame": 0, "image": "/etc/group"}]}, "there is no upload '/etc/group'"),
    ({"prompt": "a", "keyframes": [{"frame": 0}]}, "keyframes"),
    ({"prompt": "a", "loras": [{"path": "/etc/passwd"}]}, "there is no adapter"),
    ({"prompt": "a", "loras": [{"path": "../x.safetensors"}]}, "there is no adapter"),
    ({"prompt": "a", "model": "/etc"}, "unknown model '/etc'"),
    ({"prompt": "a", "model": "../x"}, "unknown model"),
    ({"prompt": "a" * 30_000}, "prompt"),
    ([1], "must be a JSON object"),
]


@pytest.mark.parametrize(("body", "says"), BAD, ids=[says[:24] for _, says in BAD])
def test_what_cannot_be_is_said(client: TestClient, paths: ServerPaths, body: Any, says: str) -> None:
    answer = client.post("/v1/videos", json=body)
    assert answer.status_code == 422
    assert says in error_of(answer)
    assert str(paths.data) not in answer.text
    assert client.get("/v1/queue").json()["waiting"] == []


def test_bodies_that_are_no_json(client: TestClient) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        answer = client.post("/v1/videos", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 422
    assert client.post("/v1/videos", content=b"<x/>", headers={"content-type": "text/xml"}).status_code == 422
    big = client.post("/v1/videos/check", content=b" " * (MAX_BODY + 1), headers={"content-type": "application/json"})
    assert big.status_code == 413


def test_a_body_that_hides_its_size(client: TestClient) -> None:
    def parts() -> Any:
        for _ in range(40):
            yield b" " * (MAX_BODY // 20)

    answer = client.post("/v1/videos/check", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_what_users_do_with_jobs(client: TestClient, paths: ServerPaths) -> None:
    ids = [client.post("/v1/videos", json={"prompt": f"clip {n}", "seed": n}).json()["id"] for n in range(3)]
    order: Callable[[], list[str]] = lambda: [one["id"] for one in client.get("/v1/queue").json()["waiting"]]  # noqa: E731
    assert order() == ids
    client.patch(f"/v1/videos/{ids[2]}", json={"place": 1})
    assert order() == [ids[2], ids[0], ids[1]]
    client.patch(f"/v1/videos/{ids[2]}", json={"step": "down"})
    assert order() == [ids[0], ids[2], ids[1]]
    for step in ("up", "up", "up"):  # no further than the front
        client.patch(f"/v1/videos/{ids[2]}", json={"step": step})
    assert order() == [ids[2], ids[0], ids[1]]
    assert client.post(f"/v1/videos/{ids[0]}/pause").json()["state"] == "paused"
    assert client.post(f"/v1/videos/{ids[0]}/resume").json()["state"] == "queued"
    edited = client.patch(f"/v1/videos/{ids[0]}", json={"request": {"prompt": "another", "num_frames": 17}}).json()
    assert (edited["prompt"], edited["num_frames"], edited["request"]["seed"]) == ("another", 17, 0)
    refused = client.patch(f"/v1/videos/{ids[0]}", json={"request": {"image": "/etc/passwd"}})
    assert (refused.status_code, error_of(refused)) == (422, "there is no upload '/etc/passwd'")
    assert client.post(f"/v1/videos/{ids[1]}/cancel").json()["state"] == "cancelled"
    assert client.get("/v1/videos?show=done").json()["data"] == []  # nothing came of it
    assert client.post(f"/v1/videos/{ids[1]}/retry").json()["state"] == "queued"
    again = client.post(f"/v1/videos/{ids[1]}/retry")
    assert (again.status_code, "cannot be retried" in error_of(again)) == (409, True)
    assert client.post(f"/v1/videos/{ids[1]}/explode").status_code == 422
    copy = client.post(f"/v1/videos/{ids[1]}/duplicate", json={"attention": "dense"}).json()
    assert (copy["request"]["attention"], copy["request"]["seed"]) == ("dense", 1)
    finish(paths, ids[0])
    client.patch(f"/v1/videos/{ids[0]}", json={"favourite": True})
    assert [one["id"] for one in client.get("/v1/videos?show=favourites").json()["data"]] == [ids[0]]
    begun = client.patch(f"/v1/videos/{ids[0]}", json={"request": {"prompt": "late"}})
    assert (begun.status_code, "only jobs that wait" in error_of(begun)) == (422, True)
    command = client.get(f"/v1/videos/{ids[0]}/command").json()["command"]
    assert command == "radial generate another --num-frames 17 --seed 0"


def test_changes_are_judged_with_the_rest(client: TestClient, paths: ServerPaths) -> None:
    """A last image alone, the weight of an adapter, seconds by the model's own rate."""
    model = "wan2.2-i2v-a14b"
    first, last = (client.post("/v1/files", files={"file": ("a.png", png(40, side))}).json()["id"] for side in (30, 31))
    job = client.post("/v1/videos", json={"prompt": "a", "model": model, "image": first, "seed": 1}).json()
    edited = client.patch(f"/v1/videos/{job['id']}", json={"request": {"last_image": last}}).json()
    assert (edited["request"]["image"], edited["request"]["last_image"]) == (first, last)
    lora = {"path": "bundled:tiny-long", "weight": 0.5}
    long = client.post("/v1/videos", json={"prompt": "a", "num_frames": 65, "seed": 1, "loras": [lora]}).json()
    copy = client.post(f"/v1/videos/{long['id']}/duplicate", json={"attention": "dense"}).json()
    assert copy["request"]["loras"] == [lora]
    for name, frames in ((model, 81), ("mochi", 151)):
        check = client.post(
            "/v1/videos/check",
            json={"prompt": "a", "model": name, "seconds": 5, "image": first if name == model else None},
        )
        assert check.json()["request"]["num_frames"] == frames, name
    assert client.get(f"/v1/videos/{job['id']}/log?after=99999999999999999999").status_code == 422


def test_a_running_job_is_asked_and_not_deleted(client: TestClient, paths: ServerPaths) -> None:
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    with JobStore(paths.data) as store:
        store.claim("w")
        store.progress(id_, "denoise", 5, 20, 0, 12.0, 0.91, 0.03)
        assert where(store.get(id_)) == "denoise 5/20, recall 91%, off by 0.03"
        Image.new("RGB", (8, 8)).save(store.preview_path(id_), "WEBP")
    video = client.get(f"/v1/videos/{id_}").json()
    assert (video["status"], video["progress"], video["eta"], video["step"]) == ("in_progress", 25, 12.0, 5)
    assert (video["recall"], video["attention_error"]) == (0.91, 0.03)
    assert client.get(f"/v1/videos/{id_}/content?variant=preview").headers["content-type"] == "image/webp"
    assert client.delete(f"/v1/videos/{id_}").status_code == 409
    assert client.post(f"/v1/videos/{id_}/cancel?keep=true").json()["control"] == "finish"


def test_uploads_are_judged_by_content(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    def send(content: bytes, name: str = "../../x.png") -> Any:
        return client.post("/v1/files", files={"file": (name, content)})

    kept = send(png()).json()
    assert (kept["kind"], kept["width"], kept["height"]) == ("image", 40, 30)
    assert client.get(f"/v1/files/{kept['id']}").content == png()
    clip = Video(np.zeros((5, 32, 32, 3), np.uint8), 8).write(tmp_path / "clip.mp4")
    brought = send(clip.read_bytes()).json()
    assert brought["kind"] == "clip"
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "AVIF")
    phone = send(picture.getvalue(), "a.mp4").json()
    assert (phone["kind"], phone["width"], phone["height"], phone["id"][-5:]) == ("image", 40, 30, ".avif")
    for field, given, is_what in (
        ("image", brought, "a clip, and no image"),
        ("extend", phone, "an image, and no clip"),
    ):
        answer = client.post("/v1/videos", json={"prompt": "a", "model": "wan2.1-i2v-14b-480p", field: given["id"]})
        assert answer.status_code == 422
        assert error_of(answer) == f"{field} {given['id']} is {is_what}"
    bomb = io.BytesIO()
    Image.new("1", (11_000, 11_000)).save(bomb, "PNG")
    for content, says in (
        (b"#!/bin/sh\n", "no PNG"), (b"", "no PNG"), (png()[:60], "cannot be read"), (b"<svg/>", "no PNG"),
        (b"\0\0\0\x18ftypheic" + b"x" * 500, "cannot be read"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "no PNG"), (b"\0\0\0\x18ftypmp42" + b"x" * 500, "cannot be read"),
        (bomb.getvalue(), "64 megapixels"),
    ):  # fmt: skip
        answer = send(content)
        assert answer.status_code == 422, content[:20]
        assert says in error_of(answer).replace("is not an image that can be read", "cannot be read")
    folder = paths.data / "inputs" / "local"
    assert len(list(folder.iterdir())) == 3  # what was refused left nothing
    for id_ in ("..%2f..%2fjobs.db", "jobs.db", "%2e%2e"):
        assert client.get(f"/v1/files/{id_}").status_code in (404, 422)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"num_frames": 65}, {"num_frames": 65, "long_adapter": False}, {"attention": "dense"}, {"preset": "4-step"},
        {"seconds": 1, "size": "64x96", "sampler": "lcm", "flow_shift": 1.5, "riflex": False, "negative_prompt": "x"},
        {"loras": [{"path": "bundled:tiny-long", "weight": -1}], "num_videos": 2, "decay": 0.3, "dense_last_steps": 1},
        {"cache": "fast", "guidance_start": 0.1, "guidance_end": 0.6},
        {"precision": "eight_bit_weights", "memory": "low", "dtype": "float32", "image_ground": "white", "fps": 7},
    ],
)  # fmt: skip
def test_settings_of_a_clip_give_the_same_request(
    client: TestClient, paths: ServerPaths, fields: dict[str, Any]
) -> None:
    """Over REST, and by its receipt on the command line."""
    id_ = client.post("/v1/videos", json={"prompt": "a red fox", "seed": 5} | fields).json()["id"]
    made = client.get(f"/v1/videos/{id_}").json()["request"]
    file = finish(paths, id_)
    found = client.post("/v1/settings", files={"file": ("a.mp4", Path(file.path).read_bytes())}).json()
    again = client.post("/v1/videos", json=found["request"]).json()["request"]
    if fields.get("num_videos"):  # a file is one of them
        made["num_videos"] = again["num_videos"] = 1
    assert again == made
    request, _ = request_of(Path(file.path))
    assert request.model_dump(mode="json", exclude={"num_videos", "loras"}) == {
        name: value for name, value in made.items() if name not in ("num_videos", "loras")
    }


@pytest.mark.parametrize("decoder", ["/etc/passwd", "a/b/c.safetensors", "small"])
def test_a_decoder_is_no_file_of_the_server(client: TestClient, decoder: str) -> None:
    answer = client.post("/v1/videos", json={"prompt": "a", "decoder": decoder})
    assert answer.status_code == 422
    assert f"decoder must be full or tiny here, not '{decoder}'" in error_of(answer)


def test_settings_come_back_out_of_a_video(client: TestClient, paths: ServerPaths) -> None:
    fields = {"prompt": "<img src=x onerror=alert(1)>", "seed": 9, "guidance_scale": 2.5, "num_frames": 17,
              "decay": 0.7, "loras": [{"path": "bundled:tiny-long", "weight": 0.5}]}  # fmt: skip
    id_ = client.post("/v1/videos", json=fields).json()["id"]
    file = finish(paths, id_)
    found = client.post("/v1/settings", files={"file": ("a.mp4", Path(file.path).read_bytes())}).json()
    assert {name: found["request"][name] for name in fields} == fields
    assert found["notes"] == []
    bare = Video(np.zeros((5, 32, 32, 3), np.uint8), 8).write(paths.outputs / "bare.mp4", encoding=Encoding())
    answer = client.post("/v1/settings", files={"file": ("b.mp4", bare.read_bytes())})
    assert "carries no settings" in error_of(answer)
    hostile = {"radial": "9", "request": fields | {"model": "/etc", "image": "/etc/passwd", "loras": [
        {"path": "/root/secret.safetensors"}], "unknown": 1}}  # fmt: skip
    path = Video(np.zeros((5, 32, 32, 3), np.uint8), 8, hostile).write(paths.outputs / "hostile.mp4")
    told = client.post("/v1/settings", files={"file": ("c.mp4", path.read_bytes())}).json()
    assert (told["request"]["model"], told["request"]["image"], told["request"]["loras"]) == ("tiny", None, [])
    assert told["notes"] == ["its image was passwd: choose it again", "the adapter secret.safetensors is not here",
                             "the model etc is not here"]  # fmt: skip


def test_a_clip_of_the_gallery_is_extended(client: TestClient, paths: ServerPaths) -> None:
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    fields = {"prompt": "then", "extend": f"video:{id_}/0", "model": "wan2.2-ti2v-5b"}
    assert client.post("/v1/videos", json=fields).status_code == 422  # not made yet
    finish(paths, id_)
    assert client.post("/v1/videos", json=fields).json()["request"]["extend"] == f"video:{id_}/0"


def test_what_steers_a_clip_comes_by_ids(client: TestClient, paths: ServerPaths) -> None:
    """Uploads and videos of the gallery, each kind in its place; what waits for them keeps them."""
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    finish(paths, id_)
    image = client.post("/v1/files", files={"file": ("a.png", png())}).json()["id"]
    fields = {
        "prompt": "b", "model": "wan2.1-vace-1.3b", "control_video": f"video:{id_}/0", "mask": image,
        "references": [image], "keyframes": [{"frame": 3, "image": image}],
    }  # fmt: skip
    made = client.post("/v1/videos", json=fields).json()
    assert {name: made["request"][name] for name in fields} == fields
    assert client.post("/v1/videos", json=fields | {"keyframes": f"3:{image}"}).json()["request"] == made["request"] | {
        "seed": client.get("/v1/videos").json()["data"][0]["request"]["seed"]
    }
    with JobStore(paths.data) as store:
        needed = store.inputs_of_unfinished()
    assert {Path(path).name for path in needed if path.endswith(".png")} == {image}
    assert len(needed) == 2
    assert client.delete(f"/v1/videos/{id_}").status_code == 409
    for name, says in (("control_video", "is an image, and no clip"), ("references", "is a clip, and no image")):
        wrong = image if name == "control_video" else [f"video:{id_}/0"]
        answer = client.post("/v1/videos", json=fields | {name: wrong})
        assert (answer.status_code, says in error_of(answer)) == (422, True)
    assert client.get(f"/v1/videos/{made['id']}/command").json()["command"].count("--keyframes 3:") == 1


def test_a_video_is_finished_beside_itself(
    client: TestClient, paths: ServerPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    file = finish(paths, id_)
    before = Path(file.path).read_bytes()
    answer = client.get(f"/v1/videos/{id_}/finished?frames=2&aspect=1:2&loop=2")
    assert answer.status_code == 200
    (tmp_path / "finished.mp4").write_bytes(answer.content)
    assert read_frames(tmp_path / "finished.mp4").shape == (20, 32, 16, 3)
    assert Path(file.path).read_bytes() == before
    monkeypatch.setattr("radial_app.server.routes.files.WHILE_YOU_WAIT", replace(WHILE_YOU_WAIT, pixels=200_000))
    for query, says in (
        ("frames=3", "frames"), ("aspect=wide", "aspect must be WIDTH:HEIGHT"), ("speed=0", "speed"),
        ("scale=4&loop=20", "million pixels are more than the 0.2 that are made while you wait"),
        ("loop=20&speed=20", "million pixels are more than the 0.2"),  # which are read
        ("aspect=1:99999&reframe=pad&scale=0.25", "aspect must lie between 1:4 and 4:1, not 1:99999"),
        ("aspect=5:1", "aspect must lie between 1:4 and 4:1, not 5:1"), ("scale=0.00001", "scale must be greater"),
    ):  # fmt: skip
        wrong = client.get(f"/v1/videos/{id_}/finished?{query}")
        assert (wrong.status_code, says in error_of(wrong)) == (422, True), query


@pytest.mark.parametrize(
    ("query", "bounds", "says"),
    [
        ("scale=4&frames=2", {"moved": 10_000}, "million pixels a frame with more frames are more than"),
        ("aspect=1:4&reframe=pad&scale=0.25", {"frame": 3_000}, "million pixels a frame are more than"),
        ("scale=0.25&frames=2", {"moved": 1_000}, "million pixels a frame with more frames"),  # as it is read
        ("reverse=true", {"disk": 10_000}, "MB of frames that are turned around are more than"),
        ("speed=0.05&loop=20", {"seconds": 20}, "seconds are more than the 20.0 that are made while you wait"),
    ],
)  # fmt: skip
def test_what_finishing_takes_is_bounded_on_the_way(
    client: TestClient, paths: ServerPaths, monkeypatch: pytest.MonkeyPatch, query: str, bounds: Any, says: str
) -> None:
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    finish(paths, id_)
    monkeypatch.setattr("radial_app.server.routes.files.WHILE_YOU_WAIT", replace(WHILE_YOU_WAIT, **bounds))
    answer = client.get(f"/v1/videos/{id_}/finished?{query}")
    assert (answer.status_code, says in error_of(answer)) == (422, True), answer.text


def test_two_videos_are_compared(client: TestClient, paths: ServerPaths) -> None:
    ids = [client.post("/v1/videos", json={"prompt": "a", "seed": n}).json()["id"] for n in range(3)]
    for id_, pixels, size in zip(ids, (0, 0, 40), (32, 32, 32), strict=True):
        finish(paths, id_, pixels, size)
    same = client.get(f"/v1/compare?a={ids[0]}&b={ids[1]}").json()
    assert (same["psnr"], same["ssim"]) == (100.0, 1.0)
    assert client.get(f"/v1/compare?a={ids[0]}&b={ids[2]}").json()["psnr"] < 30
    assert client.get(f"/v1/compare?a={ids[0]}&b=ffffffffff").status_code == 404


def test_models_adapters_plans(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    models = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert models["tiny"]["native_frames"] == 33
    assert models["tiny"]["on_disk"] > 1e6
    assert client.get("/v1/models/tiny").json() == models["tiny"]
    assert client.get("/v1/models/nothing/here").status_code == 404
    assert client.delete("/v1/models/tiny").status_code == 404  # it came with the package
    plan = client.get("/v1/plan.png?num_frames=65")
    assert Image.open(io.BytesIO(plan.content)).format == "PNG"
    found = client.post("/v1/videos/check", json={"prompt": "a", "num_frames": 129}).json()
    assert (found["request"]["num_frames"], found["seconds"]) == (129, 8.06)
    assert 0 < found["computed_share"] < 0.9
    assert client.post("/v1/adapters", files={"file": ("x.safetensors", b"pickle")}).status_code == 422
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    kept = client.post(
        "/v1/adapters", files={"file": ("../é vil.safetensors", (tmp_path / "a.safetensors").read_bytes())}
    )
    name = kept.json()["id"]
    assert (paths.data / "adapters" / name).is_file()
    own, *bundled = client.get("/v1/adapters").json()
    assert (own["id"], own["bundled"]) == (name, False)
    assert [(one["id"], one["bundled"], one["target_frames"]) for one in bundled] == [
        ("bundled:tiny-long", True, 129), ("bundled:tiny-stories", True, 257),
    ]  # fmt: skip
    assert "LoRA" in " ".join(client.get("/v1/adapters/bundled:tiny-long").json()["lines"])
    assert client.get("/v1/adapters/..%2fsecret").status_code == 404
    fields = client.get("/v1/fields").json()
    assert fields["num_inference_steps"] == {
        "type": "integer", "minimum": 1, "maximum": 1000, "description": "denoising steps",
    }  # fmt: skip
    assert not [name for name, field in fields.items() if "description" not in field]
    assert fields["sampler"]["choices"] == ["model", "euler", "lcm", "unipc"]


def test_lists_are_paged_by_their_last_id(client: TestClient, paths: ServerPaths) -> None:
    """As OpenAI's clients page: they go on as long as there is more."""
    ids = [client.post("/v1/videos", json={"prompt": f"n {n}", "seed": n}).json()["id"] for n in range(7)]
    for id_ in ids[:4]:
        finish(paths, id_)

    def walk(**query: Any) -> list[str]:
        seen: list[str] = []
        while True:
            after = {"after": seen[-1]} if seen else {}
            page = client.get("/v1/videos", params={"limit": 2, **query, **after}).json()
            seen += [one["id"] for one in page["data"]]
            assert len(seen) <= len(ids)
            if not page["has_more"]:
                return seen

    assert sorted(walk()) == sorted(ids)
    assert walk(order="asc") == walk()[::-1]
    assert walk(show="finished") == [*reversed(ids[:4])]
    assert client.get("/v1/videos", params={"after": "0123456789"}).status_code == 404


def test_videos_come_as_one_archive(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    ids = [client.post("/v1/videos", json={"prompt": "the same", "seed": n}).json()["id"] for n in range(2)]
    for id_ in ids:
        finish(paths, id_)
    answer = client.get("/v1/archive", params={"ids": ",".join(ids)})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        contents = {client.get(f"/v1/videos/{id_}/content").content for id_ in ids}
        assert {archive.read(name) for name in archive.namelist()} == contents
    for ids_ in ("", "0123456789", ",".join(f"{n:010d}" for n in range(400))):
        assert client.get("/v1/archive", params={"ids": ids_}).status_code in (404, 422)


def test_a_video_is_kept_as_the_kind_that_was_asked_for(client: TestClient, paths: ServerPaths) -> None:
    file = {"format": "webm", "codec": "vp9", "crf": 40, "metadata": False, "name": "mine-{seed}"}
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 3, "file": file}).json()["id"]
    with JobStore(paths.data) as store:
        output = store.get(id_).output
    assert output.name == "mine-{seed}"
    assert (output.encoding.format, output.encoding.crf, output.encoding.metadata) == ("webm", 40, False)
    for bad in ({"name": "../{seed}"}, {"format": "gif", "crf": 3}, {"format": "exe"}):
        assert client.post("/v1/videos", json={"prompt": "a", "file": bad}).status_code == 422


def test_a_deleted_video_is_had_again(client: TestClient, paths: ServerPaths) -> None:
    ids = [client.post("/v1/videos", json={"prompt": f"n {n}", "seed": n}).json()["id"] for n in range(2)]
    for id_ in ids:
        finish(paths, id_)
    before = client.get(f"/v1/videos/{ids[0]}").json()
    content = client.get(f"/v1/videos/{ids[0]}/content").content
    receipt = client.get(f"/v1/videos/{ids[0]}/receipt").json()
    for id_ in ids:
        client.delete(f"/v1/videos/{id_}").raise_for_status()
    assert client.get(f"/v1/videos/{ids[0]}").status_code == 404
    assert [(one["id"], one["prompt"], one["bytes"] > 0) for one in client.get("/v1/trash").json()] == [
        (id_, f"n {n}", True) for n, id_ in [*enumerate(ids)][::-1]
    ]
    assert client.post(f"/v1/trash/{ids[0]}/restore").json() == before
    assert client.get(f"/v1/videos/{ids[0]}/content").content == content
    assert client.get(f"/v1/videos/{ids[0]}/receipt").json() == receipt
    assert client.get("/v1/videos").json()["data"][0]["id"] == ids[0]
    assert client.post(f"/v1/trash/{ids[0]}/restore").status_code == 422
    assert client.post("/v1/trash/..%2f..%2fjobs/restore").status_code in (404, 422)
    client.delete(f"/v1/videos/{ids[0]}").raise_for_status()  # and once more
    # Another's video that took the place is not written over.
    file = Path(before["files"][0]["name"])
    (paths.outputs / file).write_bytes(b"another's")
    assert client.post(f"/v1/trash/{ids[0]}/restore").status_code == 422
    assert (paths.outputs / file).read_bytes() == b"another's"
    assert client.delete("/v1/trash").json() == {"videos": 2}
    assert client.get("/v1/trash").json() == []
    assert not [path for path in (paths.outputs / ".trash").iterdir() if path.suffix == ".mp4"]


def test_lists_are_read_as_render_reads_them(client: TestClient) -> None:
    told = client.post("/v1/lists", json={"text": "a {red|blue} circle\n# no\na {star", "dry_run": True}).json()
    assert [one["prompt"] for one in told["data"]] == ["a red circle", "a blue circle", "a {star"]
    assert told["ids"] == []
    assert "{" in told["warnings"][0]
    assert client.get("/v1/queue").json()["waiting"] == []
    yaml = "wildcards: {animal: [fox]}\ngrid: {seed: [1, 2]}\njobs:\n  - {prompt: a __animal__, priority: 99}\n"
    body = {"text": yaml, "kind": "yaml", "defaults": {"num_frames": 9, "size": "64x64"}, "file": {"format": "gif"}}
    ids = client.post("/v1/lists", json=body).json()["ids"]
    waiting = client.get("/v1/queue").json()["waiting"]
    assert [one["id"] for one in waiting] == ids
    assert [(one["prompt"], one["request"]["seed"], one["size"], one["num_frames"]) for one in waiting] == [
        ("a fox", seed, "64x64", 9) for seed in (1, 2)
    ]
    bad = client.post("/v1/lists", json={"text": "prompt,seed\na,1\nb,x\n,3", "kind": "csv"})
    assert bad.status_code == 422
    assert "list.csv:3: seed must be" in bad.json()["error"]["message"]
    assert "list.csv:4: prompt" in bad.json()["error"]["message"]
    assert len(client.get("/v1/queue").json()["waiting"]) == 2  # all or none


def test_lists_reach_no_file_of_the_server(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "words.txt").write_text("CANARY")
    for row in (
        {"prompt": "a", "image": str(tmp_path / "secret.png")}, {"prompt": "a", "image": f"{tmp_path}/*.png"},
        {"prompt": f"a __{tmp_path}/words__"}, {"prompt": "a __words__"}, {"prompt": "a __../words__"},
        {"prompt": "a", "lora": str(tmp_path / "secret.png")}, {"prompt": "a", "model": str(tmp_path)},
        {"prompt": "a", "output": "../../x"}, {"prompt": "a", "extend": "/etc/passwd"},
    ):  # fmt: skip
        told = client.post("/v1/lists", json={"text": json.dumps(row), "kind": "jsonl", "dry_run": True})
        assert "CANARY" not in told.text
        if "/words" not in row["prompt"]:  # which names no wildcard
            assert told.status_code == 422, row
    # Whether a file is there is not told, either.
    there, not_there = (
        client.post("/v1/lists", json={"text": f"prompt,lora\na,{name}:0.5", "kind": "csv"}).text
        for name in (tmp_path / "words.txt", tmp_path / "nothing.txt")
    )
    assert there.replace("words.txt", "") == not_there.replace("nothing.txt", "")
    many = client.post("/v1/lists", json={"text": "a {1|2|3|4|5|6|7|8|9|0} {1|2|3|4|5|6|7|8|9|0} {1|2|3|4|5|6|7|8}"})
    assert "more than 500 jobs" in many.json()["error"]["message"]


def test_streams_tell_until_the_end(client: TestClient, paths: ServerPaths) -> None:
    id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    finish(paths, id_)
    with client.stream("GET", f"/v1/videos/{id_}/events") as stream:
        lines = list(stream.iter_lines())
    assert lines[0] == "event: video"
    assert json.loads(lines[1].removeprefix("data: "))["state"] == "done"


def test_other_pages_and_other_names_are_refused(client: TestClient) -> None:
    assert client.get("/v1/queue", headers={"host": "rebound.example"}).status_code == 400
    assert client.get("/v1/queue", headers={"host": "192.168.1.4:7860"}).status_code == 400
    assert client.get("/v1/queue", headers={"host": "127.0.0.1/login?"}).status_code == 400
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9999"}, {"origin": "http://["}, {"sec-fetch-site": "same-site"},
    ):  # fmt: skip
        answer = client.post("/v1/videos", json={"prompt": "a"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error"), headers
        assert client.post("/v1/files", files={"file": ("a", png())}, headers=headers).status_code == 403
        assert client.get("/v1/plan.png", headers=headers).status_code == 403
        assert client.get("/v1/queue", headers=headers | {"sec-fetch-mode": "navigate"}).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/docs", headers=link).status_code == 200
    assert client.get("/docs", headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert client.get("/v1/queue", headers=link).status_code == 403
    own = client.post("/v1/videos", json={"prompt": "a"}, headers={"origin": "http://127.0.0.1"})
    assert own.status_code == 200
    answer = client.get("/v1/queue")
    assert "access-control-allow-origin" not in answer.headers
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture
def guarded(paths: ServerPaths) -> TestClient:
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)  # the first is an admin
        accounts.add("bob", PASSWORD)
        accounts.add("eve", PASSWORD)
    return TestClient(make_app(paths, accounts=True), base_url="http://127.0.0.1", follow_redirects=False)


def key_of(paths: ServerPaths, name: str) -> dict[str, str]:
    with Accounts(paths.data) as accounts:
        return {"authorization": f"Bearer {accounts.new_key(name)}"}


def test_accounts_log_in(guarded: TestClient) -> None:
    assert guarded.get("/v1/queue").status_code == 401
    assert guarded.get("/openapi.json").status_code == 401
    assert guarded.get("/login/x").status_code == 401
    page = guarded.get("/v1/videos", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/v1/videos")
    assert guarded.get("/healthz").json() == {"status": "ok"}
    assert "Password" in guarded.get("/login?next=//evil.example").text
    assert "evil" not in guarded.get("/login?next=//evil.example").text
    wrong = guarded.post("/login", data={"name": "ada", "password": "no"})
    assert wrong.status_code == 401
    right = guarded.post("/login", data={"name": "ada", "password": PASSWORD, "next": "https://evil.example/"})
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert guarded.get("/v1/about").json()["account"] == "ada"
    guarded.post("/logout")
    guarded.cookies.set(COOKIE, right.cookies[COOKIE])  # a copy of it is worth nothing any more
    assert guarded.get("/v1/about").status_code == 401


def test_logins_are_slowed_down(guarded: TestClient) -> None:
    for _ in range(5):
        assert guarded.post("/login", data={"name": "ada", "password": "guess"}).status_code == 401
    slowed = guarded.post("/login", data={"name": "ada", "password": PASSWORD})
    assert (slowed.status_code, int(slowed.headers["retry-after"]) > 200) == (429, True)


def test_a_throttle_lets_through_again() -> None:
    now = [0.0]
    throttle = Throttle(2, 60, clock=lambda: now[0])
    throttle.fail("a")
    assert throttle.wait("a") == 0
    throttle.fail("a")
    throttle.fail("b")
    assert (throttle.wait("a"), throttle.wait("b")) == (60, 0)
    now[0] = 61
    assert throttle.wait("a") == 0


def test_accounts_see_what_is_theirs(guarded: TestClient, paths: ServerPaths) -> None:
    ada, bob, eve = (key_of(paths, name) for name in ("ada", "bob", "eve"))
    id_ = guarded.post("/v1/videos", json={"prompt": "bob's", "seed": 1}, headers=bob).json()["id"]
    file = finish(paths, id_)
    assert Path(file.path).parent == paths.outputs / "bob"
    upload = guarded.post("/v1/files", files={"file": ("a.png", png())}, headers=bob).json()["id"]
    for method, path in (
        ("GET", ""), ("GET", "/content"), ("GET", "/content?variant=thumbnail"), ("GET", "/log"), ("GET", "/receipt"),
        ("GET", "/command"), ("POST", "/retry"), ("DELETE", ""), ("GET", "/events"),
    ):  # fmt: skip
        assert guarded.request(method, f"/v1/videos/{id_}{path}", headers=eve).status_code == 404, path
    assert guarded.patch(f"/v1/videos/{id_}", json={"favourite": True}, headers=eve).status_code == 404
    assert guarded.get("/v1/videos", headers=eve).json()["data"] == []
    assert guarded.get("/v1/queue", headers=eve).json()["counts"] == {}
    assert guarded.get(f"/v1/files/{upload}", headers=eve).status_code == 422
    stolen = {"prompt": "mine", "extend": f"video:{id_}/0", "model": "wan2.2-ti2v-5b"}
    assert guarded.post("/v1/videos", json=stolen, headers=eve).status_code == 422
    assert guarded.get(f"/v1/compare?a={id_}&b={id_}", headers=eve).status_code == 404
    assert guarded.post("/v1/adapters", files={"file": ("a.safetensors", b"")}, headers=eve).status_code == 422
    assert [one["id"] for one in guarded.get("/v1/videos", headers=ada).json()["data"]] == [id_]  # an admin
    assert guarded.get(f"/v1/videos/{id_}/content", headers=bob).status_code == 200
    assert guarded.get("/v1/queue", headers={"authorization": "Bearer rk_wrong"}).status_code == 401


def test_accounts_move_their_own_jobs_among_themselves(guarded: TestClient, paths: ServerPaths) -> None:
    bob, eve, ada = (key_of(paths, name) for name in ("bob", "eve", "ada"))

    def make(key: dict[str, str], prompt: str) -> str:
        return str(guarded.post("/v1/videos", json={"prompt": prompt, "seed": 1}, headers=key).json()["id"])

    first, theirs, second, third = make(bob, "a"), make(eve, "b"), make(bob, "c"), make(bob, "d")
    guarded.patch(f"/v1/videos/{third}", json={"place": 1}, headers=bob)
    queue = guarded.get("/v1/queue", headers=ada).json()["waiting"]
    assert [one["id"] for one in queue] == [third, theirs, first, second]  # nobody else waits longer
    guarded.patch(f"/v1/videos/{second}", json={"step": "up"}, headers=bob)
    queue = guarded.get("/v1/queue", headers=ada).json()["waiting"]
    assert [one["id"] for one in queue] == [third, theirs, second, first]
    guarded.patch(f"/v1/videos/{theirs}", json={"step": "up"}, headers=ada)
    queue = guarded.get("/v1/queue", headers=ada).json()["waiting"]
    assert [one["id"] for one in queue] == [theirs, third, second, first]


def test_a_stream_ends_with_its_visitors_key(
    guarded: TestClient, paths: ServerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_WELCOME_SECONDS", 0.5)
    bob = key_of(paths, "bob")
    with serving(guarded.app) as port:
        events = f"http://127.0.0.1:{port}/v1/events"
        with httpx.stream("GET", events, headers=bob, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: queue"
            with Accounts(paths.data) as accounts:
                accounts.remove("bob")
            for _ in lines:  # to its end
                pass
        assert httpx.get(events, headers=bob).status_code == 401


def test_streams_are_so_many(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.Streams.__init__, "__defaults__", (0,))
    paths.data.mkdir()
    client = TestClient(make_app(paths), base_url="http://127.0.0.1")
    answer = client.get("/v1/events")
    assert (answer.status_code, "close some" in error_of(answer)) == (429, True)


def test_old_uploads_make_room_and_those_of_waiting_jobs_stay(
    client: TestClient, paths: ServerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring(side: int) -> Any:
        return client.post("/v1/files", files={"file": ("a.png", png(side, 30))})

    needed, old = (bring(side).json() for side in (40, 41))
    client.post("/v1/videos", json={"prompt": "x", "model": "wan2.1-i2v-14b-480p", "image": needed["id"]})
    monkeypatch.setattr(inputs, "MAX_KEPT", needed["bytes"] + old["bytes"] + 10)
    assert bring(42).status_code == 200
    assert client.get(f"/v1/files/{needed['id']}").status_code == 200
    assert client.get(f"/v1/files/{old['id']}").status_code == 422
    monkeypatch.setattr(inputs, "MAX_KEPT", needed["bytes"] + 10)
    full = bring(43)
    assert (full.status_code, "jobs that wait need them" in error_of(full)) == (507, True)


def test_accounts_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str, password: str = PASSWORD) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        with pytest.raises(SystemExit) as stopped:
            main(["accounts", *arguments, "--data-dir", str(tmp_path)])
        out, err = capsys.readouterr()
        return stopped.value.code, out, " ".join(err.split())

    assert run("add", "ada", "--password-stdin", password="short")[0] == 2
    assert run("add", "Ada!", "--password-stdin")[0] == 2
    assert run("add", "ada", "--password-stdin")[0] == 0
    assert "already" in run("add", "ada", "--password-stdin")[2]
    code, key, _ = run("key", "ada", "--label", "laptop")
    assert (code, key.startswith("rk_")) == (0, True)
    assert run("key", "nobody")[0] == 2
    _, shown, _ = run("list")
    assert "laptop" in shown
    assert key.strip() not in shown
    assert run("revoke", "ada", key[:7])[0] == 0
    with Accounts(tmp_path) as accounts:
        token = accounts.log_in("ada", PASSWORD)
        assert token is not None
        assert accounts.of_key(key.strip()) is None
    assert run("password", "ada", "--password-stdin", password="a new long password")[0] == 0
    with Accounts(tmp_path) as accounts:
        assert accounts.of_session(token) is None
        assert accounts.log_in("ada", PASSWORD) is None
        assert accounts.log_in("nobody", PASSWORD) is None
        stored = (tmp_path / "accounts.db").read_bytes()
    assert PASSWORD.encode() not in stored
    assert key.strip().encode() not in stored
    assert (tmp_path / "accounts.db").stat().st_mode & 0o077 == 0
    assert run("remove", "ada")[0] == 0


def test_a_video_that_another_goes_on_from_is_not_deleted(client: TestClient, paths: ServerPaths) -> None:
    first = client.post("/v1/videos", json={"prompt": "a red circle"}).json()["id"]
    finish(paths, first)
    model = "wan2.1-i2v-14b-480p"
    more = client.post("/v1/videos", json={"prompt": "on", "extend": f"video:{first}/0", "model": model}).json()["id"]
    refused = client.delete(f"/v1/videos/{first}")
    assert (refused.status_code, f"video {more} waits to go on" in error_of(refused)) == (409, True)
    client.post(f"/v1/videos/{more}/cancel")
    assert client.delete(f"/v1/videos/{first}").status_code == 200


def test_prompts_are_enhanced_by_the_servers_own_models_alone(tmp_path: Path) -> None:
    writer = tmp_path / "models" / "writer"
    writer.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (writer / name).write_text("{}")
    paths = ServerPaths(tmp_path / "data", tmp_path / "out", (str(writer), "org/writer"))
    paths.data.mkdir()
    client = TestClient(make_app(paths), base_url="http://127.0.0.1")
    assert client.get("/v1/fields").json()["enhance"]["choices"] == ["writer", "org/writer"]
    made = client.post("/v1/videos", json={"prompt": "a", "enhance": "writer"}).json()
    assert made["request"]["enhance"] == "writer"
    with JobStore(paths.data) as store:
        assert store.find_one(made["id"]).request.enhance == str(writer)
    for other in (str(writer), "../models/writer", "org/other"):
        answer = client.post("/v1/videos", json={"prompt": "a", "enhance": other})
        assert answer.status_code == 422
        assert error_of(answer) == (
            f"enhance must be a language model of this server, not '{other}'; there is writer, org/writer"
        )
