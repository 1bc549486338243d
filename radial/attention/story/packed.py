"""All chunks of a story at once: its clean frames and then its noisy ones, each chunk seeing what it will see in
generation. This is how a model learns to make a story chunk by chunk, and what a cache must agree with. Behind them are
frames of learned tokens, one a segment, where that is what segments leave, and then further noisy copies of chunks.

Where a frame is whole blocks, one call of the block-sparse kernel computes a layer; elsewhere a call a chunk. What is
seen at another distance than its own is copied for it.

Shapes: B stories, T latent frames, P tokens of a frame, F frames of the sequence, S = F P tokens, G heads, D head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radial.attention.context import all_of_any_length, of_any_length
from radial.attention.story.framewise import Turning
from radial.plans.story.memory import Copy, Read, StoryPlan
from radial_kernels import block_sparse
from radial_kernels.block_sparse import BLOCK_SIZES, BlockLists

_LARGEST = 128


@dataclass(frozen=True)
class _View:
    """Frames of the sequence that see the same.

    Attributes:
        rows: the frames, in runs of which each sees itself, where ``own``.
        start: where in the story they begin, from which distances count.
        near: clean frames that they see as they are.
        far: what they see at a distance that is not its own.
    """

    rows: tuple[range, ...]
    start: int
    near: range
    far: tuple[Read, ...] = ()
    own: bool = True


class PackedStory:
    """Attention of a whole story, ``[clean | noisy | learned | copies]``.

    Args:
        height, width: rows and columns of tokens of a latent frame.
        copies: further noisy copies of chunks, in the order of the sequence.
        in_blocks: whether one call computes all chunks; where a frame is whole blocks when left out.

    Attributes:
        frames: of the sequence.
        learned: those of them that are learned tokens.

    Raises:
        RequestError: a frame has fewer tokens than a segment's learned ones.
    """

    def __init__(
        self, plan: StoryPlan, transformer: Any, height: int, width: int, device: torch.device, *,
        copies: Sequence[Copy] = (), in_blocks: bool | None = None,
    ) -> None:  # fmt: skip
        self.plan, self._height, self._width = plan, height, width
        self._turning, self._size = Turning(transformer), height * width
        learned = len(plan.segment_chunks) if plan.memory.kind == "learned" else 0
        self.learned = range(2 * plan.frames, 2 * plan.frames + learned)
        self.frames = self.learned.stop + sum(len(copy.frames) for copy in copies)
        self._views = (*self._chunk_views(), *self._learned_views(), *self._copy_views(copies))
        sizes = {self._size, *(len(self._left(read)) for view in self._views for read in view.far)}
        block = max((b for b in BLOCK_SIZES if b <= _LARGEST and all(size % b == 0 for size in sizes)), default=None)
        if in_blocks and block is None:
            raise ValueError(f"frames of {self._size} tokens, and what is left of them, are not whole blocks")
        self.block_size = None if in_blocks is False else block
        base = plan.memory.reach
        times = torch.empty(self.frames, dtype=torch.long)
        for view in self._views:
            for row in view.rows:
                times[row.start : row.stop] = base + view.start + torch.arange(len(row))
        if (wanted := int(times.max()) + 1) > self._turning.places:
            raise ValueError(f"the model knows {self._turning.places} places in time, and this story needs {wanted}")
        self._angles = self._turning.angles(times.repeat_interleave(self._size).to(device))
        far = [(base + view.start - read.distance, len(self._left(read))) for view in self._views for read in view.far]
        places, counts = torch.tensor(far, dtype=torch.long).view(-1, 2).unbind(1)
        self._far_angles = self._turning.angles(places.repeat_interleave(counts).to(device))
        self._token_of_far = self._tokens_of_far(device)
        self.lists = None if self.block_size is None else self._make_lists(self.block_size, device)
        # Stories of one length share what torch.compile makes of a block, however they are cut.
        all_of_any_length(self.lists)
        for one in (*self._far_angles, *self._token_of_far):
            of_any_length(one)

    def __call__(self, layer: int, q_BSGD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor) -> Tensor:
        """Attention of all frames of the sequence."""
        q, k = (self._turning.turn(x, self._angles) for x in (q_BSGD, k_BSGD))
        far_k, far_v = (self._copy_far(x) for x in (k_BSGD, v_BSGD))
        if far_k is not None:
            far_k = self._turning.turn(far_k, self._far_angles)
        if self.lists is not None:
            v = v_BSGD
            if far_k is not None and far_v is not None:
                k, v = torch.cat([k, far_k], 1), torch.cat([v, far_v], 1)
            return block_sparse.attention(q, k, v, self.lists)
        return self._chunk_by_chunk(q, k, v_BSGD, far_k, far_v)

    def _chunk_views(self) -> Iterator[_View]:
        """Of clean chunks and their noisy ones, which see what each chunk's plan says."""
        for chunk in range(self.plan.chunks):
            frames, reads = self.plan.frames_of(chunk), self.plan.reads(chunk)
            far = tuple(read for read in reads if read.distance > self.plan.memory.window_frames)
            noisy = range(self.plan.frames + frames.start, self.plan.frames + frames.stop)
            near = range(frames.start - len(reads) + len(far), frames.start)
            yield _View((frames, noisy), frames.start, near, far)

    def _learned_views(self) -> Iterator[_View]:
        """Of learned tokens, which read their segment, and not each other."""
        for segment, frame in enumerate(self.learned):
            reads, stop = self.plan.gathers(segment), self.plan.segment_frames(segment).stop
            yield _View((range(frame, frame + 1),), stop, range(stop - len(reads), stop), own=False)

    def _copy_views(self, copies: Sequence[Copy]) -> Iterator[_View]:
        first = self.learned.stop
        for copy in copies:
            yield _View((range(first, first + len(copy.frames)),), copy.frames.start, range(0), copy.reads)
            first += len(copy.frames)

    def _rows(self) -> list[tuple[range, _View, range]]:
        """The runs of frames in their order, what they see, and which tokens of what is copied are for them."""
        found, first = [], 0
        for view in self._views:
            far = range(first, first + sum(len(self._left(read)) for read in view.far))
            found += [(row, view, far) for row in view.rows]
            first = far.stop
        return sorted(found, key=lambda one: one[0].start)

    def _left(self, read: Read) -> tuple[int, ...]:
        return self.plan.tokens_of(read, self._height, self._width)

    def _tokens_of_far(self, device: torch.device) -> list[Tensor]:
        """For copies of single frames, the tokens that they are; for means, those of all frames, a row each."""
        reads = [read for view in self._views for read in view.far]
        if not reads:
            return []
        as_tensor = functools.cache(torch.tensor)
        left = [as_tensor(self._left(read)) for read in reads]
        sources = [read.frames if read.segment is None else (self.learned[read.segment],) for read in reads]
        if any(len(frames) > 1 for frames in sources):
            found = [torch.tensor(f)[:, None] * self._size + own for f, own in zip(sources, left, strict=True)]
            return [tokens.to(device) for tokens in found]
        first = torch.tensor([frame * self._size for (frame,) in sources])
        counts = torch.tensor([len(own) for own in left])
        return [(torch.cat(left) + first.repeat_interleave(counts))[None].to(device)]

    def _copy_far(self, x_BSGD: Tensor) -> Tensor | None:
        if not self._token_of_far:
            return None
        copies = [
            x_BSGD[:, tokens[0]] if len(tokens) == 1 else x_BSGD[:, tokens].mean(1) for tokens in self._token_of_far
        ]
        return copies[0] if len(copies) == 1 else torch.cat(copies, 1)

    def _make_lists(self, block: int, device: torch.device) -> BlockLists:
        whole, keys = self._size // block, self.frames * self._size // block
        columns: list[int] = []
        ends = [0]
        for row, view, far in self._rows():
            seen = [*view.near, *(row if view.own else ())]
            kept = [frame * whole + part for frame in seen for part in range(whole)]
            kept += range(keys + far.start // block, keys + far.stop // block)
            for _ in range(len(row) * whole):
                columns += kept
                ends.append(len(columns))
        lists = BlockLists(
            torch.tensor(ends, dtype=torch.int32), torch.tensor(columns, dtype=torch.int32), block_size=block
        )
        length = self.frames * self._size + sum(tokens.shape[1] for tokens in self._token_of_far)
        return lists.check(length).with_columns(length).to(device)

    def _chunk_by_chunk(self, q: Tensor, k: Tensor, v: Tensor, far_k: Tensor | None, far_v: Tensor | None) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        size, made = self._size, []
        for row, view, far in self._rows():
            own = slice(row.start * size, row.stop * size)
            near = slice(view.near.start * size, view.near.stop * size)
            keys, values = [k[:, near]], [v[:, near]]
            if view.own:
                keys, values = [*keys, k[:, own]], [*values, v[:, own]]
            if far_k is not None and far_v is not None and far:
                keys, values = [far_k[:, far.start : far.stop], *keys], [far_v[:, far.start : far.stop], *values]
            made.append(dispatch_attention_fn(q[:, own], torch.cat(keys, 1), torch.cat(values, 1)))
        return torch.cat(made, 1)
