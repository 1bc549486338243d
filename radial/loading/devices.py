"""The devices of this machine, told without PyTorch in this process: it would take a quarter of a gigabyte of a server
that only asks."""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
import sys
from pathlib import Path

from radial.errors import RequestError

_LOOK = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.cuda.get_device_properties(index).total_memory for index in range(count)]))
"""


@functools.cache
def gpu_memory() -> tuple[int, ...]:
    """Bytes of each GPU, in their order; they stay as they are while a process lives."""
    if (torch := sys.modules.get("torch")) is not None:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(torch.cuda.get_device_properties(index).total_memory for index in range(count))
    if not _has_driver():
        return ()  # PyTorch would find none either, after seconds
    # -P: no module of the folder that it happens to run in.
    told = subprocess.run([sys.executable, "-P", "-c", _LOOK], capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(told.strip().splitlines()[-1]))


def _has_driver() -> bool:
    """Is there what PyTorch reaches a GPU by: NVIDIA's library, by the names that CUDA's runtime opens, or AMD's
    device?"""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
            return True
        except OSError:
            continue
    return Path("/dev/kfd").exists()


def find_device(name: str) -> str:
    """The device of that name: cpu, cuda or cuda:N; ``auto`` is the first GPU, or the CPU.

    Raises:
        RequestError: there is no such device here.
    """
    count = len(gpu_memory())
    if name == "auto":
        return "cuda" if count else "cpu"
    available = ["cpu", *(f"cuda:{index}" for index in range(count))]
    if name not in available and not (name == "cuda" and count):
        raise RequestError(f"no device {name!r} here; there is {', '.join(available)}")
    return name


def number_bytes(dtype: str, device: str) -> int:
    """Bytes of a number of that dtype; ``auto`` is half as wide on a GPU as on the CPU."""
    return 4 if dtype == "float32" or (dtype == "auto" and device == "cpu") else 2
