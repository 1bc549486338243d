"""Compiled blocks: compiled once for each kind of batch, and for nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_EMBEDDERS = ("patch_embedding", "x_embedder", "patch_embed", "context_embedder")  # whose outputs enter the first block
_USUAL = 8  # of PyTorch
_OF_A_KIND = 4  # one for each class of blocks, and one more where some of them have no adapter


def compile_blocks(transformer: Any, **options: Any) -> None:
    """Compile a transformer's blocks in place, each for every shape that it meets.

    Frozen embedders ask for a gradient, which nobody reads: a first block whose input has none would be compiled apart
    from the others.

    Args:
        options: of ``torch.compile``.
    """
    transformer.compile_repeated_blocks(dynamic=False, **options)
    for name in _EMBEDDERS:
        if (embedder := getattr(transformer, name, None)) is not None:
            embedder.register_forward_hook(_ask_for_gradient)


@contextlib.contextmanager
def compiling(kinds: int) -> Iterator[None]:
    """Within, as many kinds of batches are compiled as there are: beyond eight of them PyTorch would go on without
    compiling, at half the speed, and say so in a warning alone."""
    limit = _USUAL + _OF_A_KIND * kinds
    with torch._dynamo.config.patch(recompile_limit=limit, accumulated_recompile_limit=64 * limit):
        yield


def as_written() -> contextlib.AbstractContextManager[Any]:
    """Within, blocks run as they are written: to compile them for what is seldom computed takes longer than that."""
    return torch.compiler.set_stance("force_eager")


def _ask_for_gradient(module: Any, given: Any, out: Any) -> None:
    if torch.is_grad_enabled() and isinstance(out, torch.Tensor) and not out.requires_grad:
        out.requires_grad_()
