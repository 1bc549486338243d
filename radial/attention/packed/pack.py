"""Clips that share a sequence, each of which sees itself alone.

The tokens of all clips lie one clip after the other, and the words of all clips in another sequence, or behind them, in
the same order. Clips that are alike lie beside each other, so that they are a batch by a view: what is not computed on
each token alone is computed on every group of them. Nothing is copied or padded for it, and no clip is an operand of
another's.

Processes that share a pack hold a run of every clip's tokens each, and all words: what is computed on tokens is
computed on these, and for what attends they exchange, once for all clips, as :mod:`radial.attention.context_parallel`
does for one.

Shapes: B clips, N clips of a group, T tokens or words of one, S tokens of all clips that are held, L words of all, H
heads, D head dim, X what follows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from radial.attention.context_parallel import ContextParallel
from radial.errors import ModelError, RequestError
from radial.plans.layout import Layout


@dataclass(frozen=True)
class Budget:
    """What a pack may hold.

    Attributes:
        tokens: of all its clips together.
        pairs: of tokens of one clip, the sum of their squares, which attention takes; any number when left out.
    """

    tokens: int
    pairs: int | None = None

    def has_room(self, tokens: int, pairs: int) -> bool:
        """Whether a pack of so many may be."""
        return tokens <= self.tokens and (self.pairs is None or pairs <= self.pairs)

    def check(self, tokens: int, pairs: int, what: str) -> None:
        """Refuse what is too much.

        Raises:
            RequestError: it is.
        """
        if tokens > self.tokens:
            raise RequestError(f"{what} {tokens:,} tokens, and a pack has room for {self.tokens:,}: take fewer")
        if self.pairs is not None and pairs > self.pairs:
            raise RequestError(f"{what} {pairs:,} pairs of tokens, and a pack has room for {self.pairs:,}: take fewer")


class Places(NamedTuple):
    """Which clip each token that is held, and each word, is of: all that a compiled block knows of a pack, so that
    what is compiled for one pack computes any other."""

    tokens_S: Tensor
    words_L: Tensor

    def each(self, compute: Callable[..., Tensor], *values: Tensor, words: bool = False) -> Tensor:
        """As :meth:`Pack.each`."""
        places = self.words_L if words else self.tokens_S
        return compute(*(value if value.ndim == 3 else value[places].unsqueeze(0) for value in values))


@dataclass(frozen=True)
class Group:
    """Clips beside each other that are alike: how many, the layout of each, how many words each reads, and how many of
    each one's tokens this process holds."""

    count: int
    layout: Layout
    words: int
    held: int


@dataclass(frozen=True)
class Pack:
    """What lies where.

    Attributes:
        layouts: of each clip; where words attend together with the clip, they come after it.
        words: that each clip reads, in whatever way.
        parallel: the processes that share it.
        one_list: whether sparse attention is computed on all clips at once.

    Raises:
        ModelError: clips that are alike are apart, or something comes before a clip.
        RequestError: a clip is too small to share.
    """

    layouts: tuple[Layout, ...]
    words: tuple[int, ...]
    parallel: ContextParallel | None = None
    one_list: bool = False

    def __post_init__(self) -> None:
        kinds = list(zip(self.layouts, self.words, strict=True))
        if len(set(kinds)) != len(list(itertools.groupby(kinds))):
            raise ModelError("clips of a pack that are alike must lie beside each other")
        if any(layout.before or layout.after not in (0, words) for layout, words in kinds):
            raise ModelError("a pack holds clips and their words, and nothing else")
        least = min(layout.grid.tokens for layout in self.layouts)
        if self.parallel is not None and least < self.parallel.size:
            raise RequestError(f"a clip of {least} tokens cannot be shared by {self.parallel.size} processes")

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        rank = 0 if self.parallel is None else self.parallel.rank
        runs = itertools.groupby(zip(self.layouts, self.words, strict=True))
        return tuple(Group(len(list(run)), layout, words, self._shares(layout)[rank]) for (layout, words), run in runs)

    def _shares(self, layout: Layout) -> list[int]:
        """How many tokens of a clip each process holds."""
        return [layout.grid.tokens] if self.parallel is None else self.parallel.shares(layout.grid.tokens)

    @property
    def tokens(self) -> int:
        """Of all clips, without words."""
        return sum(layout.grid.tokens for layout in self.layouts)

    @property
    def pairs(self) -> int:
        """Of tokens that may attend to each other."""
        return sum(layout.tokens**2 for layout in self.layouts)

    @property
    def held(self) -> int:
        """Tokens that this process holds, without words."""
        return sum(group.count * group.held for group in self.groups)

    def enter(self, parts: Sequence[Tensor]) -> Tensor:
        """From groups of whole clips, ``[N, T, X]``, to what this process holds of them, ``[1, S, X]``."""
        if self.parallel is not None:
            parts = [self.parallel.split(part, 1) for part in parts]
        return self.join(parts)

    def leave(self, x_1SX: Tensor) -> list[Tensor]:
        """Back from :meth:`enter` to groups of whole clips, on every process."""
        if self.parallel is None:
            return self.split(x_1SX)
        return self._whole(self.parallel.gather_runs(x_1SX[0], self._rows))

    @functools.cached_property
    def _rows(self) -> list[int]:
        """Tokens that each process holds."""
        shares = [[group.count * share for share in self._shares(group.layout)] for group in self.groups]
        return [sum(held) for held in zip(*shares, strict=True)]

    def _whole(self, runs: Sequence[Tensor]) -> list[Tensor]:
        """Groups of whole clips from what each process holds of all of them."""
        held = [
            run.split([group.count * self._shares(group.layout)[rank] for group in self.groups])
            for rank, run in enumerate(runs)
        ]
        return [
            torch.cat([part.unflatten(0, (group.count, -1)) for part in parts], 1)
            for group, parts in zip(self.groups, zip(*held, strict=True), strict=True)
        ]

    def split(self, x_1SX: Tensor, *, words: bool = False) -> list[Tensor]:
        """Tokens of all clips, or words, by groups: ``[N, T, X]`` each, as views."""
        lengths = [group.words if words else group.held for group in self.groups]
        parts = x_1SX[0].split([group.count * length for group, length in zip(self.groups, lengths, strict=True)])
        return [
            part.unflatten(0, (group.count, length))
            for part, group, length in zip(parts, self.groups, lengths, strict=True)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Back from groups ``[N, T, X]`` to ``[1, S, X]``."""
        return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)

    @property
    def _words_attend(self) -> bool:
        """Whether words attend together with their clips, behind all of which they lie."""
        return any(layout.after for layout in self.layouts)

    def sequences(self, x_1SHD: Tensor) -> list[Tensor]:
        """What attends together, by groups: whole clips, of this process's heads; words come to their own clip."""
        x_1SHD, words_1LHD = x_1SHD.tensor_split([self.held], 1)
        if self.parallel is None:
            clips = self.split(x_1SHD)
        else:
            clips = self._whole(self.parallel.runs_to_heads(x_1SHD[0], self._rows))
            words_1LHD = self.parallel.split(words_1LHD, 2)
        if not self._words_attend:
            return clips
        return [torch.cat(both, 1) for both in zip(clips, self.split(words_1LHD, words=True), strict=True)]

    def join_sequences(self, parts: Sequence[Tensor], heads: int) -> Tensor:
        """Back from :meth:`sequences`, to all ``heads``."""
        tokens = [group.layout.grid.tokens for group in self.groups]
        clips, words = zip(
            *(part.tensor_split([count], 1) for part, count in zip(parts, tokens, strict=True)), strict=True
        )
        behind = [self.join(words)[0]] if self._words_attend else []
        if self.parallel is None:
            return torch.cat([self.join(clips)[0], *behind]).unsqueeze(0) if behind else self.join(clips)
        held = [clip.split(self._shares(group.layout), 1) for clip, group in zip(clips, self.groups, strict=True)]
        # What the receiver holds: its runs of the clips and, as everybody does, all words.
        runs = [torch.cat([*(part.flatten(0, 1) for part in own), *behind]) for own in zip(*held, strict=True)]
        return self.parallel.runs_to_tokens(runs, heads).unsqueeze(0)

    def each(self, compute: Callable[..., Tensor], *values: Tensor, words: bool = False) -> Tensor:
        """Compute on tokens, or words, ``[1, S, C]``, with what is of each clip, ``[B, C]``, or of each token."""
        if all(value.ndim == 3 for value in values):
            return compute(*values)
        counts = [group.count for group in self.groups]
        parts = [
            self.split(value, words=words) if value.ndim == 3 else [part.unsqueeze(1) for part in value.split(counts)]
            for value in values
        ]
        return self.join([compute(*group) for group in zip(*parts, strict=True)])

    def places(self, device: torch.device) -> Places:
        """The same as tensors."""

        def owners(lengths: Sequence[int]) -> Tensor:
            counts = [group.count for group in self.groups]
            of_clip = [length for length, count in zip(lengths, counts, strict=True) for _ in range(count)]
            return torch.arange(len(of_clip)).repeat_interleave(torch.tensor(of_clip)).to(device)

        return Places(owners([group.held for group in self.groups]), owners([group.words for group in self.groups]))

    def stack(self, of_clip: Sequence[Tensor]) -> list[Tensor]:
        """What clips have, ``[1, X]`` each, by groups: ``[N, X]``."""
        starts = itertools.accumulate((group.count for group in self.groups), initial=0)
        return [
            torch.cat(list(of_clip[start : start + group.count]))
            for start, group in zip(starts, self.groups, strict=False)
        ]


def align(parts: Sequence[Tensor], block_size: int) -> Tensor:
    """Groups of clips ``[N, T, H, D]`` one after the other, ``[1, S, H, D]``, each filled up to a block by zeros."""
    pieces = []
    for part in parts:
        zeros = part.new_zeros(-part.shape[1] % block_size, *part.shape[2:])
        pieces += [piece for clip in part for piece in (clip, zeros)]
    return torch.cat(pieces).unsqueeze(0)


def unalign(x_1SHD: Tensor, parts: Sequence[Tensor], block_size: int) -> list[Tensor]:
    """Back from :meth:`align` to groups, which are like ``parts``."""
    lengths = [part.shape[1] + -part.shape[1] % block_size for part in parts]
    aligned = x_1SHD[0].split([len(part) * length for part, length in zip(parts, lengths, strict=True)])
    return [x.unflatten(0, (len(part), -1))[:, : part.shape[1]] for x, part in zip(aligned, parts, strict=True)]


class Run(Protocol):
    """Calls a block, with gradient checkpointing where the transformer has it."""

    def __call__(self, block: Any, /, *arguments: Any) -> Any: ...


class PackedModel(Protocol):
    """How a transformer computes a pack by its own modules.

    Attributes:
        blocks: its blocks, each with what computes it on ``(block, *arguments, pack)``, of which it asks for ``each``
            alone.
    """

    blocks: list[tuple[Any, Callable[..., Any]]]

    def words(self, call: Mapping[str, Any]) -> int:
        """How many words a call's clip reads."""

    def refuse(self, call: Mapping[str, Any]) -> str | None:
        """Why a call cannot be part of a pack, or None."""

    def forward(self, calls: Sequence[Mapping[str, Any]], pack: Pack, run: Run) -> list[Tensor]:
        """What is predicted of each clip, ``[1, C, F, H, W]``; calls come in the pack's order."""
