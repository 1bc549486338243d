"""The login page, for servers that have accounts."""

from __future__ import annotations

import asyncio
import html
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from radial_app.server.access import COOKIE
from radial_app.server.accounts import SESSION_SECONDS, Accounts, Throttle

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in - Radial</title><link rel="icon" href="/ui/icon.svg"><script src="/ui/theme.js"></script>
<link rel="stylesheet" href="/ui/tokens.css"><link rel="stylesheet" href="/ui/login.css"></head>
<body><main><form method="post" action="/login"><h1>Radial</h1>{problem}
<input type="hidden" name="next" value="{next}">
<label>Name <input name="name" autocomplete="username" required autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button></form></main></body></html>"""


_HASHES = 2  # at a time: each takes 64 MB and a core
_MAX_LOGINS = 10  # that wait for their hash; more are told to come back


def make_router(folder: Path) -> APIRouter:
    """``/login`` and ``/logout`` for the accounts of a data folder."""
    router = APIRouter(include_in_schema=False)
    throttle = Throttle(limit=5, seconds=300)  # of a name from an address
    loose = Throttle(limit=30, seconds=300)  # of a name from anywhere: nobody is locked out by few tries of others
    # Threads of their own: whoever is logged in waits for none of them.
    hashing = ThreadPoolExecutor(_HASHES, thread_name_prefix="login")
    under_way = 0

    def check(name: str, password: str) -> str | None:
        with Accounts(folder) as accounts:
            return accounts.log_in(name, password)

    @router.get("/login")
    def show(next: str = "/") -> HTMLResponse:
        return HTMLResponse(_page(next))

    @router.post("/login", response_model=None)
    async def log_in(
        request: Request, name: Annotated[str, Form(max_length=200)], password: Annotated[str, Form(max_length=2000)],
        next: Annotated[str, Form(max_length=500)] = "/",
    ) -> HTMLResponse | RedirectResponse:  # fmt: skip
        nonlocal under_way
        address = request.client.host if request.client else ""
        keys = (f"{name} from {address}", f"name {name}")
        if (wait := max(throttle.wait(keys[0]), loose.wait(keys[1]))) > 0:
            page = _page(next, f"Too many tries; again in {max(1, round(wait / 60))} min.")
            return HTMLResponse(page, 429, {"retry-after": str(int(wait) + 1)})
        if under_way >= _MAX_LOGINS:
            return HTMLResponse(_page(next, "Many log in at once; try again."), 429, {"retry-after": "2"})
        throttle.fail(keys[0])
        loose.fail(keys[1])
        under_way += 1
        try:
            token = await asyncio.get_running_loop().run_in_executor(hashing, check, name, password)
        finally:
            under_way -= 1
        if token is None:
            return HTMLResponse(_page(next, "This name and password do not go together."), 401)
        throttle.forget(keys[0])
        loose.forget(keys[1])
        answer = RedirectResponse(_local(next), 303)
        answer.set_cookie(COOKIE, token, max_age=SESSION_SECONDS, httponly=True, samesite="strict",
                          secure=request.url.scheme == "https")  # fmt: skip
        return answer

    @router.post("/logout")
    def log_out(request: Request) -> RedirectResponse:
        """Sync, so in a thread: it writes."""
        if token := request.cookies.get(COOKIE):
            with Accounts(folder) as accounts:
                accounts.log_out(token)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    return router


def _page(next: str, problem: str = "") -> str:
    shown = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return _PAGE.format(problem=shown, next=html.escape(_local(next), quote=True))


def _local(next: str) -> str:
    """The path to go on to, on this server."""
    parts = urlsplit(next)
    inside = next.startswith("/") and not next.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return next if inside and "\n" not in next and "\r" not in next else "/"
