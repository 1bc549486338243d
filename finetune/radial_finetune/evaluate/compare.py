"""Radial against dense attention at one seed: the clips, and every layer's attention on the way.

Shapes: T frames, H height, W width; B batch, S tokens, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from radial.attention.context import AttentionContext
from radial.attention.install import RadialAttention, transformers_of
from radial.attention.processors import AttentionCall
from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel, load
from radial.request import GenerationRequest
from radial.video.fidelity import fidelity
from radial_finetune.data.clips import Frames


@dataclass(frozen=True)
class Comparison:
    """Two clips of one seed.

    Attributes:
        psnr, ssim: of the radial clip against the dense one, means over frames.
        attention_error: relative mean square error of sparse attention outputs, |radial - dense|^2 / |dense|^2, of
            every step that is not dense and then of every sparse layer, along the dense clip's way.
    """

    psnr: float
    ssim: float
    attention_error: list[list[float]]
    dense: Frames
    radial: Frames

    @property
    def mean_attention_error(self) -> float:
        values = [value for step in self.attention_error for value in step]
        return float(np.mean(values)) if values else 0.0


def compare(request: GenerationRequest, model: LoadedModel | None = None) -> Comparison:
    """Generate one clip dense and radial, and measure how far they lie apart."""
    request = request.resolve().model_copy(update={"num_videos": 1})
    model = model or load(request)
    (radial,) = generate(request.model_copy(update={"attention": "radial"}), model=model)
    attention = request.model_copy(update={"attention": "radial"}).attention_settings
    columns = attention.block_size if attention.token_order == "columns" else None
    context = _Beside(
        attention.planners, attention.make_policy(), pipe=model.pipe, far_field=attention.far_field, column_size=columns
    )
    with RadialAttention(context, transformers_of(model.pipe)):
        (dense,) = generate(request.model_copy(update={"attention": "dense"}), model=model)
    return Comparison(*fidelity(radial.frames, dense.frames), context.errors(), dense.frames, radial.frames)


class _Beside(AttentionContext):
    """Attends densely, and notes what a plan would have given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._errors: dict[int, list[Tensor]] = {}

    def attend(self, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        sparse = super().attend(call, q_BSHD, k_BSHD, v_BSHD)
        q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
        grouped = k.shape[1] != q.shape[1]
        full = F.scaled_dot_product_attention(
            q, k, v, attn_mask=call.mask, scale=call.scale, enable_gqa=grouped
        ).transpose(1, 2)
        errors = []
        for layout, one, two in zip(self.layouts * (len(q) // len(self.layouts)), sparse, full, strict=False):
            real, ours = two[: layout.tokens].float(), one[: layout.tokens].float()  # not what pads a text
            errors.append((ours - real).square().sum() / real.square().sum().clamp_min(1e-12))
        self._errors.setdefault(self.step, []).append(torch.stack(errors).mean())
        return full

    def errors(self) -> list[list[float]]:
        """By step and call; every step calls each sparse layer once, or once for each side of guidance."""
        return [torch.stack(calls).tolist() for _, calls in sorted(self._errors.items())]
