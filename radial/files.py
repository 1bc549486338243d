"""Results reach their name whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from radial.errors import ModelError, OutputError, RequestError

BUNDLED = "bundled:"  # how the names of adapters and policies begin that come with the package


def check_output(path: Path, suffix: str, *, overwrite: bool) -> None:
    """Raise before work is spent on a result that could not be written: a file, or without a suffix a folder.

    Raises:
        RequestError: the file exists, is a folder, or has another suffix.
        OutputError: the folder cannot be written.
    """
    if suffix and path.suffix.lower() != suffix:
        raise RequestError(f"output must end in {suffix}, not {path.name!r}")
    if suffix and path.is_dir():
        raise RequestError(f"{path} is a folder; give a file name")
    if path.exists() and not overwrite:
        raise RequestError(f"{path} exists; pass --overwrite or another --output")
    if not suffix and path.is_dir():
        check_frames_folder(path)
    folder = existing_folder(path.absolute().parent)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: {folder} is not a folder that can be written")


def existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def publish_text(path: Path, text: str) -> None:
    """Write text under a temporary name, then put it in the place of what was there.

    Raises:
        OutputError: the place cannot be written.
    """
    publish(path, lambda partial: partial.write_text(text, encoding="utf-8"), overwrite=True)


def publish(path: Path, write: Callable[[Path], object], *, overwrite: bool) -> None:
    """Write a file under a temporary name, then give it its own.

    Args:
        write: writes the file it is given.

    Raises:
        OutputError: the name is taken and ``overwrite`` is not set, or the place cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        sync(partial)
        if overwrite:
            replace_with(partial, path)
        else:
            rename_to_free_name(partial, path)
    except FileExistsError as error:
        raise OutputError(f"{path} exists; pass --overwrite or another --output") from error
    except (OSError, SafetensorError) as error:
        problem = OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")
        problem.errno = getattr(error, "errno", None)  # a full disk passes, other reasons stay
        raise problem from error
    finally:
        discard(partial)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Keep other processes out while the context lasts; the lock's file goes with it, however it ends.

    Args:
        busy: what is said where another process is in.

    Raises:
        OutputError: another one is, which passes, or the place cannot be written.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        problem = OutputError(busy)
        problem.errno = errno.EBUSY
        raise problem from error
    except OSError as error:
        problem = OutputError(f"cannot write {path.parent}: {error.strerror or error}")
        problem.errno = error.errno
        raise problem from error
    try:
        yield
    finally:
        discard(path)  # while it is held: whoever comes next makes one of its own
        lock.release()


def decode_text(content: bytes) -> str:
    """Text in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with theirs. Nothing is guessed.

    Raises:
        ValueError: it is in another encoding; says where, and what it might be.
    """
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
                           (b"\xfe\xff", "utf-16")):  # fmt: skip
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise ValueError(f"is torn: its mark says {encoding.upper()}, and it ends within a letter") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        near = content[max(0, error.start - 12) : error.start + 12].decode("cp1252", "replace")
        raise ValueError(
            f"is not UTF-8, at byte {error.start}; as Windows-1252 it would say {near!r} there: save it as UTF-8"
        ) from error


def sync(path: Path) -> None:
    """Wait until a file's content, or that of all files in a folder, is on the disk, so that its name never comes to
    it before."""
    for file in (one for one in (path, *path.rglob("*")) if one.is_file()):
        with file.open("rb") as content:
            os.fsync(content.fileno())


def discard(path: Path) -> None:
    """Remove a file or folder if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def replace_with(partial: Path, path: Path) -> None:
    """Put a file in the place of another, or a folder of frames in the place of such a folder.

    Raises:
        OutputError: a folder with anything but frames is there.
    """
    if path.is_dir():
        check_frames_folder(path)
        shutil.rmtree(path)
    os.replace(partial, path)
    _sync_folder(path.parent)


def check_frames_folder(folder: Path) -> None:
    """Raise where a folder holds more than frames that may be replaced.

    Raises:
        OutputError: it does.
    """
    other = next((file for file in folder.iterdir() if not re.fullmatch(r"\d{5,}\.png", file.name)), None)
    if other is not None:
        raise OutputError(f"{folder} is not only frames: there is {other.name}; give another --output")


def _sync_folder(folder: Path) -> None:
    """A name is on the disk once its folder is."""
    with contextlib.suppress(OSError):  # not every system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename_to_free_name(partial: Path, path: Path) -> None:
    """Give a file or folder a name that nothing has.

    Raises:
        FileExistsError: something has it.
    """
    if partial.is_dir():
        if path.exists():
            raise FileExistsError(path)
        os.rename(partial, path)
        _sync_folder(path.parent)
        return
    # A link fails if the name was taken meanwhile; a rename would overwrite.
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system: claim the name first, then move over our own empty file.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(partial, path)
    _sync_folder(path.parent)


def bundled_file(name: str, folder: str, what: str) -> Path:
    """Where an adapter or a policy lies; ``bundled:NAME`` is one that comes with the package, in this folder of it.

    Raises:
        ModelError: it cannot be a name.
    """
    if not name.startswith(BUNDLED):
        return Path(name)
    bare = name.removeprefix(BUNDLED)
    if not re.fullmatch(r"[\w-]+", bare):
        raise ModelError(f"{name!r} names no {what} that comes with the package")
    return _assets() / folder / f"{bare}.safetensors"


def bundled_names(folder: str) -> list[str]:
    """The names of what a folder of the package holds."""
    return [f"{BUNDLED}{path.stem}" for path in sorted((_assets() / folder).glob("*.safetensors"))]


def _assets() -> Path:
    from importlib.resources import files

    return Path(str(files("radial_assets")))
