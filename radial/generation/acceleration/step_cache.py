"""A step cache in a run: diffusers' hooks on the transformers' blocks, what they left out, and their memory.

Their memory is kept for each branch of guidance by diffusers' ``StateManager``, and is part of the run's snapshot.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from radial.generation.acceleration.calls import Calls
from radial.generation.acceleration.guidance import named
from radial.models.step_caches import StepCache

_HOOK = "radial_step_cache"
# What a state holds within a call alone, as large as all it holds between two.
_PASSING = ("head_block_input", "head_block_output")


class InstalledCache:
    """A cache on a run's transformers.

    Args:
        on_skip: told after each call that left blocks out how many of the first ones it computed.

    Attributes:
        calls, skipped: of the transformers that the cache saw, and those whose blocks it left out.
    """

    def __init__(self, cache: StepCache, on_skip: Callable[[int], None]) -> None:
        self.cache, self._on_skip = cache, on_skip
        self.calls = self.skipped = 0
        self._managers: list[Any] = []

    @property
    def kept_blocks(self) -> int:
        """How many blocks are computed in every call."""
        return 1 if self.cache.method == "first_block" else 0

    @property
    def skipped_share(self) -> float:
        """Share of the calls whose blocks were left out."""
        return self.skipped / self.calls if self.calls else 0.0

    def install(self, transformer: Any, calls: Calls, steps: range, undo: contextlib.ExitStack) -> None:
        """Put the cache on a transformer that makes these steps of the run."""
        from diffusers.hooks import HookRegistry

        transformer.enable_cache(_config(self.cache, steps, calls.steps))
        undo.callback(transformer.disable_cache)
        manager = _manager_in(transformer)
        self._managers.append(manager)
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.register_hook(_make_hook(self, manager, calls, steps.start), _HOOK)
        undo.callback(registry.remove_hook, _HOOK, recurse=False)

    def count(self, *, skipped: bool) -> None:
        """Take account of a call."""
        self.calls += 1
        if skipped:
            self.skipped += 1
            self._on_skip(self.kept_blocks)

    def state(self) -> dict[str, Any]:
        """What it counted, and what its hooks know of each branch of guidance."""
        return {
            "counted": [self.calls, self.skipped],
            "kept": [
                {
                    branch: {key: _copied(value) for key, value in vars(state).items() if key not in _PASSING}
                    for branch, state in manager._state_cache.items()
                }
                for manager in self._managers
            ],
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there."""
        self.calls, self.skipped = state["counted"]

        def place(tensor: Tensor) -> Tensor:
            return tensor.to(device, copy=True) if tensor.ndim else tensor.clone()  # MagCache counts in the host

        for manager, branches in zip(self._managers, state["kept"], strict=True):
            manager._state_cache.clear()
            for branch, values in branches.items():
                kept = manager._state_cls()
                vars(kept).update({key: recursively_apply(place, value) for key, value in values.items()})
                manager._state_cache[branch] = kept

    def report(self) -> dict[str, Any]:
        """What a receipt says of it."""
        cache = self.cache
        told = {"method": cache.name, "threshold": cache.threshold}
        if cache.method == "mag":
            told |= {"max_skip_steps": cache.max_skip_steps, "retention_ratio": cache.retention_ratio}
        return told | {"source": cache.source, "calls": self.calls, "skipped": round(self.skipped_share, 4)}


@contextlib.contextmanager
def cached_steps(
    pipe: Any, transformers: list[Any], cache: StepCache, calls: Calls, on_skip: Callable[[int], None]
) -> Iterator[InstalledCache]:
    """Have a cache on the transformers while the context lasts; to be entered after radial attention is there."""
    installed = InstalledCache(cache, on_skip)
    with contextlib.ExitStack() as undo:
        for transformer, steps in zip(transformers, _shared_steps(pipe, transformers, calls.steps), strict=True):
            installed.install(transformer, calls, steps, undo)
        yield installed


def _shared_steps(pipe: Any, transformers: list[Any], steps: int) -> list[range]:
    """The steps that each transformer makes: of two the first those of high noise, the second the others."""
    if len(transformers) == 1:
        return [range(steps)]
    scheduler = copy.copy(pipe.scheduler)  # the pipeline sets its own
    scheduler.set_timesteps(steps)
    boundary = pipe.config.boundary_ratio * scheduler.config.num_train_timesteps
    first = int((scheduler.timesteps >= boundary).sum())
    return [range(first), range(first, steps)]


def _config(cache: StepCache, steps: range, of_run: int) -> Any:
    from diffusers import FirstBlockCacheConfig, MagCacheConfig
    from diffusers.hooks.mag_cache import nearest_interp

    if cache.method == "first_block":
        return FirstBlockCacheConfig(threshold=cache.threshold)
    ratios = nearest_interp(torch.tensor(cache.mag_ratios), of_run)[steps.start : steps.stop]
    return MagCacheConfig(
        threshold=cache.threshold, max_skip_steps=cache.max_skip_steps, retention_ratio=cache.retention_ratio,
        num_inference_steps=max(1, len(steps)), mag_ratios=ratios if len(steps) else torch.ones(1),
    )  # fmt: skip


def _manager_in(transformer: nn.Module) -> Any:
    """What keeps the states of a cache's hooks: its first block's hook has it, as all others have."""
    from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK
    from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK

    names = (_FBC_LEADER_BLOCK_HOOK, _MAG_CACHE_LEADER_BLOCK_HOOK)
    registries = (vars(module).get("_diffusers_hook") for module in transformer.modules())
    hooks = (registry.get_hook(name) for registry in registries if registry is not None for name in names)
    return next(hook for hook in hooks if hook is not None).state_manager


def _make_hook(installed: InstalledCache, manager: Any, calls: Calls, first_step: int) -> Any:
    from diffusers.hooks import ModelHook

    class CountingHook(ModelHook):
        """Names the branch of guidance where the pipeline does not, and tells what became of each call."""

        @torch.compiler.disable
        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            try:
                _ = manager.context
            except ValueError:  # the pipeline names none
                with named(module, calls.branch):
                    return self.call(*args, **kwargs)
            return self.call(*args, **kwargs)

        def call(self, *args: Any, **kwargs: Any) -> Any:
            """The call itself, within a branch."""
            state = manager.get_state()
            if installed.cache.method == "mag":  # not as often as this branch was called: not every step calls it
                state.step_index = calls.step - first_step
            made = self.fn_ref.original_forward(*args, **kwargs)
            installed.count(skipped=not state.should_compute)
            return made

    return CountingHook()


def _copied(value: Any) -> Any:
    return recursively_apply(lambda tensor: tensor.to("cpu", copy=True), value)
