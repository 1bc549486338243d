"""What of a run waits in the host's memory: checkpoints, and the frozen weights of blocks.

Of a block, gradient checkpointing keeps what enters it, and for long clips that alone fills a GPU: at 161 frames of
720p, one tensor a block is 56 GB for Wan 14 B, whose weights are 28 GB. Copies run beside the computation, on a stream
of their own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks")  # where transformers have them, in order
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def plain_checkpoint(function: Callable[..., Any], *args: Any, context_fn: Contexts = noop_context_fn) -> Any:
    """For diffusers' ``enable_gradient_checkpointing``: what it does by itself."""
    return checkpoint(function, *args, use_reentrant=False, context_fn=context_fn)


def offloaded_checkpoint(function: Callable[..., Any], *args: Any, context_fn: Contexts = noop_context_fn) -> Any:
    """For diffusers' ``enable_gradient_checkpointing``: the first argument, the hidden states, waits outside."""
    hidden_states = args[0]
    with torch.autograd.graph.saved_tensors_hooks(_Offload(hidden_states).pack, _restore):
        return checkpoint(function, *args, use_reentrant=False, context_fn=context_fn)


class OffloadedBlocks:
    """Keeps the frozen weights of a transformer's blocks in the host's memory, but for the block that is computed and
    the one after it, in a backward pass the one before it; all else moves to the device.

    Diffusers' ``ModuleGroup`` copies the weights. When it does so is decided here, since diffusers' hooks (0.42,
    ``hooks/group_offloading.py``) are for forward passes alone: their groups take trained parameters along, away from
    their gradients; ``post_forward`` lets go of a block that checkpointing has just computed again, though what
    ``torch.utils.checkpoint`` keeps of a frozen weight is the parameter itself, so that its backward pass would find it
    elsewhere; where checkpointing stops before a block's end, ``post_forward`` is not called at all; and what is
    fetched ahead is what came next in the first forward pass. So here a block goes when another is computed, which in a
    backward pass is after its own gradients.

    Args:
        transformer: with its adapter.
        device: where it computes.
    """

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        from diffusers.hooks.group_offloading import ModuleGroup

        blocks = [block for name in BLOCKS for block in getattr(transformer, name, ())]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._groups: list[Any] = []
        for block in blocks:
            group = ModuleGroup(
                modules=[], offload_device=torch.device("cpu"), onload_device=device, offload_leader=block,
                onload_leader=block, parameters=[p for p in block.parameters() if not p.requires_grad],
                buffers=list(block.buffers()), stream=self._stream, record_stream=self._stream is not None,
            )  # fmt: skip
            group.offload_()  # to memory that is pinned, one after the other
            self._groups.append(group)
        self._there: set[int] = set()  # blocks on the device, or on their way
        self._backward = False
        apart = {id(tensor) for group in self._groups for tensor in (*group.parameters, *group.buffers)}
        for tensor in (*transformer.parameters(), *transformer.buffers()):
            if id(tensor) not in apart:
                tensor.data = tensor.data.to(device)
        for place, block in enumerate(blocks):
            block.register_forward_pre_hook(functools.partial(self._enter, place))

    def checkpoint(self, inner: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
        """For diffusers' ``enable_gradient_checkpointing``: another such function, by which this learns of the backward
        pass."""
        return inner(function, *args, context_fn=lambda: (contextlib.nullcontext(), self._going_back()))

    @contextlib.contextmanager
    def _going_back(self) -> Iterator[None]:
        self._backward = True
        try:
            yield
        finally:
            self._backward = False

    def _enter(self, place: int, *_: Any) -> None:
        """Have a block's weights on the device, and no other's but those that come next."""
        following = place - 1 if self._backward else place + 1
        for other in self._there - {place, following}:
            self._groups[other].offload_()
        self._there &= {place, following}
        self._fetch(place)
        if self._stream is not None:
            self._stream.synchronize()
            if 0 <= following < len(self._groups):
                self._fetch(following)

    def _fetch(self, place: int) -> None:
        if place not in self._there:
            self._groups[place].onload_()
            self._there.add(place)


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
