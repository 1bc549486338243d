"""A small Hugging Face hub on this machine: the calls that its client makes for a download, files with ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "c" * 40
LARGE = (".safetensors", ".bin", ".mp4")  # kept by their content


class Hub:
    """Serves one repository out of a folder; ``sent`` counts the bytes of each file that went out."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        self.sent: dict[str, int] = {}
        self.pause = 0.0  # seconds before each 64 KB
        self.url = ""
        self.gated = False
        self._digests: dict[str, str] = {}

    def describe(self) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for name in self.files:
            size = (self.folder / name).stat().st_size
            siblings.append({"rfilename": name, "size": size})
            if name.endswith(LARGE):
                siblings[-1]["lfs"] = {"size": size, "sha256": self.digest(name), "pointerSize": 134}
        return {"id": self.name, "modelId": self.name, "sha": SHA, "private": False, "tags": [],
                "gated": "auto" if self.gated else False, "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def tree(self) -> list[dict[str, object]]:
        sizes = {name: (self.folder / name).stat().st_size for name in self.files}
        return [{"type": "file", "path": n, "oid": self.digest(n), "size": size} for n, size in sizes.items()]

    def digest(self, name: str) -> str:
        """What the hub calls a file's content."""
        if name not in self._digests:
            kind = hashlib.sha256 if name.endswith(LARGE) else hashlib.sha1
            self._digests[name] = kind((self.folder / name).read_bytes()).hexdigest()
        return self._digests[name]


@contextmanager
def serve(name: str, folder: Path) -> Iterator[Hub]:
    """A hub with one repository."""
    with serve_all({name: folder}) as hubs:
        yield hubs[name]


@contextmanager
def serve_all(folders: dict[str, Path]) -> Iterator[dict[str, Hub]]:
    """A hub with several repositories, by name."""
    hubs = {name: Hub(name, folder) for name, folder in folders.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            path = unquote(urlsplit(self.path).path)
            parts = path.removeprefix("/api/models").split("/")
            name = "/".join(parts[1:3])
            if (hub := hubs.get(name)) is None:
                self._missing("RepoNotFound")
            elif path == f"/api/models/{name}/auth-check":
                self.send_response(403 if hub.gated else 200)
                if hub.gated:
                    self.send_header("x-error-code", "GatedRepo")
                self.send_header("content-length", "0")
                self.end_headers()
            elif re.fullmatch(rf"/api/models/{name}(/revision/[^/]+)?", path):
                self._json(hub.describe())
            elif path.startswith(f"/api/models/{name}/tree/"):
                self._json(hub.tree())
            elif (found := re.fullmatch(rf"/{name}/resolve/[^/]+/(.+)", path)) and found[1] in hub.files:
                self._file(hub, found[1], body)
            else:
                self._missing("EntryNotFound")

        def _missing(self, what: str) -> None:
            self.send_response(404)
            self.send_header("x-error-code", what)
            self.send_header("content-length", "0")
            self.end_headers()

        def _json(self, content: object) -> None:
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _file(self, hub: Hub, file: str, body: bool) -> None:
            content = (hub.folder / file).read_bytes()
            match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
            start, end = (int(match[1]), int(match[2] or len(content) - 1)) if match else (0, len(content) - 1)
            whole, content = len(content), content[: end + 1]
            self.send_response(206 if match else 200)
            self.send_header("etag", f'"{hub.digest(file)}"')
            self.send_header("x-repo-commit", SHA)
            self.send_header("accept-ranges", "bytes")
            if match:
                self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{whole}")
            self.send_header("content-length", str(len(content) - start))
            self.end_headers()
            for begin in range(start, len(content) if body else 0, 1 << 16):
                time.sleep(hub.pause)
                part = content[begin : begin + (1 << 16)]
                try:
                    self.wfile.write(part)
                except OSError:
                    return
                hub.sent[file] = hub.sent.get(file, 0) + len(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    for hub in hubs.values():
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hubs
    finally:
        server.shutdown()
