"""How a clip's attention is computed, as one value: what a user may set, between which limits, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from radial.plans.layout import BlockSize, FarField, Layout, TokenGrid, TokenOrder, as_layout
from radial.plans.pattern import RadialPattern, Variant
from radial.plans.policy import DENSE, Policy, Schedule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from radial.plans.measured.policy_file import PolicyFile
    from radial.plans.planner import Planner
    from radial.plans.sketch import PlanSketch

Kind = Literal["radial", "dense"]  # that adapters are tuned with
AttentionKind = Literal["radial", "adaptive", "dense"]
Density = Annotated[float, Field(ge=0.02, le=0.95)]
EarlyDensity = Annotated[float, Field(ge=0.02, le=1)]
TargetShare = Annotated[float, Field(ge=0.02, le=1)]
TargetSpeed = Annotated[float, Field(gt=1, le=1000)]
DENSITY = 0.3  # of adaptive attention, where nothing else is asked for
Decay = Annotated[float, Field(gt=0, le=16)]
SinkFrames = Annotated[int, Field(ge=0, le=4097)]
SkipWidth = Annotated[int, Field(ge=1, le=1 << 20)]
DenseCount = Annotated[int, Field(ge=0, le=1000)]


class AttentionSettings(BaseModel):
    """Complete: nothing is left to a model's preset or an adapter's file.

    Attributes:
        kind: ``radial``; ``adaptive``, which chooses half of its blocks by content and takes of the pattern the sink
            alone; or ``dense``, which leaves the rest unused.
        decay, sink_frames, variant, skip_width: see :class:`~radial.plans.pattern.RadialPattern`.
        block_size: tokens a block.
        dense_layers, dense_steps, dense_last_steps, dense_every: see :class:`~radial.plans.policy.Schedule`.
        far_field: what becomes of the blocks that a sparse layer leaves out; see :mod:`radial.plans.far_field`.
        token_order: in which a clip's tokens come, in columns of one block each or in raster order; see
            :mod:`radial.plans.token_order`.
        density: share of all blocks that adaptive attention keeps.
        early_density: the same in the leading ``dense_steps``, in place of all; 1 leaves them dense.
        dense_above: a step is dense where the one before it was farther off than this; see
            :mod:`radial.attention.probe`. 0 looks at nothing.
        policy: a file that says what each layer contributes at each step, of adaptive attention; densities and dense
            layers and steps are then its to choose.
        target_share, target_speed: what a policy is to reach; see
            :meth:`radial.plans.measured.policy_file.PolicyFile.policy`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: AttentionKind
    decay: Decay
    sink_frames: SinkFrames
    variant: Variant
    skip_width: SkipWidth
    block_size: BlockSize
    dense_layers: DenseCount
    dense_steps: DenseCount
    dense_last_steps: DenseCount
    far_field: FarField = "drop"
    token_order: TokenOrder = "raster"
    density: Density = DENSITY
    dense_every: DenseCount = 0
    dense_above: Annotated[float, Field(ge=0, le=1000)] = 0.0
    early_density: EarlyDensity = 1.0
    policy: str | None = None
    target_share: TargetShare | None = None
    target_speed: TargetSpeed | None = None

    @classmethod
    def as_before(cls) -> dict[str, Any]:
        """What settings mean that came later, where attention is as it was before: digests leave them out then."""
        return {name: one.default for name, one in cls.model_fields.items() if not one.is_required()}

    @property
    def pattern(self) -> RadialPattern:
        """Which tokens attend to each other."""
        return RadialPattern(self.decay, self.sink_frames, self.variant, self.skip_width)

    @property
    def planners(self) -> tuple[Planner, ...]:
        """What computes the layers that are not dense.

        Raises:
            ModelError: the policy's file cannot be read.
        """
        from radial.plans.planner import AdaptivePlanner, StaticPlanner  # bring torch, which takes seconds

        if self.kind == "adaptive":
            return tuple(AdaptivePlanner(one, self.block_size, self.sink_frames) for one in self._densities)
        return (StaticPlanner(self.pattern, self.block_size),)

    def as_arguments(self) -> dict[str, Any]:
        """What :func:`radial.apply` takes of it."""
        return {
            "planners": self.planners, "policy": self.make_policy(), "block_size": self.block_size,
            "far_field": self.far_field, "token_order": self.token_order, "dense_above": self.dense_above,
        }  # fmt: skip

    def layout(self, clip: TokenGrid | Layout) -> Layout:
        """A clip's layout with its tokens in the order that attention meets them in."""
        from radial.plans.token_order import in_columns

        return as_layout(clip) if self.token_order == "raster" else in_columns(as_layout(clip), self.block_size)

    @property
    def _densities(self) -> tuple[float, ...]:
        """Those of adaptive attention's planners."""
        if self.policy is not None:
            return measured_policy(self.policy).about.densities
        return (self.density,) if self.early_density == 1 else (self.density, self.early_density)

    def sketch(self, clip: TokenGrid | Layout, density: float | None = None) -> PlanSketch:
        """What a sparse layer keeps of a clip's attention, and how much.

        Args:
            density: of adaptive attention, in place of the one that most steps have.

        Raises:
            RequestError: there are too many blocks.
        """
        from radial.plans.sketch import PlanSketch  # brings numpy

        layout = self.layout(clip)
        if self.kind == "adaptive":
            return PlanSketch.of_adaptive(
                layout, self._densities[0] if density is None else density, self.sink_frames, self.block_size
            )
        return PlanSketch.of(layout, self.pattern, self.block_size)

    def sketches(self, clip: TokenGrid | Layout, layers: int, num_steps: int) -> list[tuple[PlanSketch, float]]:
        """What sparse layers keep, the fewest blocks first: of each way that some layer takes at some step, with its
        share of all layers and steps.

        Raises:
            RequestError: there are too many blocks.
        """
        policy = self.make_policy()
        chosen = [policy.choose(layer, step, num_steps) for layer in range(layers) for step in range(num_steps)]
        densities = self._densities if self.kind == "adaptive" else (None,)
        shares = [chosen.count(choice) / len(chosen) for choice in range(1, len(densities) + 1)]
        taken = [(self.sketch(clip, one), share) for one, share in zip(densities, shares, strict=True) if share]
        return sorted(taken, key=lambda one: one[0].density)

    def share_computed(self, density: float) -> float:
        """Pairs that a sparse layer computes of all, where its plan keeps such a share of the blocks: those with means
        too, of a pyramid the most that they can be."""
        return density if self.far_field == "drop" else density + (1 - density) / self.block_size

    def shares(self, clip: TokenGrid | Layout) -> tuple[float, ...]:
        """Pairs of all that a layer computes, by what is chosen for it: first of a dense one.

        Raises:
            RequestError: there are too many blocks.
        """
        densities = self._densities if self.kind == "adaptive" else (None,)
        return 1.0, *(self.share_computed(self.sketch(clip, one).density) for one in densities)

    def work(self, shares: Sequence[float], layers: int, num_steps: int) -> NDArray[np.float64]:
        """Pairs of all that each layer computes at each step ``[layers, steps]``, given those of each choice; their
        mean is what a whole clip computes."""
        import numpy as np

        policy = self.make_policy()
        steps = range(num_steps)
        return np.array([[shares[policy.choose(layer, step, num_steps)] for step in steps] for layer in range(layers)])

    def make_policy(self) -> Policy:
        """Which layers and steps are dense, and what computes the others.

        Raises:
            ModelError: the policy's file cannot be read.
            RequestError: it has no policy as fast as wanted.
        """
        if self.kind == "dense":
            return Schedule.dense()
        if self.policy is not None:
            return measured_policy(self.policy).policy(self.target_share, self.target_speed)
        early = 2 if self.kind == "adaptive" and self.early_density < 1 else DENSE
        return Schedule(self.dense_layers, self.dense_steps, self.dense_last_steps, self.dense_every, early)


def measured_policy(name: str) -> PolicyFile:
    """What a policy's file holds.

    Args:
        name: of the file, or ``bundled:NAME``.

    Raises:
        ModelError: it cannot be read.
    """
    from radial.plans.measured.policy_file import policy_path, read_policy  # bring numpy

    return read_policy(policy_path(name))
