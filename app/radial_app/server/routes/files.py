"""Uploads, models and adapters, settings out of videos, and two videos against each other."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

from radial.errors import OutputError, RadialError, RequestError, first_line
from radial.models.find import HUB_ID, find_model
from radial.models.table import MODELS, PRESETS
from radial.request import GenerationRequest
from radial.version import __version__
from radial.video.encoding import decode_frames
from radial.video.fidelity import fidelity
from radial_app.server.limits.media_probe import probe
from radial_app.server.service import Missing, ServerPaths, Service, move_to_trash
from radial_app.server.uploads import CLIPS, Upload, suffix_of, take_adapter
from radial_app.server.views import Deleted, Model, broken_model, model_of

MAX_COMPARED = 200 * 1280 * 720  # pixels of all frames that two clips may have to be compared here
MAX_COMPARED_FRAME = 4096 * 2304  # pixels

log = logging.getLogger("radial.web")


class Adapter(BaseModel):
    """An adapter in the data folder, and what it says of itself."""

    id: str
    bytes: int
    base_model: str | None = None
    target_frames: int | None = None
    trigger: str = ""
    problem: str = ""


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1", tags=["files"])
    alone = threading.Lock()  # for what takes much memory: one at a time

    def service(request: Request) -> Service:
        return Service(paths, request.state.visitor)

    @router.post("/files")
    def upload_file(request: Request, file: Annotated[UploadFile, File()]) -> Upload:
        """Bring an image or a clip: its id goes into a request's image, last_image or extend."""
        return service(request).inputs.take(file.file)

    @router.get("/files/{id}")
    def get_upload(request: Request, id: str) -> FileResponse:
        """An upload of one's own."""
        path = service(request).inputs.upload_path(id)
        return FileResponse(path, headers={"cache-control": "private, max-age=86400"})

    @router.post("/settings")
    def read_settings(request: Request, file: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """The settings that a video of ours carries."""
        return settings_in(service(request), file.file)

    @router.get("/models")
    def list_models(request: Request) -> dict[str, Any]:
        """The models that have a name, one's own checkpoints first, and the settings that go together."""
        own = [own_model(name, path) for name, path in service(request).inputs.checkpoints().items()]
        named = [model_of(name, spec) for name, spec in MODELS.items() if name not in {one.id for one in own}]
        data = [*own, *named]
        return {"object": "list", "data": sorted(data, key=lambda one: bool(one.problem)), "presets": PRESETS}

    @router.get("/models/{id:path}")
    def get_model(request: Request, id: str) -> Model:
        """What a model makes."""
        here = service(request)
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
        if (own := service(request).inputs.checkpoints().get(id)) is not None:
            move_to_trash(own, f"{os.urandom(4).hex()}-{id}")
            return Deleted(id=id)
        if id not in MODELS or not model_of(id, MODELS[id]).removable:
            raise Missing(f"model {id[:200]!r} is not here, or did not come from the hub")
        _delete_from_hub_cache(MODELS[id].source)
        return Deleted(id=id)

    @router.get("/adapters")
    def list_adapters(request: Request) -> list[Adapter]:
        """The adapters in the data folder."""
        return [adapter_of(name, path) for name, path in service(request).inputs.adapters().items()]

    @router.post("/adapters")
    def upload_adapter(request: Request, file: Annotated[UploadFile, File()]) -> Adapter:
        """Bring an adapter, a safetensors file."""
        if not request.state.visitor.admin:
            raise RequestError("only admins add adapters: everybody uses them")
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
            shutil.copyfileobj(file.file, copy, 1 << 20)
            copy.flush()
            try:
                name = take_adapter(paths.data, file.filename or "adapter", Path(copy.name))
            except RadialError as error:
                raise RequestError(
                    f"this is no adapter of safetensors: {str(error).replace(Path(copy.name).name, 'the file')}"
                ) from error
        return adapter_of(name, paths.data / "adapters" / name)

    @router.delete("/adapters/{name}")
    def delete_adapter(request: Request, name: str) -> Deleted:
        """Forget an adapter; its file goes into the trash beside it."""
        if not request.state.visitor.admin:
            raise RequestError("only admins delete adapters: everybody uses them")
        if (path := service(request).inputs.adapters().get(name)) is None:
            raise Missing(f"there is no adapter {name[:200]!r}")
        move_to_trash(path, f"{os.urandom(4).hex()}-{name}")
        return Deleted(id=name)

    @router.get("/compare")
    def compare_videos(
        request: Request, a: str, b: str, index_a: Annotated[int, Query(ge=0)] = 0,
        index_b: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, float]:  # fmt: skip
        """How near two videos of one size are: PSNR in dB and SSIM, means over frames."""
        here = service(request)
        jobs = [here.get(a).request, here.get(b).request]
        if any(r.clip_frames * r.clip_height * r.clip_width > MAX_COMPARED for r in jobs):
            raise RequestError("these videos are too long to be compared here; `radial evaluate` compares them")
        if any(r.clip_height * r.clip_width > MAX_COMPARED_FRAME for r in jobs):
            raise RequestError("these videos are too large to be compared here; `radial evaluate` compares them")
        files = [here.file(id_, index) for id_, index in ((a, index_a), (b, index_b))]
        with alone:
            try:
                near, alike = fidelity(*map(decode_frames, files))
            except ValueError as error:
                sizes = " and ".join(f"{r.clip_frames} frames of {r.clip_width}x{r.clip_height}" for r in jobs)
                raise RequestError(f"videos of one size can be compared, not {sizes}") from error
            except OutputError as error:
                raise Missing("one of the videos cannot be read any more") from error
        return {"psnr": round(near, 2), "ssim": round(alike, 4)}

    @router.get("/plan.png")
    def draw_attention(
        request: Request, model: str = "tiny", height: int | None = None, width: int | None = None,
        num_frames: int | None = None, decay: float | None = None,
    ) -> Response:  # fmt: skip
        """A picture of which blocks of attention a clip computes."""
        from radial.plans.drawing import draw_plan
        from radial.plans.sketch import PlanSketch

        fields = {"prompt": "plan", "model": model, "height": height, "width": width, "num_frames": num_frames,
                  "decay": decay, "seed": 0}  # fmt: skip
        resolved = service(request).check(fields)
        spec = find_model(resolved.model)
        attention = resolved.attention_settings
        size = f"{resolved.clip_width}x{resolved.clip_height}, {resolved.clip_frames} frames"
        content = io.BytesIO()
        with alone:
            sketch = PlanSketch.of(resolved.grid(spec), attention.pattern, attention.block_size)
            draw_plan(sketch, f"{spec.name}, {size}").save(content, "PNG")
        return Response(content.getvalue(), media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @router.get("/about")
    def about(request: Request) -> dict[str, Any]:
        """Which version this is, and who asks."""
        visitor = request.state.visitor
        shown = {"outputs": str(paths.outputs), "data": str(paths.data)} if visitor.admin else {}
        return {"radial": __version__, "account": visitor.name, "admin": visitor.admin, **shown}

    return router


def settings_in(service: Service, content: BinaryIO) -> dict[str, Any]:
    """The fields of a request that a video carries, and notes on what of them is not here.

    Raises:
        RequestError: the file carries none.
    """
    suffix = suffix_of(content.read(32))
    if suffix not in CLIPS:
        raise RequestError("drop an MP4 or WebM file that was made here")
    content.seek(0)
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        shutil.copyfileobj(content, file, 1 << 20)
        file.flush()
        comment = probe("comment", Path(file.name), service.visitor.name)["comment"]
    try:
        receipt = json.loads(comment)
        known = {name: value for name, value in receipt["request"].items() if name in GenerationRequest.model_fields}
        request = GenerationRequest.model_validate(known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RequestError(
            "this video carries no settings: it was not made by radial, or was re-encoded without them"
        ) from error
    notes = []
    fields = request.model_dump(mode="json")
    for name in ("image", "last_image", "extend"):
        if fields[name] is not None:
            notes.append(f"its {name.replace('_', ' ')} was {Path(fields[name]).name}: choose it again")
            fields[name] = None
    adapters = service.inputs.adapters()
    kept = []
    for lora in fields["loras"]:
        name = lora["path"] if lora["path"].startswith("bundled:") else Path(lora["path"]).name
        if name in adapters or name.startswith("bundled:"):
            kept.append({"path": name, "weight": lora["weight"]})
        else:
            notes.append(f"the adapter {name} is not here")
    fields["loras"] = kept
    if fields["model"] not in MODELS and not HUB_ID.fullmatch(fields["model"]):
        name = Path(fields["model"]).name
        if name in service.inputs.checkpoints():
            fields["model"] = name
        else:
            notes.append(f"the model {name} is not here")
            fields["model"] = "tiny"
    return {"request": fields, "notes": notes, "made_with": str(receipt.get("radial", ""))[:100]}


def _delete_from_hub_cache(source: str) -> None:
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir()
    revisions = [r.commit_hash for repo in found.repos if repo.repo_id == source for r in repo.revisions]
    found.delete_revisions(*revisions).execute()


def adapter_of(name: str, path: Path) -> Adapter:
    """An adapter file as the web sees it."""
    from radial.models.lora_settings import AdapterSettings, check_adapter_file, read_adapter_settings

    try:
        check_adapter_file(path)
        settings = read_adapter_settings(path) or AdapterSettings()
    except RadialError as error:
        return Adapter(id=name, bytes=path.stat().st_size, problem=str(error))
    return Adapter(id=name, bytes=path.stat().st_size, base_model=settings.base_model,
                   target_frames=settings.target_frames, trigger=settings.trigger)  # fmt: skip


def own_model(name: str, path: Path) -> Model:
    """A checkpoint of one's own as the web sees it; one that cannot be used says why, and hides no other."""
    try:
        return model_of(name, find_model(str(path)), own=True)
    except RadialError as error:
        return broken_model(name, str(error).replace(str(path), name))
    except Exception as error:  # libraries raise many kinds for files that are not right
        log.warning("%s: %s: %s", name, type(error).__name__, first_line(error))
        return broken_model(name, f"it cannot be read ({type(error).__name__})")
