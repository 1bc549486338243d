"""The data folder: where jobs, snapshots and logs are kept, closed to other users of the machine."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import platformdirs

from radial.errors import OutputError


def data_folder(chosen: str | Path | None = None) -> Path:
    """The folder of jobs, snapshots and logs: the chosen one, ``RADIAL_DATA_DIR``, or the platform's own."""
    found = chosen or os.environ.get("RADIAL_DATA_DIR") or platformdirs.user_data_dir("radial", appauthor=False)
    return Path(found).expanduser().absolute()


def keep_private(folder: Path) -> None:
    """Make a folder, closed to others, for what we keep in it; or close one of ours that others could look into.

    A folder that was there before and holds no jobs or accounts is somebody's own: it stays as it is.

    Raises:
        OutputError: everybody may write into it, as into /tmp.
        OSError: it cannot be made.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    everybodys = stat.S_IWOTH | stat.S_ISVTX
    if folder.stat().st_mode & everybodys == everybodys:
        raise OutputError(f"{folder} is shared by all users of this machine: name a folder of its own with --data-dir")
    inside = (folder.parent / "jobs.db").exists() or (folder.parent / "accounts.db").exists()
    if made or inside or (folder / "jobs.db").exists() or (folder / "accounts.db").exists():
        close_to_others(folder)


def close_to_others(path: Path) -> None:
    """Take what rights other users have to a file or folder, where there is one; a group's where it may not write."""
    with contextlib.suppress(OSError):  # not there, or another user's to change
        mode = path.stat().st_mode
        shared = mode & stat.S_IWGRP and not mode & stat.S_IWOTH  # with a group, on purpose
        if mode & (taken := 0o007 if shared else 0o077):
            path.chmod(stat.S_IMODE(mode) & ~taken)
