"""All chunks of a story at once: its clean frames and then its noisy ones, each chunk seeing what it will see in
generation. This is how a model learns to make a story chunk by chunk, and what a cache must agree with.

Where a frame is whole blocks, one call of the block-sparse kernel computes a layer; elsewhere a call a chunk. Frames of
a chunk's memory are copied for it, so that they have the distances that it reads them at.

Shapes: B stories, T latent frames, P tokens of a frame, S = 2 T P tokens, G heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from radial.attention.context import all_of_any_length, of_any_length
from radial.attention.story.framewise import Turning
from radial.plans.story.memory import Read, StoryPlan, thinned
from radial_kernels import block_sparse
from radial_kernels.block_sparse import BLOCK_SIZES, BlockLists

_LARGEST = 128


class PackedStory:
    """Attention of a whole story, ``[clean | noisy]``.

    Args:
        height, width: rows and columns of tokens of a latent frame.
        in_blocks: whether one call computes all chunks; where a frame is whole blocks when left out.
    """

    def __init__(
        self, plan: StoryPlan, transformer: Any, height: int, width: int, device: torch.device, *,
        in_blocks: bool | None = None,
    ) -> None:  # fmt: skip
        self.plan, self._height, self._width = plan, height, width
        self._turning, self._size = Turning(transformer), height * width
        self._far = [self._far_reads(chunk) for chunk in range(plan.chunks)]
        sizes = {self._size, *(self._left(read) for reads in self._far for read in reads)}
        block = max((b for b in BLOCK_SIZES if b <= _LARGEST and all(size % b == 0 for size in sizes)), default=None)
        if in_blocks and block is None:
            raise ValueError(f"frames of {self._size} tokens, and what is left of them, are not whole blocks")
        self.block_size = None if in_blocks is False else block
        base = plan.memory.reach
        frames = torch.arange(plan.frames, device=device).repeat_interleave(self._size)
        self._angles = self._turning.angles(torch.cat([frames, frames]) + base)
        places = [
            base + plan.frames_of(chunk).start - read.distance
            for chunk, reads in enumerate(self._far) for read in reads for _ in range(self._left(read))
        ]  # fmt: skip
        if base + plan.frames > self._turning.places:
            raise ValueError(f"the model knows {self._turning.places} places in time, and this story needs "
                             f"{base + plan.frames}")  # fmt: skip
        self._far_angles = self._turning.angles(torch.tensor(places, dtype=torch.long, device=device))
        self._token_of_far = self._tokens_of_far(device)
        self.lists = None if self.block_size is None else self._make_lists(self.block_size, device)
        # Stories of one length share what torch.compile makes of a block, however they are cut.
        all_of_any_length(self.lists)
        for one in (*self._far_angles, *self._token_of_far):
            of_any_length(one)

    def __call__(self, layer: int, q_BSGD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor) -> Tensor:
        """Attention of clean and noisy chunks."""
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

    def _far_reads(self, chunk: int) -> list[Read]:
        """What is read at a distance that is not its own: the first frame, and memory."""
        return [read for read in self.plan.reads(chunk) if read.distance > self.plan.memory.window_frames]

    def _window(self, chunk: int) -> range:
        start = self.plan.frames_of(chunk).start
        far = self._far[chunk]
        return range(start - (len(self.plan.reads(chunk)) - len(far)), start)

    def _left(self, read: Read) -> int:
        return len(thinned(self._height, self._width, read.thinning))

    def _tokens_of_far(self, device: torch.device) -> list[Tensor]:
        """For copies of single frames, the clean tokens that they are; for means, those of all frames, a row each."""
        found = []
        for reads in self._far:
            for read in reads:
                left = torch.tensor(thinned(self._height, self._width, read.thinning))
                found.append(torch.tensor(read.frames)[:, None] * self._size + left)
        if all(len(tokens) == 1 for tokens in found):
            return [torch.cat(found, 1).to(device)] if found else []
        return [tokens.to(device) for tokens in found]

    def _copy_far(self, x_BSGD: Tensor) -> Tensor | None:
        if not self._token_of_far:
            return None
        copies = [
            x_BSGD[:, tokens[0]] if len(tokens) == 1 else x_BSGD[:, tokens].mean(1) for tokens in self._token_of_far
        ]
        return copies[0] if len(copies) == 1 else torch.cat(copies, 1)

    def _make_lists(self, block: int, device: torch.device) -> BlockLists:
        whole, frames = self._size // block, self.plan.frames
        columns: list[int] = []
        ends = [0]
        far_starts = [2 * frames * whole]
        for reads in self._far:
            far_starts.append(far_starts[-1] + sum(self._left(read) for read in reads) // block)
        for noisy in (0, frames):
            for chunk in range(self.plan.chunks):
                own = self.plan.frames_of(chunk)
                seen = [*self._window(chunk), *(noisy + frame for frame in own)]
                row = [frame * whole + part for frame in seen for part in range(whole)]
                row += range(far_starts[chunk], far_starts[chunk + 1])
                for _ in range(len(own) * whole):
                    columns += row
                    ends.append(len(columns))
        lists = BlockLists(
            torch.tensor(ends, dtype=torch.int32), torch.tensor(columns, dtype=torch.int32), block_size=block
        )
        keys = far_starts[-1] * block
        return lists.check(keys).with_columns(keys).to(device)

    def _chunk_by_chunk(self, q: Tensor, k: Tensor, v: Tensor, far_k: Tensor | None, far_v: Tensor | None) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        size, clean_tokens, place = self._size, self.plan.frames * self._size, 0
        made: tuple[list[Tensor], list[Tensor]] = ([], [])
        for chunk in range(self.plan.chunks):
            count = sum(self._left(read) for read in self._far[chunk])
            far = slice(place, place + count)
            place += count
            frames, window = self.plan.frames_of(chunk), self._window(chunk)
            near = slice(window.start * size, window.stop * size)
            for out, shift in zip(made, (0, clean_tokens), strict=True):
                own = slice(frames.start * size + shift, frames.stop * size + shift)
                keys, values = [k[:, near], k[:, own]], [v[:, near], v[:, own]]
                if far_k is not None and far_v is not None and count:
                    keys, values = [far_k[:, far], *keys], [far_v[:, far], *values]
                out.append(dispatch_attention_fn(q[:, own], torch.cat(keys, 1), torch.cat(values, 1)))
        return torch.cat([*made[0], *made[1]], 1)
