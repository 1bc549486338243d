"""Attacks on a server of one's own: ``python benchmarks/attack.py [--requests 10000]``, or ``make attack``.

A studio is started on 127.0.0.1 in a folder of its own, once without accounts and once with, and attacked there, and
nowhere else: by every event and input of its page, by every route as nobody, as another account, as the owner and as an
admin, by files and numbers that mean harm, by crowds, by connections that say nothing, and by chance. Its memory is
limited to 500 MB beyond what it takes idle. What is printed is a table; the exit code tells whether all held.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import hostile
import numpy as np
import psutil

from radial.video.clip import Video
from radial_app.jobs.results import publish_once
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Accounts

MEMORY = 500 << 20
PASSWORD = "correct horse battery"
CANARY = "canary-7d0c1f"  # what no answer may hold
SHORT = {"num_frames": 5, "num_inference_steps": 1}  # the server is attacked, not what renders
OPEN = {"/login", "/healthz"}


@dataclass
class Round:
    """One kind of attack: what was tried, the worst that was seen, and what should not have been."""

    name: str
    tried: int = 0
    figure: str = ""
    faults: list[str] = field(default_factory=list)


@dataclass
class Answer:
    """A status and a body."""

    status: int
    body: bytes
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A studio of its own, whose memory is limited once it is up."""

    def __init__(self, folder: Path, *, accounts: bool) -> None:
        self.folder, self.data = folder, folder / "data"
        self.keys: dict[str, str] = {}
        hostile.models(self.data / "models")
        if accounts:
            with Accounts(self.data) as made:
                for name in ("ada", "bob", "eve"):  # the first is an admin
                    made.add(name, PASSWORD)
                    self.keys[name] = made.new_key(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "radial_app", "studio", "--no-browser", "--port", str(self.port), "--device",
                   "cpu", "--data-dir", str(self.data), "--output", str(folder / "out")]  # fmt: skip
        self._log = (folder / "server.txt").open("wb")
        environment = os.environ | {"MALLOC_ARENA_MAX": "2"}  # threads would each reserve 64 MB that they never use
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=self._log, stderr=self._log)
        for _ in range(1200):
            try:
                if self.ask("GET", "/healthz").status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        self._warm_up()
        self._own = psutil.Process(self.process.pid)
        self.idle = self.memory()
        limit = self._own.memory_info().vms + MEMORY
        self._own.rlimit(psutil.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def _warm_up(self) -> None:
        """What is loaded at the first use is no attack's."""
        key = self.keys.get("ada")
        for path in ("/", "/v1/models", "/v1/queue", "/v1/plan.png", "/v1/adapters", "/v1/tuning", "/v1/datasets"):
            self.ask("GET", path, key=key)
        self.ask("POST", "/v1/videos/check", {"prompt": "x"}, key=key)
        with ThreadPoolExecutor(16) as crowd:
            list(crowd.map(lambda _: self.ask("GET", "/v1/models", key=key), range(32)))

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None,
        file: tuple[str, bytes] | None = None, fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None, timeout: float = 120,
    ) -> Answer:  # fmt: skip
        """Send one request: a JSON body, or a form with a file."""
        sent = dict(headers or {}) | ({"authorization": f"Bearer {key}"} if key else {})
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if file is not None:
            content, sent["content-type"] = _form(file, fields or {})
        elif content is not None:
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def memory(self) -> int:
        """Bytes of the server and of those of its processes that do not render."""
        total = 0
        for process in [self._own, *self._own.children(recursive=True)]:
            try:
                if "work" not in process.cmdline():
                    total += process.memory_info().rss
            except psutil.Error:
                continue
        return total

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """The most memory beyond idle while the context lasts."""
        most, over = [0], threading.Event()

        def look() -> None:
            while not over.wait(0.05):  # each look reads all processes of the machine
                most[0] = max(most[0], self.memory() - self.idle)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield lambda: most[0]
        finally:
            over.set()
            watcher.join()

    def stop(self) -> str:
        """End it; what it said."""
        self.process.terminate()
        self.process.wait(60)
        self._log.close()
        return (self.folder / "server.txt").read_text(errors="replace")


def attack_events(server: Server, *, share: int = 1) -> Round:
    """Every input of every event as a file, bare and wrapped, and in the text that is taken apart on the server.

    Args:
        share: of all that are tried on an event, one in so many is.
    """
    found = Round("calls of Gradio's clients: files as any value")
    secret = server.folder / "secret.txt"
    secret.write_text(CANARY)
    key = server.keys.get("bob")
    config = server.ask("GET", "/gradio/config", key=key).json()
    file = hostile.file_of(str(secret))
    values: list[Any] = [
        file, [file], {"x": file}, {"value": file, "__type__": "update"}, str(secret), f"file://{secret}",
        hostile.file_of("http://127.0.0.1:1/x"), hostile.file_of("/dev/zero"),
    ]  # fmt: skip
    fields = ("prompt", "sampler", "model", "negative_prompt", "height", "loras", "image", "riflex", "attention", "fps")
    told = [json.dumps({"request": {"prompt": "x", "model": "tiny", name: value}})
            for name in fields for value in (file, [file], {"a": file})]  # fmt: skip
    for event in config["dependencies"]:
        count = len(event["inputs"])
        bodies = [
            {"data": [value if place == index else None for place in range(count)]}
            for index in range(count)
            for value in [*values, *told]
        ] + [{"data": [file]}, {"data": file}, file, {"data": [], "event_data": file}, {"data": []}]
        tries = [*itertools.product(bodies, ({}, {"session_hash": "abcdefghij"}))]
        for body, extra in tries[event["id"] % share :: share]:
            whole = body if "meta" in body else {"fn_index": event["id"], "trigger_id": None} | body | extra
            answer = server.ask("POST", "/gradio/gradio_api/run/predict", whole, key=key, timeout=20)
            found.tried += 1
            _judge(found, f"event {event['id']} {json.dumps(body)[:80]}", answer, server)
    for path in _gradio_paths(str(secret)):
        for method, body in (("GET", None), ("POST", {"data": [file], "fn_index": 0, "session_hash": "abcdefghij"})):
            answer = server.ask(method, path, body, key=key, timeout=20)
            found.tried += 1
            _judge(found, f"{method} {path}", answer, server)
            if answer.status == 200 and method == "POST" and "/run/" not in path and "/queue/join" not in path:
                found.faults.append(f"{method} {path} is open")
    copies = [path for path in (server.data / "uploads").rglob("*") if path.is_file()]
    if copies:
        found.faults.append(f"{len(copies)} files were copied")
    found.figure = f"{len(config['dependencies'])} events"
    return found


def attack_routes(server: Server) -> Round:
    """Every route as nobody, another account, the owner and an admin, with what is the owner's."""
    found = Round("every route x nobody, another, owner, admin")
    bob = server.keys["bob"]
    job = server.ask("POST", "/v1/videos", SHORT | {"prompt": CANARY, "seed": 1}, key=bob).json()["id"]
    upload = server.ask("POST", "/v1/files", key=bob, file=("a.png", hostile.png(32, 32, 2, 8))).json()["id"]
    _finish(server, job)
    story = server.ask("POST", "/v1/stories", {"lines": [CANARY, "x"], "seed": 1}, key=bob).json()["id"]
    server.ask("POST", f"/v1/stories/{story}/cancel", key=bob)
    schema = server.ask("GET", "/openapi.json", key=server.keys["ada"]).json()
    seen: Counter[str] = Counter()
    for path, methods in schema["paths"].items():
        for method in methods:
            if method.upper() == "DELETE" and ("videos" in path or "stories" in path):
                continue  # the owner's comes last
            for visitor in ("nobody", "eve", "bob", "ada"):
                own = upload if "/files" in path else story if "/stories" in path else job
                filled = path.replace("{id}", own).replace("{number}", "1").replace("{action}", "pause")
                filled = re.sub(r"\{\w+\}", "x", filled)
                if filled.endswith("/events") and "stories" not in filled:
                    filled = f"/v1/videos/{job}/events" if "videos" in filled else "/v1/videos/0000000000/events"
                if filled == "/v1/compare":
                    filled += f"?a={job}&b={job}"
                key = server.keys.get(visitor)
                body = None if method in ("get", "delete") else {}
                answer = server.ask(method.upper(), filled, body, key=key)
                found.tried += 1
                seen[f"{visitor} {answer.status}"] += 1
                what = f"{method.upper()} {filled} as {visitor}: {answer.status}"
                _judge(found, what, answer, server, allowed=visitor in ("bob", "ada"))
                if visitor == "nobody" and answer.status != 401 and filled not in OPEN:
                    found.faults.append(what)
                theirs = any(part in filled for part in (job, upload, story))
                if visitor == "eve" and theirs and answer.status < 400:
                    found.faults.append(what)
                admins = ("/v1/datasets", "/v1/tuning", "/v1/downloads", "/v1/adapters")
                if visitor == "eve" and method != "get" and filled.startswith(admins) and answer.status < 400:
                    found.faults.append(what)
    if server.ask("POST", "/v1/videos", {"prompt": "x", "model": "org/name"}, key=server.keys["eve"]).status != 422:
        found.faults.append("an account that is no admin has a model downloaded")
    for method in ("DELETE", "PATCH"):
        answer = server.ask(method, f"/v1/videos/{job}", {"favourite": True}, key=server.keys["eve"])
        if answer.status != 404:
            found.faults.append(f"{method} of another's video: {answer.status}")
    if server.ask("DELETE", f"/v1/stories/{story}", key=server.keys["eve"]).status != 404:
        found.faults.append("DELETE of another's story")
    found.figure = ", ".join(
        f"{name} {count}" for name, count in sorted(seen.items()) if name.startswith(("nob", "eve"))
    )
    return found


def attack_files(server: Server, *, short: bool = False) -> Round:
    """Files that mean harm, wherever files are taken: the most memory that one of them takes."""
    found = Round("files that mean harm: most memory beyond idle")
    routes = (("/v1/files", hostile.images), ("/v1/files", hostile.clips), ("/v1/settings", hostile.settings),
              ("/v1/adapters", hostile.adapters), ("/v1/datasets", hostile.datasets))  # fmt: skip
    worst, slowest = (0, ""), (0.0, "")
    key = server.keys.get("ada")
    for path, files in routes:
        for name, content in files():
            if short and len(content) > 10_000_000:
                continue
            started = time.monotonic()
            with server.peak() as peak:
                fields = {"name": f"d{found.tried}"}
                answer = server.ask("POST", path, key=key, file=("../../x.safetensors", content), fields=fields)
            took = time.monotonic() - started
            found.tried += 1
            _judge(found, f"{path} {name}", answer, server)
            worst, slowest = max(worst, (peak(), name)), max(slowest, (took, name))
            if peak() > MEMORY:
                found.faults.append(f"{name} takes {peak() >> 20} MB")
    for path in ("/v1/adapters", "/v1/models", "/v1/datasets"):
        answer = server.ask("GET", path, key=key)
        _judge(found, f"GET {path} after all that", answer, server)
        found.tried += 1
    listed = server.ask("GET", "/v1/models", key=key).json()["data"]
    bad = [one for one in listed if one["problem"]]
    if len(bad) < 15:
        found.faults.append(f"only {len(bad)} broken models are shown as such")
    found.figure = f"{worst[0] >> 20} MB ({worst[1]}); longest {slowest[0]:.1f} s ({slowest[1]})"
    return found


def attack_numbers(server: Server) -> Round:
    """Sizes, lengths and counts beyond all bounds, where something is worked out of them."""
    found = Round("numbers without bound: most memory beyond idle")
    key = server.keys.get("bob")
    worst, slowest = (0, ""), (0.0, "")
    queries = [f"/v1/plan.png?height={side}&width={side}&num_frames={frames}&decay=16"
               for side, frames in ((1024, 289), (2048, 1025), (8192, 4097), (16, 4097), (128, 4097))]  # fmt: skip
    sizes: list[dict[str, Any]] = [
        {"height": 1024, "width": 1024, "num_frames": 289}, {"height": 8192, "width": 8192, "num_frames": 4097},
        {"seconds": 600}, {"seconds": 1e300}, {"num_frames": 10**30}, {"seed": 10**30}, {"num_videos": 10**9},
        {"loras": [{"path": "bundled:tiny-long"}] * 30_000}, {"loras": [{"path": "../" * 1000}]},
        {"model": "a/" + "b" * 20_000},
        {"model": "many-layers"}, {"model": "deep.safetensors"}, {"image": "x" * 900_000}, {"guidance_scale": 1e308},
        {"prompt": "x" * 900_000}, {"block_size": 16, "num_frames": 4097, "height": 1024, "width": 1024, "decay": 16},
    ]  # fmt: skip
    requests = [("GET", query, None) for query in queries]
    for fields, path in itertools.product(sizes, ("/v1/videos/check", "/v1/videos")):
        requests.append(("POST", path, {"prompt": "x"} | fields))
    for method, path, body in requests:
        started = time.monotonic()
        with server.peak() as peak:
            answer = server.ask(method, path, body, key=key)
        took = time.monotonic() - started
        found.tried += 1
        name = f"{path[:60]} {json.dumps(body)[:60]}"
        _judge(found, name, answer, server)
        worst, slowest = max(worst, (peak(), name)), max(slowest, (took, name))
        if peak() > MEMORY:
            found.faults.append(f"{name} takes {peak() >> 20} MB")
        if path == "/v1/videos" and answer.status == 200:  # its worker would make the clip all the while
            server.ask("POST", f"/v1/videos/{answer.json()['id']}/cancel?keep=false", {}, key=key)
    for path in ("/v1/queue", "/v1/videos"):
        _judge(found, f"GET {path} after all that", server.ask("GET", path, key=key), server)
    found.figure = f"{worst[0] >> 20} MB ({worst[1]}); longest {slowest[0]:.1f} s ({slowest[1]})"
    return found


def attack_lists(server: Server) -> Round:
    """Lists that name a file of the server's in every way that YAML has."""
    found = Round("lists in YAML that name files of the server")
    key = server.keys.get("bob")
    (server.folder / "there.png").write_bytes(hostile.png(32, 32, 2, 8))
    for name in ("there.png", "elsewhere.png"):
        for text in hostile.lists(str(server.folder / name)):
            for dry in (True, False):
                body = {"text": text, "kind": "yaml", "dry_run": dry}
                answer = server.ask("POST", "/v1/lists", body, key=key)
                found.tried += 1
                _judge(found, f"POST /v1/lists {text}", answer, server)
                if answer.status != 422:
                    found.faults.append(f"POST /v1/lists {text}: {answer.status}")
    waiting = server.ask("GET", "/v1/queue", key=key).json()["waiting"]
    found.figure = f"{len(waiting)} wait"
    return found


def attack_together(server: Server, *, seconds: float = 8, share: int = 1) -> list[Round]:
    """Crowds of one visitor's, and how long another's request takes meanwhile."""
    bob, eve = server.keys["bob"], server.keys["eve"]
    gone = server.folder / "out" / "bob" / "no-such.mp4"
    files = [content for name, content in hostile.images() if "7900" in name or "16000" in name][:5]
    _fill_queue(server, gone)

    def log_in(number: int) -> int:
        form = {"content-type": "application/x-www-form-urlencoded"}
        return server.ask("POST", "/login", f"name=u{number}&password=x".encode(), headers=form).status

    def watch(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=seconds)
        try:
            connection.request("GET", "/v1/events", headers={"authorization": f"Bearer {(bob, eve)[number % 2]}"})
            answer = connection.getresponse()
            if answer.status == 200:
                with_end = time.monotonic() + seconds
                while time.monotonic() < with_end and answer.read(512):
                    pass
            return answer.status
        except OSError:
            return 200  # it told nothing more until the end
        finally:
            connection.close()

    rounds = []
    for name, count, act in (
        ("logins at once", 80, log_in), ("streams at once, 200 waiting jobs", 200, watch),
        ("files that mean harm at once", 5, lambda n: server.ask(
            "POST", "/v1/files", key=bob, file=("a", files[n])).status),
        ("plans of 289 frames at once", 150, lambda n: server.ask(
            "GET", f"/v1/plan.png?height=1024&width=1024&num_frames={289 - 4 * (n % 20)}", key=bob).status),
    ):  # fmt: skip
        count = max(5, count // share)
        found = Round(f"{count} {name}: another's GET /v1/about")
        with server.peak() as peak, ThreadPoolExecutor(count) as crowd:
            at_work = [crowd.submit(act, number) for number in range(count)]
            delays = []
            while not all(one.done() for one in at_work) or len(delays) < 20:
                started = time.monotonic()
                answer = server.ask("GET", "/v1/about", key=server.keys["ada"])
                delays.append(time.monotonic() - started)
                if answer.status != 200:
                    found.faults.append(f"GET /v1/about: {answer.status}")
                time.sleep(0.02)
            statuses = Counter(one.result() for one in at_work)
        found.tried = count
        if max(delays) > 1:
            found.faults.append(f"another waits {max(delays):.2f} s")
        if any(status >= 500 for status in statuses):
            found.faults.append(f"{statuses}")
        longest, median = (round(1000 * seconds) for seconds in (max(delays), statistics.median(delays)))
        found.figure = f"longest {longest} ms, median {median} ms; answers {dict(statuses)}; {peak() >> 20} MB"
        rounds.append(found)
    return rounds


def attack_connections(server: Server, count: int = 1001) -> Round:
    """Connections that say nothing, begin a request, or begin one without end."""
    found = Round(f"{count} connections that say nothing, and heads without end")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    held = []
    try:
        for number in range(count):
            one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            if number % 2:
                one.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
            held.append(one)
        started = time.monotonic()
        answer = server.ask("GET", "/healthz", timeout=20)
        took = time.monotonic() - started
        found.tried = count + 1
        if answer.status != 200 or took > 1:
            found.faults.append(f"GET /healthz: {answer.status} after {took:.2f} s")
        with server.peak() as peak:
            endless, sent = held[1], 0
            try:
                while sent < 64 << 20:
                    endless.sendall(b"y" * 65_536)
                    sent += 65_536
            except OSError:
                pass
        if sent > 8 << 20:
            found.faults.append(f"a head of {sent >> 20} MB was taken")
        found.figure = f"GET /healthz after {1000 * took:.0f} ms; a head ends after {sent >> 10} kB, {peak() >> 20} MB"
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found


def attack_by_chance(server: Server, count: int, seed: int = 0) -> Round:
    """Requests that fit the interface's description, nearly fit it, or do not; and events of the page."""
    found = Round("requests by chance: answers of 5xx")
    dice = random.Random(seed)
    key = server.keys.get("bob")
    schema = server.ask("GET", "/openapi.json", key=server.keys.get("ada")).json()
    operations = [(path, method) for path, methods in schema["paths"].items() for method in methods
                  if not path.endswith("/events")]  # fmt: skip
    seen: Counter[int] = Counter()
    words = ["prompt", "model", "image", "extend", "loras", "seconds", "size", "num_frames", "seed", "request", "place",
             "step", "favourite", "name", "dataset", "steps", "more", "a", "height", "width", "num_videos",
             "lines", "keep", "cut", "remember", "causal", "window_frames"]  # fmt: skip
    ids = [server.ask("POST", "/v1/videos", SHORT | {"prompt": f"x {n}"}, key=key).json()["id"] for n in range(5)]

    def value(depth: int = 0) -> Any:
        kinds: list[Callable[[], Any]] = [
            lambda: None, lambda: dice.choice([True, False]), lambda: dice.choice([0, -1, 1, 10**30, -(2**63), 2**64]),
            lambda: dice.choice([1e308, -0.0, 0.5, 1e-300]), lambda: dice.choice(words), lambda: "tiny",
            lambda: "x" * dice.randrange(3000), lambda: "a\0b", lambda: "\ud800",
            lambda: "".join(chr(dice.randrange(1, 0xD800)) for _ in range(dice.randrange(20))),
            lambda: "../" * dice.randrange(9), lambda: str(server.data), lambda: f"video:{dice.choice(ids)}/0",
            lambda: hostile.file_of("/etc/passwd"), lambda: dice.choice(ids), lambda: "64x64", lambda: "2020-01-01",
        ]  # fmt: skip
        if depth < 3:
            kinds += [lambda: [value(depth + 1) for _ in range(dice.randrange(4))],
                      lambda: {dice.choice(words): value(depth + 1) for _ in range(dice.randrange(4))}] * 3  # fmt: skip
        return dice.choice(kinds)()

    def path_of(template: str) -> str:
        def fill(_match: Any) -> str:
            kinds = [dice.choice(ids), "x", "..", "%00", "é", "a" * 300, "pause", "cancel", "tiny"]
            return quote(dice.choice(kinds), safe="")

        names = ["limit", "offset", "search", "show", "index", "after", "variant", *words]
        pairs = {dice.choice(names): str(value(3))[:500].encode("utf-8", "replace") for _ in range(dice.randrange(4))}
        return re.sub(r"\{\w+\}", fill, template) + (f"?{urlencode(pairs)}" if pairs else "")

    for number in range(count):
        choice = dice.random()
        if choice < 0.15:
            body: Any = {
                "data": [value(2) for _ in range(dice.choice([0, 1, 3, 35]))],
                "fn_index": dice.randrange(-1, 4),
            }
            method, path = "POST", "/gradio/gradio_api/run/predict"
        elif choice < 0.2:
            body, method, path = {"prompt": value(2), "file": value(2)}, "POST", "/v1/videos/check"
        elif choice < 0.25:
            lines = [dice.choice(["x", value(2), {"prompt": "x", dice.choice(words): value(2)}]) for _ in range(3)]
            body, method, path = {"lines": lines, dice.choice(words): value(2)}, "POST", "/v1/stories/check"
        else:
            template, method = dice.choice(operations)
            path = path_of(template)
            body = None if method in ("get", "delete") else value() if dice.random() < 0.5 else {
                dice.choice(words): value() for _ in range(5)} | {"prompt": "x"}  # fmt: skip
        raw = None if body is None else json.dumps(body).encode()
        if raw is not None and dice.random() < 0.05:
            raw = raw[: dice.randrange(len(raw) + 1)]
        kind = dice.choice(["application/json"] * 9 + ["text/plain", "application/x-www-form-urlencoded"])
        answer = server.ask(method.upper(), path, raw, key=key, headers={"content-type": kind} if raw else None)
        seen[answer.status] += 1
        found.tried = number + 1
        _judge(found, f"{method.upper()} {path} {raw and raw[:200]!r}", answer, server)
    found.figure = ", ".join(f"{status}: {n}" for status, n in sorted(seen.items()))
    return found


def _judge(found: Round, what: str, answer: Answer, server: Server, *, allowed: bool = False) -> None:
    """Note an answer that should not be: an error of the server's, a traceback, another's secret, a path of the
    server's."""
    if answer.status >= 500:
        found.faults.append(f"{what}: {answer.status} {answer.body[:200]!r}")
    if b"Traceback" in answer.body or b'File "/' in answer.body:
        found.faults.append(f"{what}: a traceback")
    if CANARY.encode() in answer.body and not allowed:
        found.faults.append(f"{what}: a secret")
    shown = not allowed and not what.startswith("GET /v1/about")
    if shown and str(server.data).encode() in answer.body and str(server.data) not in unquote(what):
        found.faults.append(f"{what}: a path of the server's: {answer.body[:200]!r}")


def _gradio_paths(secret: str) -> list[str]:
    """Paths of all of Gradio's own routes, without the stream of a client's own answers, which does not end."""
    filled = [
        re.sub(r"\{path_or_url:path\}|\{path:path\}|\{url_path:path\}", secret, p) for p in hostile.gradio_paths()
    ]
    filled = [re.sub(r"\{\w+(:\w+)?\}", "x", path) for path in filled]
    return [f"/gradio{path}" for path in filled if "queue/data" not in path]


def _form(file: tuple[str, bytes], fields: dict[str, str]) -> tuple[bytes, str]:
    edge = "radial-attack-7f3a"
    parts = [
        f'--{edge}\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()
    ]
    name, content = file
    head = f'--{edge}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return b"".join([*parts, head, content, f"\r\n--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"


def _finish(server: Server, id_: str) -> None:
    """Wait for a job, or make its file without a model."""
    with JobStore(server.data) as store:
        job = store.claim("attack", only=id_)
        if job is not None:
            receipt = {"radial": "0", "request": job.request.model_dump(mode="json")}
            publish_once(store, job, 0, Video(np.zeros((5, 32, 32, 3), np.uint8), 8, receipt), 1.0)
            store.end(id_, "done")
            return
        while store.get(id_).state in ("queued", "running"):
            time.sleep(0.2)


def _fill_queue(server: Server, gone: Path) -> None:
    """200 jobs that wait and go on from a file that no job has."""
    from dataclasses import replace

    with JobStore(server.data) as store:
        asked = SHORT | {"prompt": "waits", "seed": 1}
        id_ = server.ask("POST", "/v1/videos", asked, key=server.keys["bob"]).json()["id"]
        job = store.get(id_)
        request = job.request.with_values(extend=str(gone), device="cuda:7")
        store.add(replace(job, id="", state="queued", request=request) for _ in range(200))


def run(folder: Path, *, requests: int, short: bool = False) -> list[Round]:
    """All attacks, in a folder."""
    rounds = []
    for name, accounts in (("open", False), ("guarded", True)):
        (folder / name).mkdir()
        server = Server(folder / name, accounts=accounts)
        try:
            rounds.append(attack_events(server, share=29 if short else 1))
            if accounts:
                rounds.append(attack_routes(server))
                rounds += attack_together(server, seconds=2 if short else 8, share=8 if short else 1)
            else:
                rounds.append(attack_files(server, short=short))
                rounds.append(attack_numbers(server))
                rounds.append(attack_lists(server))
                rounds.append(attack_by_chance(server, requests))
                rounds.append(attack_connections(server))
            rounds[-1].faults += [] if server.process.poll() is None else ["the server has ended"]
        finally:
            said = server.stop()
        if "Traceback" in said:
            rounds[-1].faults.append(f"the server's log has a traceback: {said[said.index('Traceback') :][:2000]}")
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="by chance")
    parser.add_argument("--short", action="store_true", help="a part of each, without the largest files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = run(Path(folder), requests=options.requests, short=options.short)
    print("| attack | tried | faults | seen |\n|---|---|---|---|")
    for one in rounds:
        print(f"| {one.name} | {one.tried:,} | {len(one.faults)} | {one.figure} |")
    for one in rounds:
        for fault in one.faults[:20]:
            print(f"  {one.name}: {fault}")
    sys.exit(any(one.faults for one in rounds))


if __name__ == "__main__":
    main()
