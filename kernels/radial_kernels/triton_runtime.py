"""What this machine can do with Triton: the only place that asks whether it is there, and how kernels are launched.

Everything else imports Triton's modules where it launches a kernel, so that a machine without them (macOS, Windows)
does all that needs none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Triton's interpreter runs kernels on the CPU, slowly, for tests."""
    return HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def launching_on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    if not x.is_cuda:
        return contextlib.nullcontext()
    import triton

    triton.set_allocator(_allocate)
    return torch.cuda.device(x.device)


def next_power_of_2(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Workspace for descriptors that are made on the device."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
