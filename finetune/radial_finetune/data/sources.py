"""Where training clips come from: folders with captions, tables, Hugging Face datasets, WebDataset shards."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radial.errors import RequestError, first_line
from radial.files import decode_text
from radial.video.clip import VIDEO_SUFFIXES

_CAPTION_COLUMNS = ("caption", "text", "txt", "prompt")


@dataclass(frozen=True)
class Source:
    """A video and its caption.

    Attributes:
        name: what to call it in reports.
        content: its file, or a function that reads its bytes out of a dataset.
    """

    name: str
    caption: str
    content: Path | Callable[[], bytes] = field(compare=False)


# What systems and editors leave beside one's files.
_NOT_ONES_OWN = re.compile(r"\..+|~\$.+|#.+#|.+~|__MACOSX|@eaDir")


def find_sources(data: Path, *, inside: bool = False) -> list[Source]:
    """The videos of a folder with sidecar ``.txt`` files or a ``metadata.jsonl`` or ``.csv``, of such a table itself,
    of a dataset that the ``datasets`` library saved or reads (Parquet), or of WebDataset shards (``.tar``). Links are
    followed; hidden files and those of editors are left out.

    Args:
        inside: whether files outside the folder are refused, as for folders that somebody else filled.

    Raises:
        RequestError: there is nothing to train on, or a caption or file is missing; the first are named.
    """
    table = data if data.suffix in (".jsonl", ".csv") else next((p for p in _tables(data) if p.is_file()), None)
    if table is not None:
        return _read_table(table, inside)
    if not data.exists():
        raise RequestError(f"there is no folder {data}")
    if _is_dataset(data):
        return _read_dataset(data, inside)
    if not data.is_dir():
        raise RequestError(f"{data} is neither a folder, a .jsonl or .csv table, nor a .tar of WebDataset")
    files = sorted(p for p in _walk(data) if p.suffix.lower() in VIDEO_SUFFIXES)
    if inside and (outside := next((p for p in files if not _lies_in(p, data)), None)) is not None:
        raise RequestError(f"{outside.relative_to(data)} lies outside the folder")
    if not files:
        raise RequestError(
            f"{data} has no videos ({', '.join(VIDEO_SUFFIXES)}), no metadata.jsonl or metadata.csv, no saved dataset, "
            "Parquet files or WebDataset shards"
        )
    without = [p.name for p in files if not p.with_suffix(".txt").is_file()]
    if without:
        raise RequestError(f"{len(without)} of {len(files)} videos have no caption beside them, such as {without[0]}")
    return [Source(p.relative_to(data).as_posix(), _read_caption(p.with_suffix(".txt")), p) for p in files]


def _read_caption(file: Path) -> str:
    try:
        caption = decode_text(file.read_bytes()).strip()
    except OSError as error:
        raise RequestError(f"cannot read the caption {file}: {first_line(error)}") from error
    except ValueError as error:
        raise RequestError(f"the caption {file} {error}") from error
    if not caption:
        raise RequestError(f"the caption {file} is empty; say what the clip shows")
    return caption


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, linked ones too, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _NOT_ONES_OWN.fullmatch(name)]
        yield from (Path(place) / name for name in files if not _NOT_ONES_OWN.fullmatch(name))


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _tables(folder: Path) -> tuple[Path, Path]:
    return folder / "metadata.jsonl", folder / "metadata.csv"


def _read_table(table: Path, inside: bool) -> list[Source]:
    try:
        text = decode_text(table.read_bytes())
        rows: list[Any] = list(csv.DictReader(io.StringIO(text))) if table.suffix == ".csv" else []
    except OSError as error:
        raise RequestError(f"cannot read {table}: {first_line(error)}") from error
    except (ValueError, csv.Error) as error:
        raise RequestError(f"{table} {error}") from error
    for number, line in enumerate(text.split("\n") if table.suffix != ".csv" else (), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise RequestError(f"{table}, line {number}, is not JSON: {error}") from error
    sources = []
    for number, row in enumerate(rows, 1):
        name = row.get("file") or row.get("file_name") if isinstance(row, dict) else None
        caption = _caption(row) if isinstance(row, dict) else None
        if not isinstance(name, str) or caption is None:
            raise RequestError(f"{table}, row {number}, must have a file and a caption")
        file = table.parent / name
        if inside and not _lies_in(file, table.parent):
            raise RequestError(f"{table}, row {number}: {name} lies outside the folder")
        if not file.is_file():
            raise RequestError(f"{table}, row {number}: no file {name}")
        sources.append(Source(name, caption, file))
    if not sources:
        raise RequestError(f"{table} names no clips")
    return sources


def _caption(row: dict[str, Any]) -> str | None:
    found = next((row[column] for column in _CAPTION_COLUMNS if isinstance(row.get(column), str)), None)
    if found is None and isinstance(row.get("json"), dict):  # WebDataset's own place for what is known of a sample
        return _caption(row["json"])
    return None if found is None else found.strip()


def _is_dataset(data: Path) -> bool:
    if data.is_file():
        return data.suffix == ".tar"
    saved = ("dataset_dict.json", "state.json")
    return any((data / name).is_file() for name in saved) or any(data.glob("*.tar")) or any(data.rglob("*.parquet"))


def _read_dataset(data: Path, inside: bool) -> list[Source]:
    """Videos in a dataset stay where they are until they are decoded: only captions are read here."""
    try:
        import datasets
    except ImportError as error:
        raise RequestError(f"{data} needs the datasets library: pip install 'radial-video[train]'") from error
    try:
        rows = _open_dataset(datasets, data)
        column = next((name for name in rows.column_names if _holds_videos(datasets, rows, name)), None)
        if column is None:
            raise RequestError(f"{data} has no column of videos; its columns are {', '.join(rows.column_names)}")
        rows = rows.cast_column(column, datasets.Video(decode=False))
        others = [name for name in rows.column_names if name in (*_CAPTION_COLUMNS, "json", "__key__")]
        told = list(rows.select_columns(others)) if others else [{}] * len(rows)
    except RequestError:
        raise
    except Exception as error:  # the library raises many kinds
        raise RequestError(f"{data} cannot be read as a dataset: {first_line(error)}") from error
    sources = []
    for number, row in enumerate(told):
        caption = _caption(row)
        if caption is None:
            raise RequestError(f"{data}, row {number}, has no caption in any of {', '.join(_CAPTION_COLUMNS)}")
        content = functools.partial(_read_video, rows, number, column, data, inside)
        sources.append(Source(str(row.get("__key__", f"row {number}")), caption, content))
    if not sources:
        raise RequestError(f"{data} has no rows")
    return sources


def _open_dataset(datasets: Any, data: Path) -> Any:
    datasets.disable_progress_bars()
    if any((data / name).is_file() for name in ("dataset_dict.json", "state.json")):
        rows = datasets.load_from_disk(str(data))
        return rows["train"] if isinstance(rows, dict) else rows
    tars = [data] if data.is_file() else sorted(data.glob("*.tar"))
    files = [str(p) for p in (tars or sorted(data.rglob("*.parquet")))]
    return datasets.load_dataset("webdataset" if tars else "parquet", data_files={"train": files}, split="train")


def _holds_videos(datasets: Any, rows: Any, column: str) -> bool:
    feature = rows.features[column]
    embedded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}  # as Parquet holds them, untyped
    return isinstance(feature, datasets.Video) or embedded


def _read_video(rows: Any, number: int, column: str, folder: Path, inside: bool) -> bytes:
    """One video out of a dataset."""
    video = rows[number][column]
    if video is None:
        raise OSError("the row has no video")
    if video["bytes"] is not None:
        return bytes(video["bytes"])
    file = folder / video["path"]
    if inside and not _lies_in(file, folder):
        raise OSError(f"{video['path']} lies outside {folder}")
    return file.read_bytes()
