"""Which sizes share a pack: first fit, the longest first, under a budget of tokens and of pairs of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from radial.attention.packed.pack import Budget


def first_fit(sizes: Sequence[int], budget: Budget) -> list[list[int]]:
    """Packs of clips, by their numbers; each clip goes to the first pack that has room for it.

    Args:
        sizes: tokens of each clip.

    Raises:
        RequestError: one clip alone is more than the budget.
    """
    if sizes:
        budget.check(max(sizes), max(sizes) ** 2, "one clip has")
    order = sorted(range(len(sizes)), key=lambda clip: -sizes[clip])
    least = min(sizes, default=0)
    tokens, pairs = np.zeros(len(sizes) + 1, np.int64), np.zeros(len(sizes) + 1, np.int64)
    packs: list[list[int]] = [[]]
    full = 0  # that many from the first on, which have room for nothing that comes
    for clip in order:
        size = sizes[clip]
        room = tokens[full : len(packs)] + size <= budget.tokens
        if budget.pairs is not None:
            room &= pairs[full : len(packs)] + size**2 <= budget.pairs
        first = full + int(room.argmax())  # the last one is empty
        packs[first].append(clip)
        tokens[first] += size
        pairs[first] += size**2
        if first == len(packs) - 1:
            packs.append([])
        while packs[full] and not budget.has_room(int(tokens[full]) + least, int(pairs[full]) + least**2):
            full += 1
    return [pack for pack in packs if pack]


def deal(packs: Sequence[list[int]], ranks: int, work: Callable[[list[int]], float]) -> list[list[list[int]]]:
    """Packs for the processes of each step, whose work is as alike as it can be: neighbours by work.

    Where they do not come out even, packs of several clips are cut in two, the one of most work first; where all are of
    one clip, the least of them come once more.
    """
    whole = sorted(packs, key=work)
    while len(whole) % ranks and any(len(pack) > 1 for pack in whole):
        place = max(place for place, pack in enumerate(whole) if len(pack) > 1)
        pack = whole.pop(place)
        whole = sorted([*whole, pack[::2], pack[1::2]], key=work)
    again = itertools.cycle(list(whole))
    while len(whole) % ranks:
        whole.append(list(next(again)))
    whole.sort(key=work)
    return [whole[start : start + ranks] for start in range(0, len(whole), ranks)]


def work_of(tokens: Mapping[int, int], linear: float) -> Callable[[list[int]], float]:
    """What packs cost: attention takes the square of a clip's tokens, and products each of them ``linear`` times."""
    return lambda pack: sum(tokens[clip] ** 2 + linear * tokens[clip] for clip in pack)
