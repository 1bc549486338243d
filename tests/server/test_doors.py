"""Doors of the server: what strangers, crowds and hostile files find closed."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving import serving

from radial import RequestError
from radial.input_files import KINDS
from radial.models.table import MODELS
from radial.request import make_request
from radial.video.clip import Video
from radial_app.jobs.presets import Presets
from radial_app.jobs.store import JobStore
from radial_app.server import login
from radial_app.server import service as desk
from radial_app.server.access import COOKIE
from radial_app.server.accounts import Accounts, Visitor
from radial_app.server.app import make_app
from radial_app.server.limits import media_probe
from radial_app.server.limits.connections import MAX_HEAD, Connection
from radial_app.server.limits.sweep import prepare_uploads
from radial_app.server.service import ServerPaths, Service
from radial_app.server.uploads import Inputs
from radial_app.studio.gradio_door import API
from radial_app.studio.mount import open_studio

PASSWORD = "correct horse battery"
CANARY = "canary-5b1e"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server sets for its own process does not stay in the tests'."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def paths(tmp_path: Path) -> ServerPaths:
    (tmp_path / "data").mkdir()
    return ServerPaths(tmp_path / "data", tmp_path / "out")


@pytest.fixture
def client(paths: ServerPaths) -> TestClient:
    return TestClient(make_app(paths), base_url="http://127.0.0.1")


@pytest.fixture
def studio(paths: ServerPaths) -> Iterator[TestClient]:
    with TestClient(make_app(paths, open_page=open_studio), base_url="http://127.0.0.1") as client:
        yield client


def key_of(paths: ServerPaths, name: str) -> dict[str, str]:
    with Accounts(paths.data) as accounts:
        return {"authorization": f"Bearer {accounts.new_key(name)}"}


def message_of(answer: Any) -> str:
    text: str = answer.json()["error"]["message"]
    return text


def config_of(studio: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = studio.get(f"{API}/config").json()
    return found


def app_of_gradio(app: Any) -> Any:
    return next(route.app for route in app.routes if getattr(route, "path", None) == API)


# Gradio


def test_no_call_carries_a_file_in_or_out(studio: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    """Every value of every call, and the text that Python takes apart; nothing is copied, nothing told."""
    secret = tmp_path / "secret.txt"
    secret.write_text(CANARY)
    file = hostile.file_of(str(secret))
    told = json.dumps({"sampler": file, "loras": [file], "image": str(secret)})
    events = config_of(studio)["dependencies"]
    assert {event["api_name"] for event in events} == {"generate", "status"}
    for event in events:
        count = len(event["inputs"])
        for index, value in [(i, v) for i in range(count) for v in (file, [file], {"a": file}, told)]:
            data = [value if place_ == index else None for place_ in range(count)]
            for path in ("run/predict", f"run/{event['api_name']}"):
                answer = studio.post(f"{API}/gradio_api/{path}", json={"fn_index": event["id"], "data": data})
                assert answer.status_code in (200, 422), answer.text
                assert CANARY not in answer.text
                assert "uploads" not in answer.text
                if value is not told:
                    assert answer.status_code == 422
    assert [path for path in paths.data.rglob("*") if path.is_file() and path.name == "secret.txt"] == []


def test_a_file_that_our_own_code_named_would_not_be_copied(paths: ServerPaths, tmp_path: Path) -> None:
    """Gradio's own check, which mounted applications go without unless they count as launched."""
    from gradio.context import LocalContext
    from gradio.processing_utils import move_files_to_cache

    secret = tmp_path / "secret.txt"
    secret.write_text(CANARY)
    blocks = app_of_gradio(make_app(paths, open_page=open_studio)).get_blocks()
    token = LocalContext.blocks.set(blocks)
    try:
        with pytest.raises(Exception, match="Cannot move"):
            move_files_to_cache(hostile.file_of(str(secret)), next(iter(blocks.blocks.values())), postprocess=True)
    finally:
        LocalContext.blocks.reset(token)


@pytest.mark.parametrize("accounts", [False, True])
def test_of_gradio_only_the_calls_are_open(paths: ServerPaths, accounts: bool) -> None:
    headers = {}
    if accounts:
        with Accounts(paths.data) as made:
            made.add("ada", PASSWORD)
        headers = key_of(paths, "ada")
    open_to = {
        "GET": {"/config", "/gradio_api/info", "/gradio_api/app_id", "/gradio_api/queue/data"},
        "POST": {"/gradio_api/run/{api_name}", "/gradio_api/queue/join"},
    }
    with TestClient(make_app(paths, open_page=open_studio), base_url="http://127.0.0.1", headers=headers) as client:
        for path in sorted(set(hostile.gradio_paths())):
            filled = path.replace("{path_or_url:path}", "/etc/passwd").replace("{path:path}", "/etc/passwd")
            for method in ("GET", "POST", "PUT", "HEAD"):
                if path in open_to.get(method.replace("HEAD", "GET"), ()):
                    continue
                answer = client.request(method, API + re.sub("[{}]", "", filled), follow_redirects=False)
                assert answer.status_code in (404, 405), (method, path, answer.status_code)
        for path in (
            "/static/../../../etc/passwd",
            "/assets/..%2f..%2fetc/passwd",
            "/gradio_api/file=/etc/passwd",
        ):
            assert client.get(API + path).status_code in (403, 404)
            assert client.get(path).status_code in (403, 404)
        assert client.get("/").status_code == 200
        assert client.get(f"{API}/config").status_code == 200
        answer = client.post(f"{API}/gradio_api/process_recording", files={"file": ("a", b"x")})
        assert answer.status_code == 404
    if accounts:
        with TestClient(make_app(paths, open_page=open_studio), base_url="http://127.0.0.1") as stranger:
            assert stranger.get(f"{API}/config").status_code == 401
            body = {"fn_index": 1, "data": ["x"]}
            assert stranger.post(f"{API}/gradio_api/run/status", json=body).status_code == 401


def test_calls_leave_few_sessions(studio: TestClient) -> None:
    for number in range(40):
        body = {"data": ["0123456789"], "fn_index": 1, "session_hash": f"s{number}"}
        assert studio.post(f"{API}/gradio_api/run/status", json=body).status_code == 422
    assert len(app_of_gradio(studio.app).state_holder.session_data) <= 16


def test_what_is_wrong_with_a_call_is_told_in_words(studio: TestClient) -> None:
    def ask(*data: Any) -> str:
        return str(studio.post(f"{API}/gradio_api/run/generate", json={"fn_index": 0, "data": data}).json()["error"])

    assert "height must be a multiple of 16" in ask("a", "", "64x99", 0, 1, "")
    assert "prompt must not be empty" in ask("", "", "", 0, 1, "")
    assert "more must be a JSON object" in ask("a", "", "", 0, 1, "[")
    assert "unknown field 'prompts'" in ask("a", "", "", 0, 1, '{"prompts": 1}')
    assert "no such call" in ask("a")


def test_the_page_is_not_for_other_pages(studio: TestClient) -> None:
    for path in ("/", "/gallery", f"{API}/config"):
        answer = studio.get(path, headers={"origin": "http://localhost:9999"})
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not [name for name in studio.get("/").headers if name.startswith("access-control")]


def test_errors_have_one_shape(studio: TestClient) -> None:
    for path in ("/nothing", "/v1/nothing", "/gradio/nothing", "/ui/nothing.js", "/v1/videos/0123456789"):
        error = studio.get(path).json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "not_found"), path
    for body, param in (
        ({"prompt": "a", "fps": 0}, "fps"), ({"prompt": "a", "height": 99}, "height"), ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "loras": [{"path": "x", "weight": 99}]}, "loras.0.weight"), ({"prompt": "a", "x": 1}, "x"),
        ({"prompt": "a", "file": {"crf": 99}}, "file.crf"),
    ):  # fmt: skip
        answer = studio.post("/v1/videos", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_value")
        assert answer.json()["error"]["param"] == param


# Crowds


def test_logins_wait_in_threads_of_their_own(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)
    key, app, held = key_of(paths, "ada"), make_app(paths), threading.Event()
    monkeypatch.setattr(Accounts, "log_in", lambda self, name, password: held.wait(30) and None)

    async def crowd() -> tuple[list[int], int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            tries = [
                asyncio.ensure_future(client.post("/login", data={"name": f"u{n}", "password": "x"})) for n in range(80)
            ]
            while sum(one.done() for one in tries) < 80 - login._MAX_LOGINS:
                await asyncio.sleep(0.01)
            about = await asyncio.wait_for(client.get("/v1/about", headers=key), 20)  # while all hashes are held
            held.set()
            return [one.status_code for one in await asyncio.gather(*tries)], about.status_code

    statuses, about = asyncio.run(crowd())
    assert (statuses.count(401), statuses.count(429), about) == (login._MAX_LOGINS, 80 - login._MAX_LOGINS, 200)


def test_the_database_is_never_read_on_the_event_loop(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: set[int] = set()
    threads: set[int] = set()
    plain = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, *args: Any) -> sqlite3.Cursor:
            threads.add(threading.get_ident())
            return super().execute(*args)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: plain(*args, **more, factory=Watched))
    monkeypatch.setattr(desk, "_THREAD", threading.local())
    app = make_app(paths)

    async def ask() -> None:
        loops.add(threading.get_ident())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            made = await client.post("/v1/videos", json={"prompt": "a", "seed": 1})
            id_ = made.json()["id"]
            for path in (f"/v1/videos/{id_}", "/v1/queue", "/healthz", "/metrics", "/v1/models", "/v1/about"):
                assert (await client.get(path)).status_code == 200
            await client.post(f"/v1/videos/{id_}/cancel")
            stream = await client.get(f"/v1/videos/{id_}/events")
            assert '"state":"cancelled"' in stream.text

    asyncio.run(ask())
    assert threads
    assert not threads & loops


def test_those_who_watch_the_same_share_one_look(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    plain = Service.view
    monkeypatch.setattr(Service, "view", lambda self, job: looks.append(job.id) or plain(self, job))
    with JobStore(paths.data):
        pass
    with serving(make_app(paths)) as port:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}")
        id_ = client.post("/v1/videos", json={"prompt": "a", "seed": 1}).json()["id"]
        looks.clear()
        told: list[str] = []

        def watch() -> None:
            with httpx.stream("GET", f"http://127.0.0.1:{port}/v1/videos/{id_}/events", timeout=30) as stream:
                told.append("".join(stream.iter_text()))

        watchers = [threading.Thread(target=watch) for _ in range(20)]
        for one in watchers:
            one.start()
        time.sleep(1.5)
        client.post(f"/v1/videos/{id_}/cancel")
        for one in watchers:
            one.join(30)
        assert len(told) == 20
        assert all('"state":"cancelled"' in one for one in told)
        assert len(looks) < 60  # not twenty for each change


def test_a_visitors_many_requests_wait_for_each_other_alone(
    paths: ServerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Accounts(paths.data) as accounts:
        for name in ("ada", "bob"):
            accounts.add(name, PASSWORD)
    ada, bob = key_of(paths, "ada"), key_of(paths, "bob")
    held, at_once, most = threading.Event(), [0], [0]

    def slow(self: Service, fields: dict[str, Any]) -> Any:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        held.wait(20)
        at_once[0] -= 1
        raise desk.Missing("nothing")

    monkeypatch.setattr(Service, "check", slow)
    app = make_app(paths)

    async def crowd() -> tuple[list[int], int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            many = [asyncio.ensure_future(client.post("/v1/videos/check", json={"prompt": "x"}, headers=bob))
                    for _ in range(240)]  # fmt: skip
            while sum(one.done() for one in many) < 24:
                await asyncio.sleep(0.01)
            about = await asyncio.wait_for(client.get("/v1/about", headers=ada), 20)
            held.set()
            return [one.status_code for one in await asyncio.gather(*many)], about.status_code

    statuses, about = asyncio.run(crowd())
    assert (statuses.count(429), statuses.count(404), about) == (24, 216, 200)
    assert most[0] <= 16


def test_silent_connections_end_for_those_who_ask(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "most", 20)
    with serving(make_app(paths)) as port:
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(40)]
        for one in silent[::2]:
            with contextlib.suppress(OSError):
                one.sendall(b"GET / HTTP/1.1\r\n")
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        ended = 0
        for one in silent:
            one.settimeout(0.2)
            try:
                ended += one.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended += 1
        assert ended >= 20
        endless = socket.create_connection(("127.0.0.1", port), timeout=10)
        endless.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 * MAX_HEAD:
                endless.sendall(b"y" * 16_384)
                sent += 16_384
                time.sleep(0.001)
        assert sent < 64 * MAX_HEAD
        for one in (*silent, endless):
            one.close()


def test_a_head_and_a_body_that_stop_coming(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    from radial_app.server import access as guard
    from radial_app.server.limits import connections

    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.3)
    with serving(make_app(paths)) as port:
        one = socket.create_connection(("127.0.0.1", port), timeout=10)
        one.sendall(b"GET / HT")
        with contextlib.suppress(ConnectionError):
            assert one.recv(10) == b""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("POST", "/v1/videos/check")
        for name, value in (("content-type", "application/json"), ("content-length", "50")):
            connection.putheader(name, value)
        connection.endheaders(b'{"prompt"')
        assert connection.getresponse().status == 408
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10)  # and one that is kept may be used later
        for _ in range(2):
            kept.request("GET", "/healthz")
            assert kept.getresponse().read()
            time.sleep(0.6)


# Who asks


def test_accounts_count_from_the_moment_that_there_are_some(paths: ServerPaths) -> None:
    client = TestClient(make_app(paths), base_url="http://127.0.0.1")
    assert client.get("/v1/about").status_code == 200
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)
    assert client.get("/v1/about").status_code == 401
    assert client.get("/v1/about", headers=key_of(paths, "ada")).json()["account"] == "ada"


def test_a_new_password_takes_the_keys_back(paths: ServerPaths) -> None:
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)
        key = accounts.new_key("ada")
        accounts.set_password("ada", PASSWORD + "!")
        assert accounts.of_key(key) is None
        assert accounts.keys("ada") == []


def test_behind_a_proxy_people_are_told_apart(paths: ServerPaths) -> None:
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)

    def log_in(port: int, password: str, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"http://127.0.0.1:{port}/login", data={"name": "ada", "password": password}, headers=sent)

    with serving(make_app(paths), proxy_headers=True, forwarded_allow_ips=["127.0.0.1"]) as port:
        for _ in range(5):
            assert log_in(port, "guess", x_forwarded_for="203.0.113.7").status_code == 401
        assert log_in(port, PASSWORD, x_forwarded_for="203.0.113.7").status_code == 429
        right = log_in(port, PASSWORD, x_forwarded_for="203.0.113.8", x_forwarded_proto="https")
        assert (right.status_code, "secure" in right.headers["set-cookie"].lower()) == (303, True)
        assert COOKIE in right.headers["set-cookie"]
    with serving(make_app(paths), proxy_headers=False) as port:  # nobody else is believed
        for number in range(5):
            assert log_in(port, "guess", x_forwarded_for=f"203.0.113.{number}").status_code == 401
        assert log_in(port, PASSWORD, x_forwarded_for="203.0.113.9").status_code == 429


def test_only_admins_have_models_downloaded(paths: ServerPaths) -> None:
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)
        accounts.add("bob", PASSWORD)
    client = TestClient(make_app(paths), base_url="http://127.0.0.1")
    ada, bob = key_of(paths, "ada"), key_of(paths, "bob")
    for model in ("org/name", "wan2.1-1.3b", MODELS["wan2.1-1.3b"].source):
        fields = {"prompt": "x", "model": model}
        for path in ("/v1/videos", "/v1/videos/check"):
            refused = client.post(path, json=fields, headers=bob)
            assert refused.status_code == 422
            assert "only admins download models; there is tiny" in message_of(refused)
        mine = client.post("/v1/videos", json={"prompt": "x"}, headers=bob).json()["id"]
        for method, path in (("PATCH", f"/v1/videos/{mine}"), ("POST", f"/v1/videos/{mine}/duplicate")):
            body = {"request": {"model": model}} if method == "PATCH" else {"model": model}
            assert client.request(method, path, json=body, headers=bob).status_code == 422
    assert client.post("/v1/videos", json={"prompt": "x", "model": "wan2.1-1.3b"}, headers=ada).status_code == 200


# Values


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seconds": 600}, "seconds must be at most 256.1 at 16 frames a second, not 600"),
        ({"loras": [{"path": "bundled:tiny-long"}] * 30_000}, "loras"),
        ({"model": "a/" + "b" * 9_000}, "unknown model"), ({"prompt": "\ud800"}, "prompt"),
        ({"num_frames": 10**30}, "num_frames"), ({"image": "a\0.png"}, "there is no upload"),
    ],
)  # fmt: skip
def test_no_value_comes_around_the_rules(client: TestClient, paths: ServerPaths, fields: Any, says: str) -> None:
    body = json.dumps({"prompt": "x"} | fields).encode()
    headers = {"content-type": "application/json"}
    for path in ("/v1/videos", "/v1/videos/check"):
        answer = client.post(path, content=body, headers=headers)
        assert answer.status_code == 422
        assert says in message_of(answer)
    job = client.post("/v1/videos", json={"prompt": "x", "seed": 1}).json()["id"]
    changes = json.dumps({name: value for name, value in fields.items() if name != "seconds"} or {"num_frames": 9601})
    for method, path, content in (("PATCH", f"/v1/videos/{job}", f'{{"request": {changes}}}'),
                                  ("POST", f"/v1/videos/{job}/duplicate", changes)):  # fmt: skip
        assert client.request(method, path, content=content.encode(), headers=headers).status_code == 422
    assert client.get("/v1/queue").status_code == 200
    assert len(client.get("/v1/videos").json()["data"]) == 1


def test_lists_in_yaml_reach_no_file_by_any_type(client: TestClient, tmp_path: Path) -> None:
    """Refused, and whether the file is there is not told."""
    (tmp_path / "here.png").write_bytes(hostile.png(32, 32, 2, 8))
    there, gone = (list(hostile.lists(str(tmp_path / name))) for name in ("here.png", "gone.png"))
    assert len(there) > 70
    for one, other in zip(there, gone, strict=True):
        answers = [client.post("/v1/lists", json={"text": text, "kind": "yaml"}) for text in (one, other)]
        assert [answer.status_code for answer in answers] == [422, 422], one
        words = [re.sub(r"(here|gone)\.png|'[^']{20,}='?", "", message_of(answer)) for answer in answers]
        assert words[0] == words[1]
    assert client.get("/v1/queue").json()["waiting"] == []


@pytest.mark.parametrize("name", [*KINDS, "model", "loras"])
def test_what_is_no_name_is_no_file(paths: ServerPaths, tmp_path: Path, name: str) -> None:
    """Whatever a request would take for words: it is refused where ids become files, before anything is opened."""
    with JobStore(paths.data) as store:
        inputs = Inputs(store, Visitor("", admin=True))
        word = f"0:{tmp_path}" if name == "keyframes" else str(tmp_path)
        values: list[Any] = [
            word.encode(),
            bytearray(word.encode()),
            {word},
            frozenset([word]),
            iter([word]),
            3,
            {word: 1},
        ]
        values += [] if name == "model" else [[word.encode()], [[word]], ({word},), [{"image": word.encode()}]]
        for value in values:
            with pytest.raises(RequestError, match=f"{name} must be|there is no adapter"):
                inputs.translate({name: value})


def test_a_request_that_came_around_the_doors_is_refused(paths: ServerPaths, tmp_path: Path) -> None:
    """What is checked last, with files in the request."""
    with JobStore(paths.data) as store:
        inputs = Inputs(store, Visitor("", admin=True))
        file = str(tmp_path / "a.png")
        others = str(paths.data / "inputs" / "bob" / f"{'0' * 32}.png")
        requests: list[dict[str, Any]] = [
            {"image": file}, {"image": others}, {"references": [file]}, {"keyframes": [f"0:{file}"]},
            {"control_video": file, "mask": file}, {"model": str(tmp_path)}, {"loras": [{"path": file}]},
            {"decoder": file},
        ]  # fmt: skip
        for fields in requests:
            with pytest.raises(RequestError, match=next(iter(fields))):
                inputs.check(make_request(prompt="x", **fields))
        mine = str(paths.data / "inputs" / "local" / f"{'0' * 32}.png")
        inputs.check(make_request(prompt="x", image=mine, loras=[{"path": "bundled:tiny-long"}]))


def test_a_lists_masks_are_not_decoded_by_the_server(client: TestClient, paths: ServerPaths) -> None:
    """Of a mask whose pixels are torn off only the worker can tell; one that is none is told at once."""
    folder = paths.data / "inputs" / "local"
    folder.mkdir(parents=True)
    torn, none, clip = f"{'a' * 32}.png", f"{'b' * 32}.mp4", f"{'c' * 32}.mp4"
    (folder / torn).write_bytes(hostile.png(512, 512, 2, 8)[:60])
    (folder / none).write_bytes(b"\0" * 99)
    Video(np.zeros((2, 32, 32, 3), np.uint8), 16).write(folder / clip)
    for mask, status in ((torn, 200), (clip, 200), (none, 422)):  # the clip is black all over
        row = {"prompt": "x {1|2}", "model": "wan2.1-vace-1.3b", "control_video": clip, "mask": mask}
        answer = client.post("/v1/lists", json={"text": json.dumps(row), "kind": "jsonl", "dry_run": True})
        assert answer.status_code == status, answer.text


def test_what_of_a_request_is_not_a_visitors_is_told(paths: ServerPaths) -> None:
    """What is left can be asked for again: nothing stays without the file that it goes with."""
    other = str(paths.data / "inputs" / "bob" / "a.mp4")
    mine = str(paths.data / "inputs" / "local" / f"{'0' * 32}.png")
    with JobStore(paths.data) as store:
        inputs = Inputs(store, Visitor("", admin=True))
        for given, left, gone in (
            ({"control_video": other, "strength": 0.5}, {"control_video": None, "strength": None}, ["control video"]),
            ({"control_video": other, "mask": mine}, {"control_video": None, "mask": None}, ["control video"]),
            ({"background_video": other, "mask": mine}, {"background_video": None, "mask": None}, ["background video"]),
            ({"face_video": other}, {"face_video": None}, ["face video"]),
            ({"references": [mine, other]}, {"references": [f"{'0' * 32}.png"]}, ["references"]),
            ({"keyframes": [f"3:{other}"]}, {"keyframes": []}, ["keyframes"]),
            ({"image": other, "last_image": mine}, {"image": None, "last_image": None}, ["image"]),
            ({"image": mine, "last_image": mine}, {"image": f"{'0' * 32}.png", "last_image": f"{'0' * 32}.png"}, []),
        ):
            notes: list[str] = []
            fields = inputs.fields(make_request(prompt="x", **given), notes)
            assert {name: fields[name] for name in left} == left
            assert notes == [f"its {name} was a.mp4, which is not among yours" for name in gone]
            make_request(**fields)


def test_settings_by_name_hold_no_file(client: TestClient, paths: ServerPaths, tmp_path: Path) -> None:
    for fields in ({"decoder": str(tmp_path / "a.safetensors")}, {"loras": [{"path": str(tmp_path)}]}, {"loras": "x"}):
        assert client.put("/v1/presets/mine", json=fields).status_code == 422
    Presets(paths.data, "").keep("old", {"decoder": str(tmp_path / "a.safetensors")})
    answer = client.post("/v1/videos", json={"prompt": "x", "preset": "old"})
    assert (answer.status_code, message_of(answer).partition(":")[0]) == (422, "decoder must be full or tiny here")


def test_copies_and_second_tries_count_among_those_that_wait(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "MAX_WAITING", 2)
    first, second = (client.post("/v1/videos", json={"prompt": "x", "seed": n}).json()["id"] for n in range(2))
    assert "wait already" in message_of(client.post("/v1/videos", json={"prompt": "x"}))
    assert "wait already" in message_of(client.post(f"/v1/videos/{first}/duplicate", json={}))
    client.post(f"/v1/videos/{first}/cancel")
    assert client.post(f"/v1/videos/{second}/duplicate", json={}).status_code == 200
    assert "wait already" in message_of(client.post(f"/v1/videos/{first}/retry"))


# Files


def test_frames_are_counted_whatever_a_clip_says_of_itself(client: TestClient) -> None:
    answer = client.post("/v1/files", files={"file": ("a", hostile.clip("webm", "libvpx", 16, 16, 4_200))})
    assert "more than the 4097 frames" in message_of(answer)
    kept = client.post("/v1/files", files={"file": ("a", hostile.clip("webm", "libvpx", 16, 16, 40))}).json()
    assert kept["kind"] == "clip"


@pytest.mark.parametrize("side", [64, 7_000])
def test_the_process_that_looks_has_little_memory(tmp_path: Path, side: int) -> None:
    """A picture beyond its limit is refused in words, one within it is told of."""
    (tmp_path / "a.png").write_bytes(hostile.png(side, side, 2, 8))
    code = (
        "import sys; from radial_app.server.limits import media_probe; media_probe._MEMORY['image'] = 64 << 20; "
        f"sys.argv = ['', 'image', {str(tmp_path / 'a.png')!r}]; media_probe.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = json.loads(run.stdout) if run.stdout else {}
    assert ("width" in told) == (side == 64), run.stderr
    assert "Traceback" not in run.stderr


def test_a_process_that_was_ended_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(hostile.png(64, 64, 2, 8))
    assert media_probe.probe("image", tmp_path / "a.png", "") == {"width": 64, "height": 64}
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RequestError, match="takes more than 380 MB or 20 s to be read: save it anew, smaller"):
        media_probe.probe("image", tmp_path / "a.png", "")


@pytest.mark.parametrize("name", [name for name, _ in hostile.settings()][:9])
def test_settings_that_cannot_be(client: TestClient, name: str) -> None:
    content = next(content for one, content in hostile.settings() if one == name)
    answer = client.post("/v1/settings", files={"file": ("a.mp4", content)})
    assert answer.status_code in (200, 422)
    assert "/etc" not in answer.text or "choose it again" in answer.text


def test_bad_models_hide_no_others_and_can_be_deleted(client: TestClient, paths: ServerPaths, wan_folder: Path) -> None:
    import shutil

    hostile.models(paths.data / "models")
    shutil.copytree(wan_folder, paths.data / "models" / "good")
    listed = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    bad = {name for name, one in listed.items() if one["problem"]}
    assert {"many-layers", "negative", "deep", "list-index", "shape-0.safetensors", "deep.safetensors"} <= bad
    assert not {"good", "tiny"} & bad
    assert str(paths.data) not in json.dumps(listed)
    assert "whole number up to 1024" in listed["many-layers"]["problem"]
    assert client.get("/v1/models/deep").json()["problem"] == listed["deep"]["problem"]
    assert client.post("/v1/videos", json={"prompt": "x", "model": "many-layers"}).status_code == 422
    assert client.delete("/v1/models/many-layers").status_code == 200
    assert "many-layers" not in {one["id"] for one in client.get("/v1/models").json()["data"]}
    assert list((paths.data / "models" / ".trash").iterdir())  # not gone for good


def test_bad_adapters_are_refused_shown_and_deleted(client: TestClient, paths: ServerPaths) -> None:
    for name, content in hostile.adapters():
        if len(content) > 10_000_000:
            continue
        answer = client.post("/v1/adapters", files={"file": ("x.safetensors", content)})
        assert answer.status_code in (200, 422), name
        assert (answer.status_code == 200) == (name == "adapter: metadata that is a list"), name
    for number, (_, content) in enumerate(hostile.adapters()):  # as if put there by hand
        (paths.data / "adapters" / f"{number}.safetensors").write_bytes(content)
    listed = {one["id"]: one["problem"] for one in client.get("/v1/adapters").json()}
    assert listed["x.safetensors"] == listed["1.safetensors"] == ""
    assert listed["bundled:tiny-long"] == ""
    assert sum(bool(problem) for problem in listed.values()) == len(listed) - 4
    assert client.delete("/v1/adapters/0.safetensors").status_code == 200
    assert "0.safetensors" not in {one["id"] for one in client.get("/v1/adapters").json()}
    assert client.delete("/v1/adapters/..%2fjobs.db").status_code == 404


def test_what_a_killed_server_left_is_swept(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    left = [paths.data / "datasets" / ".squares.1a2b.partial" / "a.mp4", paths.data / "inputs" / "local" / ".7-ab.png",
            paths.data / ".radial-uploads" / "tmpabc"]  # fmt: skip
    kept = [paths.data / "datasets" / "squares" / "a.mp4", paths.data / "inputs" / "local" / "a.png"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    prepare_uploads(paths.data)
    assert [path.exists() for path in (*left, *kept)] == [False] * 3 + [True] * 2
    assert tempfile.gettempdir() == str(paths.data / ".radial-uploads")


# What is amiss with the server itself


def test_a_locked_database_passes(client: TestClient, paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_PATIENCE", 0.1)
    monkeypatch.setattr(desk, "_THREAD", threading.local())
    assert client.get("/healthz").json()["status"] == "ok"
    with contextlib.closing(sqlite3.connect(paths.data / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.post("/v1/videos", json={"prompt": "x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        health = client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "broken")
        assert client.get("/v1/queue").status_code == 200  # readers go on
    assert client.post("/v1/videos", json={"prompt": "x"}).status_code == 200


def test_a_full_disk_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("radial_app.jobs.store.shutil.disk_usage", lambda path: full)
    health = client.get("/healthz")
    assert (health.status_code, "full" in health.json()["problem"]) == (503, True)


def test_two_clips_are_compared_a_frame_at_a_time(client: TestClient, paths: ServerPaths) -> None:
    """As whole clips were, and those of other sizes are refused in words."""
    from radial.video.fidelity import fidelity, frame_psnr, frame_ssim

    dice = np.random.default_rng(0)
    one = dice.integers(0, 255, (3, 300, 40, 3), np.uint8)
    two = np.clip(one.astype(int) + dice.integers(-9, 9, one.shape), 0, 255).astype(np.uint8)
    each = [(frame_psnr(a, b), frame_ssim(a, b)) for a, b in zip(one, two, strict=True)]
    assert fidelity(iter(one), iter(two)) == pytest.approx(tuple(np.mean(each, axis=0)))
    with pytest.raises(ValueError, match="40x300 and 40x299"):
        fidelity(iter(one), iter(two[:, 1:]))
    with pytest.raises(ValueError, match="shorter"):
        fidelity(iter(one), iter(two[:2]))
    path = Video(one, 8).write(paths.data / "a.mp4")
    assert path.is_file()


def test_strangers_take_no_turn_from_others(paths: ServerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not logged in may hold back bodies as long as they like: the page to log in and the health stay open."""
    monkeypatch.setattr("radial_app.server.limits.turns._BODY_SECONDS", 3.0)  # they end in turn, after as long each
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)
    with serving(make_app(paths)) as port:
        held = []
        for _ in range(40):
            one = socket.create_connection(("127.0.0.1", port), timeout=10)
            one.sendall(b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
                        b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname=")  # fmt: skip
            held.append(one)
        time.sleep(0.5)
        for path in ("/healthz", "/login", "/ui/login.css"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}", timeout=1800).status_code in (200, 503)
        key = key_of(paths, "ada")
        assert httpx.get(f"http://127.0.0.1:{port}/v1/about", headers=key, timeout=1800).status_code == 200
        # Their bodies end by themselves, however they drip.
        for one in held:
            one.settimeout(1800)
            while one.recv(1 << 16):
                pass
            one.close()


def test_an_account_reads_no_paths_of_the_server(paths: ServerPaths) -> None:
    with Accounts(paths.data) as accounts:
        accounts.add("ada", PASSWORD)
        accounts.add("bob", PASSWORD)
    client = TestClient(make_app(paths), base_url="http://127.0.0.1")
    bob = key_of(paths, "bob")
    made = client.post("/v1/videos", json={"prompt": "x"}, headers=bob).json()["id"]
    with JobStore(paths.data) as store:
        store.claim("w", only=made)
        store.tell(made, "error", "Traceback (most recent call last):\n  File '/srv/secret/x.py'")
        store.tell(made, "note", f"kept in {paths.outputs}/bob and {paths.data}-more")
        store.record_receipt(made, 0, {"request": {"image": str(paths.data / "inputs" / "bob" / "a.png")}})
        store.end(made, "failed", f"cannot write {paths.outputs}/bob/x.mp4")
    for path in ("", "/log", "/receipt", "/command"):
        answer = client.get(f"/v1/videos/{made}{path}", headers=bob)
        assert answer.status_code == 200
        assert str(paths.outputs) not in answer.text
        assert f"{paths.data}/" not in answer.text
        assert "secret" not in answer.text
    assert "secret" in client.get(f"/v1/videos/{made}/log", headers=key_of(paths, "ada")).text
