"""Optimizers by name, and what of them a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from radial.errors import RequestError
from radial_finetune.training.processes import put, whole

Optimizer = Literal["adamw", "adamw8bit", "adafactor", "came", "muon", "prodigy"]

# Rates that their authors or the usual trainers begin with. Prodigy finds its own, of which this is a factor.
LEARNING_RATES: dict[Optimizer, float] = {
    "adamw": 1e-4, "adamw8bit": 1e-4, "adafactor": 1e-4, "came": 1e-4, "muon": 1e-4, "prodigy": 1.0,
}  # fmt: skip
# Bytes of moments for each number that is trained; factors of a matrix are next to nothing.
MOMENT_BYTES: dict[Optimizer, int] = {
    "adamw": 8, "adamw8bit": 2, "adafactor": 0, "came": 4, "muon": 4, "prodigy": 16,
}  # fmt: skip
# Those whose moments are spread over processes as the weights are; the others look at whole matrices.
SPREADABLE: tuple[Optimizer, ...] = ("adamw", "adamw8bit")
_GROUPS = "groups"  # where what is of no parameter stands among moments


def make_optimizer(
    name: Optimizer, parameters: Mapping[str, Tensor], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of parameters by name. Weights of norms, whose rest is one and not zero, do not decay.

    Raises:
        RequestError: the package that has it is not installed, or it is for matrices and there are norms.
    """
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    given: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(groups, **given)
    if name == "adafactor":
        # With a rate of its own, and not scaled by the weights: those of an adapter begin at zero.
        from transformers.optimization import Adafactor

        return Adafactor(groups, **given, scale_parameter=False, relative_step=False, warmup_init=False)
    if name == "muon":
        if vectors:
            raise RequestError(
                "muon is for matrices, and norms and DoRA's magnitudes are none: leave out norms and dora, or take "
                "adamw"
            )
        # Steps as large as AdamW's, so that its rates are right (arXiv 2502.16982).
        return torch.optim.Muon(matrices, **given, adjust_lr_fn="match_rms_adamw")
    return _of_package(name, groups, given)


def _of_package(name: Optimizer, groups: list[dict[str, Any]], given: dict[str, Any]) -> torch.optim.Optimizer:
    extra = "eight-bit" if name == "adamw8bit" else "optimizers"
    optimizer: torch.optim.Optimizer
    try:
        if name == "adamw8bit":
            from torchao.optim import AdamW8bit

            optimizer = AdamW8bit(groups, **given)
        elif name == "came":
            from pytorch_optimizer import CAME

            optimizer = CAME(groups, **given)
        else:
            from pytorch_optimizer import Prodigy

            # As diffusers' trainers take it for adapters; the warm-up must not enter its estimate.
            optimizer = Prodigy(groups, **given, betas=(0.9, 0.99), bias_correction=True, safeguard_warmup=True)
    except ImportError as error:
        package = "torchao" if name == "adamw8bit" else "pytorch-optimizer"
        raise RequestError(f"{name} needs {package}: pip install 'radial-video[{extra}]'") from error
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups a learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The rate at which it steps: the one that was set, times the one it has found, where it finds one."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


def moments_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors it has learned, by parameter, and of its groups; moments of 8 bit in the tensors that they are made
    of. All processes must ask."""
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            if hasattr(value, "qmap"):
                moments |= {f"{name}/{key}/{part}": getattr(value, part) for part in ("codes", "scale", "qmap")}
            elif isinstance(value, Tensor):
                moments[f"{name}/{key}"] = whole(value)
    for number, group in enumerate(optimizer.param_groups):
        learned = {key: value.clone() for key, value in group.items() if isinstance(value, Tensor) and key != "lr"}
        moments |= {f"{_GROUPS}/{number}/{key}": value for key, value in learned.items()}
    return moments


def numbers_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """The plain numbers it has learned: counts of steps, and the rate that Prodigy finds."""
    begun = optimizer.defaults

    def learned(values: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        return {key: value for key, value in numbers.items() if key != "lr" and value != begun.get(key)}

    return {
        "groups": [learned(group) for group in optimizer.param_groups],
        "parameters": {name: learned(optimizer.state[parameter]) for name, parameter in parameters.items()},
    }


def put_back(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:  # fmt: skip
    """Have it go on from what :func:`moments_of` and :func:`numbers_of` said."""
    entry: dict[str, Any]
    for name, parameter in parameters.items():
        entry = dict(numbers.get("parameters", {}).get(name, {}))
        saved = _below(name, moments)
        for key in sorted({key.split("/")[0] for key in saved}):
            if f"{key}/codes" in saved:
                from torchao.optim.subclass_8bit import OptimState8bit

                parts = (saved[f"{key}/{part}"].to(parameter.device) for part in ("codes", "scale", "qmap"))
                entry[key] = OptimState8bit(*parts, signed=key == "exp_avg", dtype=parameter.dtype)
            elif key == "step":
                entry[key] = saved[key]  # torch keeps it in the host's memory
            elif saved[key].shape == parameter.shape:
                entry[key] = torch.zeros_like(parameter, dtype=saved[key].dtype)
                put(saved[key], entry[key])
            else:
                entry[key] = saved[key].to(parameter.device)
        if entry:
            optimizer.state[parameter] = entry
    device = next(iter(parameters.values())).device
    for number, group in enumerate(optimizer.param_groups):
        group |= {key: value.to(device) for key, value in _below(f"{_GROUPS}/{number}", moments).items()}
    for group, known in zip(optimizer.param_groups, numbers.get("groups", []), strict=False):
        group |= known


def _below(name: str, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in moments.items() if key.startswith(f"{name}/")}
