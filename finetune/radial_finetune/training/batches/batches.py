"""Batches of clips of one size."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from radial.errors import RequestError
from radial.plans.story.memory import spread
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import (
    CachedClip,
    CacheIndex,
    read_bare,
    read_clip,
    read_deviation,
    read_empty_text,
    read_start,
    stack_latents,
)
from radial_finetune.noise import NoiseLevels, Sampling, Windows, noise_shift
from radial_finetune.objective import (
    BARE,
    CUTS,
    RETURNS,
    Objective,
    Start,
    Text,
    Whether,
    expert_span,
    plan_of,
    returning,
)
from radial_finetune.training.batches.order import order_of, read_ahead
from radial_finetune.training.config import FinetuneConfig

_DROPPED = 0.1  # of captions, where that is left open
# What the clips of a batch have in common: their size, how many texts follow each other, and before which it cuts.
_Kind = tuple[Bucket, int, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """Clips of one size, their text, noise and noise levels, on the CPU."""

    bucket: Bucket
    latents: Tensor
    text: Text
    noise: Tensor
    sigma: Tensor

    def to(self, device: torch.device) -> tuple[Tensor, Text, Tensor, Tensor]:
        text = {name: value.to(device) for name, value in self.text.items()}
        return self.latents.to(device), text, self.noise.to(device), self.sigma.to(device)


class Batches:
    """The batches of a run, by number; each of ``ranks`` processes takes every ranks-th clip of a batch."""

    def __init__(
        self, config: FinetuneConfig, index: CacheIndex, objective: Objective, rank: int = 0, ranks: int = 1
    ) -> None:
        clips = index.clips
        if config.held_out >= len(clips):
            raise RequestError(
                f"held_out is {config.held_out}, and the cache has {len(clips)} clips: none would be left"
            )
        self.train, self.held_out = hold_out(clips, config.held_out)
        self._clips = len(clips)
        self._config, self._objective, self._rank, self._ranks = config, objective, rank, ranks
        self._cache = Path(config.data)
        self._empty_text = None if objective.text_sees_frames else read_empty_text(self._cache, index.fingerprint)
        self._span = config.sigmas_within(expert_span(objective.pipe, config.expert)[1])
        if self.sampling == "uniform" and (config.logit_mean, config.logit_std) != (0, 1):
            raise RequestError(
                "logit_mean and logit_std are of logit_normal, and this model draws uniform: set timestep_sampling = "
                '"logit_normal", or leave them out'
            )
        self._first_share = _share("first_frame_share", config.first_frame_share, objective.first_frame, objective)
        self._last_share = _share("last_frame_share", config.last_frame_share, objective.last_frame, objective)
        self._members: dict[_Kind, list[CachedClip]] = {}
        for clip in self.train:
            self._members.setdefault(self._kind_of(clip), []).extend([clip] * clip.num_repeats)
        self._kinds = sorted(self._members)
        if config.memory is not None:
            for bucket, texts, _ in self._kinds:
                plan_of(config.memory, objective.spec.latent_frames(bucket.num_frames), texts)
                _, rows, columns = objective.spec.stride
                spread(bucket.height // rows, bucket.width // columns, config.memory.memory_tokens or 0)
        self._which = self._choose_kinds(config.steps * config.gradient_accumulation_steps)
        self._place = _count_earlier(self._which, len(self._kinds))

    def _kind_of(self, clip: CachedClip) -> _Kind:
        return clip.bucket, clip.texts, clip.cuts if self._config.memory is not None else ()

    def check_alone(self, clip: CachedClip) -> None:
        """Make sure that a clip reads one text for all of its time.

        Raises:
            RequestError: it does not.
        """
        if clip.texts > 1:
            raise RequestError(f"{clip.source} has texts that follow one another, and packed clips read one: leave "
                               "packed out")  # fmt: skip

    @property
    def unused(self) -> int:
        """Clips on neither side: those beyond ``held_out`` of the files that are held out."""
        return self._clips - len(self.train) - len(self.held_out)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The sizes that the run trains on, however few steps of it are asked for."""
        lengths = {stage.num_frames for stage in self._config.curriculum}
        there = dict.fromkeys(bucket for bucket, _, _ in self._kinds)
        return tuple(b for b in there if not lengths or b.num_frames in lengths)

    @property
    def sampling(self) -> Sampling:
        """How noise levels are drawn: as chosen, else as the model's authors do."""
        return self._config.timestep_sampling or self._objective.sampling

    @property
    def caption_dropout(self) -> float:
        """Share of clips that are told nothing: as chosen, else for those models alone that are asked without the
        prompt too, to be guided."""
        if self._config.caption_dropout is not None:
            return self._config.caption_dropout
        return 0.0 if self._objective.guides_by_input(self._objective.pipe.transformer.config) else _DROPPED

    def shift_of(self, bucket: Bucket) -> float:
        """How far the noise levels of clips of a size are shifted; steps that are few are the same for all. What
        generation takes over is the sampler's shift, and not one that the authors have for training alone."""
        config = self._config
        bucket = max(self.buckets) if config.distills else bucket
        alone = None if config.distills or config.shift_by_length else self._objective.training_shift
        return noise_shift(
            self._objective.pipe.scheduler.config, self._objective.spec, config.shift or alone, bucket.num_frames,
            by_length=config.shift_by_length, size=(bucket.height, bucket.width),
            from_image=self._objective.first_frame == "always",
        )  # fmt: skip

    @property
    def windows(self) -> Windows | None:
        """The steps that the run distills to, where it does."""
        if not self._config.distills:
            return None
        return Windows(self._config.num_inference_steps or 0, self.shift_of(max(self.buckets)), self._span)

    def levels_of(self, bucket: Bucket) -> NoiseLevels | Windows:
        """The noise levels at which clips of a size are trained."""
        config = self._config
        if (windows := self.windows) is not None:
            return windows
        return NoiseLevels(
            self.sampling, self.shift_of(bucket), self._span, logit_mean=config.logit_mean, logit_std=config.logit_std
        )

    def iterate(self, first: int) -> Generator[Batch]:
        """Batches from number ``first`` on; the next one is read while one is trained on."""
        return read_ahead(self.read, first, len(self._which))

    def read(self, number: int) -> Batch:
        """This process's part of a batch."""
        config = self._config
        bucket, texts_of_one, _ = kind = self._kinds[self._which[number]]
        frames, height, width = self._objective.spec.stride
        tokens = ((bucket.num_frames - 1) // frames + 1) * (bucket.height // height) * (bucket.width // width)
        whole = config.clips_in_batch(tokens) * self._ranks
        members = self._members[kind]
        clips = []
        for position in range(self._place[number] * whole, (self._place[number] + 1) * whole):
            epoch, place = divmod(position, len(members))
            clips.append(members[order_of(config.seed, epoch, len(members))[place]])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        in_story = config.memory is not None
        dropped = torch.rand(whole, generator=generator) < (0.0 if in_story else self.caption_dropout)
        sigma = self._draw_levels(bucket, whole, generator)
        own = list(range(self._rank, whole, self._ranks))
        captions = _choose_captions(config.seed, number, clips)
        # Each clip's noise has a seed of its own, so that it does not depend on how many processes there are.
        seeds = torch.randint(2**62, (whole,), generator=generator).tolist()
        silent = torch.rand(whole, texts_of_one, generator=generator) < self.caption_dropout if in_story else None
        batch = self.take(
            [clips[i] for i in own], [captions[i] for i in own], dropped[own], sigma[own], [seeds[i] for i in own],
            silent_BN=None if silent is None else silent[own],
        )  # fmt: skip
        if config.memory is not None and config.memory.copies:
            chosen = config.memory.choose(texts_of_one, float(torch.rand((), generator=generator)))
            batch.text.update(self._tell_copies([clips[i] for i in own], chosen, batch.text))
        return batch

    def take(
        self, clips: Sequence[CachedClip], captions: Sequence[int], dropped: Tensor, sigma: Tensor,
        seeds: Sequence[int], silent_BN: Tensor | None = None,
    ) -> Batch:  # fmt: skip
        """A batch of clips of one kind, with what was drawn for each.

        Args:
            captions: which of its captions each is told.
            dropped: whether it is told none.
            sigma: its noise level, or those of its chunks.
            seeds: of its noise, and of what else is drawn for it.
            silent_BN: of stories, the segments that are told nothing.
        """
        empty = self._empty_text
        which = [None if no and empty is None else caption for no, caption in zip(dropped, captions, strict=True)]
        latents, told = zip(
            *(read_clip(self._cache, clip, n) for clip, n in zip(clips, which, strict=True)), strict=True
        )
        texts = [empty if no and empty is not None else text for no, text in zip(dropped, told, strict=True)]
        if self._objective.draws_latents:
            latents = tuple(
                latent.float() + read_deviation(self._cache, clip) * _drawn(latent, seed)
                for clip, latent, seed in zip(clips, latents, seeds, strict=True)
            )
        noise = [torch.randn(latents[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        starts = self._draw_starts(0, clips, list(latents), seeds=seeds)
        words = self._objective.stack_text(texts)
        if silent_BN is not None:
            words = self._tell_story(words, clips[0].texts, clips[0].cuts, silent_BN)
        return Batch(clips[0].bucket, stack_latents(list(latents)), words | starts, torch.stack(noise), sigma)

    def _draw_levels(self, bucket: Bucket, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels of so many clips, ``[B]``; of stories, of each of their chunks, ``[B, K]``."""
        levels, memory = self.levels_of(bucket), self._config.memory
        if memory is None:
            return levels.draw(count, generator)
        chunks = (self._objective.spec.latent_frames(bucket.num_frames) - 1) // memory.chunk_frames
        return levels.draw(count * chunks, generator).view(count, chunks)

    def _tell_story(self, words: Text, texts: int, cuts: tuple[int, ...], silent_BN: Tensor) -> Text:
        """The texts of stories, of clean frames and then of noisy ones, which have none in some segments; and where the
        picture cuts."""
        empty = self._objective.stack_text([self._empty_text])["prompt_embeds"] if self._empty_text else None
        told = noisy = words["prompt_embeds"].unflatten(1, (texts, -1))
        if empty is not None:
            noisy = torch.where(silent_BN[:, :, None, None], empty[:, None].to(told.dtype), told)
        told = torch.cat([told, noisy], 1)
        cut = torch.zeros(len(told), texts, dtype=torch.bool)
        cut[:, list(cuts)] = True
        return words | {"prompt_embeds": told.flatten(1, 2), CUTS: cut}

    def _tell_copies(self, clips: Sequence[CachedClip], chosen: dict[str, tuple[int, ...]], words: Text) -> Text:
        """Which segments of stories are copied, whose figures were there before, and what copies are told: words
        without looks, or where there are none a segment's own."""
        texts = clips[0].texts
        own = words["prompt_embeds"][:, : words["prompt_embeds"].shape[1] // 2]
        kept = [read_bare(self._cache, clip) for clip in clips]
        bare = [
            self._objective.stack_text([text])["prompt_embeds"][0].to(own.dtype) if text else own[place]
            for place, text in enumerate(kept)
        ]
        returns = torch.tensor([returning((clip.caption, *clip.then)) for clip in clips])
        told = {name: torch.zeros(len(clips), texts, dtype=torch.bool) for name in chosen}
        for name, segments in chosen.items():
            told[name][:, list(segments)] = True
        return told | {BARE: torch.stack(bare), RETURNS: returns}

    def _draw_starts(
        self, number: int, clips: Sequence[CachedClip], latents: Sequence[Tensor], *, seeds: Sequence[int] = ()
    ) -> Start:
        """What the clips start from and end on: drawn for each by its seed, or, without seeds, spread by the number."""
        if not self._first_share:
            return {}
        shares, starts = (self._first_share, self._last_share), []
        for place, (clip, latent) in enumerate(zip(clips, latents, strict=True)):
            if seeds:
                first, last = np.random.default_rng([seeds[place], 2]).random(2) < shares
            else:
                first, last = (math.floor((number + 1) * share) > math.floor(number * share) for share in shares)
            kept = read_start(self._cache, clip) if self._objective.first_frame == "always" else {}
            starts.append(self._objective.start_of(latent.float(), kept, first=bool(first), last=bool(last)))
        return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}

    @property
    def kinds(self) -> int:
        """How many kinds of batches there are: of one size, length and number of texts each."""
        return len(self._kinds)

    def validation(self, quantiles: tuple[float, ...]) -> Iterator[Batch]:
        """Every held-out clip at quantiles of the noise levels that clips of its size are trained at, with the same
        noise every time."""
        for number, clip in enumerate(self.held_out):
            latents, text = read_clip(self._cache, clip)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(number))
            told = self._objective.stack_text([text]) | self._draw_starts(number, [clip], [latents])
            if self._config.memory is not None:
                told = self._tell_story(told, clip.texts, clip.cuts, torch.zeros(1, clip.texts, dtype=torch.bool))
            for level in self.levels_of(clip.bucket).quantiles(torch.tensor(quantiles)):
                yield Batch(clip.bucket, stack_latents([latents]), told, noise[None], level[None])

    def _choose_kinds(self, batches: int) -> NDArray[np.int64]:
        """Which kind of clips every batch has: drawn by the share of clips, or as the curriculum says."""
        config = self._config
        counts = np.array([len(self._members[kind]) for kind in self._kinds])
        draws = np.random.default_rng([config.seed, 1]).random((batches, 2))  # a longer run begins the same
        if not config.curriculum:
            return np.searchsorted(counts.cumsum() / counts.sum(), draws[:, 0], side="right")
        lengths = np.repeat(
            [stage.num_frames for stage in config.curriculum],
            [stage.steps * config.gradient_accumulation_steps for stage in config.curriculum],
        )
        lengths = np.concatenate([lengths, np.full(max(0, batches - len(lengths)), lengths[-1])])[:batches]
        first = config.curriculum[0].num_frames
        lengths = np.where(draws[:, 1] < config.replay, first, lengths)
        which = np.empty(batches, np.int64)
        for length in set(lengths.tolist()):
            able = [i for i, (bucket, _, _) in enumerate(self._kinds) if bucket.num_frames == length]
            if not able:
                there = ", ".join(sorted({str(b.num_frames) for b, _, _ in self._kinds}, key=int))
                raise RequestError(f"the curriculum asks for clips of {length} frames; the cache has {there}")
            shares = counts[able].cumsum() / counts[able].sum()
            which = np.where(lengths == length, np.array(able)[np.searchsorted(shares, draws[:, 0], "right")], which)
        return which


def hold_out(clips: Sequence[CachedClip], count: int) -> tuple[tuple[CachedClip, ...], tuple[CachedClip, ...]]:
    """Clips to train on, and so many to validate with, of files spread over the cache. What one file shows never stands
    on both sides: of a file that is held out, clips beyond the count are left out of both.

    Raises:
        RequestError: no file would be left to train on.
    """
    by_source: dict[str, list[int]] = {}
    for number, clip in enumerate(clips):
        by_source.setdefault(clip.source, []).append(number)
    spread = [clips[int((i + 0.5) * len(clips) / count)].source for i in range(count)]
    chosen: list[int] = []
    taken: set[str] = set()
    for source in dict.fromkeys([*spread, *by_source]):
        if len(chosen) == count:
            break
        taken.add(source)
        chosen += by_source[source][: count - len(chosen)]
    train = tuple(clip for clip in clips if clip.source not in taken)
    if clips and not train:
        most = len(clips) - max(len(numbers) for numbers in by_source.values())
        raise RequestError(
            f"held_out is {count}, and whole files are held out: none of the {len(by_source)} would be left to train "
            f"on; hold out {most} at most"
        )
    return train, tuple(clips[number] for number in sorted(chosen))


def _drawn(like: Tensor, seed: int) -> Tensor:
    """Normal numbers of a clip's seed, apart from its noise."""
    own = int(np.random.default_rng([seed, 3]).integers(2**62))
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(own))


def _choose_captions(seed: int, number: int, clips: Sequence[CachedClip]) -> list[int]:
    """Which of its captions each clip of a batch is told; drawn apart from all else, so that runs on clips of one
    caption go on as they began."""
    draws = np.random.default_rng([seed, 2, number]).random(len(clips))
    return [int(draw * len(clip.captions)) for draw, clip in zip(draws, clips, strict=True)]


def _share(name: str, chosen: float | None, whether: Whether, objective: Objective) -> float:
    """What share of clips starts from its first frame, or ends on its last.

    Raises:
        RequestError: the model has no such choice.
    """
    fixed = {"never": 0.0, "always": 1.0}.get(whether)
    if fixed is not None and chosen not in (None, fixed):
        raise RequestError(f"{name} {chosen:g} is not for {objective.spec.name}, which is {fixed:g} by what it is")
    return fixed if fixed is not None else (chosen or 0.0)


def _count_earlier(which: NDArray[np.int64], kinds: int) -> NDArray[np.int64]:
    """For every batch, how many before it were of its size."""
    place = np.empty_like(which)
    for kind in range(kinds):
        own = which == kind
        place[own] = np.arange(own.sum())
    return place
