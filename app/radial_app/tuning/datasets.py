"""Folders of captioned clips and pictures to tune on, and the archives that bring them over the web."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from radial.errors import OutputError, RequestError
from radial.files import discard
from radial.video.clip import VIDEO_SUFFIXES
from radial.video.images import PICTURE_SUFFIXES, picture_suffix

MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
MAX_FILES = 20_000
MAX_BYTES = 20 << 30  # unpacked
_TABLES = ("metadata.jsonl", "metadata.csv")
_MAX_TEXT = 8 << 20
_MAX_ENTRIES = 2 * MAX_FILES  # with folders, and files of no use here
_MAX_ENTRY = 512  # bytes in the list of contents, the mean
_SPARE = 1 << 30  # bytes that stay free on the disk


@dataclass(frozen=True)
class Dataset:
    """A folder in ``datasets``: its clips and pictures, how many of them have a caption beside them, and its size."""

    name: str
    clips: int
    captions: int
    bytes: int


def list_datasets(folder: Path) -> list[Dataset]:
    """The datasets of a data folder."""
    found = sorted(path for path in (folder / "datasets").glob("*") if path.is_dir() and NAME.fullmatch(path.name))
    return [_look(path) for path in found]


def dataset_path(folder: Path, name: str) -> Path:
    """Where a dataset lies.

    Raises:
        RequestError: there is none of this name.
    """
    path = folder / "datasets" / name
    if not NAME.fullmatch(name) or not path.is_dir():
        raise RequestError(f"there is no dataset {name[:100]!r}")
    return path


def take_archive(folder: Path, name: str, archive: BinaryIO) -> Dataset:
    """Unpack clips, pictures, captions and tables of a zip file into a dataset of this name. Other files are left out.

    Raises:
        RequestError: it is no zip file, names files outside itself, holds too much or no clips, or the name is taken.
        OutputError: there is no room for it.
    """
    target = folder / "datasets" / name
    if not NAME.fullmatch(name):
        raise RequestError(f"a dataset's name is letters, digits, dots, dashes and underscores, not {name[:100]!r}")
    if target.exists():
        raise RequestError(f"there is a dataset {name} already")
    waiting = target.with_name(f".{name}.{os.urandom(4).hex()}.partial")
    try:
        waiting.mkdir(parents=True)
        _check_directory(archive)
        with zipfile.ZipFile(archive) as opened:
            _unpack(opened, waiting)
        waiting.rename(target)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise RequestError(f"this zip file cannot be read: {error}") from error
    except OSError as error:
        raise OutputError(f"cannot unpack the dataset: {error.strerror}") from error
    finally:
        discard(waiting)
    return _look(target)


def _check_directory(archive: BinaryIO) -> None:
    """Refuse a zip file with a list of contents that would take much memory, before it is read.

    Raises:
        RequestError: it lists too much.
        zipfile.BadZipFile: it is none.
    """
    end = zipfile._EndRecData(archive)  # type: ignore[attr-defined]  # what ZipFile itself goes by
    if end is None:
        raise zipfile.BadZipFile("it has no list of contents")
    if max(end[zipfile._ECD_ENTRIES_TOTAL], end[zipfile._ECD_SIZE] // _MAX_ENTRY) > _MAX_ENTRIES:  # type: ignore[attr-defined]
        raise RequestError(f"the zip file lists too many files; {MAX_FILES} are most")
    archive.seek(0)


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    chosen = [(entry, path) for entry in archive.infolist() if (path := _place(entry)) is not None]
    if not any(path.suffix.lower() in MEDIA_SUFFIXES for _, path in chosen):
        raise RequestError(f"the zip file holds no clips or pictures ({', '.join(MEDIA_SUFFIXES)})")
    if len(chosen) > MAX_FILES:
        raise RequestError(f"the zip file holds {len(chosen)} files; {MAX_FILES} are most")
    first = {path.parts[0] for _, path in chosen}
    inside = len(first) == 1 and all(len(path.parts) > 1 for _, path in chosen)  # everything in one folder
    left = min(MAX_BYTES, shutil.disk_usage(folder).free - _SPARE)
    if sum(entry.file_size for entry, _ in chosen) > left:
        raise RequestError(f"the zip file holds more than the {max(0, left) / 1e9:.1f} GB that there is room for")
    for entry, path in chosen:
        place = folder.joinpath(*(path.parts[1:] if inside else path.parts))
        place.parent.mkdir(parents=True, exist_ok=True)
        left -= _copy(archive, entry, place, left)


def _place(entry: zipfile.ZipInfo) -> PurePosixPath | None:
    """Where an entry goes; None where it is of no use here.

    Raises:
        RequestError: it would go elsewhere, or is a link.
    """
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", entry.filename) or "\0" in entry.filename:
        raise RequestError(f"the zip file names a file outside itself: {entry.filename[:200]!r}")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise RequestError(f"the zip file holds a link: {entry.filename[:200]!r}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may take gigabytes to unpack
        raise RequestError(f"{entry.filename[:200]!r} is packed in a way that is not read: pack with deflate")
    if entry.is_dir() or any(part.startswith((".", "__")) for part in path.parts):
        return None
    useful = path.suffix.lower() in (*MEDIA_SUFFIXES, ".txt") or path.name in _TABLES
    return path if useful else None


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path, most: int) -> int:
    """Unpack one file: its bytes, whatever the archive says of them."""
    suffix = place.suffix.lower()
    most = most if suffix in MEDIA_SUFFIXES else min(most, _MAX_TEXT)
    written = 0
    with archive.open(entry) as packed, place.open("xb") as file:
        while block := packed.read(1 << 20):
            if not written and suffix in VIDEO_SUFFIXES and not _is_clip(block):
                raise RequestError(f"{entry.filename[:200]!r} is no MP4, MOV, Matroska, WebM or AVI file")
            if not written and suffix in PICTURE_SUFFIXES and not _is_picture(block):
                raise RequestError(f"{entry.filename[:200]!r} is no JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF file")
            written += len(block)
            if written > most:
                raise RequestError(f"{entry.filename[:200]!r} is larger than there is room for")
            file.write(block)
    return written


def _is_clip(head: bytes) -> bool:
    """By how it begins. Formats that can name other files are not among them."""
    iso = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    return iso or head.startswith(b"\x1aE\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def _is_picture(head: bytes) -> bool:
    """By how it begins."""
    riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    others = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"II*\0", b"MM\0*")
    return riff or head.startswith(others) or picture_suffix(head[:32]) is not None


def _look(path: Path) -> Dataset:
    clips = captions = size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            size += file.stat().st_size if file.is_file() else 0
        if file.suffix.lower() in MEDIA_SUFFIXES:
            clips += 1
            captions += file.with_suffix(".txt").is_file()
    return Dataset(path.name, clips, captions, size)
