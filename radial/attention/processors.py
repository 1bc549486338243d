"""A stock attention processor of diffusers whose attention is computed by a plan; all else is the stock code.

Every processor projects, normalises and rotates in a way of its own, and then calls one of two functions: diffusers'
``dispatch_attention_fn`` or torch's ``scaled_dot_product_attention``. A radial processor runs the stock ``__call__``
with that one name bound to ``AttentionContext.attend``. Nothing is patched for anybody else: the function is a copy
with globals of its own.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

from radial.errors import ModelError
from radial.plans.policy import DENSE


class AttentionCall(NamedTuple):
    """What a stock processor asks of its attention beside queries, keys and values, the processor's name, the planner
    that was chosen for it, and whether its outcome is looked at."""

    processor: str
    choice: int
    looked_at: bool = False
    mask: Tensor | None = None
    scale: float | None = None
    is_causal: bool = False
    backend: Any = None
    parallel_config: Any = None


class Attend(Protocol):
    """Attention on ``[batch, tokens, heads, head dim]`` in place of the function that a stock processor calls."""

    def __call__(self, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, /) -> Tensor: ...


class RadialProcessors:
    """Makes the radial processors of one installation: one class for each class of stock processor.

    Args:
        attend: computes the attention of all layers but dense ones.
        read_content: of each planner, whether it reads content.
        enter: told the layer before it attends by such a planner or is looked at.
        looked_at: whether sparse layers may be looked at: ``radial_choice`` is then greater by the number of planners.
        dense_too: have ``attend`` compute dense layers as well, as where processes share a clip.

    Layers share classes, and ``radial_choice`` is all that tells them apart, so that torch.compile compiles a repeated
    block once for each choice, however many layers and steps there are.
    """

    def __init__(
        self, attend: Attend, read_content: Sequence[bool], enter: Callable[[int], None], *,
        dense_too: bool = False, looked_at: bool = False,
    ) -> None:  # fmt: skip
        self._attend, self._read_content, self._enter, self._dense_too = attend, tuple(read_content), enter, dense_too
        self._looked_at = looked_at
        self._kinds: dict[type, Any] = {}

    def make(self, stock: Any, layer: int) -> Any:
        """A processor that does as the stock one while ``radial_choice`` is 0, and attends by ``attend`` else.

        Raises:
            ModelError: the stock processor does not compute attention in a way that can be replaced.
        """
        kind = type(stock)
        if kind not in self._kinds:
            self._kinds[kind] = self._radial_kind(kind)
        processor = self._kinds[kind].__new__(self._kinds[kind])
        processor.__dict__.update(stock.__dict__)
        processor.radial_choice, processor.radial_layer = DENSE, layer
        return processor

    def _radial_kind(self, kind: Any) -> Any:
        choices = range(1, len(self._read_content) + 1)
        calls = [_redirect(kind, self._attend, choice) for choice in (DENSE, *choices)]
        for choice, reads in zip(choices, self._read_content, strict=True):
            if reads:
                calls[choice] = _entering(calls[choice], self._enter)
        if self._looked_at:
            calls += [_entering(_redirect(kind, self._attend, choice, True), self._enter) for choice in choices]
        if not self._dense_too:
            calls[DENSE] = kind.__call__

        @functools.wraps(kind.__call__)  # diffusers reads the signature to see which arguments a processor takes
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return calls[self.radial_choice](self, *args, **kwargs)

        # A subclass, so that the backend and the parallel configuration that diffusers sets on a processor work as
        # before.
        return type(f"Radial{kind.__name__}", (kind,), {"__call__": call})


def _entering(call: Callable[..., Any], enter: Callable[[int], None]) -> Callable[..., Any]:
    def entering(self: Any, *args: Any, **kwargs: Any) -> Any:
        enter(self.radial_layer)
        return call(self, *args, **kwargs)

    return entering


def _redirect(kind: Any, attend: Attend, choice: int, looked_at: bool = False) -> Callable[..., Any]:
    """A copy of a processor's ``__call__`` that attends through ``attend``, on ``[batch, tokens, heads, head dim]``."""
    function: Any = inspect.unwrap(kind.__call__)
    processor = kind.__name__
    names = set(_names(function.__code__))

    def dispatch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                 is_causal: bool = False, scale: float | None = None, **options: Any) -> Tensor:  # fmt: skip
        backend, parallel_config = options.get("backend"), options.get("parallel_config")
        return attend(
            AttentionCall(processor, choice, looked_at, attn_mask, scale, is_causal, backend, parallel_config),
            query,
            key,
            value,
        )

    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        parts = (x.transpose(1, 2) for x in (query, key, value))
        return attend(AttentionCall(processor, choice, looked_at, attn_mask, scale, is_causal), *parts).transpose(1, 2)

    replaced: dict[str, Any]
    if "dispatch_attention_fn" in names:
        replaced = {"dispatch_attention_fn": dispatch}
    elif "scaled_dot_product_attention" in names and function.__globals__.get("F") is F:
        functional = types.SimpleNamespace(**vars(F))
        functional.scaled_dot_product_attention = scaled_dot_product_attention
        replaced = {"F": functional}
    else:
        raise ModelError(f"{function.__qualname__} computes attention in a way that radial attention cannot replace")
    # Without __name__, torch.compile takes the globals as they are instead of looking the module up.
    own_globals = {name: value for name, value in function.__globals__.items() if name != "__name__"} | replaced
    # A code object of its own: torch.compile keeps what it made of one with the globals it first ran with.
    code = function.__code__.replace()
    return types.FunctionType(code, own_globals, function.__name__, function.__defaults__, function.__closure__)


def _names(code: types.CodeType) -> list[str]:
    """Global and attribute names in a function and the functions within it."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return [*code.co_names, *inner]
