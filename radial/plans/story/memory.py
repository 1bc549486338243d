"""What a chunk of a story sees: the first frame, a memory of every earlier segment, a window, and itself.

A story's latent frames lie in segments, one a prompt, and in chunks, which are made one after the other; a segment is
whole chunks. Latent frame 0, which stands for one frame of the film, comes first in chunk 0. Training and generation
both ask here, so that they see the same at the same distances.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from radial.errors import RequestError

MemoryKind = Literal["none", "last_frame", "mean_pool", "radial", "learned"]
_TOKENS = 64  # of a learned memory that does not say how many


class StoryMemory(BaseModel):
    """How much of a story a model that makes it chunk by chunk sees; said by the adapter that made it so.

    Attributes:
        chunk_frames: latent frames of a chunk.
        window_frames: latent frames before a chunk that it sees whole.
        first_frame: whether a chunk sees the first frame of all.
        kind: what a segment leaves: nothing; its last latent frame; the mean of its frames' keys and values; as
            ``radial``, 2^-floor(log2 a) of its tokens when it is a segments back, so that all memory grows with the
            logarithm of the story; or, as ``learned``, tokens that are trained to read it.
        memory_frames: latent frames that a radial memory keeps of the segment before; all of them when left out.
        memory_thinning: one token in so many is left of a ``last_frame``, a power of two.
        memory_tokens: of a ``learned`` memory, how many a segment leaves; 64 when left out.
        memory_positions: distances behind the window that memory can have. What is older shares the last one, so that
            no distance is beyond those that were trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_frames: Annotated[int, Field(ge=1, le=64)] = 4
    window_frames: Annotated[int, Field(ge=1, le=512)] = 8
    first_frame: bool = True
    kind: MemoryKind = "last_frame"
    memory_frames: Annotated[int, Field(ge=1, le=512)] | None = None
    memory_thinning: Annotated[int, Field(ge=1, le=1024)] = 1
    memory_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    memory_positions: Annotated[int, Field(ge=1, le=256)] = 16

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "learned" and values.get("memory_tokens") is None:
            return values | {"memory_tokens": _TOKENS}
        return values

    @model_serializer(mode="wrap")
    def _leave_out_what_is_open(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before there were learned memories, so that what was begun then is known again."""
        return {name: value for name, value in dump(self).items() if name != "memory_tokens" or value is not None}

    @model_validator(mode="after")
    def _goes_together(self) -> StoryMemory:
        if self.memory_thinning & (self.memory_thinning - 1):
            below = 1 << (self.memory_thinning.bit_length() - 1)
            raise ValueError(f"memory_thinning must be a power of two such as {below}, not {self.memory_thinning}")
        if self.memory_thinning > 1 and self.kind != "last_frame":
            raise ValueError(f"memory_thinning is of last_frame, and the memory is {self.kind}: leave it out")
        if self.memory_frames is not None and self.kind != "radial":
            raise ValueError(f"memory_frames is of a radial memory, and this one is {self.kind}: leave it out")
        if self.memory_tokens is not None and self.kind != "learned":
            raise ValueError(f"memory_tokens is of a learned memory, and this one is {self.kind}: leave it out")
        return self

    @property
    def reach(self) -> int:
        """The largest distance, in latent frames, from a chunk's first frame to anything that it sees."""
        return self.window_frames + 1 + self.memory_positions


@dataclass(frozen=True)
class Read:
    """What a chunk sees of the past, at one place in time.

    Attributes:
        frames: which latent frame; of several, the mean of their keys and of their values.
        thinning: one token in so many is left of it, a power of two.
        distance: of its keys to the chunk's first frame, in latent frames.
        segment: whose learned tokens it is, in place of frames.
    """

    frames: tuple[int, ...]
    thinning: int
    distance: int
    segment: int | None = None


@dataclass(frozen=True)
class Copy:
    """A further noisy copy of a chunk in training, which sees what is remembered, as it is told here, and itself.

    Attributes:
        frames: latent frames of one chunk; never the first of all.
        reads: at distances to the first of these.
    """

    frames: range
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class StoryPlan:
    """The chunks of a story.

    Attributes:
        segment_chunks: how many chunks each segment has.
        cuts: segments before which the picture cuts: their window does not reach beyond their own first frame.
        pinned: segments whose memory is read whole, and nearer than that of all others.
        dropped: segments of which nothing is remembered.
        replaced: segments, each with the one whose memory is read in its place once that one is finished. What would
            be read twice is read at the nearer of its places.
    """

    memory: StoryMemory
    segment_chunks: tuple[int, ...]
    cuts: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    replaced: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.segment_chunks or min(self.segment_chunks) < 1:
            raise RequestError("a story needs a segment, and each segment a chunk at least")
        if self.pinned or self.dropped or self.replaced:
            _check_remembered(self)

    @property
    def chunks(self) -> int:
        return sum(self.segment_chunks)

    @property
    def frames(self) -> int:
        """Latent frames of the whole story."""
        return 1 + self.chunks * self.memory.chunk_frames

    def frames_of(self, chunk: int) -> range:
        """The latent frames of a chunk."""
        size = self.memory.chunk_frames
        return range(0 if chunk == 0 else 1 + chunk * size, 1 + (chunk + 1) * size)

    def segment_of(self, chunk: int) -> int:
        """The segment that a chunk belongs to."""
        return _segments(self)[chunk]

    def segment_of_frame(self, frame: int) -> int:
        """The segment that a latent frame belongs to."""
        return self.segment_of(max(0, frame - 1) // self.memory.chunk_frames)

    def segment_frames(self, segment: int) -> range:
        """The latent frames of a segment."""
        first = sum(self.segment_chunks[:segment])
        return range(self.frames_of(first).start, self.frames_of(first + self.segment_chunks[segment] - 1).stop)

    def reads(self, chunk: int) -> tuple[Read, ...]:
        """What a chunk sees beside itself: memory from the oldest on, the first frame, the window."""
        return _reads(self, chunk)

    def gathers(self, segment: int) -> tuple[Read, ...]:
        """What learned tokens of a segment read of it once it is finished, from where its next frame would be: what of
        it lies in the window there."""
        frames = self.segment_frames(segment)
        first = max(frames.start, frames.stop - self.memory.window_frames)
        return tuple(Read((frame,), 1, frames.stop - frame) for frame in range(first, frames.stop))

    def reconstruction(self, segment: int) -> tuple[Copy, ...]:
        """Copies of a segment's chunks that see that segment's memory alone, as it will be read when the story has
        ended."""
        last = len(self.segment_chunks)
        reads = (read for read in _remembered(self, last, self.frames) if self.segment_remembered(read) == segment)
        return self._copies(segment, tuple(reads))

    def recall(self, segment: int) -> tuple[Copy, ...]:
        """Copies of a segment's chunks that see the memory of all segments before it alone, as it is read behind a
        cut."""
        return self._copies(segment, _remembered(self, segment, self.segment_frames(segment).start))

    def segment_remembered(self, read: Read) -> int:
        """The segment that something which is remembered is of."""
        return self.segment_of_frame(read.frames[-1]) if read.segment is None else read.segment

    def is_read_whole(self, read: Read) -> bool:
        """Whether frames are read whole by a chunk that reads others sparsely: the first of all, and what is pinned."""
        is_memory = read.segment is None and read.distance > self.memory.window_frames + 1
        return read.frames == (0,) or (is_memory and self.segment_remembered(read) in self.pinned)

    def _copies(self, segment: int, reads: tuple[Read, ...]) -> tuple[Copy, ...]:
        first = sum(self.segment_chunks[:segment])
        chunks = (self.frames_of(chunk) for chunk in range(first, first + self.segment_chunks[segment]))
        return tuple(Copy(range(max(1, frames.start), frames.stop), reads[::-1]) for frames in chunks)

    def tokens_of(self, read: Read, height: int, width: int) -> tuple[int, ...]:
        """The tokens that are left of what is read, by raster position in a frame of so many rows and columns."""
        if read.segment is None:
            return thinned(height, width, read.thinning)
        return spread(height, width, self.memory.memory_tokens or 0)

    def kept(self, chunk: int, before: int = 0) -> dict[int, int]:
        """The latent frames whose keys and values are needed after a chunk was made, and how far each may be thinned.

        Args:
            before: chunks that may be written once more.
        """
        memory, segment = self.memory, self.segment_of(chunk)
        stop, first = self.frames_of(chunk).stop, max(0, chunk + 1 - before)
        begin = self.frames_of(first).start if before else stop  # of what is made next
        kept = {0: 1} | dict.fromkeys(range(max(0, begin - memory.window_frames), stop), 1)
        now = self.segment_of(min(first, chunk))  # as old as it was to the chunks that may be written once more
        for earlier in range(segment + 1):
            frames, age = self.segment_frames(earlier), _least_age(self, earlier, now)
            if age is None:
                continue
            if memory.kind == "last_frame" and frames.stop <= stop:
                kept[frames[-1]] = min(kept.get(frames[-1], memory.memory_thinning), _thinning(memory, age))
            elif memory.kind == "radial" and earlier == segment:
                kept |= dict.fromkeys(range(frames.start, min(frames.stop, stop)), 1)
            elif memory.kind == "radial":
                for frame, thinning in _left(memory, frames, age):
                    kept.setdefault(frame, thinning)
        return kept

    def tokens_seen(self, chunk: int, height: int, width: int) -> int:
        """Tokens that a chunk attends to, itself included, on frames of so many rows and columns of tokens."""
        past = sum(len(self.tokens_of(read, height, width)) for read in self.reads(chunk))
        return past + len(self.frames_of(chunk)) * height * width


@functools.lru_cache(maxsize=256)
def _segments(plan: StoryPlan) -> tuple[int, ...]:
    return tuple(number for number, chunks in enumerate(plan.segment_chunks) for _ in range(chunks))


@functools.lru_cache(maxsize=4096)
def _reads(plan: StoryPlan, chunk: int) -> tuple[Read, ...]:
    memory = plan.memory
    start, segment = plan.frames_of(chunk).start, plan.segment_of(chunk)
    cut = max((one for one in plan.cuts if 0 < one <= segment), default=0)
    first = max(0, start - memory.window_frames, plan.segment_frames(cut).start)
    window = [Read((frame,), 1, start - frame) for frame in range(first, start)]
    if first == 0:
        return tuple(window)
    sink = [Read((0,), 1, memory.window_frames + 1)] if memory.first_frame else []
    return (*reversed(_remembered(plan, segment, first)), *sink, *window)


def _remembered(plan: StoryPlan, segment: int, first: int) -> tuple[Read, ...]:
    """What chunks of a segment remember of those before, from the newest on, where their window begins at a frame."""
    memory = plan.memory
    left: list[tuple[int, Read]] = []  # with the last frame that each is of
    for earlier, age in _ages(plan, segment).items():
        frames = plan.segment_frames(earlier)
        if memory.kind == "last_frame":
            left.append((frames[-1], Read((frames[-1],), _thinning(memory, age), 0)))
        elif memory.kind == "mean_pool":
            left.append((frames[-1], Read(tuple(frame for frame in frames if frame), 1, 0)))
        elif memory.kind == "learned":
            left.append((frames[-1], Read((), 1, 0, earlier)))
        elif memory.kind == "radial":
            left += [(frame, Read((frame,), thin, 0)) for frame, thin in _left(memory, frames, age)]
    # What the window shows is seen there; a mean is, until the window has left its segment.
    reads = (read for last, read in left if last < first and read.frames != (0,))
    behind = memory.window_frames + 2
    return tuple(
        replace(read, distance=behind + min(place, memory.memory_positions - 1)) for place, read in enumerate(reads)
    )


_PINNED = 0  # the age of what is never thinned


def _ages(plan: StoryPlan, segment: int) -> dict[int, int]:
    """The segments whose memory chunks of a segment read, from the nearest on, and how old each counts."""
    if not (plan.pinned or plan.dropped or plan.replaced):
        return {one: segment - one for one in reversed(range(segment))}
    pinned, dropped = set(plan.pinned), set(plan.dropped)
    replaced = {one: other for one, other in plan.replaced if other < segment}
    earlier = [one for one in reversed(range(segment)) if one not in dropped]
    found: dict[int, int] = {}
    for one in sorted(earlier, key=lambda one: one not in pinned):
        found.setdefault(replaced.get(one, one), _PINNED if one in pinned else segment - one)
    return found


def _least_age(plan: StoryPlan, segment: int, now: int) -> int | None:
    """How old the memory of a segment counts at least to chunks of segment ``now`` and later ones; None where none of
    them reads it."""
    if segment in plan.pinned:
        return _PINNED
    own = segment not in plan.dropped and all(one != segment or now <= other for one, other in plan.replaced)
    places = [segment] * own + [one for one, other in plan.replaced if other == segment]
    return min((max(1, now - one) for one in places), default=None)


def _thinning(memory: StoryMemory, age: int) -> int:
    return 1 if age == _PINNED else memory.memory_thinning


def _check_remembered(plan: StoryPlan) -> None:
    """Raise RequestError where memory cannot be as its user wants it."""
    memory, count, replaced = plan.memory, len(plan.segment_chunks), dict(plan.replaced)
    if memory.kind == "none":
        raise RequestError("this story remembers nothing (remember none), so no segment's memory is pinned, dropped or "
                           "replaced: leave that out, or choose another memory")  # fmt: skip
    for one, other in plan.replaced:
        told = f"segment {one + 1} is remembered as segment {other + 1}"
        if not 0 <= other < count:
            raise RequestError(f"{told}, and the story has {count}: name one of them")
        if other == one:
            raise RequestError(f"{told}, which is itself: leave that out, or name another")
        if other in plan.dropped:
            raise RequestError(f"{told}, which is dropped: name another, or keep that one")
        if other in replaced:
            raise RequestError(f"{told}, and that one as segment {replaced[other] + 1}: name the one that is read")
    places = len(plan.pinned)
    if memory.kind == "radial":
        left = [one for segment in plan.pinned for one in _left(memory, plan.segment_frames(segment), _PINNED)]
        places = sum(frame > 0 for frame, _ in left)
    if places > (most := memory.memory_positions - 1):  # the last place is shared by all that is older
        fewer = ", or fewer memory_frames" if memory.kind == "radial" else ""
        raise RequestError(
            f"what is pinned takes {places} places of memory, and there are {most} for it: pin less, or take more "
            f"memory_positions{fewer}"
        )


def _left(memory: StoryMemory, frames: range, age: int) -> list[tuple[int, int]]:
    """What is left of a segment at an age: frames and their thinning, from the last frame on. What is left later is
    part of what was left before."""
    most = min(len(frames), memory.memory_frames or len(frames))
    halvings = max(1, age).bit_length() - 1
    own = min(halvings, most.bit_length() - 1)  # of its frames; the rest are of the tokens of the one that is left
    return [(frames[-1 - (place << own)], 1 << (halvings - own)) for place in range(most >> own)]


@functools.lru_cache(maxsize=64)
def thinned(height: int, width: int, thinning: int) -> tuple[int, ...]:
    """The tokens of a frame, by raster position, of which one in so many is left, spread evenly: every other one as on
    a chessboard, every other row and column, and so on; one at least."""
    kept = [(row, column) for row in range(height) for column in range(width)]
    side = 1
    while thinning > 1 and len(kept) > 1:
        board = [(r, c) for r, c in kept if (r // side + c // side) % 2 == 0]
        thinning //= 2
        kept = board if board else kept[:1]
        if thinning > 1 and len(kept) > 1:
            rows = [(r, c) for r, c in kept if (r // side) % 2 == 0]
            thinning, side = thinning // 2, side * 2
            kept = rows if rows else kept[:1]
    return tuple(row * width + column for row, column in kept)


@functools.lru_cache(maxsize=64)
def spread(height: int, width: int, count: int) -> tuple[int, ...]:
    """The raster positions of so many learned tokens in a frame.

    Raises:
        RequestError: the frame has fewer.
    """
    size = height * width
    if count > size:
        raise RequestError(f"a memory of {count} learned tokens is more than the {size} of a latent frame: take a "
                           "larger size, or fewer memory_tokens")  # fmt: skip
    return tuple((2 * place + 1) * size // (2 * count) for place in range(count))
