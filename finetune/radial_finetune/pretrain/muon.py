"""Muon for matrices and convolutions, AdamW for the rest, in a form that a CUDA graph can capture.

torch.optim.Muon orthogonalises one matrix at a time; a small model has a hundred little ones, so here matrices of
one shape go through a single batched product.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(gradients_BMN: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of every matrix towards 1 (Jordan et al. 2024, Newton-Schulz of order five)."""
    a, b, c = _NEWTON_SCHULZ
    x_BMN = gradients_BMN.bfloat16() if gradients_BMN.is_cuda else gradients_BMN
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x_BMN = x_BMN.mT if tall else x_BMN
    x_BMN = x_BMN / (x_BMN.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x_BMN @ x_BMN.mT
        x_BMN = a * x_BMN + (b * gram + c * gram @ gram) @ x_BMN
    return (x_BMN.mT if tall else x_BMN).to(gradients_BMN.dtype)


class Muon:
    """Muon with Nesterov momentum over all given weights; learning rate is a tensor so that a graph can read it.

    Args:
        weights: parameters of two or more dimensions; those beyond the first are flattened.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        groups: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        for weight in weights:
            groups[weight.shape[0], weight[0].numel()].append(weight)
        self.groups = list(groups.items())
        self.buffers = [torch.zeros(len(members), *shape, device=members[0].device) for shape, members in self.groups]
        device = weights[0].device
        self.lr = torch.tensor(lr, device=device)
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        for (shape, members), buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([_gradient(member).reshape(shape) for member in members]).float()
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(buffer, self.momentum))
            update *= max(1.0, shape[0] / shape[1]) ** 0.5
            flat = [member.view(shape) for member in members]
            torch._foreach_mul_(flat, 1 - self.lr * self.weight_decay)
            torch._foreach_sub_(flat, list((update * self.lr).unbind()))

    def state_dict(self) -> dict[str, Tensor]:
        return {f"muon.{index}": buffer for index, buffer in enumerate(self.buffers)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for index, buffer in enumerate(self.buffers):
            buffer.copy_(state[f"muon.{index}"])


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None, "step() needs a backward pass before it"
    return weight.grad
