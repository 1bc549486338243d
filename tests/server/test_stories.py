"""Stories over REST: from lines to a film that plays while it grows, and on from there; and nobody else's."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import serving

from radial import RequestError
from radial.generation.watch import Event
from radial.video.clip import read_frames, read_receipt
from radial_app.client import Client
from radial_app.jobs.job import Job
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Accounts
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths
from radial_app.server.stories.views import MOST_LINES
from radial_app.worker.worker import Worker

PASSWORD = "correct horse battery"
LINES: list[Any] = [{"prompt": "a red star rises", "name": "Anna"}, {"prompt": "Anna: spins", "seconds": 0.6},
                    {"prompt": "a blue ring falls", "cut": True}]  # fmt: skip
SMALL = {"model": "small", "size": "32x32", "fps": 16, "num_inference_steps": 1, "seconds": 0.3, "seed": 4}
CHUNKS = SMALL | {"causal": True, "chunk_frames": 1, "window_frames": 2}


def work(paths: ServerPaths, look: Callable[[Event], None] = lambda event: None) -> None:
    """Render what waits, in this process; ``look`` hears of every step."""
    with JobStore(paths.data) as store:
        worker = Worker(store, until_idle=True)

        def on_event(job: Job, event: Any) -> None:
            if isinstance(event, Event) and event.stage == "denoise":
                look(event)

        worker.on_event = on_event
        worker.run()


def problem_of(answer: Any) -> str:
    message: str = answer.json()["error"]["message"]
    return message


def test_from_lines_to_a_film_that_plays_while_it_grows(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    plan = client.post("/v1/stories/check", json={"lines": LINES} | CHUNKS).json()
    assert (plan["way"], plan["pieces"], plan["lack"], len(plan["segments"])) == ("chunks", 4, None, 3)
    assert client.get("/v1/stories").json() == {"object": "list", "data": [], "has_more": False}
    created = client.post("/v1/stories", json={"lines": LINES} | CHUNKS)
    assert created.status_code == 200, created.text
    story = created.json()
    url = f"/v1/stories/{story['id']}"
    assert (story["object"], story["status"], story["segment"], story["pieces"]) == ("story", "queued", 1, 4)
    assert [(one["prompt"], one["name"], one["returns"], one["cut"], one["done"]) for one in story["segments"]] == [
        ("Anna: a red star rises", "anna", False, False, False), ("Anna: spins", "anna", True, False, False),
        ("a blue ring falls", None, False, True, False),
    ]  # fmt: skip
    assert [one["begin"] for one in plan["segments"]] == [one["begin"] for one in story["segments"]]
    assert (story["request"]["model"], story["size"], story["remembers"]["chunk_frames"]) == ("small", "32x32", 1)
    assert client.get(f"{url}/content").status_code == 404
    assert client.post(f"{url}/continue", json={"lines": ["more"]}).status_code == 409
    seen: list[dict[str, Any]] = []

    def look(event: Event) -> None:
        if event.video != 2 or seen:
            return
        now = client.get(url).json()
        seen.append(now)
        assert (now["state"], now["pieces_done"], now["segment"]) == ("running", 2, 2)
        assert [one["done"] for one in now["segments"]] == [True, False, False]
        assert now["progress"] == 50
        growing = client.get(f"{url}/content")
        assert (growing.status_code, len(growing.content)) == (200, now["film_bytes"])
        (tmp_path / "now.mp4").write_bytes(growing.content)
        assert len(read_frames(tmp_path / "now.mp4")) == round(now["playable_seconds"] * 16)
        part = client.get(f"{url}/content?upto=1000", headers={"range": "bytes=100-"})
        assert (part.status_code, part.content) == (206, growing.content[100:1000])
        assert part.headers["content-range"] == "bytes 100-999/1000"
        tail = client.get(f"{url}/content", headers={"range": "bytes=-10"})
        assert tail.content == growing.content[-10:]
        assert client.get(f"{url}/content", headers={"range": f"bytes={2**40}-"}).status_code == 416
        small = client.get(f"{url}/segments/1/thumbnail")
        assert Image.open(io.BytesIO(small.content)).size == (32, 32)
        assert client.get(f"{url}/segments/2/thumbnail").status_code == 404
        video = client.get(f"/v1/videos/{story['id']}").json()
        assert (video["story"]["segment"], video["story"]["pieces_done"]) == (2, 2)

    work(paths, look)
    assert seen
    done = client.get(url).json()
    assert (done["status"], done["progress"], done["goes_on"], len(done["files"])) == ("completed", 100, True, 1)
    (tmp_path / "film.mp4").write_bytes(client.get(f"{url}/content").content)
    assert len(read_frames(tmp_path / "film.mp4")) == round(done["seconds"] * 16)
    told = client.get(f"/v1/videos/{story['id']}/receipt").json()["story"]["lines"]
    assert [(line["begin"], line["end"]) for line in told] == [
        (pytest.approx(one["begin"], abs=1e-3), pytest.approx(one["end"], abs=1e-3)) for one in done["segments"]
    ]
    assert client.get(f"{url}/segments/3/thumbnail").status_code == 200

    # On from a segment: what stays is not made again.
    more = {"lines": [{"prompt": "Anna: falls", "seed": 9}, "@Anna rests"], "keep": 1}
    longer = client.post(f"{url}/continue", json=more).json()
    assert [one["prompt"] for one in longer["segments"]] == ["Anna: a red star rises", "Anna: falls", "Anna rests"]
    assert problem_of(client.delete(url)) == f"video {longer['id']} waits to go on from this one: cancel it first"
    assert "the seed of a story that goes on stays" in problem_of(
        client.patch(f"/v1/videos/{longer['id']}", json={"request": {"seed": 8}})
    )
    anew = client.post(f"{url}/continue", json={"lines": ["a whole new beginning"], "keep": 0}).json()
    assert client.get(f"/v1/videos/{anew['id']}").json()["prompt"] == "a whole new beginning"
    client.post(f"/v1/videos/{anew['id']}/cancel?keep=false", json={})
    made: set[int] = set()
    work(paths, lambda event: made.add(event.video))
    assert made == {1, 2}
    assert client.get(f"/v1/stories/{longer['id']}").json()["state"] == "done"
    assert [one["id"] for one in client.get("/v1/stories?limit=1").json()["data"]] == [longer["id"]]

    # Into the trash and out of it, with what it goes on from.
    assert client.delete(url).json()["deleted"]
    assert client.get(url).status_code == 404
    assert client.post(f"/v1/trash/{story['id']}/restore").status_code == 200
    assert client.get(url).json()["goes_on"]


def test_memory_in_its_users_hands(paths: ServerPaths, client: TestClient) -> None:
    lines: list[Any] = [f"a star {how}" for how in ("rises", "spins", "falls", "grows", "turns")]
    quick = CHUNKS | {"seconds": 0.25}
    plan = client.post("/v1/stories/check", json={"lines": [*lines[:4], {"prompt": "a", "remember": 9}]} | quick)
    assert "segment 5 is remembered as segment 9, and the story has 5" in problem_of(plan)
    lines[1] = {"prompt": lines[1], "remember": "drop"}
    with serving(make_app(paths)) as port:
        remote = Client(f"http://127.0.0.1:{port}")
        id_ = remote.create_story(lines, **quick).id
        work(paths)
        here = f"/v1/stories/{id_}"
        before = client.get(here).json()
        assert [one["remember"] for one in before["segments"]] == [None, "drop", None, None, None]
        for body, problem in (
            ({}, "lines must be from 1 to 256 prompts, not 0"),
            ({"remember": {"6": "pin"}}, "segment 6 is none of the 5 that stay"),
            ({"remember": {"5": "pin"}, "keep": 4}, "segment 5 is none of the 4 that stay"),
            ({"remember": {"3": 3}}, "segment 3 is remembered as segment 3, which is itself"),
            ({"remember": {"3": "never"}}, "remember"), ({"remember": {"3": True}}, "remember"),
        ):  # fmt: skip
            answer = client.post(f"{here}/continue", json=body)
            assert answer.status_code == 422, body
            assert problem in problem_of(answer)
        # Segment 2's last frame, that of chunk 2, leaves the window of two frames at segment 5: that one reads it.
        longer = remote.continue_story(id_, remember={2: None})
    told = client.get(f"/v1/stories/{longer.id}").json()
    assert [one["remember"] for one in told["segments"]] == [None] * 5
    made: set[int] = set()
    work(paths, lambda event: made.add(event.video))
    assert made == {4}, "from the first that reads it on"
    again = client.post(f"{here}/continue", json={"remember": {"1": "pin"}, "lines": ["it rests"], "keep": 4}).json()
    assert again["notes"][-1].startswith("no segment that is there reads the memory that was changed")
    dropped = client.post(f"{here}/continue", json={"remember": {"1": "drop"}}).json()
    note = (
        "segments 1 to 3 stay as they are; from segment 4 on, the first that reads what was changed, the film is made"
    )
    assert dropped["notes"][-1].startswith(note)
    with JobStore(paths.data) as store:
        assert any(text.startswith(note) for *_, text in store.events(dropped["id"]))
    windows = client.post("/v1/stories/check", json={"lines": lines} | SMALL)
    assert "line 2 says how it is remembered, and this story is made window by window" in problem_of(windows)


BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"lines": []}, "lines must be from 1 to 256 prompts, not 0", "lines"), ({}, "lines Field required", "lines"),
    ({"lines": ["a", " "]}, "line 2 is empty", None), ({"lines": ["a", 3]}, "line 2 is empty", None),
    ({"lines": "a star"}, "lines must be", "lines"), ({"lines": ["a"] * (MOST_LINES + 1)}, "from 1 to 256", "lines"),
    ({"lines": [{"prompt": "a", "seconds": 600}] * 7}, "at most 3600 seconds, not 4200", None),
    ({"lines": [{"prompt": "a", "name": "x" * 33}]}, "a name is one word", None),
    ({"lines": ["@ben falls"]}, "line 1 uses the name ben before it is given", None),
    ({"lines": ["a" * 20_001]}, "at most 20000 letters", None), ({"lines": [{"prompt": "a", "x": 1}]}, "has 'x'", None),
    ({"lines": ["a"], "model": "mochi"}, "mochi cannot make a story; models that can", None),
    ({"lines": ["a"], "model": "/etc"}, "unknown model", None),
    ({"lines": ["a"], "num_frames": 9}, "unknown field", None),
    ({"lines": ["a"], "image": "/etc/passwd"}, "there is no upload", None),
    ({"lines": ["a"], "loras": [{"path": "../x.safetensors"}]}, "there is no adapter", None),
    ({"lines": ["a"], "loras": 3}, "loras must be", None),
    ({"lines": ["a"], "decoder": "/x"}, "full or tiny here", None),
    ({"lines": ["a"], "remember": "radial"}, "window by window, without a memory", None),
    ({"lines": ["a"], "read_decay": 1e9}, "read_decay must be", None),
    ({"lines": ["a"], "causal": "perhaps"}, "causal", None),
    ({"lines": ["a"], "file": {"name": "a", "format": "webm"}}, "a story becomes an MP4", None),
    ({"lines": ["a"], "file": {"name": "../a"}}, "must stay inside", None),
    ({"lines": ["a"], "chunk_frames": 10**9, "causal": True}, "chunk_frames must be", None),
    ({"lines": ["a"], "height": 8192, "width": 8192, "model": "small"}, "", None),
]  # fmt: skip


def test_what_is_no_story_costs_nothing(
    client: TestClient, paths: ServerPaths, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.delenv("RADIAL_FORCE", raising=False)
    for fields, problem, param in BAD:
        with subtests.test(json.dumps(fields)[:60]):
            for where in ("", "/check") if problem else ("",):
                answer = client.post(f"/v1/stories{where}", json=fields)
                assert answer.status_code == 422, answer.text
                assert problem in problem_of(answer)
                assert param is None or answer.json()["error"]["param"] == param
    assert client.post("/v1/stories", json=[1]).status_code == 422
    long = json.dumps({"story": [{"prompt": "a", "seconds": 600}] * 7, "seed": 1})
    for dry in (False, True):
        listed = client.post("/v1/lists", json={"text": long, "kind": "jsonl", "dry_run": dry})
        assert (listed.status_code, "at most 3600 seconds" in listed.text) == (422, True)
    listed = client.post("/v1/lists", json={"text": json.dumps({"story": ["a", "b"], "seconds": 1, "seed": 1}),
                                            "kind": "jsonl", "dry_run": True}).json()  # fmt: skip
    assert (listed["data"][0]["prompt"], listed["data"][0]["seconds"]) == ("a", 2.06)
    halves = client.post(
        "/v1/stories", content=b'{"lines": ["a", "\\ud800"]}', headers={"content-type": "application/json"}
    )
    assert (halves.status_code, "halves of letters" in problem_of(halves)) == (422, True)
    assert client.get("/v1/stories").json()["data"] == []
    video = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
    assert problem_of(client.get(f"/v1/stories/{video}")) == f"{video} is a video, and no story"
    assert client.post(f"/v1/stories/{video}/continue", json={"lines": ["a"]}).status_code == 404
    for number in (0, 4097):
        assert client.get(f"/v1/stories/{video}/segments/{number}/thumbnail").status_code == 422
    story = client.post("/v1/stories", json={"lines": ["a"]} | SMALL).json()["id"]
    assert client.patch(f"/v1/videos/{story}", json={"request": {"height": 64}}).status_code == 422
    assert client.patch(f"/v1/videos/{story}", json={"request": {"seed": 8}}).json()["request"]["seed"] == 8
    assert "in no command" in problem_of(client.get(f"/v1/videos/{story}/command"))
    assert client.post(f"/v1/stories/{story}/cancel").json()["state"] == "cancelled"
    assert problem_of(client.post(f"/v1/stories/{story}/continue", json={"lines": ["a"]})).endswith(
        "not there any more"
    )
    assert client.post(f"/v1/stories/{story}/resume").status_code == 409
    described = client.get("/openapi.json").json()
    body = described["paths"]["/v1/stories"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["window_frames"]["description"] == "latent frames before a chunk that it sees whole"
    assert "num_frames" not in body["properties"]


def test_a_film_that_went_on_is_shown_as_far_as_it_is(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    id_ = client.post("/v1/stories", json={"lines": LINES} | CHUNKS).json()["id"]
    url = f"/v1/stories/{id_}"

    def work_until(piece: int, action: str) -> dict[str, Any]:
        def look(event: Event) -> None:
            if event.video == piece and not client.get(url).json()["control"]:
                assert client.post(f"{url}/{action}").status_code == 200

        work(paths, look)
        told: dict[str, Any] = client.get(url).json()
        return told

    def frames() -> int:
        (tmp_path / "seen.mp4").write_bytes(client.get(f"{url}/content").content)
        return len(read_frames(tmp_path / "seen.mp4"))

    stopped = work_until(1, "cancel")
    assert (stopped["state"], stopped["pieces_done"], frames()) == ("cancelled", 1, 5)
    first = client.get(f"{url}/segments/1/thumbnail").content
    assert client.post(f"{url}/retry").json()["state"] == "queued"
    held = work_until(3, "pause")
    length = round(held["playable_seconds"] * 16)
    assert (held["state"], held["pieces_done"], frames()) == ("paused", 3, length)
    assert client.get(f"{url}/segments/1/thumbnail").content == first
    part = client.get(f"{url}/segments/2/thumbnail").content

    # Where it failed further on, its file is the older one.
    with closing(sqlite3.connect(paths.data / "jobs.db")) as database, database:
        database.execute("UPDATE jobs SET state = 'failed'")
    assert frames() == length
    with closing(sqlite3.connect(paths.data / "jobs.db")) as database, database:
        database.execute("UPDATE jobs SET state = 'paused'")

    # Stopped while it waits, it is published as far as it is, and no more is made.
    waits = client.post(f"{url}/cancel").json()
    assert (waits["state"], waits["control"]) == ("queued", "finish")
    made: list[Event] = []
    work(paths, made.append)
    ended = client.get(url).json()
    assert (made, ended["state"], ended["pieces_done"], frames()) == ([], "cancelled", 3, length)
    assert len(read_frames(next(paths.outputs.glob("*.mp4")))) == length
    shutil.rmtree(paths.data / "stories" / id_)
    assert client.get(f"{url}/segments/2/thumbnail").status_code == 200
    assert part != first


def test_a_story_whose_model_is_gone_hides_nothing(client: TestClient, paths: ServerPaths) -> None:
    id_ = client.post("/v1/stories", json={"lines": LINES} | SMALL).json()["id"]
    before = client.get(f"/v1/stories/{id_}").json()
    assert client.delete("/v1/models/small").status_code == 200
    assert client.get(f"/v1/stories/{id_}").json()["segments"] == before["segments"]
    assert [one["id"] for one in client.get("/v1/stories").json()["data"]] == [id_]
    assert [one["id"] for one in client.get("/v1/videos").json()["data"]] == [id_]
    work(paths)
    failed = client.get(f"/v1/stories/{id_}").json()
    assert (failed["state"], "small" in failed["error"]["message"]) == ("failed", True)

    # Rows of earlier versions do not say what the model was: they alone cannot be read.
    other = client.post("/v1/stories", json={"lines": ["a"]} | SMALL | {"model": "tiny"}).json()["id"]
    with closing(sqlite3.connect(paths.data / "jobs.db")) as database, database:
        database.execute("UPDATE jobs SET story = json_remove(story, '$.stride', '$.native_frames')")
    assert [one["id"] for one in client.get("/v1/stories").json()["data"]] == [other]
    assert client.get(f"/v1/videos/{id_}").json()["status"] == "failed"


def test_a_story_is_its_owners_alone(paths: ServerPaths) -> None:
    with Accounts(paths.data) as accounts:
        for name in ("ada", "bob", "eve"):  # the first one is an admin
            accounts.add(name, PASSWORD)
        keys = {name: accounts.new_key(name) for name in ("bob", "eve")}
    with serving(make_app(paths, accounts=True)) as port:
        bob, eve = (Client(f"http://127.0.0.1:{port}", keys[name]) for name in ("bob", "eve"))
        story = bob.create_story(LINES, **SMALL)
        assert (story.segments, story.state, story.playable_seconds) == (3, "queued", 0.0)
        assert [one.id for one in bob.list()] == [story.id]
        for act in (
            lambda: eve.get_story(story.id), lambda: eve.continue_story(story.id, ["a"]), lambda: eve.delete(story.id),
            lambda: eve._call("GET", f"/v1/stories/{story.id}/content"), lambda: next(eve.story_events(story.id)),
            lambda: eve._call("GET", f"/v1/stories/{story.id}/segments/1/thumbnail"),
            lambda: eve._call("POST", f"/v1/stories/{story.id}/cancel"),
        ):  # fmt: skip
            with pytest.raises(RequestError, match="there is no"):
                act()
        assert eve._call("GET", "/v1/stories")["data"] == []
        work(paths)
        told = list(bob.story_events(story.id))
        assert (told[-1].state, told[-1].segment, told[-1].finished) == ("done", 3, True)
        film = bob.download(bob.wait(story.id).id, paths.data / "film.mp4")
        assert read_receipt(film)["story"]["way"] == "windows"
        again = bob.continue_story(story.id, ["Anna: rests"])
        assert again.raw["owner"] == "bob"
        bob.cancel(again.id)
