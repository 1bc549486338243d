"""Safetensors files with the names, dtypes and shapes of real ones and nothing in them: they take no disk."""

from __future__ import annotations

import gzip
import json
import math
import struct
from pathlib import Path

KEYS = Path(__file__).parent / "keys"  # of published files
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def published(name: str) -> Tensors:
    """Dtype and shape of each tensor of a published file."""
    with gzip.open(KEYS / f"{name}.keys.json.gz") as file:
        return {key: (dtype, tuple(shape)) for key, (dtype, shape) in json.load(file).items()}


def write_sparse(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """A file of such tensors."""
    head: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = _BYTES[dtype] * math.prod(shape)
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path
