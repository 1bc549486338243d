"""What others wrote, shown in a terminal that it must not steer."""

from __future__ import annotations

import json
from typing import Any


def printable(text: str) -> str:
    """A text without control characters, escape codes and marks that turn the direction of writing; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON that people can read in a terminal; what would steer it is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def looked_at(recall: float, error: float) -> str:
    """How far sparse attention is off, in words."""
    return f"recall {recall:.0%}, off by {error:.2g}"
