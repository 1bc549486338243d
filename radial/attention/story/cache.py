"""Keys and values of finished chunks, for those to come.

Keys are kept as they are before they are turned along time, so that each chunk reads them at the distances that
:class:`~radial.plans.story.memory.StoryPlan` says. What no later chunk reads is let go of, and what is read in part is
kept in part. Learned tokens of a finished segment are kept as a chunk is, by a call of their own.

Shapes: B stories, S tokens, G heads, D head dim; calls may hold several branches of guidance of the same stories.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from radial.attention.story.framewise import Turning
from radial.plans.story.memory import Read, StoryPlan, thinned
from radial_kernels import block_sparse
from radial_kernels.block_sparse import BlockLists

_Pair = tuple[Tensor, Tensor]  # keys and values


class StoryCache:
    """The cache of one story, or of several of one plan.

    Args:
        height, width: rows and columns of tokens of a latent frame.
        rewrites: chunks that may be written once more.
    """

    def __init__(self, plan: StoryPlan, transformer: Any, height: int, width: int, *, rewrites: int = 0) -> None:
        self.plan, self._height, self._width, self._rewrites = plan, height, width, rewrites
        self._turning = Turning(transformer)
        self._layers = len(transformer.blocks)
        self._frames: dict[int, list[_Pair]] = {}  # by latent frame, a pair a layer
        self._thinning: dict[int, int] = {}
        self._sums: dict[int, dict[int, list[_Pair]]] = {}  # of the frames of a segment, by chunk, where means are kept
        self._learned: dict[int, list[_Pair]] = {}  # by segment, of learned tokens
        self._chunk, self._newest = 0, 0
        self._segment: int | None = None  # whose learned tokens the call is of
        self._past: list[_Pair] = []  # what the chunk reads, a pair a layer, keys turned
        self._own: list[_Pair] = []  # of the call, a pair a layer
        self._angles: _Pair | None = None
        self.lists: BlockLists | None = None

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values are kept in each layer."""
        pairs = [layers[0] for layers in self._frames.values()]
        pairs += [layers[0] for sums in self._sums.values() for layers in sums.values()]
        pairs += [layers[0] for layers in self._learned.values()]
        return sum(keys.shape[1] for keys, _ in pairs)

    @property
    def bytes(self) -> int:
        """Of all keys and values that are kept."""
        kept = [pair for layers in self._frames.values() for pair in layers]
        kept += [pair for sums in self._sums.values() for layers in sums.values() for pair in layers]
        kept += [pair for layers in self._learned.values() for pair in layers]
        return sum(x.nbytes for pair in kept for x in pair)

    def begin(self, chunk: int, device: torch.device, *, lists: BlockLists | None = None) -> None:
        """Make ready what a chunk reads.

        Args:
            lists: the blocks that its queries see, its frames from the last one back, of itself, in that order too, and
                of what it reads, from the newest back; all when left out.
        """
        self._chunk, self._segment, self.lists = chunk, None, lists
        self._make_ready(self.plan.reads(chunk)[::-1], len(self.plan.frames_of(chunk)), device)

    def begin_learned(self, segment: int, device: torch.device) -> None:
        """Make ready what learned tokens of a segment read, whose last chunk was written."""
        self._segment, self.lists = segment, None
        self._make_ready(self.plan.gathers(segment)[::-1], 1, device)

    def _make_ready(self, reads: Sequence[Read], count: int, device: torch.device) -> None:
        base, size = self.plan.memory.reach, self._height * self._width
        frames = torch.arange(count, device=device)
        self._angles = self._turning.angles((base + frames).repeat_interleave(size))
        self._past = []
        if not reads:
            return
        places = [base - read.distance for read in reads for _ in self._left(read)]
        angles = self._turning.angles(torch.tensor(places, device=device))
        for layer in range(self._layers):
            keys, values = zip(*(self.read(read, layer) for read in reads), strict=True)
            self._past.append((self._turning.turn(torch.cat(keys, 1), angles), torch.cat(values, 1)))

    def _left(self, read: Read) -> tuple[int, ...]:
        return self.plan.tokens_of(read, self._height, self._width)

    def attend(self, layer: int, q_BSGD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor) -> Tensor:
        """A chunk's attention to what it reads and to itself; that of learned tokens, to what they read alone."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        assert self._angles is not None
        if layer == 0:
            self._own = []
        self._own.append((k_BSGD, v_BSGD))
        q, k = (self._turning.turn(x, self._angles) for x in (q_BSGD, k_BSGD))
        v = v_BSGD
        if self.lists is not None:
            q, k, v = (self._backwards(x) for x in (q, k, v))
        if self._segment is not None:
            k, v = self._past[layer]
        elif self._past:
            branches = len(q) // len(self._past[0][0])
            k, v = (
                torch.cat([own, past.repeat(branches, 1, 1, 1)], 1)
                for past, own in zip(self._past[layer], (k, v), strict=True)
            )
        if self.lists is not None:
            return self._backwards(block_sparse.attention(q, k, v, self.lists))
        out: Tensor = dispatch_attention_fn(q, k, v)
        return out

    def _backwards(self, x_BSGD: Tensor) -> Tensor:
        """A chunk's frames from the last one back."""
        return x_BSGD.unflatten(1, (-1, self._height * self._width)).flip(1).flatten(1, 2)

    def write(self) -> None:
        """Keep the keys and values of the last call, which was of the clean chunk or of learned tokens, and let go of
        what is not read any more."""
        if self._segment is not None:
            places = self._left(Read((), 1, 0, self._segment))
            index = torch.tensor(places, device=self._own[0][0].device)
            self._learned[self._segment] = [(k[:, index], v[:, index]) for k, v in self._own]
            self._own = []
            return
        size = self._height * self._width
        frames = self.plan.frames_of(self._chunk)
        self._newest = max(self._newest, self._chunk)
        for place, frame in enumerate(frames):
            own = slice(place * size, (place + 1) * size)
            self._frames[frame] = [(k[:, own].clone(), v[:, own].clone()) for k, v in self._own]
            self._thinning[frame] = 1
        if self.plan.memory.kind == "mean_pool" and self.plan.segment_of(self._chunk) not in self.plan.dropped:
            first = size if frames[0] == 0 else 0  # the first frame is seen by itself
            self._sums.setdefault(self.plan.segment_of(self._chunk), {})[self._chunk] = [
                (k[:, first:].unflatten(1, (-1, size)).sum(1), v[:, first:].unflatten(1, (-1, size)).sum(1))
                for k, v in self._own
            ]
            self._join_sums()
        self._own = []
        self._let_go()

    def read(self, read: Read, layer: int) -> _Pair:
        """Keys, not turned, and values of what a chunk reads."""
        if read.segment is not None:
            return self._learned[read.segment][layer]
        if len(read.frames) > 1 or read.frames[0] not in self._frames:  # a mean, whose frames need not be kept
            sums = self._sums[self.plan.segment_of_frame(read.frames[0])]
            parts = [layers[layer] for _, layers in sorted(sums.items())]
            keys, values = (torch.stack(x).sum(0) / len(read.frames) for x in zip(*parts, strict=True))
            return keys, values
        (frame,) = read.frames
        chosen = self._chosen(self._thinning[frame], read.thinning)
        pair = self._frames[frame][layer]
        if chosen is None:
            return pair
        index = torch.tensor(chosen, device=pair[0].device)
        return pair[0][:, index], pair[1][:, index]

    def _chosen(self, before: int, after: int) -> list[int] | None:
        """Places, among the tokens that a thinning leaves, of those that another leaves."""
        return _places(self._height, self._width, before, after)

    def _join_sums(self) -> None:
        """Sums of chunks that will not be written again become one."""
        first = self._newest + 1 - self._rewrites
        for sums in self._sums.values():
            done = [chunk for chunk in sorted(sums) if chunk < first]
            if len(done) > 1:
                parts = [sums.pop(chunk) for chunk in done]
                sums[done[0]] = [
                    (torch.stack(k).sum(0), torch.stack(v).sum(0))
                    for k, v in (zip(*layer, strict=True) for layer in zip(*parts, strict=True))
                ]

    def _let_go(self) -> None:
        kept = self.plan.kept(self._newest, self._rewrites)
        for frame in list(self._frames):
            if frame not in kept:
                del self._frames[frame], self._thinning[frame]
            elif (chosen := self._chosen(self._thinning[frame], kept[frame])) is not None:
                index = torch.tensor(chosen, device=self._frames[frame][0][0].device)
                self._frames[frame] = [(k[:, index], v[:, index]) for k, v in self._frames[frame]]
                self._thinning[frame] = kept[frame]


@functools.lru_cache(maxsize=256)
def _places(height: int, width: int, before: int, after: int) -> list[int] | None:
    if after <= before:
        return None
    there = {token: place for place, token in enumerate(thinned(height, width, before))}
    return [there[token] for token in thinned(height, width, after)]
