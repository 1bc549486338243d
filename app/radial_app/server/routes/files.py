"""What visitors bring: images and clips to start from, and the settings that a video carries."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, File, Query, Request, UploadFile
from fastapi.responses import FileResponse, StreamingResponse
from starlette.background import BackgroundTask

from radial.errors import RequestError
from radial.input_files import named_files, with_files
from radial.models.find import HUB_ID
from radial.models.table import MODELS
from radial.request import GenerationRequest
from radial.version import __version__
from radial.video.cut import join, trim
from radial.video.finishing.finish import finish
from radial.video.finishing.sources import Sources
from radial.video.finishing.steps import make_finish
from radial_app.server.archive import zip_files
from radial_app.server.finishing.bounds import WHILE_YOU_WAIT, check_work, upscalers
from radial_app.server.limits.media_probe import probe
from radial_app.server.service import ServerPaths, Service
from radial_app.server.uploads import CLIPS, Upload, suffix_of, without_what_goes_with

MAX_ARCHIVED = 100  # videos
MAX_JOINED = 50
_MAX_FRAMES = 1 << 30  # bytes, where they are encoded again
_ONE_AT_A_TIME = threading.Lock()


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""
    router = APIRouter(prefix="/v1", tags=["files"])

    @router.post("/files")
    def upload_file(request: Request, file: Annotated[UploadFile, File()]) -> Upload:
        """Bring an image or a clip: its id goes into a request's image, extend or control_video, say."""
        return Service(paths, request.state.visitor).inputs.take(file.file)

    @router.get("/files/{id}")
    def get_upload(request: Request, id: str) -> FileResponse:
        """An upload of one's own."""
        path = Service(paths, request.state.visitor).inputs.upload_path(id)
        return FileResponse(path, headers={"cache-control": "private, max-age=86400"})

    @router.post("/settings")
    def read_settings(request: Request, file: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """The settings that a video of ours carries."""
        return settings_in(Service(paths, request.state.visitor), file.file)

    @router.get("/about")
    def about(request: Request) -> dict[str, Any]:
        """Which version this is, and who asks."""
        visitor = request.state.visitor
        shown = {"outputs": str(paths.outputs), "data": str(paths.data)} if visitor.admin else {}
        return {"radial": __version__, "account": visitor.name, "admin": visitor.admin, **shown}

    @router.get("/archive", response_class=StreamingResponse)
    def download_videos(request: Request, ids: Annotated[str, Query(max_length=5000)]) -> StreamingResponse:
        """Several videos as one zip file, named by their ids with commas between them."""
        here = Service(paths, request.state.visitor)
        jobs = [here.get(id) for id in dict.fromkeys(ids.split(",")) if id]
        if not 0 < len(jobs) <= MAX_ARCHIVED:
            raise RequestError(f"an archive holds from 1 to {MAX_ARCHIVED} videos, not {len(jobs)}")
        files = [here.file(job.id, file) for job in jobs for file in range(len(job.files)) if job.files[file].done]
        return StreamingResponse(
            zip_files(files), media_type="application/zip",
            headers={"content-disposition": 'attachment; filename="radial-videos.zip"'},
        )  # fmt: skip

    @router.get("/join", response_class=FileResponse)
    def join_videos(request: Request, ids: Annotated[str, Query(max_length=5000)]) -> FileResponse:
        """Several videos one after the other as one file; as they are where they are of one kind, else fitted to the
        first."""
        here = Service(paths, request.state.visitor)
        names = [id for id in ids.split(",") if id]
        if not 2 <= len(names) <= MAX_JOINED:
            raise RequestError(f"from 2 to {MAX_JOINED} videos are joined, not {len(names)}")
        files = [here.file(id) for id in names]
        output = f"joined{files[0].suffix if files[0].suffix in CLIPS else '.mp4'}"
        return _made(output, lambda path: join(files, path, max_bytes=_MAX_FRAMES))

    @router.get("/videos/{id}/part", response_class=FileResponse)
    def get_part(
        request: Request, id: str, index: Annotated[int, Query(ge=0, le=100_000)] = 0,
        start: Annotated[float, Query(ge=0, le=1e6)] = 0.0, end: Annotated[float | None, Query(gt=0, le=1e6)] = None,
    ) -> FileResponse:  # fmt: skip
        """The part of a video from one second to before another."""
        file = Service(paths, request.state.visitor).file(id, index)
        output = f"{file.stem}-part{file.suffix if file.suffix in CLIPS else '.mp4'}"
        return _made(output, lambda path: trim(file, path, start, end, max_bytes=_MAX_FRAMES))

    @router.get("/upscalers")
    def list_upscalers() -> list[str]:
        """The upscalers that a video can be finished by."""
        return list(upscalers(paths.data))

    @router.get("/videos/{id}/finished", response_class=FileResponse)
    def get_finished(
        request: Request, id: str, index: Annotated[int, Query(ge=0, le=100_000)] = 0,
        frames: Annotated[Literal["1", "2", "4"], Query()] = "1", scale: Annotated[float, Query(ge=0.25, le=4)] = 1.0,
        speed: Annotated[float, Query(ge=0.05, le=20)] = 1.0, loop: Annotated[int, Query(ge=1, le=20)] = 1,
        aspect: Annotated[str | None, Query(max_length=11)] = None, reframe: Literal["crop", "pad"] = "crop",
        reverse: bool = False,
    ) -> FileResponse:  # fmt: skip
        """A video with more frames by what moves where, more pixels, another speed or shape; the video itself stays as
        it is."""
        file = Service(paths, request.state.visitor).file(id, index)
        what = make_finish(
            frames=int(frames), scale=scale, speed=speed, loop=loop, aspect=aspect or None, reframe=reframe,
            reverse=reverse,
        )  # fmt: skip
        check_work(Sources.look([file]), what, WHILE_YOU_WAIT)
        output = f"{file.stem}-finished{file.suffix if file.suffix in CLIPS else '.mp4'}"
        return _made(output, lambda path: finish([file], path, what))

    return router


def _made(name: str, make: Callable[[Path], object]) -> FileResponse:
    """A file that is made for whoever asks, and not kept."""
    folder = Path(tempfile.mkdtemp(prefix="radial-"))
    gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    try:
        with _ONE_AT_A_TIME:
            make(folder / name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(folder / name, filename=name, background=gone, headers={"cache-control": "no-store"})


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
    for label, path in named_files(fields):
        name = label.partition(".")[0].replace("_", " ")
        notes.append(f"its {name} was {Path(path).name}: choose it again")
    fields |= with_files(fields, lambda *_: None)
    without_what_goes_with(fields)
    fields["enhance"] = fields["original_prompt"] = None  # the prompt is the enhanced one already
    adapters = service.inputs.adapters()
    kept = []
    for lora in fields["loras"]:
        name = lora["path"] if lora["path"].startswith("bundled:") else Path(lora["path"]).name
        if name in adapters or name.startswith("bundled:"):
            kept.append(lora | {"path": name})
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
