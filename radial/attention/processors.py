"""A stock attention processor of diffusers whose attention is computed by a plan; all else is the stock code.

Every processor projects, normalises and rotates in a way of its own, and then calls one of two functions: diffusers'
``dispatch_attention_fn`` or torch's ``scaled_dot_product_attention``. A radial processor runs the stock ``__call__``
with that one name bound to :meth:`AttentionContext.attend`. Nothing is patched for anybody else: the function is a copy
with globals of its own.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

from radial.errors import ModelError


class AttentionCall(NamedTuple):
    """What a stock processor asks of its attention beside queries, keys and values, and the processor's name."""

    processor: str
    mask: Tensor | None = None
    scale: float | None = None
    is_causal: bool = False
    backend: Any = None
    parallel_config: Any = None


class Attend(Protocol):
    """Attention on ``[batch, tokens, heads, head dim]`` in place of the function that a stock processor calls."""

    def __call__(
        self, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, /, dense: bool = False
    ) -> Tensor: ...


class RadialProcessors:
    """Makes the radial processors of one installation: one class for each class of stock processor.

    Args:
        attend: computes the attention of radial layers.
        dense_too: have it compute that of dense layers as well, as where processes share a clip.

    Layers share classes, and ``radial_dense`` is all that tells them apart, so that torch.compile compiles a repeated
    block once where it is dense and once where it is radial, however many layers and steps there are.
    """

    def __init__(self, attend: Attend, *, dense_too: bool = False) -> None:
        self._attend, self._dense_too = attend, dense_too
        self._kinds: dict[type, Any] = {}

    def make(self, stock: Any) -> Any:
        """A processor that does as the stock one while ``radial_dense``, and attends by ``attend`` else.

        Raises:
            ModelError: the stock processor does not compute attention in a way that can be replaced.
        """
        kind = type(stock)
        if kind not in self._kinds:
            self._kinds[kind] = _radial_kind(kind, self._attend, self._dense_too)
        processor = self._kinds[kind].__new__(self._kinds[kind])
        processor.__dict__.update(stock.__dict__)
        processor.radial_dense = False
        return processor


def _radial_kind(kind: Any, attend: Attend, dense_too: bool) -> Any:
    radial, dense = _redirect(kind, attend), kind.__call__
    if dense_too:
        dense = _redirect(kind, functools.partial(attend, dense=True))

    @functools.wraps(kind.__call__)  # diffusers reads the signature to see which arguments a processor takes
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return dense(self, *args, **kwargs) if self.radial_dense else radial(self, *args, **kwargs)

    # A subclass, so that the backend and the parallel configuration that diffusers sets on a processor work as before.
    return type(f"Radial{kind.__name__}", (kind,), {"__call__": call})


def _redirect(kind: Any, attend: Callable[..., Tensor]) -> Callable[..., Any]:
    """A copy of a processor's ``__call__`` that attends through ``attend``, on ``[batch, tokens, heads, head dim]``."""
    function: Any = inspect.unwrap(kind.__call__)
    processor = kind.__name__
    names = set(_names(function.__code__))

    def dispatch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                 is_causal: bool = False, scale: float | None = None, **options: Any) -> Tensor:  # fmt: skip
        backend, parallel_config = options.get("backend"), options.get("parallel_config")
        return attend(
            AttentionCall(processor, attn_mask, scale, is_causal, backend, parallel_config), query, key, value
        )

    def scaled_dot_product_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        parts = (x.transpose(1, 2) for x in (query, key, value))
        return attend(AttentionCall(processor, attn_mask, scale, is_causal), *parts).transpose(1, 2)

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
