"""The seam to diffusers: installs radial attention on a pipeline's transformers and takes it away again.

Every self-attention layer gets a processor of its own. A hook on the transformer tells a shared context the token grid
and the step of each call; the context tells the processors which of them are dense, and attends for the others.

Shapes: B batch, S tokens, H heads, D head dim.
"""

from __future__ import annotations

import inspect
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from radial.attention.context_parallel import ContextParallel, Shards, sharding_of
from radial.attention.processors import AttentionCall, RadialProcessors
from radial.errors import ModelError
from radial.plans.pattern import RadialPattern
from radial.plans.plan import BlockPlan
from radial.plans.policy import Schedule

if TYPE_CHECKING:
    from radial.attention.families.family import Call, Family

_HOOK = "radial_attention"


class AttentionContext:
    """What the layers of one installation share: settings, and where in a run the current call stands."""

    def __init__(
        self, pattern: RadialPattern, schedule: Schedule, block_size: int, backend: str, pipe: Any | None,
        parallel: ContextParallel | None = None, eight_bit: bool = False,
    ) -> None:  # fmt: skip
        self.pattern, self.schedule, self.block_size, self.backend = pattern, schedule, block_size, backend
        self.eight_bit = eight_bit
        self.parallel = parallel
        self._pipe = pipe  # not its scheduler: users put in another
        self.plans: tuple[BlockPlan, ...] = ()  # of the current call: one for the batch, or one an entry
        self.step, self.num_steps = 0, 1
        self._masks_padding = False
        self._last_timestep: float | None = None
        self.computed = self.total = 0.0  # layer calls, by what they computed, and all

    def begin_call(self, family: Family, transformer: nn.Module, call: Call) -> None:
        """Note grids and step of a transformer call, and count what its attention will compute.

        Raises:
            ModelError: a call of this kind cannot be radial.
        """
        if (reason := family.refuse(transformer, call)) is not None:
            raise ModelError(f"this call of {type(transformer).__name__} cannot be radial: {reason}")
        device = call["hidden_states"].device
        grids = family.grids(transformer, call)
        if tuple(plan.grid for plan in self.plans) != grids or self.plans[0].row_offsets.device != device:
            self.plans = tuple(BlockPlan.build(grid, self.pattern, self.block_size).to(device) for grid in grids)
        self._masks_padding = family.masks_padding
        self._locate(float(call["timestep"].flatten().max()))
        density = sum(plan.density for plan in self.plans) / len(self.plans)
        for layer, attention in family.self_attentions(transformer):
            dense = self.schedule.is_dense(layer, self.step, self.num_steps)
            attention.processor.radial_dense = dense  # type: ignore[union-attr]
            self.computed += 1.0 if dense else density
            self.total += 1.0

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

    def attend(
        self, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, dense: bool = False
    ) -> Tensor:
        """A layer's attention by the plan of its call, or ``dense``, in place of the function that its processor calls.

        Raises:
            ModelError: the processor asks for something that a plan does not hold.
        """
        if call.is_causal or (call.mask is not None and not self._masks_padding) or call.parallel_config is not None:
            what = "is causal" if call.is_causal else "has a mask" if call.mask is not None else "runs in parallel"
            raise ModelError(f"the attention of {call.processor} {what}, which radial attention does not know")
        if k_BSHD.shape[2] != q_BSHD.shape[2]:  # grouped queries
            groups = q_BSHD.shape[2] // k_BSHD.shape[2]
            k_BSHD, v_BSHD = (x.repeat_interleave(groups, dim=2) for x in (k_BSHD, v_BSHD))
        heads, grid = q_BSHD.shape[2], self.plans[0].grid
        if self.parallel is not None:
            q_BSHD, k_BSHD, v_BSHD = (self.parallel.to_heads(x, grid) for x in (q_BSHD, k_BSHD, v_BSHD))
        if len(self.plans) == 1:
            out_BSHD = self._attend_by(self.plans[0], call, q_BSHD, k_BSHD, v_BSHD, dense)
        elif len(q_BSHD) == 1:  # a processor that takes batch entries one by one: its length tells which one
            plan = next((plan for plan in self.plans if plan.grid.tokens == q_BSHD.shape[1]), self.plans[0])
            out_BSHD = self._attend_by(plan, call, q_BSHD, k_BSHD, v_BSHD, dense)
        else:
            out_BSHD = torch.cat(
                [
                    self._attend_by(plan, call, q_BSHD[[entry]], k_BSHD[[entry]], v_BSHD[[entry]], dense)
                    for entry, plan in enumerate(self.plans)
                ]
            )
        return out_BSHD if self.parallel is None else self.parallel.to_tokens(out_BSHD, grid, heads)

    def _attend_by(
        self, plan: BlockPlan, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, dense: bool
    ) -> Tensor:
        tokens, length = plan.grid.tokens, q_BSHD.shape[1]
        if not tokens <= length == k_BSHD.shape[1]:
            raise ModelError(f"{call.processor} attends over {length} tokens, where its call has {tokens}")
        q_BSHD, k_BSHD, v_BSHD = (x[:, :tokens] for x in (q_BSHD, k_BSHD, v_BSHD))
        if q_BSHD.shape[2] == 0:  # more processes than heads: this one only keeps in step, forward and backward
            out_BSHD = q_BSHD + k_BSHD + v_BSHD
        elif dense:
            from diffusers.models.attention_dispatch import dispatch_attention_fn

            out_BSHD = dispatch_attention_fn(q_BSHD, k_BSHD, v_BSHD, scale=call.scale, backend=call.backend)
        else:
            out_BSHD = plan.attend(
                q_BSHD, k_BSHD, v_BSHD, scale=call.scale, backend=self.backend, eight_bit=self.eight_bit
            )
        return out_BSHD if tokens == length else F.pad(out_BSHD, (0, 0, 0, 0, 0, length - tokens))

    @property
    def plan(self) -> BlockPlan | None:
        """The plan of the last call, of its first batch entry where they differ."""
        return self.plans[0] if self.plans else None

    @property
    def computed_share(self) -> float:
        """Share of all attention since installation that was computed; 1.0 before the first call."""
        return self.computed / self.total if self.total else 1.0


class RadialAttention:
    """An installation of radial attention; use it as a context manager, or call :meth:`remove`."""

    def __init__(self, context: AttentionContext, transformers: list[nn.Module]) -> None:
        from diffusers.hooks import HookRegistry

        from radial.attention.families.find import find_family

        self.context = context
        self._stock: list[tuple[nn.Module, Any]] = []
        self._hooked: list[nn.Module] = []
        self._shards: list[Shards] = []
        families = [find_family(transformer) for transformer in transformers]
        self._first = families[0].self_attentions(transformers[0])[0][1]
        for transformer in transformers:
            if HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_HOOK) is not None:
                raise ModelError("radial attention is installed on this model already; remove it first")
        shardings = [
            sharding_of(transformer, family) if context.parallel is not None else None
            for transformer, family in zip(transformers, families, strict=True)
        ]
        try:
            self._install(transformers, families, shardings)
        except BaseException:  # half of it would compute neither this nor that
            self.remove()
            raise

    def _install(self, transformers: list[nn.Module], families: list[Family], shardings: list[Any]) -> None:
        from diffusers.hooks import HookRegistry

        context = self.context
        processors = RadialProcessors(context.attend, dense_too=context.parallel is not None)
        for transformer, family, sharding in zip(transformers, families, shardings, strict=True):
            for _, attention in family.self_attentions(transformer):
                processor = processors.make(attention.processor)
                self._stock.append((attention, attention.processor))
                attention.processor = processor
            shards = None
            if sharding is not None and context.parallel is not None:
                shards = Shards(transformer, sharding, context.parallel)
                self._shards.append(shards)
            hook = _make_hook(family, context, transformer, shards)
            HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, _HOOK)
            self._hooked.append(transformer)

    @property
    def computed_share(self) -> float:
        """Share of all attention since installation that was computed."""
        return self.context.computed_share

    @property
    def counted(self) -> tuple[float, float]:
        """Layer calls since installation, by the share of attention that they computed, and all of them. Set it to go
        on counting from an earlier installation."""
        return self.context.computed, self.context.total

    @counted.setter
    def counted(self, value: tuple[float, float]) -> None:
        self.context.computed, self.context.total = value

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
        from diffusers.hooks import HookRegistry

        for attention, stock in self._stock:
            attention.processor = stock
        for transformer in self._hooked:
            HookRegistry.check_if_exists_or_initialize(transformer).remove_hook(_HOOK, recurse=False)
        for shards in self._shards:
            shards.remove()
        self._stock, self._hooked, self._shards = [], [], []

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
    parallel: ContextParallel | None = None,
    eight_bit: bool = False,
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
        parallel: the processes that share each clip; all of them make the same calls. Dense layers are shared too.
        eight_bit: compute radial layers in 8 bit, without gradients; see :func:`radial_kernels.block_sparse.attention`.

    Returns:
        The installation. ``with radial.apply(pipe): ...`` restores the stock processors on exit.

    Raises:
        ModelError: the model is of a family that radial attention does not know, or has it installed already, or
            several processes cannot share its clips.
    """
    schedule = schedule or Schedule()
    if isinstance(target, nn.Module):
        transformers, pipe = [target], None
        if schedule.dense_last_steps:
            raise ModelError("dense_last_steps needs a pipeline: a lone transformer does not know the last step")
    else:
        transformers, pipe = transformers_of(target), target
        if not transformers:
            raise ModelError(f"{type(target).__name__} has no transformer to install radial attention on")
    BlockPlan.check_block_size(block_size)
    context = AttentionContext(pattern or RadialPattern(), schedule, block_size, backend, pipe, parallel, eight_bit)
    return RadialAttention(context, transformers)


def transformers_of(pipe: Any) -> list[nn.Module]:
    """A pipeline's transformers: one, or two that share the steps."""
    found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    return [transformer for transformer in found if transformer is not None]


def _make_hook(family: Family, context: AttentionContext, transformer: nn.Module, shards: Shards | None) -> Any:
    from diffusers.hooks import ModelHook

    signature = inspect.signature(type(transformer).forward)

    class RadialHook(ModelHook):
        """Tells the context where a run stands before each call of the transformer."""

        @torch.compiler.disable
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            context.begin_call(family, module, signature.bind_partial(module, *args, **kwargs).arguments)
            return (args, kwargs) if shards is None else shards.begin_call(module, context.plans[0].grid, args, kwargs)

    return RadialHook()
