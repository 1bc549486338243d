"""The packs of a run, by number: clips of unlike sizes that one step trains on together.

An epoch has every clip once. Which sizes share a pack is the same in all of them, so that a step is found without those
before it; which clip of a size it is, and in which order packs come, is drawn anew.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from radial.attention.packed.pack import Budget
from radial.errors import RequestError
from radial_finetune.data.cache import CachedClip
from radial_finetune.objective import Objective
from radial_finetune.training.assemble import grid_of
from radial_finetune.training.batches.batches import Batch, Batches
from radial_finetune.training.batches.order import order_of, read_ahead
from radial_finetune.training.batches.packing import deal, first_fit, work_of
from radial_finetune.training.config import FinetuneConfig
from radial_finetune.training.offloading import BLOCKS


@dataclass(frozen=True)
class PackedBatch:
    """A process's part of a step: clips, each a batch of one, and how much the loss of each counts. Weights add up to
    one over the mean of all processes and of the parts that a step is made of."""

    clips: tuple[Batch, ...]
    weights: tuple[float, ...]


class Packs:
    """Packs of the clips of ``batches``; each of ``ranks`` processes takes one of a step.

    Raises:
        RequestError: one clip alone is more than a pack holds, or its texts follow one another.
    """

    def __init__(
        self, batches: Batches, config: FinetuneConfig, objective: Objective, rank: int = 0, ranks: int = 1
    ) -> None:
        self._batches, self._config, self._rank, self._ranks = batches, config, rank, ranks
        by_size: dict[int, list[CachedClip]] = {}
        for clip in batches.train:
            batches.check_alone(clip)
            tokens = grid_of(objective.spec, clip.bucket).tokens
            for name, needed in (("batch_tokens", tokens), ("batch_pairs", tokens**2)):
                if (room := getattr(config, name)) is not None and room < needed:
                    raise RequestError(
                        f"{name} is {room}, and one clip of {clip.bucket} needs {needed}: take that or more, or "
                        "a cache without such clips"
                    )
            by_size.setdefault(tokens, []).extend([clip] * clip.num_repeats)
        self._members = dict(sorted(by_size.items()))
        sizes = [tokens for tokens, members in self._members.items() for _ in members]
        places = [(tokens, place) for tokens, members in self._members.items() for place in range(len(members))]
        packs = first_fit(sizes, Budget(config.batch_tokens or 0, config.batch_pairs))
        work = work_of(dict(enumerate(sizes)), _linear_tokens(objective.pipe.transformer))
        self._steps = [
            [[places[clip] for clip in pack] for pack in step] for step in deal(packs, ranks, work)
        ]  # fmt: skip

    @property
    def steps_in_epoch(self) -> int:
        """Packs that each process takes in an epoch."""
        return len(self._steps)

    def iterate(self, first: int) -> Generator[PackedBatch]:
        """Packs from number ``first`` on; the next one is read while one is trained on."""
        return read_ahead(self.read, first, self._config.steps * self._config.gradient_accumulation_steps)

    def read(self, number: int) -> PackedBatch:
        """This process's pack of a step."""
        parts = self._config.gradient_accumulation_steps
        together = [self._all_of(number - number % parts + part) for part in range(parts)]
        counted = [self._counts(tokens) for one in together for pack in one for tokens, _ in pack]
        scale = self._ranks * parts / sum(counted)
        epoch, place = divmod(number, len(self._steps))
        # In turn, as the last one of a step has the most to do.
        own = together[number % parts][(self._rank + place) % self._ranks]
        clips = tuple(self._read_clip(epoch, tokens, member) for tokens, member in own)
        return PackedBatch(clips, tuple(self._counts(tokens) * scale for tokens, _ in own))

    def _all_of(self, number: int) -> list[list[tuple[int, int]]]:
        """All processes' packs."""
        epoch, place = divmod(number, len(self._steps))
        order = np.random.default_rng([self._config.seed, 5, epoch]).permutation(len(self._steps))
        return self._steps[order[place]]

    def _counts(self, tokens: int) -> float:
        return float(tokens) if self._config.loss_mean == "token" else 1.0

    def _read_clip(self, epoch: int, tokens: int, member: int) -> Batch:
        """A clip with what is drawn for it: by seed, epoch and clip alone, whatever it shares a pack with."""
        config, members = self._config, self._members[tokens]
        number = order_of(config.seed, epoch, len(members))[member]
        clip = members[number]
        draws = np.random.default_rng([config.seed, 6, epoch, tokens, number])
        generator = torch.Generator().manual_seed(int(draws.integers(2**62)))
        return self._batches.take(
            [clip],
            captions=[int(draws.random() * len(clip.captions))],
            dropped=torch.rand(1, generator=generator) < self._batches.caption_dropout,
            sigma=self._batches.levels_of(clip.bucket).draw(1, generator),
            seeds=torch.randint(2**62, (1,), generator=generator).tolist(),
        )


def _linear_tokens(transformer: Any) -> float:
    """How many tokens a clip has when its attention, dense, takes as long as the products with weights."""
    config = transformer.config
    blocks = [block for name in BLOCKS for block in getattr(transformer, name, ())]
    weights = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim == 2)
    return weights / max(1, len(blocks)) / (2 * config.num_attention_heads * config.attention_head_dim)
