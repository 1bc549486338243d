"""Gradient checkpointing whose checkpoints wait in the host's memory.

What enters each block is all that is kept of it, and for long clips that alone fills a GPU: at 161 frames of 720p, one
tensor a block is 56 GB for Wan 14 B. The copies run beside the computation, on a stream of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def offloaded_checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    """For diffusers' ``enable_gradient_checkpointing``: the first argument, the hidden states, waits outside."""
    hidden_states = args[0]
    with torch.autograd.graph.saved_tensors_hooks(_Offload(hidden_states).pack, _restore):
        return checkpoint(function, *args, use_reentrant=False)


class _Offload:
    """Sends one tensor to the host, and leaves all others, which the blocks share, where they are."""

    def __init__(self, chosen: Tensor) -> None:
        # Where it lies, not the tensor itself: torch keeps this object as long as what it packed.
        self._place, self._shape = chosen.data_ptr(), chosen.shape

    def pack(self, tensor: Tensor) -> Any:
        if tensor.data_ptr() != self._place or tensor.shape != self._shape:
            return tensor
        device = tensor.device
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda")
        if device.type == "cuda":
            side = _side_stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                host.copy_(tensor, non_blocking=True)
            tensor.record_stream(side)
        else:
            host.copy_(tensor)
        return device, host


def _restore(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, host = packed
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_side_stream(device))
    restored: Tensor = host.to(device, non_blocking=True)
    return restored


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
