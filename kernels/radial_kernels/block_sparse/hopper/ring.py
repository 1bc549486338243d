"""A ring of tiles in shared memory between the warp that loads and the warps that compute.

Each slot has two barriers: ``full`` completes when the copy engine has written the tile, ``empty`` when every consumer
has read it. Both flip phase once a round, so step i waits for phase i // STAGES.
"""

# No postponed annotations here: an aggregate reads its fields' types.
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.language.core import _aggregate as aggregate


@aggregate
class Ring:
    """STAGES slots, each a tile of a tensor descriptor's block."""

    slots: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    STAGES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, slots, full, empty, STAGES):
        self.slots = slots
        self.full = full
        self.empty = empty
        self.STAGES = gl.constexpr(STAGES)

    @gluon.jit
    def claim(self, step, size: gl.constexpr):
        """Wait for the step's slot to be read, and announce how many bytes will be copied for it."""
        slot = step % self.STAGES
        mbarrier.wait(self.empty.index(slot), (step // self.STAGES & 1) ^ 1)
        mbarrier.expect(self.full.index(slot), size)
        return slot

    @gluon.jit
    def fill(self, step, descriptor, coordinates):
        """Claim the step's slot and start copying its tile."""
        slot = self.claim(step, descriptor.block_type.nbytes)
        tma.async_copy_global_to_shared(descriptor, coordinates, self.full.index(slot), self.slots.index(slot))

    @gluon.jit
    def tile(self, step, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
        """Wait for the step's tile and view it as a matrix."""
        slot = step % self.STAGES
        mbarrier.wait(self.full.index(slot), step // self.STAGES & 1)
        return self.slots.index(slot).reshape([ROWS, COLUMNS])

    @gluon.jit
    def release(self, step, pred=True):
        """Say that one consumer has read the step's tile."""
        mbarrier.arrive(self.empty.index(step % self.STAGES), pred=pred)


@gluon.jit
def make_ring(descriptor, STAGES: gl.constexpr, CONSUMERS: gl.constexpr):
    """Allocate a ring; every consumer must release every tile."""
    slots = gl.allocate_shared_memory(descriptor.dtype, [STAGES] + descriptor.block_shape, descriptor.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=CONSUMERS)
    return Ring(slots, full, empty, STAGES)


@gluon.jit
def make_barrier():
    """A barrier that one copy completes once."""
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(barrier, count=1)
    return barrier
