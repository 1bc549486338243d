"""Clips that share a sequence, each of which sees itself alone.

The tokens of all clips lie one clip after the other, and the words of all clips in another sequence, or behind them, in
the same order. Clips that are alike lie beside each other, so that they are a batch by a view: what is not computed on
each token alone is computed on every group of them. Nothing is copied or padded for it, and no clip is an operand of
another's.

Shapes: B clips, N clips of a group, T tokens or words of one, S tokens of all clips, L words of all, X what follows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Group:
    """Clips beside each other that are alike: how many, the layout of each, and how many words each reads."""

    count: int
    layout: Layout
    words: int


@dataclass(frozen=True)
class Pack:
    """What lies where.

    Attributes:
        layouts: of each clip; where words attend together with the clip, they come after it.
        words: that each clip reads, in whatever way.

    Raises:
        ModelError: clips that are alike are apart, or something comes before a clip.
    """

    layouts: tuple[Layout, ...]
    words: tuple[int, ...]

    def __post_init__(self) -> None:
        kinds = list(zip(self.layouts, self.words, strict=True))
        if len(set(kinds)) != len(list(itertools.groupby(kinds))):
            raise ModelError("clips of a pack that are alike must lie beside each other")
        if any(layout.before or layout.after not in (0, words) for layout, words in kinds):
            raise ModelError("a pack holds clips and their words, and nothing else")

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        runs = itertools.groupby(zip(self.layouts, self.words, strict=True))
        return tuple(Group(len(list(run)), layout, words) for (layout, words), run in runs)

    @property
    def tokens(self) -> int:
        """Of all clips, without words."""
        return sum(layout.grid.tokens for layout in self.layouts)

    @property
    def pairs(self) -> int:
        """Of tokens that may attend to each other."""
        return sum(layout.tokens**2 for layout in self.layouts)

    def split(self, x_1SX: Tensor, *, words: bool = False) -> list[Tensor]:
        """Tokens of all clips, or words, by groups: ``[N, T, X]`` each, as views."""
        lengths = [group.words if words else group.layout.grid.tokens for group in self.groups]
        parts = x_1SX[0].split([group.count * length for group, length in zip(self.groups, lengths, strict=True)])
        return [
            part.unflatten(0, (group.count, length))
            for part, group, length in zip(parts, self.groups, lengths, strict=True)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Back from groups ``[N, T, X]`` to ``[1, S, X]``."""
        return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)

    def sequences(self, x_1SX: Tensor) -> list[Tensor]:
        """What attends together, by groups; words behind all clips come to their own."""
        if all(layout.after == 0 for layout in self.layouts):
            return self.split(x_1SX)
        clips, words = self.split(x_1SX[:, : self.tokens]), self.split(x_1SX[:, self.tokens :], words=True)
        return [torch.cat(both, 1) for both in zip(clips, words, strict=True)]

    def join_sequences(self, parts: Sequence[Tensor]) -> Tensor:
        """Back from :meth:`sequences`."""
        if all(layout.after == 0 for layout in self.layouts):
            return self.join(parts)
        halves = [
            part.tensor_split([group.layout.grid.tokens], 1) for part, group in zip(parts, self.groups, strict=True)
        ]
        return torch.cat([self.join(half) for half in zip(*halves, strict=True)], 1)

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

    def stack(self, of_clip: Sequence[Tensor]) -> list[Tensor]:
        """What clips have, ``[1, X]`` each, by groups: ``[N, X]``."""
        starts = itertools.accumulate((group.count for group in self.groups), initial=0)
        return [
            torch.cat(list(of_clip[start : start + group.count]))
            for start, group in zip(starts, self.groups, strict=False)
        ]


class Run(Protocol):
    """Calls a block, with gradient checkpointing where the transformer has it."""

    def __call__(self, block: Any, /, *arguments: Any) -> Any: ...


class PackedModel(Protocol):
    """How a transformer computes a pack by its own modules.

    Attributes:
        blocks: its blocks, each with what computes it on ``(block, *arguments, pack)``.
    """

    blocks: list[tuple[Any, Callable[..., Any]]]

    def words(self, call: Mapping[str, Any]) -> int:
        """How many words a call's clip reads."""

    def refuse(self, call: Mapping[str, Any]) -> str | None:
        """Why a call cannot be part of a pack, or None."""

    def forward(self, calls: Sequence[Mapping[str, Any]], pack: Pack, run: Run) -> list[Tensor]:
        """What is predicted of each clip, ``[1, C, F, H, W]``; calls come in the pack's order."""
