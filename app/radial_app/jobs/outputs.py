"""Names of results."""

from __future__ import annotations

from pathlib import Path

OUTPUT_FOLDER = Path("outputs")


def free_name(path: Path) -> Path:
    """The path itself, or the first of path-2, path-3, ... that does not exist."""
    candidate, count = path, 2
    while candidate.exists():
        candidate, count = path.with_stem(f"{path.stem}-{count}"), count + 1
    return candidate
