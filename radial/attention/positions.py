"""Rotary positions along time, for clips beyond a model's native length.

``riflex`` (arXiv 2502.15894) slows the one frequency whose period a model was seen to repeat at; ``interpolate`` (arXiv
2306.15595) lays the whole clip between the positions that were trained; ``ntk`` (NTK-aware: a larger base, so that fast
frequencies hardly change and the slowest is interpolated) and ``yarn`` (arXiv 2309.00071: interpolated below one turn
over the native length, untouched above, sharper attention) lie between. All are by the published rules, along time
alone, and within the native length none of them changes anything.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from radial.errors import ModelError

Kind = Literal["riflex", "interpolate", "ntk", "yarn"]
_SHARE_OF_A_TURN = 0.9
# Turns over the native length between which YaRN goes from interpolated to untouched; as in transformers.
_YARN_SLOW, _YARN_FAST = 1.0, 32.0
_Frequencies = Callable[[int, int, float], tuple[Tensor, float]]  # of frames, temporal columns, base; and a factor


@contextlib.contextmanager
def riflex(transformers: list[Any], period: float) -> Iterator[None]:
    """Slow the temporal frequency whose period is nearest ``period`` latent frames, for the clips made meanwhile, where
    it would turn by more than nine tenths over the clip: it is never made faster.

    Raises:
        ModelError: the model's positions are not of a kind that is known.
    """

    def slowed(frames: int, temporal: int, theta: float) -> tuple[Tensor, float]:
        plain = _plain(temporal, theta)
        index = slowed_index(temporal, theta, period)
        plain[index] = min(float(plain[index]), _SHARE_OF_A_TURN * 2 * math.pi / frames)
        return plain, 1.0

    with _turned(transformers, slowed, "RIFLEx"):
        yield


@contextlib.contextmanager
def stretched(transformers: list[Any], kind: Kind, native_frames: int, period: float | None = None) -> Iterator[None]:
    """Positions of one of these kinds, for the clips made meanwhile.

    Args:
        native_frames: latent frames that the model was trained on.
        period: latent frames after which it repeats itself, which ``riflex`` needs.

    Raises:
        ModelError: the model's positions are not of a kind that is known.
    """
    if kind == "riflex":
        if period is None:
            raise ModelError("riflex needs the period after which the model repeats itself")
        with riflex(transformers, period):
            yield
        return

    def frequencies(frames: int, temporal: int, theta: float) -> tuple[Tensor, float]:
        return stretched_frequencies(kind, frames, native_frames, temporal, theta)

    with _turned(transformers, frequencies, kind):
        yield


def stretched_frequencies(
    kind: Kind, frames: int, native_frames: int, temporal_dim: int, theta: float
) -> tuple[Tensor, float]:
    """Radians a latent frame of each temporal pair of columns, and what cosines and sines are multiplied by."""
    plain = _plain(temporal_dim, theta)
    scale = (frames - 1) / max(native_frames - 1, 1)
    if scale <= 1:
        return plain, 1.0
    if kind == "interpolate":
        return plain / scale, 1.0
    if kind == "ntk":
        return _plain(temporal_dim, theta * scale ** (temporal_dim / (temporal_dim - 2))), 1.0

    def column(turns: float) -> float:
        return temporal_dim * math.log(native_frames / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(column(_YARN_FAST)), 0)
    high = min(math.ceil(column(_YARN_SLOW)), temporal_dim // 2 - 1)
    ramp = ((torch.arange(temporal_dim // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain / scale * ramp + plain * (1 - ramp), 0.1 * math.log(scale) + 1


def _plain(temporal_dim: int, theta: float) -> Tensor:
    return theta ** (-torch.arange(0, temporal_dim, 2, dtype=torch.float64) / temporal_dim)


@contextlib.contextmanager
def _turned(transformers: list[Any], frequencies: _Frequencies, name: str) -> Iterator[None]:
    handles = [_hook(transformer, frequencies, name) for transformer in transformers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def knows_positions(transformer: Any) -> bool:
    """Whether a transformer's positions along time are of a kind that is known here."""
    rope: Any = getattr(transformer, "rope", None)
    if hasattr(rope, "t_dim") or isinstance(getattr(rope, "rope_dim", None), (list, tuple)):
        return True
    return bool(getattr(getattr(transformer, "config", None), "use_rotary_positional_embeddings", False))


def _hook(transformer: Any, frequencies: _Frequencies, name: str) -> Any:
    if not knows_positions(transformer):
        raise ModelError(f"{name} does not know the positions of {type(transformer).__name__}; leave it out")
    rope: Any = getattr(transformer, "rope", None)
    if hasattr(rope, "t_dim") or hasattr(rope, "rope_dim"):

        def turn_output(rope: Any, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            patch = rope.patch_size_t if hasattr(rope, "patch_size_t") else rope.patch_size[0]
            frames = args[0].shape[2] // patch
            temporal = rope.t_dim if hasattr(rope, "t_dim") else rope.rope_dim[0]
            turns, factor = frequencies(frames, temporal, getattr(rope, "theta", 10_000.0))
            # Where text has no positions, its part of the logits would be sharpened by half alone: it is left out.
            return _turn(output, frames, turns, factor if hasattr(rope, "t_dim") else 1.0)

        # First: others put tokens in another order, or split them.
        return rope.register_forward_hook(turn_output, prepend=True)

    # CogVideoX: the pipeline makes the positions, with a quarter of each head for time.
    def turn_argument(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rotary = kwargs["image_rotary_emb"]
        frames = kwargs["hidden_states"].shape[1] // (module.config.patch_size_t or 1)
        turns, _ = frequencies(frames, rotary[0].shape[-1] // 4, 10_000.0)
        return args, kwargs | {"image_rotary_emb": _turn(rotary, frames, turns, 1.0)}

    return transformer.register_forward_pre_hook(turn_argument, with_kwargs=True)


def _turn(rotary: tuple[Tensor, Tensor], frames: int, turns: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines whose temporal columns, the first ones, turn by so many radians a frame."""
    cos, sin = (x * factor if factor != 1.0 else x.clone() for x in rotary)
    tokens = cos.numel() // cos.shape[-1]
    frame = torch.arange(frames, dtype=torch.float64).repeat_interleave(tokens // frames)
    angles = (
        (frame[:, None] * turns).repeat_interleave(2, dim=1).reshape(*cos.shape[:-1], 2 * len(turns)).to(cos.device)
    )
    cos[..., : 2 * len(turns)] = (angles.cos() * factor).to(cos.dtype)
    sin[..., : 2 * len(turns)] = (angles.sin() * factor).to(sin.dtype)
    return cos, sin


def slowed_index(temporal_dim: int, theta: float, period: float) -> int:
    """Which of the temporal frequencies has a period nearest to this one, on a logarithmic scale."""
    periods = [2 * math.pi * theta ** (2 * index / temporal_dim) for index in range(temporal_dim // 2)]
    return min(range(len(periods)), key=lambda index: abs(math.log(periods[index] / period)))
