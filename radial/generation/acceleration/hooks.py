"""Hooks of diffusers that stay what they are when one below them is taken away.

``HookRegistry.remove_hook`` of diffusers 0.42 puts what the removed hook called in place of the next hook's own
``new_forward``. Group offloading on a stream removes hooks after a transformer's first call, which would end a cache
or an interval of guidance there without a word.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from radial.generation.resume import stands_still


@contextlib.contextmanager
def lasting_hooks(transformers: list[Any]) -> Iterator[None]:
    """Mend the hooks of transformers and of all within them after each one's first call, while the context
    lasts."""
    handles: dict[nn.Module, Any] = {}

    def mend_once(module: nn.Module, *_: Any) -> None:
        if not stands_still(module):  # a run that goes on has not called it yet
            handles.pop(module).remove()
            mend(module)

    for transformer in transformers:
        handles[transformer] = transformer.register_forward_hook(mend_once)
    try:
        yield
    finally:
        for handle in handles.values():
            handle.remove()


def mend(module: nn.Module) -> None:
    """Give every hook its own forward back, which calls what the hooks below it call now."""
    for one in module.modules():
        registry: Any = vars(one).get("_diffusers_hook")
        if registry is None:
            continue
        for name, reference in zip(registry._hook_order, registry._fn_refs, strict=True):
            own = getattr(registry.hooks[name], "new_forward", None)
            if own is not None and getattr(reference.forward, "func", None) != own:
                reference.original_forward = reference.forward
                reference.forward = functools.partial(own, one)
