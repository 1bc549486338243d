"""Where training clips come from: folders of videos and pictures with captions, tables, Hugging Face datasets,
WebDataset shards."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from radial.errors import RequestError, first_line
from radial.files import decode_text
from radial.video.clip import VIDEO_SUFFIXES
from radial.video.images import PICTURE_SUFFIXES
from radial_finetune.data.captions import CAPTION_COLUMNS, captions_of, find_sidecars, read_sidecars
from radial_finetune.data.directories import DATASET_FILE, Share, read_directories, share_of

_ALL = Share()


@dataclass(frozen=True)
class Source:
    """A video or picture and its captions.

    Attributes:
        name: what to call it in reports.
        content: its file, or a function that reads its bytes out of a dataset.
        others: further captions; each step draws one of all.
        unused: why nothing is taken of it; empty where it counts.
    """

    name: str
    caption: str
    content: Path | Callable[[], bytes] = field(compare=False)
    others: tuple[str, ...] = ()
    is_picture: bool = False
    share: Share = _ALL
    unused: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        return self.caption, *self.others

    def told(self, captions: tuple[str, ...]) -> Source:
        """The same with other captions."""
        return replace(self, caption=captions[0], others=captions[1:])


# What systems and editors leave beside one's files.
_NOT_ONES_OWN = re.compile(r"\..+|~\$.+|#.+#|.+~|__MACOSX|@eaDir")


def find_sources(data: Path, *, inside: bool = False, whole_captions: bool = False) -> list[Source]:
    """The videos and pictures of a folder with sidecar ``.txt`` files or a ``metadata.jsonl`` or ``.csv``, of such a
    table itself, of a dataset that the ``datasets`` library saved or reads (Parquet), of WebDataset shards (``.tar``),
    or of all that a ``dataset.toml`` names. Links are followed; hidden files and those of editors are left out.

    Args:
        inside: whether files outside the folder are refused, as for folders that somebody else filled.
        whole_captions: whether a text of several lines is one caption, and not one a line.

    Raises:
        RequestError: there is nothing to train on, or a caption or file is missing; the first are named.
    """
    several = data if data.suffix == ".toml" else data / DATASET_FILE
    if several.is_file():
        return _find_in_directories(several, inside, whole_captions)
    return _find_in(data, inside, whole_captions)


def _find_in_directories(file: Path, inside: bool, whole: bool) -> list[Source]:
    sources: list[Source] = []
    seen: dict[str, str] = {}
    for directory in read_directories(file):
        place = file.parent / directory.path
        if inside and not _lies_in(place, file.parent):
            raise RequestError(f"{file}: {directory.path} lies outside the folder")
        share = Share(num_repeats=directory.num_repeats, max_clips=directory.max_clips)
        for found in _find_in(place, inside, whole):
            if isinstance(found.content, Path):
                real = os.path.realpath(found.content)
                if real in seen:
                    raise RequestError(
                        f"{file}: {found.name} lies in {seen[real]} and in {directory.path}; name each file once"
                    )
                seen[real] = directory.path
            own = found.share if found.share != _ALL else share  # what a table says of a row goes before
            sources.append(replace(found, name=f"{directory.path.rstrip('/')}/{found.name}", share=own))
    return sources


def _find_in(data: Path, inside: bool, whole: bool) -> list[Source]:
    table = data if data.suffix in (".jsonl", ".csv") else next((p for p in _tables(data) if p.is_file()), None)
    if table is not None:
        return _read_table(table, inside, whole)
    if not data.exists():
        raise RequestError(f"there is no folder {data}")
    if _is_dataset(data):
        return _read_dataset(data, inside, whole)
    if not data.is_dir():
        raise RequestError(f"{data} is neither a folder, a .jsonl or .csv table, a .toml, nor a .tar of WebDataset")
    files = find_media(data)
    if inside and (outside := next((p for p in files if not _lies_in(p, data)), None)) is not None:
        raise RequestError(f"{outside.relative_to(data)} lies outside the folder")
    if not files:
        raise RequestError(
            f"{data} has no videos ({', '.join(VIDEO_SUFFIXES)}) or pictures ({', '.join(PICTURE_SUFFIXES)}), no "
            f"metadata.jsonl, metadata.csv or {DATASET_FILE}, no saved dataset, Parquet files or WebDataset shards"
        )
    sidecars = find_sidecars(files)
    videos = {p.with_suffix("") for p in files if not is_picture(p)}
    without = [p.name for p, texts in sidecars.items() if not texts and not (videos and is_picture(p))]
    if without:
        raise RequestError(
            f"{len(without)} of {len(files)} files have no caption beside them, such as {without[0]}; "
            "`radial finetune caption` writes them"
        )
    return [_read_file(file, data, texts, videos, whole) for file, texts in sidecars.items()]


def _read_file(file: Path, folder: Path, texts: list[Path], videos: set[Path], whole: bool) -> Source:
    """A file of a folder. Among videos, pictures without a caption and those named as a video, as posters and covers
    are, are told and left out."""
    name, picture = file.relative_to(folder).as_posix(), is_picture(file)
    if not texts:
        return Source(name, "", file, is_picture=picture, unused="no caption beside it")
    first, *others = read_sidecars(texts, whole=whole)
    poster = "named as the video beside it" if picture and file.with_suffix("") in videos else ""
    return Source(name, first, file, tuple(others), picture, unused=poster)


def find_media(folder: Path) -> list[Path]:
    """The videos and pictures of a folder and those in it, by name."""
    return sorted(p for p in _walk(folder) if p.suffix.lower() in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))


def is_picture(file: Path) -> bool:
    """Whether a file is a picture, by its name."""
    return file.suffix.lower() in PICTURE_SUFFIXES


def _walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, linked ones too, each folder once; none of a cache that lies there."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or {"index.json", "sources.jsonl"} <= set(files):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _NOT_ONES_OWN.fullmatch(name)]
        yield from (Path(place) / name for name in files if not _NOT_ONES_OWN.fullmatch(name))


def _lies_in(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _tables(folder: Path) -> tuple[Path, Path]:
    return folder / "metadata.jsonl", folder / "metadata.csv"


def _read_table(table: Path, inside: bool, whole: bool) -> list[Source]:
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
        captions = captions_of(row, whole=whole) if isinstance(row, dict) else ()
        if not isinstance(name, str) or not captions:
            raise RequestError(f"{table}, row {number}, must have a file and a caption")
        file = table.parent / name
        if inside and not _lies_in(file, table.parent):
            raise RequestError(f"{table}, row {number}: {name} lies outside the folder")
        if not file.is_file():
            raise RequestError(f"{table}, row {number}: no file {name}")
        share = share_of(row, f"{table}, row {number}")
        sources.append(Source(name, captions[0], file, captions[1:], is_picture(file), share))
    if not sources:
        raise RequestError(f"{table} names no clips")
    return sources


def _is_dataset(data: Path) -> bool:
    if data.is_file():
        return data.suffix == ".tar"
    saved = ("dataset_dict.json", "state.json")
    return any((data / name).is_file() for name in saved) or any(data.glob("*.tar")) or any(data.rglob("*.parquet"))


def _read_dataset(data: Path, inside: bool, whole: bool) -> list[Source]:
    """Videos in a dataset stay where they are until they are decoded: only captions are read here."""
    try:
        import datasets
    except ImportError as error:
        raise RequestError(f"{data} needs the datasets library: pip install 'radial-video[train]'") from error
    try:
        rows = _open_dataset(datasets, data)
        column, picture = _find_column(datasets, rows)
        if column is None:
            raise RequestError(
                f"{data} has no column of videos or pictures; its columns are {', '.join(rows.column_names)}"
            )
        rows = rows.cast_column(column, (datasets.Image if picture else datasets.Video)(decode=False))
        known = (*CAPTION_COLUMNS, *Share.model_fields, "json", "__key__")
        others = [name for name in rows.column_names if name in known]
        told = list(rows.select_columns(others)) if others else [{}] * len(rows)
    except RequestError:
        raise
    except Exception as error:  # the library raises many kinds
        raise RequestError(f"{data} cannot be read as a dataset: {first_line(error)}") from error
    sources = []
    for number, row in enumerate(told):
        captions = captions_of(row, whole=whole)
        if not captions:
            raise RequestError(f"{data}, row {number}, has no caption in any of {', '.join(CAPTION_COLUMNS)}")
        name, share = str(row.get("__key__", f"row {number}")), share_of(row, f"{data}, row {number}")
        content = functools.partial(_read_row, rows, number, column, data, inside)
        sources.append(Source(name, captions[0], content, captions[1:], picture, share))
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


def _find_column(datasets: Any, rows: Any) -> tuple[str | None, bool]:
    """The column of videos, else that of pictures; and whether it is one of pictures."""
    for name, feature in rows.features.items():
        embedded = isinstance(feature, dict) and set(feature) == {"bytes", "path"}  # as Parquet holds them, untyped
        if isinstance(feature, datasets.Video) or embedded:
            return name, False
    return next((name for name, one in rows.features.items() if isinstance(one, datasets.Image)), None), True


def _read_row(rows: Any, number: int, column: str, folder: Path, inside: bool) -> bytes:
    """One video or picture out of a dataset."""
    video = rows[number][column]
    if video is None:
        raise OSError("the row has no video or picture")
    if video["bytes"] is not None:
        return bytes(video["bytes"])
    file = folder / video["path"]
    if inside and not _lies_in(file, folder):
        raise OSError(f"{video['path']} lies outside {folder}")
    return file.read_bytes()
