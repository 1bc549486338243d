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
    handles = [_hook(transformer, period) for transformer in transformers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(transformer: Any, period: float) -> Any:
    rope: Any = getattr(transformer, "rope", None)
    if hasattr(rope, "t_dim") or hasattr(rope, "rope_dim"):

        def slow_output(rope: Any, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            patch = rope.patch_size_t if hasattr(rope, "patch_size_t") else rope.patch_size[0]
            temporal = rope.t_dim if hasattr(rope, "t_dim") else rope.rope_dim[0]
            column = 2 * slowed_index(temporal, getattr(rope, "theta", 10_000.0), period)
            return _slow(output, args[0].shape[2] // patch, column)

        return rope.register_forward_hook(slow_output)
    if getattr(getattr(transformer, "config", None), "use_rotary_positional_embeddings", False):
        # CogVideoX: the pipeline makes the positions, with a quarter of each head for time.
        def slow_argument(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            rotary = kwargs["image_rotary_emb"]
            column = 2 * slowed_index(rotary[0].shape[-1] // 4, 10_000.0, period)
            frames = kwargs["hidden_states"].shape[1] // (module.config.patch_size_t or 1)
            return args, kwargs | {"image_rotary_emb": _slow(rotary, frames, column)}

        return transformer.register_forward_pre_hook(slow_argument, with_kwargs=True)
    raise ModelError(f"RIFLEx does not know the positions of {type(transformer).__name__}; leave riflex out")


def _slow(rotary: tuple[Tensor, Tensor], frames: int, column: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines in which one pair of columns turns by nine tenths over all frames."""
    cos, sin = (x.clone() for x in rotary)
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
