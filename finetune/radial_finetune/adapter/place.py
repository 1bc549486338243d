"""An adapter onto a transformer, to be trained.

Layers are PEFT's; what they train is float32, whatever the frozen weights are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from radial_finetune.adapter.form import AdapterForm
from radial_finetune.objective import Objective

ADAPTER = "radial"


def add_adapter(transformer: Any, objective: type[Objective] | Objective, form: AdapterForm) -> dict[str, nn.Parameter]:
    """Put an adapter on a transformer's layers, which changes nothing yet; its parameters by name, in float32.

    With ``norms``, the weights of the norms of queries and keys are among the parameters.
    """
    from diffusers.training_utils import cast_training_params

    transformer.requires_grad_(False)
    transformer.add_adapter(_config_of(form, objective.layers[form.layers]), adapter_name=ADAPTER)
    if form.norms:
        for name, module in transformer.named_modules():
            if re.fullmatch(objective.norms[form.layers], name) and getattr(module, "weight", None) is not None:
                module.weight.requires_grad_(True)
    cast_training_params(transformer, dtype=torch.float32)
    for module in transformer.modules():
        _draw_again(module)
    return {name: p for name, p in transformer.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def switched_off(transformer: Any) -> Iterator[None]:
    """The transformer as it is without its adapter, while the context lasts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Not PEFT's enable_adapters: it freezes the parameters, too, and FSDP remembers that of its first pass.
    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _config_of(form: AdapterForm, layers: str) -> Any:
    if form.kind == "lokr":
        from peft import LoKrConfig

        return LoKrConfig(
            r=form.rank, alpha=form.scale * form.rank, decompose_factor=form.factor, target_modules=layers
        )
    from peft import LoraConfig

    return LoraConfig(
        r=form.rank, lora_alpha=form.alpha, init_lora_weights=True, use_rslora=form.rslora,
        use_dora=form.kind == "dora", target_modules=layers,
    )  # fmt: skip


def _draw_again(module: Any) -> None:
    """Draw an adapter's numbers anew, in float32: PEFT drew them in the base's dtype."""
    if ADAPTER in getattr(module, "lora_A", {}):
        module.reset_lora_parameters(ADAPTER, True)
        module.cast_input_dtype_enabled = False
        for linear in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):
            linear.__class__ = _NarrowLinear
    elif hasattr(module, "lokr_w1") and ADAPTER in module._available_adapters:
        module.reset_adapter_parameters(ADAPTER)


class _NarrowLinear(nn.Linear):
    """A layer that computes in its input's dtype, whatever its weight is kept in: widening a clip's tokens to float32
    for a matrix of a few hundred columns would cost more than the product."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(input, self.weight.to(input.dtype))
