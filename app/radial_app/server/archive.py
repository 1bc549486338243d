"""Several files as one zip file, written while it is sent: neither disk nor memory holds it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_BLOCK = 1 << 20


class _Pipe:
    """What is written, until it is taken; zipfile writes to it from front to end."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        self._parts.append(bytes(part))
        return len(part)

    def flush(self) -> None:
        """All is there already."""

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def zip_files(files: Sequence[Path]) -> Iterator[bytes]:
    """The zip file of files, part by part; as they are, for videos are compressed already.

    Files of one name get a number before it.
    """
    pipe, names = _Pipe(), [file.name for file in files]
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for number, file in enumerate(files):
            name = file.name if names.count(file.name) == 1 else f"{number + 1}-{file.name}"
            with file.open("rb") as content, archive.open(name, "w", force_zip64=True) as entry:
                while block := content.read(_BLOCK):
                    entry.write(block)
                    yield pipe.take()
    yield pipe.take()
