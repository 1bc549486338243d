"""The seam to diffusers: installs radial attention on a pipeline's transformers and takes it away again.

Every self-attention layer gets a processor of its own. A hook on the transformer tells a shared context the token grid
and the step of each call; the context tells the processors which of them are dense, and attends for the others.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from radial.attention.context import AttentionContext, CallState
from radial.attention.context_parallel import ContextParallel, Shards, sharding_of
from radial.attention.processors import RadialProcessors
from radial.attention.token_order import Reordering, TokenModules
from radial.errors import ModelError, RequestError
from radial.plans.block_plan import BlockPlan
from radial.plans.layout import FarField, TokenOrder
from radial.plans.pattern import RadialPattern
from radial.plans.planner import Planner, StaticPlanner
from radial.plans.policy import Policy, Schedule

if TYPE_CHECKING:
    from radial.attention.family import Family

_HOOK = "radial_attention"


class RadialAttention:
    """An installation of radial attention; use it as a context manager, or call :meth:`remove`.

    Attributes:
        shards: what splits the calls of each transformer, where processes share clips.
    """

    def __init__(self, context: AttentionContext, transformers: list[nn.Module]) -> None:
        from diffusers.hooks import HookRegistry

        from radial.attention.families.find import find_family

        self.context = context
        self.shards: list[Shards] = []
        families = [find_family(transformer) for transformer in transformers]
        self._first = families[0].self_attentions(transformers[0])[0][1]
        for transformer in transformers:
            if HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_HOOK) is not None:
                raise ModelError("radial attention is installed on this model already; remove it first")
        shardings = [
            sharding_of(transformer, family) if context.parallel is not None else None
            for transformer, family in zip(transformers, families, strict=True)
        ]
        reorders = [
            _reorder_of(transformer, family) if context.column_size is not None else None
            for transformer, family in zip(transformers, families, strict=True)
        ]
        with contextlib.ExitStack() as undo:  # half of it would compute neither this nor that
            self._install(transformers, families, shardings, reorders, undo)
            self._undo = undo.pop_all()

    def _install(
        self, transformers: list[nn.Module], families: list[Family], shardings: list[Any],
        reorders: list[TokenModules | None], undo: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        from diffusers.hooks import HookRegistry

        context = self.context
        processors = RadialProcessors(
            context.attend, [planner.reads_content for planner in context.planners], context.enter,
            dense_too=context.parallel is not None, looked_at=context.probe is not None,
        )  # fmt: skip
        for transformer, family, sharding, where in zip(transformers, families, shardings, reorders, strict=True):
            for layer, attention in family.self_attentions(transformer):
                processor = processors.make(attention.processor, layer)
                undo.callback(setattr, attention, "processor", attention.processor)
                attention.processor = processor
            shards = reordering = None
            if where is not None:
                reordering = Reordering(transformer, where)
                undo.callback(reordering.remove)
            if sharding is not None and context.parallel is not None:
                shards = Shards(transformer, sharding, context.parallel)
                undo.callback(shards.remove)
                self.shards.append(shards)
            if reordering is not None:
                reordering.hook_leaving()
            hook = _make_hook(family, context, transformer, shards, reordering)
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            registry.register_hook(hook, _HOOK)
            undo.callback(registry.remove_hook, _HOOK, recurse=False)

    @property
    def computed_share(self) -> float:
        """Share of all attention since installation that was computed."""
        return self.context.computed_share

    def state(self) -> dict[str, Any]:
        """What a run needs to go on: layer calls since installation, by the share of attention that they computed and
        all of them, and the states of planners that have one."""
        planners = {str(index): one.state() for index, one in enumerate(self.context.planners) if hasattr(one, "state")}
        probe = {} if self.context.probe is None else {"probe": self.context.probe.state()}
        return {"counted": [self.context.computed, self.context.total], "planners": planners, **probe}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there."""
        self.context.computed, self.context.total = state["counted"]
        for index, one in state["planners"].items():
            planner: Any = self.context.planners[int(index)]
            planner.restore(one, device)
        if self.context.probe is not None:
            self.context.probe.restore(state["probe"], device)

    @property
    def head_dim(self) -> int:
        """Width of one head of the first layer."""
        attention: Any = self._first
        heads = attention.heads if hasattr(attention, "heads") else attention.num_heads
        query = attention.to_q if hasattr(attention, "to_q") else attention.to_query
        return int(query.out_features // heads)

    @property
    def plan(self) -> BlockPlan | None:
        """The plan of the last call."""
        return self.context.plan

    def remove(self) -> None:
        """Put the stock processors back. Calling it twice does no harm."""
        self._undo.close()

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
    planners: Sequence[Planner] | None = None,
    policy: Policy | None = None,
    backend: str = "auto",
    parallel: ContextParallel | None = None,
    eight_bit: bool = False,
    far_field: FarField = "drop",
    token_order: TokenOrder = "raster",
    dense_above: float = 0.0,
) -> RadialAttention:
    """Install radial attention on a diffusers pipeline, or on one transformer.

    Args:
        target: a loaded pipeline (all its transformers are taken, as Wan 2.2 has two) or a transformer. A lone
            transformer has no scheduler to count steps by: there a step begins when the noise falls and a run
            when it rises, and ``dense_last_steps`` cannot be used.
        pattern: which tokens attend to each other; the published rule when left out.
        schedule: which layers and steps stay dense; none when left out.
        block_size: tokens a block; 128 is what GPUs like, smaller suits grids of few tokens a frame.
        planners: what computes layers that are not dense, in place of ``pattern`` and ``block_size``.
        policy: which of the planners computes a layer at a step, in place of ``schedule``.
        backend: a backend of :func:`radial_kernels.block_sparse.attention`.
        parallel: the processes that share each clip; all of them make the same calls. Dense layers are shared too.
        eight_bit: compute radial layers in 8 bit, without gradients; see :func:`radial_kernels.block_sparse.attention`.
        far_field: what becomes of the blocks that a radial layer leaves out: ``drop``; ``mean``, one mean key and value
            each; ``pyramid``, means of ever more blocks with distance in time. Keep the first layer dense with it.
        token_order: ``raster``, or ``columns``: blocks of ``block_size`` are small in space and about eight latent
            frames long. Tokens are turned once a call and back at its end; not in every family.
        dense_above: a step is dense where the one before it was farther off than this: relative square error of sparse
            attention's output, on a few rows that are computed exactly beside it. ``context.probe`` tells it, and the
            recall. 0 looks at nothing.

    Returns:
        The installation. ``with radial.apply(pipe): ...`` restores the stock processors on exit.

    Raises:
        ModelError: the model is of a family that radial attention does not know, or has it installed already, or
            several processes cannot share its clips.
        RequestError: there is no such far field or token order, or ``dense_above`` is no error.
    """
    if not 0 <= dense_above < math.inf:
        raise RequestError(f"dense_above must be 0, for none, or an error above it, not {dense_above}")
    if far_field not in get_args(FarField):
        raise RequestError(f"far_field must be drop, mean or pyramid, not {far_field!r}")
    policy = policy or schedule or Schedule()
    if isinstance(target, nn.Module):
        transformers, pipe = [target], None
        if isinstance(policy, Schedule) and policy.dense_last_steps:
            raise ModelError("dense_last_steps needs a pipeline: a lone transformer does not know the last step")
    else:
        transformers, pipe = transformers_of(target), target
        if not transformers:
            raise ModelError(f"{type(target).__name__} has no transformer to install radial attention on")
    if token_order not in get_args(TokenOrder):
        raise RequestError(f"token_order must be raster or columns, not {token_order!r}")
    column_size = block_size if token_order == "columns" else None
    planners = planners or (StaticPlanner(pattern or RadialPattern(), block_size),)
    context = AttentionContext(
        planners, policy, backend, pipe, parallel, eight_bit, far_field, column_size, dense_above
    )
    return RadialAttention(context, transformers)


def transformers_of(pipe: Any) -> list[nn.Module]:
    """A pipeline's transformers: one, two that share the steps, or MiniMax-H3's for references, beside or alone."""
    found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "transformer_ref"))
    return [transformer for transformer in found if transformer is not None]


def _reorder_of(transformer: nn.Module, family: Family) -> TokenModules:
    if (where := family.reorder(transformer)) is None:
        raise ModelError(
            f"the tokens of {type(transformer).__name__} cannot be put in columns: take token_order raster"
        )
    return where


def _make_hook(
    family: Family, context: AttentionContext, transformer: nn.Module, shards: Shards | None,
    reordering: Reordering | None,
) -> Any:  # fmt: skip
    from diffusers.hooks import ModelHook
    from diffusers.hooks.hooks import CacheContext, StateManager

    signature = inspect.signature(type(transformer).forward)

    class RadialHook(ModelHook):
        """Tells the context where a run stands before each call of the transformer.

        What is known of calls is kept for each branch of guidance that the pipeline names.
        """

        _is_stateful = True

        def __init__(self) -> None:
            super().__init__()
            self.calls = StateManager(CallState)

        @torch.compiler.disable
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            try:
                branch = self.calls.context.name
            except ValueError:  # the pipeline names none
                branch = ""
                self.calls.set_context(CacheContext(branch))
            call = signature.bind_partial(module, *args, **kwargs).arguments
            context.begin_call(family, module, call, self.calls.get_state(), branch)
            if reordering is not None:
                args, kwargs = reordering.begin_call(context.layouts[0], args, kwargs)
            return (args, kwargs) if shards is None else shards.begin_call(module, context.layouts[0], args, kwargs)

        @torch.compiler.disable
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            context.end_call()
            return output

        def reset_state(self, module: nn.Module) -> nn.Module:
            self.calls.reset()
            return module

    return RadialHook()
