"""A transformer's linear layers in 8 bit."""

from __future__ import annotations

import torch
from torch import nn

from radial_kernels.fused import EightBitLinear

_SMALLEST = 1 << 20  # weights from which a layer's product is worth it


def narrow_linears(transformer: nn.Module, device: torch.device | None = None) -> int:
    """Put layers with 8-bit products in the place of the large linear layers in a transformer's repeated blocks: how
    many there are. Each is narrowed on ``device``, and goes back to where it was.

    Modulation, which is computed once a clip and steers every token, keeps its precision. Adapters on a layer stay as
    they are: only what they were put on is narrowed.
    """
    kinds = set(getattr(transformer, "_repeated_blocks", None) or [])
    blocks = [block for block in transformer.modules() if type(block).__name__ in kinds]
    count = 0
    for block in blocks:
        for path, parent in list(block.named_modules()):
            if "norm" in path or "lora_" in path:
                continue
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child.weight.numel() >= _SMALLEST and "norm" not in name:
                    own = child.weight.device
                    setattr(parent, name, EightBitLinear.of(child.to(device or own)).to(own))
                    count += 1
    return count
