"""A clip's tokens in another order within a transformer: turned as they enter, and back as they leave.

All between is computed on each token alone, but attention, whose plan knows the order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from radial.errors import ModelError
from radial.plans.layout import Layout, Tile, TokenGrid
from radial.plans.token_order import token_order


@dataclass(frozen=True)
class TokenModules:
    """Where a transformer's tokens can be put in another order.

    Attributes:
        enter: the modules whose outputs hold something of every token, and along which dimension; where tokens are
            spread over several dimensions, the first of these.
        leave: the module whose output ``[B, S, ...]`` is the last that is computed on each token.
        arguments: those of a call that hold something of every token, ``[B, S]``, or of the whole clip.
    """

    enter: Mapping[str, int]
    leave: str = "proj_out"
    arguments: tuple[str, ...] = ()


class Reordering:
    """The hooks that do it, on one transformer. What splits tokens over processes registers its own in between."""

    def __init__(self, transformer: nn.Module, where: TokenModules) -> None:
        self._transformer, self._where = transformer, where
        self._modules = {name: transformer.get_submodule(name) for name in (*where.enter, where.leave)}
        self._names = list(inspect.signature(type(transformer).forward).parameters)[1:]
        self._layout: Layout | None = None
        self._handles = [
            self._modules[name].register_forward_hook(functools.partial(self._enter, dim))
            for name, dim in where.enter.items()
        ]

    def hook_leaving(self) -> None:
        """The hook that turns tokens back; after those that gather them."""
        self._handles.append(self._modules[self._where.leave].register_forward_hook(self._leave))

    def begin_call(self, layout: Layout, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Note the layout of a call: its arguments, in that order.

        Raises:
            ModelError: a module was replaced since, as by an adapter that was put on it, or an argument is told in a
                way of its own.
        """
        for name, module in self._modules.items():
            if self._transformer.get_submodule(name) is not module:
                raise ModelError(f"{name} was replaced since radial attention was installed; load adapters before it")
        self._layout = layout
        given = dict(zip(self._names, args, strict=False)) | kwargs
        turned = {name: self._argument(name, given[name]) for name in self._where.arguments if name in given}
        args = tuple(turned.get(name, value) for name, value in zip(self._names, args, strict=False))
        return args, {name: turned.get(name, value) for name, value in kwargs.items()}

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _argument(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] == 1:
            return value
        if self._layout is not None and value.shape[1] == self._layout.grid.tokens:
            return self._turn(value, 1)
        raise ModelError(
            f"{name} of shape {tuple(value.shape)} is neither one a token nor one a clip, so the tokens must stay in "
            "raster order: take token_order raster"
        )

    def _enter(self, dim: int, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return type(output)(self._turn(x, dim) for x in output)
        return self._turn(output, dim)

    def _leave(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._turn(output, 1, back=True)

    def _turn(self, x: Tensor, dim: int, *, back: bool = False) -> Tensor:
        layout = self._layout
        if layout is None or layout.tile is None:
            return x
        order = _order_on(layout.grid, layout.tile, back, x.device)
        flat = x if x.shape[dim] == len(order) else x.flatten(dim)
        if flat.shape[dim] != len(order):
            raise ModelError(f"a tensor of shape {tuple(x.shape)} holds no {len(order)} tokens from dimension {dim} on")
        return flat.index_select(dim, order).view(x.shape)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # made while sampling, it must serve training too
def _order_on(grid: TokenGrid, tile: Tile, back: bool, device: torch.device) -> Tensor:
    order = torch.from_numpy(token_order(grid, tile).copy())
    return (order.argsort() if back else order).to(device)
