"""The data folder: where jobs, snapshots and logs are kept, closed to other users of the machine."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from radial.errors import OutputError


def data_folder(chosen: str | Path | None = None) -> Path:
    """The folder of jobs, snapshots and logs: the chosen one, ``RADIAL_DATA_DIR``, or the platform's own."""
    import platformdirs

    found = chosen or os.environ.get("RADIAL_DATA_DIR") or platformdirs.user_data_dir("radial", appauthor=False)
    return Path(found).expanduser().absolute()


def keep_private(folder: Path) -> None:
    """Make a folder of the data folder, or close one that others of this machine could look into.

    Raises:
        OutputError: it is everybody's, as /tmp is.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & stat.S_ISVTX:
        raise OutputError(f"{folder} is shared by all users of this machine: name a folder of its own with --data-dir")
    close_to_others(folder)


def close_to_others(path: Path) -> None:
    """Take what rights other users have to a file or folder, where there is one."""
    with contextlib.suppress(OSError):  # not there, or another user's to change
        if (mode := path.stat().st_mode) & 0o077:
            path.chmod(stat.S_IMODE(mode) & ~0o077)
