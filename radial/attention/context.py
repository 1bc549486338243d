"""What the layers of one installation share: its planners, and where in a run the current call stands.

Shapes: B batch, S tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from radial.attention.context_parallel import ContextParallel
from radial.attention.packed.pack import Pack, align, unalign
from radial.attention.probe import Probe
from radial.attention.processors import AttentionCall
from radial.errors import ModelError
from radial.plans.block_plan import BlockPlan
from radial.plans.far_field import pool_rest, pool_rest_once
from radial.plans.layout import FarField, Layout
from radial.plans.planner import Planner, Site
from radial.plans.policy import DENSE, Policy
from radial.plans.token_order import in_columns
from radial_kernels import block_sparse
from radial_kernels.block_sparse import BlockLists, PooledLists, join_lists

if TYPE_CHECKING:
    from radial.attention.family import Call, Family


@dataclass
class CallState:
    """What is known of a transformer's calls of one guidance branch; kept by diffusers' ``StateManager``.

    Attributes:
        layouts: of the last call: one for the whole batch, or one for each entry where their texts differ in length.
        counts: of a pack, how many clips have each.
        lists: of the planners that do not read content, by their choice: one for each layout.
        tails: what these leave out, likewise; None where it is dropped.
        joined: the lists of all clips of a pack as one, by choice, where they are computed at once.
    """

    layouts: tuple[Layout, ...] = ()
    counts: tuple[int, ...] = ()
    lists: dict[int, tuple[BlockLists, ...]] = field(default_factory=dict)
    tails: dict[int, tuple[PooledLists | None, ...]] = field(default_factory=dict)
    joined: dict[int, BlockLists] = field(default_factory=dict)
    device: torch.device | None = None

    def reset(self) -> None:
        """Forget it."""
        self.layouts, self.counts, self.device = (), (), None
        self.lists, self.tails, self.joined = {}, {}, {}


class AttentionContext:
    """Plans and computes the attention of an installation's layers.

    Attributes:
        planners: those that a policy chooses among, the first one by 1.
        step, num_steps: where the current call stands; steps count from 0.
        column_size: tokens a block, for which the clip's tokens are put in columns; None leaves them in raster order.
        probe: what looks at some rows while they are computed; None where nobody asked for it.
        computed, total: layer calls since installation, by the share of attention that they computed, and all.
    """

    def __init__(
        self, planners: Sequence[Planner], policy: Policy, backend: str = "auto", pipe: Any | None = None,
        parallel: ContextParallel | None = None, eight_bit: bool = False, far_field: FarField = "drop",
        column_size: int | None = None, dense_above: float = 0.0,
    ) -> None:  # fmt: skip
        self.planners, self.policy, self.backend = tuple(planners), policy, backend
        self.eight_bit, self.parallel, self.far_field = eight_bit, parallel, far_field
        self.column_size = column_size
        self.probe = Probe(dense_above, parallel) if dense_above else None
        self._pipe = pipe  # not its scheduler: users put in another
        self.state, self.branch = CallState(), ""
        self.layouts: tuple[Layout, ...] = ()  # of the last call
        self.pack: Pack | None = None  # where its clips share a sequence: a layout is then that of a group
        # As long as each of them: torch.compile takes a tensor's length for one that may change, and a number not.
        self._lengths: tuple[Tensor, ...] = ()
        self._layer = 0  # that attends, where its planner reads content or it is looked at
        self.step, self.num_steps = 0, 1
        self.computed = self.total = 0.0
        self._shares: list[float] = []  # of attention that the last call's layers compute, in their order
        self._weights: list[float] = []  # of each layout in these
        self._masks_padding, self._device = False, torch.device("cpu")
        self._last_noise: float | None = None

    def begin_call(self, family: Family, transformer: nn.Module, call: Call, state: CallState, branch: str) -> None:
        """Note layouts and step of a transformer call, and choose what its layers compute.

        Raises:
            ModelError: a call of this kind cannot be radial, or the policy chooses a planner that is not there.
        """
        _check(family, transformer, call)
        layouts = family.layouts(transformer, call)
        if self.column_size is not None:
            layouts = tuple(in_columns(layout, self.column_size) for layout in layouts)
        self.pack = None
        self._begin(family, transformer, layouts, [call], state, branch)

    def begin_pack(
        self, family: Family, transformer: nn.Module, calls: Sequence[Call], pack: Pack, state: CallState
    ) -> None:
        """The same of clips that share a sequence, each with the arguments that a call of its own would have.

        Raises:
            ModelError: as above, or the clips stand at several steps of a sampler.
        """
        for call in calls:
            _check(family, transformer, call)
        if len({self._scheduled_step(family.timestep(call)) for call in calls}) > 1:
            raise ModelError("clips of a pack stand at one step of the sampler, and these at several")
        self.pack = pack
        self._begin(family, transformer, tuple(group.layout for group in pack.groups), calls, state, "")

    def _begin(
        self, family: Family, transformer: nn.Module, layouts: tuple[Layout, ...], calls: Sequence[Call],
        state: CallState, branch: str,
    ) -> None:  # fmt: skip
        device = calls[0]["hidden_states"].device
        counts = tuple(group.count for group in self.pack.groups) if self.pack is not None else ()
        if state.layouts != layouts or state.counts != counts or state.device != device:
            state.reset()
            state.layouts, state.counts, state.device = layouts, counts, device
        self.state, self.branch, self.layouts, self._device = state, branch, layouts, device
        self._lengths = tuple(of_any_length(torch.empty(layout.tokens, 0)) for layout in layouts)
        self._masks_padding = family.masks_padding
        groups = self.pack.groups if self.pack is not None else ()
        pairs = [group.count * group.layout.tokens**2 for group in groups] or [1] * len(layouts)
        self._weights = [one / sum(pairs) for one in pairs]
        self._locate(max(family.timestep(call) for call in calls), family.clean_timestep)
        self._shares = []
        attentions = family.self_attentions(transformer)
        choices = {layer: self._choose(layer) for layer, _ in attentions}
        if self.probe is not None:
            self.probe.begin_step(self.step)
            choices = self.probe.choose(choices, max(layout.tokens for layout in layouts), device)
        for layer, attention in attentions:
            choice = choices[layer]
            processor: Any = attention.processor
            looked_at = self.probe is not None and layer in self.probe.layers
            processor.radial_choice = choice + len(self.planners) * looked_at
            self._shares.append(self._prepare(choice, layer))
            self.total += 1.0
        self.computed += sum(self._shares)

    def _choose(self, layer: int) -> int:
        choice = self.policy.choose(layer, self.step, self.num_steps)
        if not 0 <= choice <= len(self.planners):
            raise ModelError(f"the policy chose planner {choice} of {len(self.planners)} for layer {layer}")
        return choice

    def end_call(self) -> None:
        """Take account of a call that has ended."""
        if self.probe is not None:
            self.probe.end_call()

    def leave_out(self, computed_layers: int) -> None:
        """Take account of a step cache that left out all of the last call's layers but the first few."""
        self.computed -= sum(self._shares[computed_layers:])
        if self.probe is not None:
            self.probe.leave_out()

    def _prepare(self, choice: int, layer: int) -> float:
        """Have the lists of a choice ready where they do not depend on content: the share that they compute."""
        if choice == DENSE:
            return 1.0
        planner, state = self.planners[choice - 1], self.state
        if planner.reads_content:  # counted when they are made
            return 0.0
        if choice not in state.lists:
            sites = [self._site(layout, layer) for layout in state.layouts]
            lists = tuple(planner.lists(site, None, None) for site in sites)
            tails = tuple(map(pool_rest_once, lists, state.layouts, [self.far_field] * len(lists)))
            state.lists[choice], state.tails[choice] = lists, tails
            if self.pack is not None and self.pack.one_list:
                of_clips = [
                    (one, group) for one, group in zip(lists, self.pack.groups, strict=True) for _ in range(group.count)
                ]
                state.joined[choice] = join_lists([one for one, _ in of_clips], [g.layout.tokens for _, g in of_clips])
            for one in (*lists, *tails):
                all_of_any_length(one)
        kept = zip(self._weights, state.layouts, state.lists[choice], strict=True)
        return sum(weight * lists.share_kept(layout.tokens) for weight, layout, lists in kept)

    def _site(self, layout: Layout, layer: int) -> Site:
        return Site(layout, layer, self.step, self.branch, self._device)

    @torch.compiler.disable
    def enter(self, layer: int) -> None:
        """Note the layer that attends next, where its planner reads content or it is looked at."""
        self._layer = layer

    def _locate(self, timestep: float, clean: float) -> None:
        """Find the step: from the scheduler's timesteps where there is one, else by watching the noise fall."""
        if (step := self._scheduled_step(timestep)) is not None:
            self.step, self.num_steps = step, len(self._timesteps())
        elif self._last_noise is None or abs(timestep - clean) > self._last_noise:
            self.step = 0
        elif abs(timestep - clean) < self._last_noise:
            self.step += 1
        self._last_noise = abs(timestep - clean)

    def _scheduled_step(self, timestep: float) -> int | None:
        timesteps = self._timesteps()
        return int((timesteps.float().cpu() - timestep).abs().argmin()) if len(timesteps) else None

    def _timesteps(self) -> Tensor:
        timesteps: Tensor | None = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        return torch.empty(0) if timesteps is None else timesteps

    def attend(self, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """A layer's attention by what was chosen for it, in place of the function that its processor calls.

        Raises:
            ModelError: the processor asks for something that a plan does not hold.
        """
        if call.is_causal or (call.mask is not None and not self._masks_padding) or call.parallel_config is not None:
            what = "is causal" if call.is_causal else "has a mask" if call.mask is not None else "runs in parallel"
            raise ModelError(f"the attention of {call.processor} {what}, which radial attention does not know")
        if k_BSHD.shape[2] != q_BSHD.shape[2]:  # grouped queries
            groups = q_BSHD.shape[2] // k_BSHD.shape[2]
            k_BSHD, v_BSHD = (x.repeat_interleave(groups, dim=2) for x in (k_BSHD, v_BSHD))
        heads, layouts = q_BSHD.shape[2], self.layouts
        if self.pack is not None:
            parts = list(zip(*map(self.pack.sequences, (q_BSHD, k_BSHD, v_BSHD)), strict=True))
            if self.pack.one_list and call.choice != DENSE and parts[0][0].shape[2]:
                attended = self._attend_at_once(call, parts)
            else:
                attended = [self._attend_to(group, call, *part) for group, part in enumerate(parts)]
            return self.pack.join_sequences(attended, heads)
        if self.parallel is not None:
            q_BSHD, k_BSHD, v_BSHD = (self.parallel.to_heads(x, layouts[0]) for x in (q_BSHD, k_BSHD, v_BSHD))
        if len(layouts) == 1:
            out_BSHD = self._attend_to(0, call, q_BSHD, k_BSHD, v_BSHD)
        elif len(q_BSHD) == 1:  # a processor that takes batch entries one by one
            entry = self._entry_of(q_BSHD.shape[1], call.processor)
            out_BSHD = self._attend_to(entry, call, q_BSHD, k_BSHD, v_BSHD)
        else:
            out_BSHD = torch.cat(
                [
                    self._attend_to(entry, call, q_BSHD[[entry]], k_BSHD[[entry]], v_BSHD[[entry]])
                    for entry in range(len(layouts))
                ]
            )
        return out_BSHD if self.parallel is None else self.parallel.to_tokens(out_BSHD, layouts[0], heads)

    def _entry_of(self, length: int, processor: str) -> int:
        """The batch entry of such a length."""
        lengths = [len(one) for one in self._lengths]
        if length not in lengths:
            raise ModelError(f"{processor} attends over {length} tokens, where its call has {sorted(set(lengths))}")
        return lengths.index(length)

    def _attend_to(self, entry: int, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """The attention over one layout."""
        tokens, length = self._lengths[entry].shape[0], q_BSHD.shape[1]
        if not tokens <= length == k_BSHD.shape[1]:
            raise ModelError(f"{call.processor} attends over {length} tokens, where its call has {tokens}")
        q_BSHD, k_BSHD, v_BSHD = (x[:, :tokens] for x in (q_BSHD, k_BSHD, v_BSHD))
        if q_BSHD.shape[2] == 0:  # more processes than heads: this one only keeps in step, forward and backward
            out_BSHD = q_BSHD + k_BSHD + v_BSHD
        elif call.choice == DENSE:
            from diffusers.models.attention_dispatch import dispatch_attention_fn

            out_BSHD = dispatch_attention_fn(q_BSHD, k_BSHD, v_BSHD, scale=call.scale, backend=call.backend)
        else:
            lists, tail = self._lists(entry, call, q_BSHD, k_BSHD)
            out_BSHD = block_sparse.attention(
                q_BSHD, k_BSHD, v_BSHD, lists, scale=call.scale, backend=self.backend, eight_bit=self.eight_bit,
                tail=tail,
            )  # fmt: skip
            if call.looked_at and self.probe is not None:
                layout = self.layouts[entry]
                self.probe.look(self._layer, q_BSHD, k_BSHD, v_BSHD, out_BSHD, lists, layout, call.scale)
        return out_BSHD if tokens == length else F.pad(out_BSHD, (0, 0, 0, 0, 0, length - tokens))

    def _attend_at_once(self, call: AttentionCall, parts: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """The attention over all clips of a pack, by groups of them, as one list of blocks."""
        lists = self.state.joined[call.choice]
        q_1SHD, k_1SHD, v_1SHD = (align(part, lists.block_size) for part in zip(*parts, strict=True))
        out_1SHD = block_sparse.attention(q_1SHD, k_1SHD, v_1SHD, lists, scale=call.scale, backend=self.backend)
        return unalign(out_1SHD, [part[0] for part in parts], lists.block_size)

    def _lists(
        self, entry: int, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor
    ) -> tuple[BlockLists, PooledLists | None]:
        if self.planners[call.choice - 1].reads_content:
            return self._read_lists(entry, call, q_BSHD, k_BSHD)
        return self.state.lists[call.choice][entry], self.state.tails[call.choice][entry]

    @torch.compiler.disable
    def _read_lists(
        self, entry: int, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor
    ) -> tuple[BlockLists, PooledLists | None]:
        """Lists by content, which are made anew at every layer and step and enter no compiled block."""
        layout = self.layouts[entry]
        site = self._site(layout, self._layer)
        lists = self.planners[call.choice - 1].lists(site, q_BSHD, k_BSHD)
        self.computed += lists.share_kept(layout.tokens) * self._weights[entry]
        return lists, pool_rest(lists, layout, self.far_field)

    @property
    def plan(self) -> BlockPlan | None:
        """The static plan of the last call, of its first batch entry where they differ; None before it."""
        static = next((planner for planner in self.planners if not planner.reads_content), None)
        if static is None or not self.layouts:
            return None
        lists = static.lists(Site(self.layouts[0], 0, self.step, self.branch, self._device), None, None)
        return lists if isinstance(lists, BlockPlan) else None

    @property
    def far(self) -> PooledLists | None:
        """What that plan leaves out, where it is not dropped."""
        plan = self.plan
        return None if plan is None else pool_rest_once(plan, self.layouts[0], self.far_field)

    @property
    def computed_share(self) -> float:
        """Share of all attention since installation that was computed; 1.0 before the first call."""
        return self.computed / self.total if self.total else 1.0


def _check(family: Family, transformer: nn.Module, call: Call) -> None:
    if (reason := family.refuse(transformer, call)) is not None:
        raise ModelError(f"this call of {type(transformer).__name__} cannot be radial: {reason}")


def of_any_length(tensor: Tensor) -> Tensor:
    """A tensor that torch.compile is to make no length of its own for: another clip is not to compile a block anew."""
    torch._dynamo.maybe_mark_dynamic(tensor, list(range(tensor.ndim)))
    return tensor


def all_of_any_length(lists: BlockLists | PooledLists | None) -> None:
    for one in fields(lists) if lists is not None else ():
        value = getattr(lists, one.name)
        if isinstance(value, Tensor):
            of_any_length(value)
