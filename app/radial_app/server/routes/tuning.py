"""Datasets, and fine-tuning runs on them, over REST. For admins: they take the machine, and all use the result."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import FileResponse

from radial_app.server.access import admins_only
from radial_app.server.routes.adapters import Adapter, adapter_of
from radial_app.server.service import Conflict, ServerPaths, Service, store_in
from radial_app.server.uploads import take_adapter
from radial_app.server.views import Deleted
from radial_app.tuning.datasets import Dataset, list_datasets, take_archive
from radial_app.tuning.runs import Forecast, Tuning, TuningRun
from radial_app.tuning.settings import Preparation, Training
from radial_app.worker.pool import own_devices


def make_router(paths: ServerPaths) -> APIRouter:
    """The routes of a server that keeps its things in ``paths``."""

    only_admins = Depends(admins_only("only admins tune models"))
    router = APIRouter(prefix="/v1", tags=["tuning"], dependencies=[only_admins])
    tuning = Tuning(paths.data)
    one_forecast = threading.Lock()  # at a time: each is a process of its own

    def check_free() -> None:
        """A model that renders and one that trains seldom fit on a GPU together."""
        if store_in(paths.data).counts().get("running", 0) and own_devices() != ["cpu"]:
            raise Conflict("a video is rendered on the GPU: wait for it, or hold it")

    @router.get("/datasets")
    def get_datasets() -> list[Dataset]:
        """The datasets: folders in ``datasets`` of the data folder."""
        return list_datasets(paths.data)

    @router.post("/datasets")
    def upload_dataset(file: Annotated[UploadFile, File()], name: Annotated[str, Form(max_length=64)]) -> Dataset:
        """Bring a dataset as a zip file of clips, each with its caption in a ``.txt`` of its name, or with a table."""
        return take_archive(paths.data, name, file.file)

    @router.get("/tuning")
    def list_runs() -> list[TuningRun]:
        """All fine-tuning runs, the latest first."""
        return tuning.runs()

    @router.post("/tuning")
    def prepare_run(request: Request, preparation: Preparation) -> TuningRun:
        """Begin a run: its clips are cut and encoded, and reported."""
        service = Service(paths, request.state.visitor)
        model = service.inputs.translate({"model": preparation.model})["model"]
        check_free()
        return tuning.prepare(preparation, model)

    @router.get("/tuning/{name}")
    def get_run(name: str) -> TuningRun:
        """A run as it stands."""
        return tuning.get(name)

    @router.post("/tuning/{name}/train")
    def train_run(name: str, training: Training) -> TuningRun:
        """Train a prepared run, or go on with one that stopped."""
        check_free()
        return tuning.train(name, training)

    @router.post("/tuning/{name}/estimate")
    def estimate_run(name: str, training: Training) -> Forecast:
        """What training a prepared run so would take."""
        with one_forecast:
            return tuning.forecast(name, training)

    @router.post("/tuning/{name}/stop")
    def stop_run(name: str) -> TuningRun:
        """Stop a run after its step; it can go on later."""
        return tuning.stop(name)

    @router.delete("/tuning/{name}")
    def delete_run(name: str) -> Deleted:
        """Delete a run, its cache and its checkpoints."""
        tuning.remove(name)
        return Deleted(id=name)

    @router.get("/tuning/{name}/files/{file}")
    def get_file(name: str, file: str) -> FileResponse:
        """``report.png`` or ``sheet.png`` of a run's clips, or one of its samples."""
        return FileResponse(tuning.file(name, file), headers={"cache-control": "private, no-cache"})

    @router.post("/tuning/{name}/adapter")
    def keep_adapter(name: str) -> Adapter:
        """Put a run's adapter among those that requests can name, under the run's name."""
        kept = take_adapter(paths.data, f"{name}.safetensors", tuning.adapter(name))
        return adapter_of(kept, paths.data / "adapters" / kept)

    return router
