"""Models: those with a name, and one's own checkpoints."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from radial.errors import RadialError, RequestError, first_line
from radial.models.find import find_model
from radial.models.table import MODELS, PRESETS
from radial_app.server.service import Missing, ServerPaths, Service
from radial_app.server.trash import move_to_trash
from radial_app.server.views import Deleted, Model, broken_model, describe_fields, model_of

log = logging.getLogger("radial.server")


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1", tags=["models"])

    @router.get("/models")
    def list_models(request: Request) -> dict[str, Any]:
        """The models that have a name, one's own checkpoints first, and the settings that go together."""
        checkpoints = Service(paths, request.state.visitor).inputs.checkpoints()
        own = [own_model(name, path) for name, path in checkpoints.items()]
        named = [model_of(name, spec) for name, spec in MODELS.items() if name not in {one.id for one in own}]
        data = [*own, *named]
        return {"object": "list", "data": sorted(data, key=lambda one: bool(one.problem)), "presets": PRESETS}

    @router.get("/fields")
    def list_fields(request: Request) -> dict[str, dict[str, Any]]:
        """What each field of a request may be: least and most, or its choices, and what it is when left out."""
        fields = describe_fields()
        fields["enhance"]["choices"] = list(Service(paths, request.state.visitor).inputs.enhancers)
        return fields

    @router.get("/models/{id:path}")
    def get_model(request: Request, id: str) -> Model:
        """What a model makes."""
        here = Service(paths, request.state.visitor)
        own = here.inputs.checkpoints().get(id)
        if own is not None:
            return own_model(id, own)
        if id not in MODELS:
            raise Missing(f"there is no model {id[:200]!r}")
        return model_of(id, MODELS[id])

    @router.delete("/models/{id:path}")
    def delete_model(request: Request, id: str) -> Deleted:
        """Delete a model that came from the hub from this machine's disk; one's own goes into the trash beside it."""
        if not request.state.visitor.admin:
            raise RequestError("only admins delete models: everybody uses them")
        if (own := Service(paths, request.state.visitor).inputs.checkpoints().get(id)) is not None:
            move_to_trash(own, f"{os.urandom(4).hex()}-{id}")
            return Deleted(id=id)
        if id not in MODELS or not model_of(id, MODELS[id]).removable:
            raise Missing(f"model {id[:200]!r} is not here, or did not come from the hub")
        _delete_from_hub_cache(MODELS[id].source)
        return Deleted(id=id)

    return router


def _delete_from_hub_cache(source: str) -> None:
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir()
    revisions = [r.commit_hash for repo in found.repos if repo.repo_id == source for r in repo.revisions]
    found.delete_revisions(*revisions).execute()


def own_model(name: str, path: Path) -> Model:
    """A checkpoint of one's own as the web sees it; one that cannot be used says why, and hides no other."""
    try:
        return model_of(name, find_model(str(path)), own=True)
    except RadialError as error:
        return broken_model(name, str(error).replace(str(path), name))
    except Exception as error:  # libraries raise many kinds for files that are not right
        log.warning("%s: %s: %s", name, type(error).__name__, first_line(error))
        return broken_model(name, f"it cannot be read ({type(error).__name__})")
