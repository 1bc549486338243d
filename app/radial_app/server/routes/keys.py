"""``/v1/keys``: the keys by which programs of an account come in."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from radial_app.server.accounts import Accounts
from radial_app.server.service import Conflict, ServerPaths
from radial_app.server.views import Deleted

MAX_KEYS = 50


class NewKey(BaseModel):
    """What a key is for."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field("", max_length=100)


class Key(BaseModel):
    """A key: how it begins, what it is for, and, when it is made and never again, the whole of it."""

    id: str
    label: str
    key: str | None = None


def _only_people(request: Request) -> None:
    """A key that fell into wrong hands makes no others."""
    if not request.state.visitor.name:
        raise HTTPException(409, "there are no accounts here, so nobody needs a key: radial accounts add NAME")
    if request.headers.get("authorization"):
        raise HTTPException(403, "keys are made and taken back by whoever is logged in, and not by a key")


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1/keys", tags=["server"], dependencies=[Depends(_only_people)])

    @router.get("")
    def list_keys(request: Request) -> list[Key]:
        """Your keys, by how they begin."""
        with Accounts(paths.data) as accounts:
            return [Key(id=shown, label=label) for shown, label in accounts.keys(request.state.visitor.name)]

    @router.post("")
    def make_key(request: Request, wanted: NewKey) -> Key:
        """Make a key; it is told this once. Programs send it as ``Authorization: Bearer KEY``."""
        name = request.state.visitor.name
        with Accounts(paths.data) as accounts:
            if len(accounts.keys(name)) >= MAX_KEYS:
                raise Conflict(f"an account has {MAX_KEYS} keys at most: take some back")
            label = wanted.label or time.strftime("%Y-%m-%d")
            key = accounts.new_key(name, label)
        return Key(id=key[:7], label=label, key=key)

    @router.delete("/{id}")
    def revoke_key(request: Request, id: str) -> Deleted:
        """Take a key back."""
        with Accounts(paths.data) as accounts:
            accounts.revoke(request.state.visitor.name, id)
        return Deleted(id=id)

    return router
