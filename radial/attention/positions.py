"""Rotary positions along time, for clips beyond a model's native length.

``riflex`` (arXiv 2502.15894) slows the one frequency whose period a model was seen to repeat at; ``interpolate`` (arXiv
2306.15595) lays the whole clip between the positions that were trained; ``ntk`` (NTK-aware: a larger base, so that fast
frequencies hardly change and the slowest is interpolated) and ``yarn`` (arXiv 2309.00071: interpolated below one turn
over the native length, untouched above, sharper attention) lie between. All are by the published rules, along time
alone, and within the native length none of them changes anything. Models whose frequencies mix time and place, or are
learned, can be interpolated and no more.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from radial.errors import ModelError

Kind = Literal["riflex", "interpolate", "ntk", "yarn"]
_SHARE_OF_A_TURN = 0.9
# Turns over the native length between which YaRN goes from interpolated to untouched; as in transformers.
_YARN_SLOW, _YARN_FAST = 1.0, 32.0


@dataclass(frozen=True)
class _Rule:
    """What is done to positions.

    Attributes:
        name: of it.
        frequencies: of latent frames, temporal columns and base: radians a frame, and a factor of cosines and sines.
        scale: of latent frames: what positions are divided by, where that is all that is done.
    """

    name: str
    frequencies: Callable[[int, int, float], tuple[Tensor, float]]
    scale: Callable[[int], float] | None = None

    def scale_of(self, frames: int, kind: str) -> float:
        if self.scale is None:
            raise ModelError(f"{self.name} is not for {kind}, whose positions can be interpolated alone")
        return self.scale(frames)


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

    with _turned(transformers, _Rule("RIFLEx", slowed)):
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

    def scale(frames: int) -> float:
        return _scale_of(frames, native_frames)

    with _turned(transformers, _Rule(kind, frequencies, scale if kind == "interpolate" else None)):
        yield


def stretched_frequencies(
    kind: Kind, frames: int, native_frames: int, temporal_dim: int, theta: float
) -> tuple[Tensor, float]:
    """Radians a latent frame of each temporal pair of columns, and what cosines and sines are multiplied by."""
    plain = _plain(temporal_dim, theta)
    scale = _scale_of(frames, native_frames)
    if scale == 1:
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


def _scale_of(frames: int, native_frames: int) -> float:
    return max(1.0, (frames - 1) / max(native_frames - 1, 1))


def _plain(temporal_dim: int, theta: float) -> Tensor:
    return theta ** (-torch.arange(0, temporal_dim, 2, dtype=torch.float64) / temporal_dim)


@contextlib.contextmanager
def _turned(transformers: list[Any], rule: _Rule) -> Iterator[None]:
    handles: list[Any] = []
    try:
        handles += [_hook(transformer, rule) for transformer in transformers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(transformer: Any, rule: _Rule) -> Any:
    """Have a transformer's positions be those of a rule: what takes that back.

    Raises:
        ModelError: they are not of a kind that is known, or the rule is not for them.
    """
    kind, rope = type(transformer).__name__, getattr(transformer, "rope", None)
    if kind == "AllegroTransformer3DModel":
        return transformer.register_forward_pre_hook(functools.partial(_turn_allegro, rule), with_kwargs=True)
    # First: others put tokens in another order, or split them.
    if kind == "EasyAnimateTransformer3DModel":
        turned = functools.partial(_turn_easyanimate, rule)
        return transformer.rope_embedding.register_forward_hook(turned, prepend=True)
    if kind == "Kandinsky5Transformer3DModel":
        matrices = functools.partial(_turn_kandinsky5, rule)
        return transformer.visual_rope_embeddings.register_forward_hook(matrices, prepend=True)
    if kind in ("MochiTransformer3DModel", "LTXVideoTransformer3DModel"):
        rule.scale_of(1, kind)
        scaled = _scale_mochi if kind.startswith("Mochi") else _scale_ltx
        return transformer.rope.register_forward_pre_hook(functools.partial(scaled, rule))
    if hasattr(rope, "t_dim") or isinstance(getattr(rope, "rope_dim", None), (list, tuple)):
        return transformer.rope.register_forward_hook(functools.partial(_turn_grid, rule), prepend=True)
    if getattr(getattr(transformer, "config", None), "use_rotary_positional_embeddings", False):  # CogVideoX
        return transformer.register_forward_pre_hook(functools.partial(_turn_cogvideox, rule), with_kwargs=True)
    raise ModelError(f"{rule.name} does not know the positions of {kind}; leave it out")


_Rotary = tuple[Tensor, Tensor]
_Call = tuple[Any, dict[str, Any]]


def _turn_grid(rule: _Rule, rope: Any, args: tuple[Tensor], output: _Rotary) -> _Rotary:
    """Of Wan and HunyuanVideo, and those that are like them."""
    patch = rope.patch_size_t if hasattr(rope, "patch_size_t") else rope.patch_size[0]
    frames = args[0].shape[2] // patch
    temporal = rope.t_dim if hasattr(rope, "t_dim") else rope.rope_dim[0]
    turns, factor = rule.frequencies(frames, temporal, getattr(rope, "theta", 10_000.0))
    # Where text has no positions, its part of the logits would be sharpened by half alone: it is left out.
    return _turn(output, frames, turns, factor if hasattr(rope, "t_dim") else 1.0)


def _turn_easyanimate(rule: _Rule, rope: Any, args: tuple[Tensor], output: _Rotary) -> _Rotary:
    """A quarter of each head is for time; text has no positions."""
    frames = args[0].shape[2]
    return _turn(output, frames, rule.frequencies(frames, output[0].shape[-1] // 4, 10_000.0)[0], 1.0)


def _turn_cogvideox(rule: _Rule, module: Any, args: Any, kwargs: dict[str, Any]) -> _Call:
    """The pipeline makes the positions, with a quarter of each head for time; text has none."""
    rotary = kwargs["image_rotary_emb"]
    frames = kwargs["hidden_states"].shape[1] // (module.config.patch_size_t or 1)
    turns, _ = rule.frequencies(frames, rotary[0].shape[-1] // 4, 10_000.0)
    return args, kwargs | {"image_rotary_emb": _turn(rotary, frames, turns, 1.0)}


def _turn_allegro(rule: _Rule, module: Any, args: Any, kwargs: dict[str, Any]) -> _Call:
    """The pipeline makes a table of cosines and sines for each axis, halves side by side, and where tokens lie."""
    tables, places = kwargs["image_rotary_emb"]
    cos = tables[0][0]
    turns, factor = rule.frequencies(len(cos), cos.shape[-1], 10_000.0)
    angles = torch.arange(len(cos), dtype=torch.float64)[:, None] * turns / module.config.interpolation_scale_t
    angles = angles.repeat(1, 2).to(cos.device)
    time = angles.cos().to(cos.dtype), angles.sin().to(cos.dtype)
    turned = tuple(tuple(table * factor for table in pair) for pair in (time, *tables[1:]))
    return args, kwargs | {"image_rotary_emb": (turned, places)}


def _turn_kandinsky5(rule: _Rule, rope: Any, args: Any, output: Tensor) -> Tensor:
    """Turns are matrices, ``[B, T, H, W, 1, columns / 2, 2, 2]``, those of time first."""
    frames, temporal = output.shape[1], rope.axes_dims[0]
    turns, factor = rule.frequencies(frames, temporal, rope.max_period)
    angles = torch.arange(frames, dtype=torch.float64)[:, None] * turns
    angles = (angles / (args[2][0] if len(args) > 2 else 1.0)).to(output.device)
    cos, sin = angles.cos(), angles.sin()
    time = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)).to(output.dtype)
    turned = output.clone()
    turned[..., : temporal // 2, :, :] = time[None, :, None, None, None]
    return turned * factor


def _scale_mochi(rule: _Rule, rope: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Frequencies are learned, for each head and of all axes together, ``[3, heads, columns / 2]``."""
    frequencies, frames, *others = args
    by = torch.tensor([rule.scale_of(frames, "Mochi"), 1.0, 1.0], device=frequencies.device).view(3, 1, 1)
    return frequencies / by.to(frequencies.dtype), frames, *others


def _scale_ltx(rule: _Rule, rope: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positions are seconds and pixels, by what the pipeline says that a latent frame is."""
    hidden_states, frames, height, width, scales, places = args
    if places is not None:
        raise ModelError(
            f"{rule.name} is not for LTX-Video with frames that are given anywhere in a clip; leave it out"
        )
    seconds, *pixels = scales
    return hidden_states, frames, height, width, (seconds / rule.scale_of(frames, "LTX-Video"), *pixels), places


def _turn(rotary: _Rotary, frames: int, turns: Tensor, factor: float) -> _Rotary:
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
