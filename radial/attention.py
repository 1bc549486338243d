"""The seam to diffusers: installs radial attention on a pipeline's transformers and takes it away again.

Every self-attention layer gets a processor that knows its layer index. A hook on the transformer tells a shared
context the token grid and the step of each call; the context answers which plan, if any, a layer uses.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from radial.errors import ModelError
from radial.pattern import RadialPattern
from radial.plan import BlockPlan
from radial.schedule import Schedule

if TYPE_CHECKING:
    from radial.families import Family

_HOOK = "radial_attention"


class AttentionContext:
    """What the layers of one installation share: settings, and where in a run the current call stands."""

    def __init__(
        self, pattern: RadialPattern, schedule: Schedule, block_size: int, backend: str, pipe: Any | None
    ) -> None:
        self.pattern, self.schedule, self.block_size, self.backend = pattern, schedule, block_size, backend
        self._pipe = pipe  # not its scheduler: users put in another
        self.plan: BlockPlan | None = None
        self.step, self.num_steps = 0, 1
        self._last_timestep: float | None = None
        self._computed = self._total = 0.0

    def begin_call(self, family: Family, transformer: nn.Module, hidden_states: Tensor, timestep: Tensor) -> None:
        """Note grid and step of a transformer call, and count what its attention will compute."""
        grid = family.grid(transformer, hidden_states)
        if self.plan is None or self.plan.grid != grid or self.plan.row_offsets.device != hidden_states.device:
            self.plan = BlockPlan.build(grid, self.pattern, self.block_size).to(hidden_states.device)
        self._locate(float(timestep.flatten().max()))
        for layer in range(len(family.self_attentions(transformer))):
            self._computed += 1.0 if self.schedule.is_dense(layer, self.step, self.num_steps) else self.plan.density
            self._total += 1.0

    def _locate(self, timestep: float) -> None:
        """Find the step: from the scheduler's timesteps where there is one, else by watching the timestep fall."""
        timesteps = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        if timesteps is not None and len(timesteps):
            self.step = int((timesteps.float().cpu() - timestep).abs().argmin())
            self.num_steps = len(timesteps)
        elif self._last_timestep is None or timestep > self._last_timestep:
            self.step = 0
        elif timestep < self._last_timestep:
            self.step += 1
        self._last_timestep = timestep

    def plan_for(self, layer: int) -> BlockPlan | None:
        """The plan of a layer in the current call; None where it is dense."""
        return None if self.schedule.is_dense(layer, self.step, self.num_steps) else self.plan

    @property
    def computed_share(self) -> float:
        """Share of all attention since installation that was computed; 1.0 before the first call."""
        return self._computed / self._total if self._total else 1.0


class RadialAttention:
    """An installation of radial attention; use it as a context manager, or call :meth:`remove`."""

    def __init__(self, context: AttentionContext, transformers: list[nn.Module]) -> None:
        from diffusers.hooks import HookRegistry

        from radial.families import find_family

        self.context = context
        self._stock: list[tuple[nn.Module, Any]] = []
        self._hooked: list[nn.Module] = []
        families = [find_family(transformer) for transformer in transformers]
        for transformer in transformers:
            if HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_HOOK) is not None:
                raise ModelError("radial attention is installed on this model already; remove it first")
        for transformer, family in zip(transformers, families, strict=True):
            for layer, attention in enumerate(family.self_attentions(transformer)):
                stock = attention.processor
                self._stock.append((attention, stock))
                attention.set_processor(family.processor(layer, context, stock))  # type: ignore[operator]
            hook = _make_hook(family, context)
            HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, _HOOK)
            self._hooked.append(transformer)

    @property
    def computed_share(self) -> float:
        """Share of all attention since installation that was computed."""
        return self.context.computed_share

    @property
    def plan(self) -> BlockPlan | None:
        """The plan of the last call."""
        return self.context.plan

    def remove(self) -> None:
        """Put the stock processors back. Calling it twice does no harm."""
        from diffusers.hooks import HookRegistry

        for attention, stock in self._stock:
            attention.set_processor(stock)  # type: ignore[operator]
        for transformer in self._hooked:
            HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(_HOOK, recurse=False)
        self._stock, self._hooked = [], []

    def __enter__(self) -> RadialAttention:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def apply(
    target: Any,
    *,
    pattern: RadialPattern | None = None,
    schedule: Schedule | None = None,
    block_size: int = 128,
    backend: str = "auto",
) -> RadialAttention:
    """Install radial attention on a diffusers pipeline, or on one transformer.

    Args:
        target: a loaded pipeline (all its transformers are taken, as Wan 2.2 has two) or a transformer. A lone
            transformer has no scheduler to count steps by: there a step begins when the timestep falls and a run
            when it rises, and ``dense_last_steps`` cannot be used.
        pattern: which tokens attend to each other; the published rule when left out.
        schedule: which layers and steps stay dense; none when left out.
        block_size: tokens a block; 128 is what GPUs like, smaller suits grids of few tokens a frame.
        backend: a backend of :func:`radial_kernels.block_sparse.attention`.

    Returns:
        The installation. ``with radial.apply(pipe): ...`` restores the stock processors on exit.

    Raises:
        ModelError: the model is of a family that radial attention does not know, or has it installed already.
    """
    schedule = schedule or Schedule()
    if isinstance(target, nn.Module):
        transformers, pipe = [target], None
        if schedule.dense_last_steps:
            raise ModelError("dense_last_steps needs a pipeline: a lone transformer does not know the last step")
    else:
        found = (getattr(target, name, None) for name in ("transformer", "transformer_2"))
        transformers, pipe = [t for t in found if t is not None], target
        if not transformers:
            raise ModelError(f"{type(target).__name__} has no transformer to install radial attention on")
    BlockPlan.check_block_size(block_size)
    context = AttentionContext(pattern or RadialPattern(), schedule, block_size, backend, pipe)
    return RadialAttention(context, transformers)


def _make_hook(family: Family, context: AttentionContext) -> Any:
    from diffusers.hooks import ModelHook

    class RadialHook(ModelHook):
        """Tells the context where a run stands before each call of the transformer."""

        @torch.compiler.disable
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
            context.begin_call(family, module, hidden_states, timestep)
            return args, kwargs

    return RadialHook()
