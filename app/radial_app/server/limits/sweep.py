"""Uploads on their way: where they lie until they are judged, and what a server that was killed left of them."""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path

from radial.files import discard
from radial_app.jobs.folder import keep_private

UPLOADS = ".radial-uploads"  # in the data folder: a name that nobody has for anything else
_HALF = re.compile(r"\.\d+-[0-9a-f]+(\.\w+)?")  # an upload on its way, named after its process


def prepare_uploads(data: Path) -> None:
    """Have uploads pass through a private folder of the data folder, which is on a disk where /tmp may be memory; and
    remove what was half written, or half unpacked, when an earlier server ended.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = data / UPLOADS
    keep_private(folder)
    halves = [path for path in (data / "inputs").glob("*/.*") if _HALF.fullmatch(path.name)]
    for left in [*folder.iterdir(), *halves, *(data / "datasets").glob(".*.partial")]:
        with contextlib.suppress(OSError):
            discard(left)
    tempfile.tempdir = str(folder)
