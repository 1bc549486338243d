"""Seconds on an H100, by what was measured there: benchmarks/step_h100_*.md and memory_h100_*.md.

A forward's time is that of its attention, which grows with the square of its tokens, and that of all else, which grows
with tokens times weights. The rates are means over Wan 2.1 of 1.3 B and 14 B and HunyuanVideo, in bf16 with fused
kernels; each of them is within a sixth of its mean.
"""

from __future__ import annotations

import math

from radial.models.spec import ModelSpec
from radial.models.weights import Weights
from radial.request import GenerationRequest

_ATTENTION = 7.0e-15  # seconds a layer, channel and pair of tokens, of dense attention by cuDNN
_THE_REST = 2.6e-15  # seconds a weight and token
_DECODE = {True: 1.2e-7, False: 0.8e-7}  # seconds a pixel, of an autoencoder in float32 and in 16 bit
_EIGHT_BIT = {"attention": 0.85, "the rest": 0.65}  # times as long


def seconds_on_h100(request: GenerationRequest, spec: ModelSpec, weights: Weights, density: float) -> float:
    """Seconds that a video of a resolved request takes, its text and the loading of its model left out.

    Args:
        density: share of all attention that is computed.
    """
    config = weights.transformer
    heads, head_dim = config.get("num_attention_heads", 24), config.get("attention_head_dim", 128)
    layers = sum(config.get(name) or 0 for name in ("num_layers", "num_single_layers")) or spec.layers
    numbers = sum(math.prod(weight.shape) for weight in weights.components.get("transformer", ()))
    tokens = request.grid(spec).tokens
    eight_bit = request.precision == "eight_bit"
    attention = _ATTENTION * layers * heads * head_dim * tokens**2 * density
    the_rest = _THE_REST * numbers * tokens
    if eight_bit:
        attention, the_rest = attention * _EIGHT_BIT["attention"], the_rest * _EIGHT_BIT["the rest"]
    steps = request.computed_steps
    calls = spec.windows(request.clip_frames) * (
        steps + (min(steps, len(request.guided_steps)) if request.is_guided(spec) else 0)
    )
    pixels = request.clip_frames * request.clip_height * request.clip_width
    return calls * (attention + the_rest) + _DECODE[spec.exact_autoencoder] * pixels
