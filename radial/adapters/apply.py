"""Adapters onto the transformers of a pipeline.

Plain low-rank changes stay beside the weights, as PEFT keeps them, and so do learned tokens. All others are added to
the weights in float32, and rounded once: differences as they are, DoRA, LoHa, LoKr and Tucker as the difference that
they make.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from radial.adapters.account import Account, Change, account_for
from radial.adapters.expert import choose_experts, expert_notes
from radial.adapters.file import AdapterFile, read_adapter
from radial.attention.install import transformers_of
from radial.attention.story.tokens import hold_tokens
from radial.errors import ModelError, first_line
from radial.models.experts import Expert
from radial.models.lora_settings import Lora, adapter_file
from radial.models.original_names import Part


def load_loras(pipe: Any, loras: tuple[Lora, ...]) -> tuple[str, ...]:
    """Put adapters on a pipeline, each with its weight: what to tell the user about what was left out.

    Raises:
        ModelError: an adapter is corrupt, or fits no layer.
    """
    if not loras:
        return ()
    files = [read_adapter(adapter_file(lora.path)) for lora in loras]
    transformers: list[nn.Module] = transformers_of(pipe)
    chosen = choose_experts(files, loras, len(transformers))
    notes: list[str] = list(expert_notes(files, chosen, len(transformers)))
    planned: list[list[tuple[int, Account]]] = [[] for _ in files]
    experts: tuple[Expert, ...] = ("high", "low")
    for number, transformer in enumerate(transformers):
        own = [i for i, expert in enumerate(chosen) if expert in (None, experts[number])]
        for i in own:
            planned[i].append((number, _account(files[i], transformer, number)))
    for file, accounts in zip(files, planned, strict=True):
        if not any(account.changes for _, account in accounts):
            raise ModelError(f"LoRA {file.path.name} does not fit this model: its keys are for another transformer")
        told = (f"LoRA {file.path.name}: {account.summary}" for _, account in accounts if account.summary)
        notes += dict.fromkeys(told)
    parameters = [dict(transformer.named_parameters()) for transformer in transformers]  # by their names before
    for i, (file, accounts) in enumerate(zip(files, planned, strict=True)):
        tensors = file.tensors()
        for number, account in accounts:
            try:
                for change in account.changes:
                    if change.kind != "low_rank":
                        _add(change, account, tensors, parameters[number], loras[i].weight)
                _inject(transformers[number], account, tensors, f"lora_{i}", loras[i].weight)
                if account.tokens is not None:
                    hold_tokens(transformers[number], tensors[account.tokens])
            except (RuntimeError, ValueError, TypeError) as error:
                raise ModelError(f"LoRA {file.path.name} does not fit this model: {first_line(error)}") from error
    for transformer in transformers:
        _activate(transformer, [f"lora_{i}" for i in range(len(files))])
    return tuple(notes)


def _account(file: AdapterFile, transformer: nn.Module, number: int) -> Account:
    packed, shapes = [], {}
    for name, parameter in transformer.named_parameters():
        shape = getattr(parameter, "quant_shape", None) if hasattr(parameter, "quant_type") else None
        shapes[name] = tuple(shape if shape is not None else parameter.shape)
        if not parameter.is_floating_point():
            packed.append(name)
    linear = {
        name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))
    }
    part = "transformer" if number == 0 else "transformer_2"
    return account_for(file, type(transformer).__name__, shapes, part=part, packed=packed, linear=linear)


def _inject(transformer: nn.Module, account: Account, tensors: Mapping[str, Tensor], name: str, weight: float) -> None:
    """Put the low-rank changes of an adapter beside the weights of their layers, under a name of PEFT's."""
    from peft import LoraConfig, inject_adapter_in_model

    placed = [(change, part) for change in account.changes if change.kind == "low_rank" for part in change.parts]
    if not placed:
        return
    ranks = {part.layer: len(tensors[change.keys["down"]]) for change, part in placed}
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="|".join(re.escape(layer) for layer in ranks),
        rank_pattern={f"^{re.escape(layer)}": r for layer, r in ranks.items() if r != rank},
        lora_bias=any("up_bias" in change.keys for change, _ in placed),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # there are several on purpose
        inject_adapter_in_model(config, transformer, adapter_name=name)
    transformer._hf_peft_config_loaded = True  # type: ignore[assignment]  # diffusers' own word for it
    for change, part in placed:
        layer: Any = transformer.get_submodule(part.layer)
        down, up = tensors[change.keys["down"]], part.of(tensors[change.keys["up"]])
        alpha = tensors[change.keys["alpha"]].item() if "alpha" in change.keys else None
        base = layer.get_base_layer().weight
        kind = base.dtype if base.is_floating_point() else getattr(transformer, "dtype", torch.float32)
        for module, value in ((layer.lora_A[name], down), (layer.lora_B[name], up)):
            value = value.reshape(module.weight.shape).to(base.device, kind)
            module.weight = nn.Parameter(value.clone(), requires_grad=False)
        if config.lora_bias:
            bias = tensors[change.keys["up_bias"]] if "up_bias" in change.keys else torch.zeros(len(up))
            layer.lora_B[name].bias = nn.Parameter(bias.to(base.device, kind), requires_grad=False)
        layer.scaling[name] = account.file.scale_of(change.layer, account.part, len(down), alpha) * weight


def _activate(transformer: nn.Module, names: list[str]) -> None:
    """Have all of them act at once, each where it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            own: Any = module
            own.set_adapter([name for name in names if name in own.lora_A])
            own.requires_grad_(False)


def _add(
    change: Change, account: Account, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter],
    weight: float,
) -> None:  # fmt: skip
    """Add a change to the weights that it is for."""
    whole = [parameters[part.parameter(change.parameter, parameters)] for part in change.parts]
    given = {kind: tensors[key].float() for kind, key in change.keys.items()}

    alpha = given["alpha"].item() if "alpha" in given else None

    def scale(rank: int) -> float:
        return account.file.scale_of(change.layer, account.part, rank, alpha)

    if change.kind == "low_rank_exact":
        pieces = zip(whole, change.parts, strict=True)
        before = torch.cat([_unordered(own.detach().float(), part) for own, part in pieces])
        difference = _low_rank_exact(given, before, scale(len(given["down"])))
    elif change.kind == "loha":
        difference = scale(len(given["hada_w1_b"])) * _loha(given)
    elif change.kind == "lokr":
        shapes = {kind: tuple(tensor.shape) for kind, tensor in given.items()}
        difference = account.file.lokr_scale_of(change.layer, account.part, shapes, alpha) * _lokr(given)
    else:
        difference = given["diff"]
    for own, part in zip(whole, change.parts, strict=True):
        rows = part.of(difference.reshape(part.whole, -1))
        with torch.no_grad():
            own.copy_((own.float() + weight * rows.reshape(own.shape).to(own.device)).to(own.dtype))


def _unordered(own: Tensor, part: Part) -> Tensor:
    """A part's rows in the order that the authors have them in."""
    if len(part.rows) == 1:
        return own
    lengths = [end - first for first, end in part.rows]
    pieces = zip(part.rows, own.split(lengths), strict=True)
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda pair: pair[0])])


def _low_rank_exact(given: Mapping[str, Tensor], before: Tensor, scale: float) -> Tensor:
    """The difference that DoRA (arXiv 2402.09353) or a Tucker decomposition makes to the weight before it."""
    down, up = given["down"], given["up"]
    if "mid" in given:
        change = torch.einsum("or,rs...,si->oi...", up.flatten(1), given["mid"], down.flatten(1))
    else:
        change = up.flatten(1) @ down.flatten(1)
    change = scale * change.reshape(before.shape)
    magnitude = given["magnitude"] if "magnitude" in given else given.get("dora")
    if magnitude is None:
        return change
    after = (before + change).flatten(1)
    # PEFT's is of rows; LyCORIS' of rows or, of shape [1, columns], of columns.
    by_row = "magnitude" in given or magnitude.ndim < 2 or len(magnitude) > 1
    norm = after.norm(dim=1 if by_row else 0, keepdim=True)
    magnitude = magnitude.reshape(-1, 1) if by_row else magnitude.reshape(1, -1)
    return (after * (magnitude / norm)).reshape(before.shape) - before


def _loha(given: Mapping[str, Tensor]) -> Tensor:
    """LoHa (arXiv 2108.06098): the product, number by number, of two low-rank matrices."""
    first = given["hada_w1_a"] @ given["hada_w1_b"].flatten(1)
    return first * (given["hada_w2_a"] @ given["hada_w2_b"].flatten(1))


def _lokr(given: Mapping[str, Tensor]) -> Tensor:
    """LoKr (arXiv 2212.10650): the Kronecker product of two matrices, each whole or of low rank."""
    first, second = (
        given[f"lokr_{name}"] if f"lokr_{name}" in given
        else given[f"lokr_{name}_a"] @ given[f"lokr_{name}_b"].flatten(1)
        for name in ("w1", "w2")
    )  # fmt: skip
    return torch.kron(first, second.flatten(1))
