"""The weights of a transformer or a text encoder in fewer bits."""

from __future__ import annotations

import torch
from torch import nn

from radial.loading.needs import SMALLEST
from radial_kernels.fused import EightBitLinear, EightBitWeights


def narrow_linears(
    model: nn.Module,
    device: torch.device | None = None,
    kind: type[EightBitWeights] = EightBitLinear,
) -> int:
    """Put 8-bit layers in the place of the large linear layers in a model's repeated blocks, of the whole model where
    it does not name any: how many there are. Each is narrowed on ``device``, and goes back to where it was.

    Modulation, which is computed once a clip and steers every token, keeps its precision, and so does what the model
    says it needs in float32. Adapters on a layer stay as they are: only what they were put on is narrowed.
    """
    exact = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    kinds = set(getattr(model, "_repeated_blocks", None) or [])
    blocks = [block for block in model.modules() if type(block).__name__ in kinds] if kinds else [model]
    found = [
        (parent, name)
        for block in blocks
        for path, parent in block.named_modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.numel() >= SMALLEST and not _kept(f"{path}.{name}", exact)
    ]
    for parent, name in found:
        linear: nn.Linear = getattr(parent, name)
        setattr(parent, name, kind.of(linear, device).to(linear.weight.device))
    return len(found)


def round_weights(transformer: nn.Module, dtype: torch.dtype) -> None:
    """Bring a transformer of diffusers to a dtype, but for what it says it needs in float32, as loading it in that
    dtype does: ``to`` alone would round that as well."""
    exact = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    for path, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if exact & set(path.split(".")) else dtype)


def _kept(path: str, exact: tuple[str, ...]) -> bool:
    return "norm" in path or "lora_" in path or not set(exact).isdisjoint(path.split("."))
