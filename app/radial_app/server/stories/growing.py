"""A film that grows, over HTTP: so many bytes of it as its finished pieces take, whole or in ranges."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fastapi.responses import Response, StreamingResponse

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_BLOCK = 1 << 18


def send_growing(path: Path, size: int, wanted: str | None) -> Response:
    """The first ``size`` bytes of a film, or what of them a ``Range`` header asks for."""
    headers = {"accept-ranges": "bytes", "cache-control": "private, no-cache"}
    begin, end, status = 0, size, 200
    if wanted is not None and (match := _RANGE.fullmatch(wanted.strip())) and any(match.groups()):
        first, last = match.groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if begin >= end:
            return Response(status_code=416, headers=headers | {"content-range": f"bytes */{size}"})
        status, headers["content-range"] = 206, f"bytes {begin}-{end - 1}/{size}"
    headers["content-length"] = str(end - begin)
    return StreamingResponse(_read(path, begin, end), status, headers, media_type="video/mp4")


def _read(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (block := file.read(min(_BLOCK, end - begin))):
            begin += len(block)
            yield block
