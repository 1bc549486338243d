"""RIFLEx (arXiv 2502.15894): clips beyond the native length without the repetition that rotary positions bring.

Of the temporal frequencies, the one whose period a model was seen to repeat at is slowed down so that the whole clip
stays within nine tenths of one turn.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from radial.errors import ModelError

_SHARE_OF_A_TURN = 0.9


@contextlib.contextmanager
def riflex(transformers: list[Any], period: float) -> Iterator[None]:
    """Slow the temporal frequency whose period is nearest ``period`` latent frames, for the clips made meanwhile.

    Raises:
        ModelError: the model's positions are not of a kind that is known.
    """
    handles = [_rope(transformer).register_forward_hook(_Slow(period)) for transformer in transformers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rope(transformer: Any) -> Any:
    rope = getattr(transformer, "rope", None)
    if not (hasattr(rope, "t_dim") or hasattr(rope, "rope_dim")):
        raise ModelError(f"RIFLEx does not know the positions of {type(transformer).__name__}; leave riflex out")
    return rope


class _Slow:
    """Rewrites two columns of a rotary module's cosines and sines."""

    def __init__(self, period: float) -> None:
        self.period = period

    def __call__(self, rope: Any, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = (x.clone() for x in output)
        frames = args[0].shape[2] // (rope.patch_size[0] if isinstance(rope.patch_size, tuple) else rope.patch_size_t)
        temporal = rope.t_dim if hasattr(rope, "t_dim") else rope.rope_dim[0]
        theta = getattr(rope, "theta", 10_000.0)
        column = 2 * slowed_index(temporal, theta, self.period)
        tokens = cos.numel() // cos.shape[-1]
        frame = torch.arange(frames, device=cos.device).repeat_interleave(tokens // frames)
        angle = (frame * (_SHARE_OF_A_TURN * 2 * math.pi / frames)).reshape(*cos.shape[:-1], 1)
        cos[..., column : column + 2] = angle.cos().to(cos.dtype)
        sin[..., column : column + 2] = angle.sin().to(sin.dtype)
        return cos, sin


def slowed_index(temporal_dim: int, theta: float, period: float) -> int:
    """Which of the temporal frequencies has a period nearest to this one, on a logarithmic scale."""
    periods = [2 * math.pi * theta ** (2 * index / temporal_dim) for index in range(temporal_dim // 2)]
    return min(range(len(periods)), key=lambda index: abs(math.log(periods[index] / period)))
