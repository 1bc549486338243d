"""What every HTTP request passes before the application sees it: whose host, from which page, who asks, how much.

Against DNS rebinding the host must be an address or a name that was told; against other web pages, what they may open
of ours are pages, and nothing else; where there are accounts, everything but the login wants a session or a key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from radial_app.server.accounts import LOCAL, Accounts, Visitor, accounts_file
from radial_app.server.answers import problem

_T = TypeVar("_T")

COOKIE = "radial_session"
MAX_BODY = 1 << 20
MAX_UPLOAD = 512 << 20
_UPLOADS = ("/v1/files", "/v1/videos", "/v1/settings", "/v1/adapters", "/v1/datasets")
_OPEN = ("/login", "/healthz", *(f"/ui/{file}" for file in ("login.css", "tokens.css", "theme.js", "icon.svg")))
_FORWARDED = (b"x-forwarded", b"forwarded", b"x-gradio", b"x-direct-url", b"x-original")
# What a link on another page may lead to.
_PAGES = re.compile(r"/|/(login|docs|story|queue|gallery|tune|models|settings)|/(gallery|story)/[0-9a-f]{1,40}")
_OF_OTHERS = b"access-control-"  # headers by which Gradio would let other pages read answers
_BODY_SECONDS = 30.0  # in which some more of a body must come
# The pages have no inline code, and nothing may be fetched from elsewhere.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    Args:
        folder: the data folder. As long as it has no accounts, everybody is the local user.
        accounts: whether visitors must log in even then, which nobody can.
        hosts: names by which the server may be called, besides addresses and this machine's own names.
    """

    def __init__(self, app: Any, folder: Path, *, accounts: bool = False, hosts: Iterable[str] = ()) -> None:
        self._app, self._visitors = app, Visitors(folder, always=accounts)
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
        accounts = await self._visitors.have_accounts()
        refusal = self._refuse(connection, scope, accounts)
        visitor = LOCAL
        if refusal is None and accounts:
            found = await self._visitors.find(connection)
            if found is None and scope["path"] not in _OPEN:
                refusal = (401, "log in, or send a key as `Authorization: Bearer KEY`")
            visitor = found or Visitor("", admin=False)
        if refusal is not None:
            await _answer(refusal, connection, scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["visitor"] = visitor

        async def still_welcome() -> bool:
            """For answers that take long: whether who asked may still have them."""
            now = await self._visitors.find(connection) if await self._visitors.have_accounts() else LOCAL
            return now == visitor

        state["still_welcome"] = still_welcome
        counted = _Counted(receive, _limit(connection, scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [(k, v) for k, v in message.get("headers", []) if not k.lower().startswith(_OF_OTHERS)]
                message["headers"] = [*told, *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        try:
            await self._app(scope, counted, send_with_headers)
        except _Refused as error:
            await _answer((error.status_code, error.detail), connection, scope, receive, send)

    def _refuse(self, connection: HTTPConnection, scope: Scope, accounts: bool) -> tuple[int, str] | None:
        host = connection.headers.get("host", "")
        if not self._knows(host, accounts):
            return 400, f"the host {host[:100]!r} is not this server's; --allow-host adds a name"
        if _from_another_page(connection, scope, host):
            return 403, "another web page asked for this"
        length = connection.headers.get("content-length", "0")
        limit = _limit(connection, scope)
        if not length.isascii() or not length.isdigit() or int(length[:18]) > limit:
            return 413, f"the body is larger than {limit >> 20} MB"
        return None

    def _knows(self, host: str, accounts: bool) -> bool:
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
        return accounts or address.is_loopback


class Visitors:
    """Who asks, by the accounts of a data folder as they are at the moment.

    It has threads of its own: logins and slow requests do not keep others from being known.
    """

    def __init__(self, folder: Path, *, always: bool) -> None:
        self._folder, self._always = folder, always
        self._file = accounts_file(folder)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="visitors")
        self._open = threading.local()
        self._known: tuple[Any, bool] = (None, False)

    async def have_accounts(self) -> bool:
        """Whether visitors must log in; asked again when the file has changed."""
        if self._always:
            return True
        stamp = (_stamp(self._file), _stamp(self._file.with_name(f"{self._file.name}-wal")))
        if stamp[0] is None:
            return False
        if stamp != self._known[0]:
            self._known = (stamp, await self._ask(lambda accounts: accounts.any()))
        return self._known[1]

    async def find(self, connection: HTTPConnection) -> Visitor | None:
        """The visitor of a session or a key."""
        kind, _, key = connection.headers.get("authorization", "").partition(" ")
        token = connection.cookies.get(COOKIE)
        if kind.lower() == "bearer":
            return await self._ask(lambda accounts: accounts.of_key(key.strip()))
        return await self._ask(lambda accounts: accounts.of_session(token)) if token else None

    async def _ask(self, question: Callable[[Accounts], _T]) -> _T:
        def answer() -> _T:
            if not hasattr(self._open, "accounts"):
                self._open.accounts = Accounts(self._folder)
            return question(self._open.accounts)

        return await asyncio.get_running_loop().run_in_executor(self._threads, answer)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _from_another_page(connection: HTTPConnection, scope: Scope, host: str) -> bool:
    """Whether another web page has a browser ask: all that it may do is lead to one of our pages."""
    origin = connection.headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return True
    if connection.headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return False
    leads = connection.headers.get("sec-fetch-mode") == "navigate"
    whole = connection.headers.get("sec-fetch-dest") == "document"
    return not (leads and whole and scope.get("method") == "GET" and _PAGES.fullmatch(scope["path"]))


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


class _Refused(HTTPException):
    """Passes through FastAPI as what it is."""


class _Counted:
    """A body that ends in an error once it is too large or stops coming, whatever its header said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left, self._limit = receive, limit, limit
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:  # only the end of the connection can come
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _BODY_SECONDS)
        except TimeoutError:
            raise _Refused(408, "the body stopped coming") from None
        self._left -= len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._left < 0:
            raise _Refused(413, f"the body is larger than {self._limit >> 20} MB")
        return message


async def _answer(
    refusal: tuple[int, str], connection: HTTPConnection, scope: Scope, receive: Receive, send: Send
) -> None:
    """A refusal: to a person's browser as the login page, else as the API's error."""
    status, message = refusal
    wants_page = "text/html" in connection.headers.get("accept", "") and scope.get("method") == "GET"
    answer: Response = problem(message, status)
    if status == 401 and wants_page:
        answer = RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
    answer.headers.update({"cache-control": "no-store", **_HEADERS})
    await answer(scope, receive, send)
