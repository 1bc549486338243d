"""What every HTTP request passes before the application sees it: whose host, from which page, who asks, how much.

Against DNS rebinding the host must be an address or a name that was told; against other web pages, what changes
something must come from our own; with accounts, everything but the login wants a session or a key.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from radial_app.accounts import LOCAL, Accounts, Visitor

COOKIE = "radial_session"
MAX_BODY = 1 << 20
MAX_UPLOAD = 512 << 20
_UPLOADS = ("/v1/files", "/v1/videos", "/v1/settings", "/v1/adapters", "/v1/datasets")
_CLOSED = "/gradio_api/upload"  # it takes files of any kind; the studio brings its own to /v1/files
_OPEN = ("/login", "/healthz", "/ui/login.css")
_FORWARDED = (b"x-forwarded", b"forwarded", b"x-gradio", b"x-direct-url", b"x-original")
_SAFE = ("GET", "HEAD", "OPTIONS")
# Gradio's page needs inline code; nothing may be fetched from elsewhere.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Guard:
    """ASGI middleware.

    Args:
        folder: the data folder, whose accounts count where ``accounts`` is set; else everybody is the local user.
        hosts: names by which the server may be called, besides addresses and this machine's own names.
        metrics_open: whether ``/metrics`` answers without a session.
    """

    def __init__(self, app: Any, folder: Path, *, accounts: bool = False, hosts: Iterable[str] = ()) -> None:
        self._app, self._folder, self._accounts = app, folder, accounts
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, f"{own}.local", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # What a proxy would say of itself; Gradio would believe anybody.
        scope["headers"] = [(n, v) for n, v in scope["headers"] if not n.startswith(_FORWARDED)]
        connection = HTTPConnection(scope)
        refusal = self._refuse(connection, scope)
        visitor = LOCAL
        if refusal is None and self._accounts:
            found = await run_in_threadpool(self._visitor, connection)
            if found is None and scope["path"] not in _OPEN:
                refusal = (401, "log in, or send a key as `Authorization: Bearer KEY`")
            visitor = found or Visitor("", admin=False)
        if refusal is not None:
            await _answer(refusal, connection, scope, send)
            return
        state = scope.setdefault("state", {})
        state["visitor"] = visitor
        # For answers that take long: whether who asked may still have them.
        state["still_welcome"] = lambda: not self._accounts or self._visitor(connection) == visitor
        limit = _limit(connection, scope)
        counted = _Counted(receive, limit)

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []), *((k.encode(), v.encode()) for k, v in _HEADERS.items())
                ]  # fmt: skip
            await send(message)

        try:
            await self._app(scope, counted, send_with_headers)
        except _TooLarge as error:
            await _answer((error.status_code, error.detail), connection, scope, send)

    def _refuse(self, connection: HTTPConnection, scope: Scope) -> tuple[int, str] | None:
        host = connection.headers.get("host", "")
        if not self._knows(host):
            return 400, f"the host {host[:100]!r} is not this server's; --allow-host adds a name"
        if scope["type"] == "websocket" or scope["method"] not in _SAFE:
            origin = connection.headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
            if foreign or connection.headers.get("sec-fetch-site") == "cross-site":
                return 403, "another web page asked for this"
        if scope["path"].startswith(_CLOSED):
            return 403, "upload to /v1/files"
        length = connection.headers.get("content-length", "0")
        limit = _limit(connection, scope)
        if not length.isascii() or not length.isdigit() or int(length[:18]) > limit:
            return 413, f"the body is larger than {limit >> 20} MB"
        return None

    def _knows(self, host: str) -> bool:
        if any(mark in host for mark in "/?#@\\ "):
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._accounts or address.is_loopback

    def _visitor(self, connection: HTTPConnection) -> Visitor | None:
        kind, _, key = connection.headers.get("authorization", "").partition(" ")
        token = connection.cookies.get(COOKIE)
        with Accounts(self._folder) as accounts:
            if kind.lower() == "bearer":
                return accounts.of_key(key.strip())
            return accounts.of_session(token) if token else None


def admins_only(why: str) -> Callable[[Request], None]:
    """A dependency of routes that are for admins; ``why`` is what others are told."""

    def check(request: Request) -> None:
        if not request.state.visitor.admin:
            raise HTTPException(403, why)

    return check


def _limit(connection: HTTPConnection, scope: Scope) -> int:
    """The most bytes of a body: much only for forms with files, where files are taken."""
    files = connection.headers.get("content-type", "").lower().startswith("multipart/form-data")
    return MAX_UPLOAD if files and scope["path"] in _UPLOADS else MAX_BODY


class _TooLarge(HTTPException):
    """Passes through FastAPI as what it is."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is larger than {limit >> 20} MB")


class _Counted:
    """A body that ends in an error once it is too large, whatever its header said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left, self._limit = receive, limit, limit

    async def __call__(self) -> dict[str, Any]:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _TooLarge(self._limit)
        return message


async def _answer(refusal: tuple[int, str], connection: HTTPConnection, scope: Scope, send: Send) -> None:
    """A refusal: to a person's browser as the login page, else as the API's error."""
    status, message = refusal
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    wants_page = "text/html" in connection.headers.get("accept", "") and scope["method"] == "GET"
    headers = [(b"cache-control", b"no-store"), *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
    if status == 401 and wants_page:
        headers.append((b"location", f"/login?next={quote(scope['path'])}".encode()))
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    kind = {401: "authentication_error", 403: "permission_error"}.get(status, "invalid_request_error")
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
    headers.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
