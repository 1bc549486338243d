"""Models of the hub by their specs: whole ones, and those whose components lie in several places, which become one
folder of links to their files, laid out as a checkpoint."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from radial.errors import OutputError
from radial.models.checkpoint import INDEX, assembled_folder, read_json
from radial.models.hub.download import (
    Download,
    OnProgress,
    check_disk,
    download,
    download_size_of,
    follow,
    is_wanted,
    plan,
)
from radial.models.spec import ModelSpec, Piece

_OF_A_COMPONENT = ("config.json", ".safetensors", ".index.json")


def model_size(spec: ModelSpec) -> Download:
    """As :func:`download_size_of`, of a model's spec."""
    if not spec.pieces:
        return download_size_of(spec.source, spec.own_components)
    plans = _plans(spec)
    return Download(spec.source, (), (), sum(one.missing for one in plans), sum(one.present for one in plans))


def download_model(
    spec: ModelSpec, on_progress: OnProgress = lambda done, total: None, planned: Download | None = None
) -> Path:
    """As :func:`download`, of a model's spec: its folder."""
    if not spec.pieces:
        return download(spec.source, on_progress, planned, without=spec.own_components)
    planned, plans = planned or model_size(spec), _plans(spec)
    check_disk(planned)
    before, folders = 0, {}
    for one in plans:

        def tell(done: int, _: int, before: int = before) -> None:
            on_progress(before + done, planned.total)

        folders[one.source] = follow(one, tell)
        before += one.total
    on_progress(planned.total, planned.total)
    return _link(spec, folders)


def _plans(spec: ModelSpec) -> list[Download]:
    """What is to come of each place."""
    sources = dict.fromkeys((spec.base, *(piece.source for piece in spec.pieces)))
    return [plan(source, _chooser(spec, source)) for source in sources]


def _chooser(spec: ModelSpec, source: str) -> Callable[[dict[str, int]], tuple[str, ...]]:
    own = [piece for piece in spec.pieces if piece.source == source]
    elsewhere = {piece.component for piece in spec.pieces}

    def choose(sizes: dict[str, int]) -> tuple[str, ...]:
        wanted = {name for piece in own for name in sizes if _is_of(piece, name, sizes, spec.own_components)}
        if source == spec.base:
            wanted |= {name for name in sizes if name.partition("/")[0] not in elsewhere and is_wanted(name, sizes)}
        return tuple(sorted(wanted))

    return choose


def _is_of(piece: Piece, name: str, sizes: dict[str, int], without: tuple[str, ...]) -> bool:
    """Whether a file is of a piece, by what it would be called in a checkpoint."""
    folder, _, file = name.rpartition("/")
    if folder != piece.folder or (not folder and not file.endswith(_OF_A_COMPONENT)):
        return False
    beside = {one: size for one, size in sizes.items() if one.rpartition("/")[0] == folder}
    there = {f"{piece.component}/{one.rpartition('/')[2]}": size for one, size in beside.items()}
    return is_wanted(f"{piece.component}/{file}", there, without)


def _link(spec: ModelSpec, folders: dict[str, Path]) -> Path:
    """Put a model's pieces together in a folder of links.

    Raises:
        OutputError: links cannot be made there.
    """
    place, base = assembled_folder(spec), folders[spec.base]
    components = {piece.component: piece for piece in spec.pieces}
    index = read_json(base / INDEX) | {name: list(piece.kind) for name, piece in components.items()}
    (kind,) = spec.pipelines
    places = {folder.name: folder for folder in base.iterdir() if folder.is_dir() and folder.name not in components}
    places |= {name: folders[piece.source] / piece.folder for name, piece in components.items()}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            whole = Path(made) / "model"
            for component, folder in places.items():
                (whole / component).mkdir(parents=True)
                for file in sorted(one for one in folder.iterdir() if one.is_file()):
                    (whole / component / file.name).symlink_to(file.resolve())
            (whole / INDEX).write_text(json.dumps(index | {"_class_name": kind}, indent=2), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            whole.rename(place)
    except OSError as error:
        raise OutputError(error.errno, f"cannot put {spec.name} together in {place}: {error.strerror}") from error
    return place
