"""Datasets from archives, and fine-tuning runs that a server starts, watches, stops and takes up again."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from radial.errors import RequestError
from radial.video.clip import Video
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Accounts
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths
from radial_app.tuning.datasets import MAX_FILES, list_datasets, take_archive
from radial_app.tuning.runs import Tuning
from radial_app.tuning.settings import Preparation, Training
from radial_app.tuning.tasks import Task
from radial_app.worker.worker import Worker


def clip(seed: int, frames: int = 20) -> bytes:
    """A square that moves, as a file."""
    pixels = np.zeros((frames, 32, 32, 3), np.uint8)
    for number, frame in enumerate(pixels):
        frame[4 + seed : 14 + seed, number : number + 10] = 60 + 40 * seed
    path = Path(os.environ["PYTEST_CLIPS"]) / f"{seed}.mp4"
    if not path.exists():
        Video(pixels, 16, None).write(path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_CLIPS", str(tmp_path))


def archive(**files: bytes | str) -> io.BytesIO:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return content


def clips(count: int = 4, folder: str = "") -> dict[str, bytes | str]:
    return {f"{folder}{i}.mp4": clip(i) for i in range(count)} | {
        f"{folder}{i}.txt": f"square {i}" for i in range(count)
    }


@pytest.fixture
def paths(tmp_path: Path) -> ServerPaths:
    (tmp_path / "data").mkdir()
    return ServerPaths(tmp_path / "data", tmp_path / "out")


@pytest.fixture
def client(paths: ServerPaths) -> TestClient:
    return TestClient(make_app(paths), base_url="http://127.0.0.1")


def wait_until_idle(client: TestClient, name: str) -> dict[str, Any]:
    for _ in range(1200):
        run: dict[str, Any] = client.get(f"/v1/tuning/{name}").json()
        if run["state"] not in ("preparing", "training", "stopping"):
            return run
        time.sleep(0.1)
    raise AssertionError(run)


def test_a_run_from_archive_to_adapter(client: TestClient, paths: ServerPaths, wan_folder: Path) -> None:
    shutil.copytree(wan_folder, paths.data / "models" / "small")
    packed = archive(**clips(4, "mine/"), **{"mine/readme.md": "no use", "__MACOSX/x.mp4": b"no"})
    brought = client.post("/v1/datasets", files={"file": ("squares.zip", packed.getvalue())}, data={"name": "squares"})
    assert brought.status_code == 200, brought.text
    assert (brought.json()["name"], brought.json()["clips"], brought.json()["captions"]) == ("squares", 4, 4)
    assert sorted(p.name for p in (paths.data / "datasets" / "squares").iterdir())[:2] == ["0.mp4", "0.txt"]

    fields = {"name": "first", "dataset": "squares", "model": "small", "num_frames": [9], "height": 32, "width": 32}
    assert client.post("/v1/tuning/first/train", json={}).status_code == 422
    begun = client.post("/v1/tuning", json=fields)
    assert begun.status_code == 200, begun.text
    assert begun.json()["state"] == "preparing"
    other = client.post("/v1/tuning", json=fields | {"name": "second"})
    assert "run first is at work: one at a time" in other.text
    run = wait_until_idle(client, "first")
    assert (run["state"], run["prepared"]["kept"], run["pictures"]) == ("prepared", 8, ["report.png", "sheet.png"]), run
    assert client.get("/v1/tuning/first/files/report.png").content.startswith(b"\x89PNG")
    assert client.get("/v1/tuning/first/files/index.json").status_code == 422

    bad = client.post("/v1/tuning/first/train", json={"more": "data = '/etc'"})
    assert "data is the run's own" in bad.text
    training = {"steps": 100_000, "rank": 4, "held_out": 2, "sample_every": 2, "sample_prompts": ["square 1"],
                "more": "validate_every = 2\nsample_steps = 1\nsample_frames = [5]\ncheckpoint_every = 3"}  # fmt: skip
    assert client.post("/v1/tuning/first/train", json=training).json()["state"] == "training"
    while (run := client.get("/v1/tuning/first").json())["step"] < 5:
        assert run["state"] == "training", run
        time.sleep(0.1)
    assert run["eta"] > 0
    assert run["losses"][-1][0] >= 5
    assert [step for step, _ in run["held_out"]][:2] == [0, 2]
    assert "at work" in client.delete("/v1/tuning/first").text
    assert client.post("/v1/tuning/first/stop").json()["state"] in ("stopping", "stopped")
    run = wait_until_idle(client, "first")
    reached = run["step"]
    assert run["state"] == "stopped"
    assert not run["adapter"]
    assert [one["prompt"] for one in run["samples"]][:1] == ["square 1"]
    sample = client.get(f"/v1/tuning/first/files/{run['samples'][0]['file']}")
    assert sample.content[4:8] == b"ftyp"

    # It goes on from its checkpoint, from a server that was started anew.
    again = TestClient(make_app(paths), base_url="http://127.0.0.1")
    assert again.post("/v1/tuning/first/train", json=training | {"steps": reached + 2}).status_code == 200
    run = wait_until_idle(again, "first")
    assert (run["state"], run["step"], run["adapter"]) == ("done", reached + 2, True), run
    kept = again.post("/v1/tuning/first/adapter").json()
    assert (kept["id"], kept["target_frames"], kept["problem"]) == ("first.safetensors", 9, "")
    lora = {"path": kept["id"], "weight": 0.5}
    made = again.post("/v1/videos", json={"prompt": "square", "model": "small", "loras": [lora], "seed": 1})
    assert made.json()["request"]["loras"] == [lora], made.text
    assert again.delete("/v1/tuning/first").json()["deleted"]
    assert again.get("/v1/tuning").json() == []
    assert not (paths.data / "tuning" / "first").exists()


def test_what_goes_wrong_is_told(client: TestClient, paths: ServerPaths) -> None:
    take_archive(paths.data, "bare", archive(**{"a.mp4": clip(1)}))
    fields = {"name": "x", "dataset": "bare", "num_frames": [33]}
    assert "there is no dataset" in client.post("/v1/tuning", json=fields | {"dataset": "none"}).text
    assert client.post("/v1/tuning", json=fields | {"num_frames": []}).status_code == 422
    assert client.post("/v1/tuning", json=fields | {"name": "../x"}).status_code == 422
    assert "unknown model" in client.post("/v1/tuning", json=fields | {"model": "/etc"}).text
    client.post("/v1/tuning", json=fields)
    run = wait_until_idle(client, "x")
    assert run["state"] == "failed"
    assert "1 of 1 files have no caption beside them, such as a.mp4" in run["problem"]
    (paths.data / "datasets" / "bare" / "a.txt").write_text("a square")
    assert client.post("/v1/tuning", json=fields).json()["state"] == "preparing"
    run = wait_until_idle(client, "x")
    assert run["state"] == "failed"
    assert "no clip of 33 frames" in run["problem"]
    assert "not prepared yet" in client.post("/v1/tuning/x/train", json={}).text
    assert "is not at work" in client.post("/v1/tuning/x/stop").text


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../../evil.mp4": b"0000ftyp"}, "outside itself"),
        ({"/etc/evil.mp4": b"0000ftyp"}, "outside itself"),
        ({"C:\\evil.mp4": b"0000ftyp"}, "outside itself"),
        ({"a.txt": "no clip"}, "holds no clips"),
        ({"a.png": b"GIF89a and what follows"}, "'a.png' is no JPEG, PNG"),
        ({"a.mp4": b"#EXTM3U\nfile:///etc/passwd"}, "no MP4, MOV"),
        ({"a.mp4": b""}, None),
        ({"a.jpg": b"\xff\xd8\xff\xe0"}, None),
        ({"a.heic": b"\0\0\0\x18ftypheic"}, None),
        ({"a.mp4": b"0000ftyp", "metadata.jsonl": b" " * (9 << 20)}, "larger than there is room"),
    ],
)
def test_hostile_archives_are_refused(paths: ServerPaths, files: dict[str, bytes], why: str | None) -> None:
    if why is None:
        assert take_archive(paths.data, "new", archive(**files)).clips == 1
        return
    with pytest.raises(RequestError, match=why):
        take_archive(paths.data, "new", archive(**files))
    assert list_datasets(paths.data) == []
    assert list((paths.data / "datasets").iterdir()) == []


def test_archives_that_lie_or_link(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("a.mp4")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(RequestError, match="holds a link"):
        take_archive(paths.data, "new", content)
    with pytest.raises(RequestError, match="cannot be read"):
        take_archive(paths.data, "new", io.BytesIO(b"PK\x03\x04 but no zip file"))
    with pytest.raises(RequestError, match="letters"):
        take_archive(paths.data, "../new", content)
    monkeypatch.setattr("radial_app.tuning.datasets.MAX_BYTES", 1 << 20)
    with pytest.raises(RequestError, match="more than"):
        take_archive(paths.data, "new", archive(**{"a.mp4": b"0000ftyp" + b"\0" * (2 << 20)}))
    # One whose directory says less than what comes out.
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.mp4", b"0000ftyp" + b"\0" * (2 << 20))
    lying = bomb.getvalue().replace((8 + (2 << 20)).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    with pytest.raises(RequestError):
        take_archive(paths.data, "new", io.BytesIO(lying))
    # One whose packed bytes are none.
    broken = io.BytesIO()
    with zipfile.ZipFile(broken, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.mp4", b"0000ftyp" + bytes(range(256)) * 40)
    spoilt = bytearray(broken.getvalue())
    start = spoilt.index(b"a.mp4") + len(b"a.mp4")
    spoilt[start : start + 40] = b"\xff" * 40
    with pytest.raises(RequestError, match="cannot be read"):
        take_archive(paths.data, "new", io.BytesIO(spoilt))
    many = archive(**{f"{i}.txt": "" for i in range(MAX_FILES + 1)}, **{"a.mp4": b"0000ftyp"})
    with pytest.raises(RequestError, match="20000 are most"):
        take_archive(paths.data, "new", many)
    assert list((paths.data / "datasets").iterdir()) == []


def test_only_admins_tune(paths: ServerPaths) -> None:
    with Accounts(paths.data) as accounts:
        accounts.add("ann", "correct horse battery", admin=True)
        accounts.add("bob", "correct horse battery")
        keys = {name: accounts.new_key(name, "test") for name in ("ann", "bob")}
    client = TestClient(make_app(paths, accounts=True), base_url="http://127.0.0.1")
    for name, status in (("ann", 200), ("bob", 403)):
        headers = {"authorization": f"Bearer {keys[name]}"}
        assert client.get("/v1/tuning", headers=headers).status_code == status
        assert client.get("/v1/datasets", headers=headers).status_code == status


def test_a_task_lives_as_long_as_its_process(paths: ServerPaths) -> None:
    task = Task(paths.data / "tuning" / "x")
    assert not task.living
    assert not task.stop()
    task.start(["finetune", "run", "/nowhere.toml"], phase="train")
    assert task.living
    with pytest.raises(RequestError, match="at work already"):
        task.start(["models"])
    assert Tuning(paths.data).at_work() == "x"
    # A worker on a GPU leaves it to the run; one on the CPU does not.
    with JobStore(paths.data) as store:
        assert Worker(store, device="cuda:0")._lent_to_training()
        assert not Worker(store, device="cpu")._lent_to_training()
    os.kill(task.told["pid"], signal.SIGKILL)
    assert task.wait(10)
    assert Tuning(paths.data).at_work() is None


def test_settings_reach_the_trainer_as_they_were_said() -> None:
    import tomllib

    from radial_app.tuning.settings import as_toml

    training = Training(
        sample_prompts=('a "fox"\n\\ ü',), more="riflex = true\n[[curriculum]]\nnum_frames = 9\nsteps = 2"
    )
    values = training.values()
    written = "".join(f"{key} = {as_toml(value)}\n" for key, value in values.items())
    assert tomllib.loads(written) == values
    assert values["sample_prompts"] == [{"prompt": 'a "fox"\n\\ ü'}]
    assert Training().values()["sample_every"] == 0
    # No file of the server is named so: neither behind a prompt, nor in place of the prompts, nor to begin from.
    told = Training(sample_prompts=("a --i /etc/passwd",)).values()["sample_prompts"]
    assert told == [{"prompt": "a --i /etc/passwd"}]
    for more, why in (('sample_prompts = "/etc/passwd"', "is the run's own"), ('init_adapter = "/x"', "of the server")):
        with pytest.raises(RequestError, match=why):
            Training(more=more).values()
    with pytest.raises(RequestError, match="key = value"):
        Training(more="riflex: true").values()
    with pytest.raises(ValueError, match="name"):
        Preparation(name=".x", dataset="a", num_frames=(9,))
