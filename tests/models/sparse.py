"""Names, dtypes and shapes of published files, and files of those without content."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from formats import Tensors, authors_tensors, write_sparse

__all__ = ["Tensors", "authors_tensors", "published", "write_sparse"]

KEYS = Path(__file__).parent / "keys"  # of published files


def published(name: str) -> Tensors:
    """Dtype and shape of each tensor of a published file."""
    with gzip.open(KEYS / f"{name}.keys.json.gz") as file:
        return {key: (dtype, tuple(shape)) for key, (dtype, shape) in json.load(file).items()}
