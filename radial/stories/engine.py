"""A story's latents, chunk by chunk: each is denoised from noise of its own, over the cache of those before, and then
passes through the transformer once more, clean, to be in the cache of those to come.

Shapes: B stories, C channels, F latent frames of a chunk, H and W latent rows and columns, L tokens of a text, D the
text's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from radial.attention.story.cache import StoryCache
from radial.attention.story.framewise import Framewise, Turning
from radial.attention.story.sparse_reads import sparse_lists
from radial.attention.story.tokens import check_tokens
from radial.errors import GenerationError, RequestError
from radial.plans.pattern import RadialPattern
from radial.plans.story.memory import StoryPlan, spread


@dataclass(frozen=True)
class Sampling:
    """How a chunk is denoised.

    Attributes:
        guidance_scale: 1 or less for a model without guidance.
        pattern: of the blocks that denoising reads of the cache; all of them when left out.
        block_size: tokens of such a block.
        rectify_every: the cache is written by a clean pass that reads it whole at every chunk (1), or as denoising
            reads it, and once more by whole passes every so many chunks; never where 0.
    """

    num_inference_steps: int
    guidance_scale: float = 1.0
    pattern: RadialPattern | None = None
    block_size: int = 128
    rectify_every: int = 1

    @property
    def rewrites(self) -> int:
        """Chunks that may be written once more."""
        return self.rectify_every if self.pattern is not None and self.rectify_every > 1 else 0


@dataclass(frozen=True, eq=False)
class Words:
    """Texts of one segment, ``[B, L, D]``: what it shows, and what to avoid, where there is guidance."""

    wanted: Tensor
    avoided: Tensor | None = None


class StoryEngine:
    """Makes the chunks of a plan in order. Use it as a context manager, or call :meth:`close`.

    Args:
        scheduler_of: a flow model's scheduler for a chunk, given where it may draw the noise that it adds.
        latent_size: rows and columns of latents.
        cache_kind: of the cache, for experiments on what is remembered.

    Raises:
        ModelError: the transformer is none that makes stories chunk by chunk, or lacks the memory's learned tokens.
        RequestError: the model knows too few places in time for what its chunks would see; or a latent frame has fewer
            tokens than the memory of a segment.
    """

    def __init__(
        self, transformer: Any, scheduler_of: Callable[[torch.Generator], Any], plan: StoryPlan, sampling: Sampling,
        latent_size: tuple[int, int], cache_kind: type[StoryCache] = StoryCache,
    ) -> None:  # fmt: skip
        self.plan, self.sampling = plan, sampling
        self._transformer, self._scheduler_of = transformer, scheduler_of
        _, rows, columns = transformer.config.patch_size
        self._grid = latent_size[0] // rows, latent_size[1] // columns
        check_tokens(transformer, plan.memory)
        spread(*self._grid, plan.memory.memory_tokens or 0)  # or it raises
        self._call = Framewise(transformer)
        self.cache = cache_kind(plan, transformer, *self._grid, rewrites=sampling.rewrites)
        self._clean: dict[int, tuple[Tensor, Words]] = {}  # of chunks that may be written once more
        places, wanted = Turning(transformer).places, plan.memory.reach + plan.memory.chunk_frames + 1
        if wanted > places:
            self.close()
            raise RequestError(f"a chunk would see {wanted} places in time, and the model knows {places}")

    @torch.inference_mode()
    def make(
        self, chunk: int, noise_BCFHW: Tensor, words: Words, generator: torch.Generator,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> Tensor:  # fmt: skip
        """A chunk's latents, float32; :meth:`take` puts it into the cache.

        Args:
            noise_BCFHW: what it starts from, float32.
            generator: on the CPU, of noise that the scheduler adds, where it does.
            on_step: told after each step, and may raise.

        Raises:
            GenerationError: they are not all numbers.
        """
        self.cache.begin(chunk, noise_BCFHW.device, lists=self._lists(chunk, noise_BCFHW.device))
        scheduler, scale = self._scheduler_of(generator), self.sampling.guidance_scale
        scheduler.set_timesteps(self.sampling.num_inference_steps, device=noise_BCFHW.device)
        guided = scale > 1 and words.avoided is not None
        text = words.wanted
        if guided and words.avoided is not None:
            text = torch.cat([words.wanted, words.avoided])
        latents = noise_BCFHW
        for step, timestep in enumerate(scheduler.timesteps):
            seen = torch.cat([latents, latents]) if guided else latents
            velocity = self._predict(seen, timestep, text)
            if guided:
                wanted, avoided = velocity.chunk(2)
                velocity = avoided + scale * (wanted - avoided)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            on_step(step)
        if not bool(latents.isfinite().all()):
            raise GenerationError(f"the latents of chunk {chunk + 1} are not all numbers; try float32")
        return latents.float()

    @torch.inference_mode()
    def take(self, chunk: int, latents_BCFHW: Tensor, words: Words) -> None:
        """Put a chunk into the cache. Chunks are taken in order; of one that was made before, this is all it takes."""
        every, sparse = self.sampling.rectify_every, self.sampling.pattern is not None
        self._write(chunk, latents_BCFHW, words, whole=not sparse or every == 1)
        if not self.sampling.rewrites:
            return
        self._clean[chunk] = latents_BCFHW, words
        if (chunk + 1) % every == 0:
            for before, (latents, told) in sorted(self._clean.items()):
                self._write(before, latents, told, whole=True)
            self._clean.clear()

    def close(self) -> None:
        """Put the stock processors back. Calling it twice does no harm."""
        self._call.close()

    def __enter__(self) -> StoryEngine:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _write(self, chunk: int, latents: Tensor, words: Words, *, whole: bool) -> None:
        self.cache.begin(chunk, latents.device, lists=None if whole else self._lists(chunk, latents.device))
        self._predict(latents, torch.zeros((), device=latents.device), words.wanted)
        self.cache.write()
        segment = self.plan.segment_of(chunk)
        ended = self.plan.frames_of(chunk).stop == self.plan.segment_frames(segment).stop
        if self.plan.memory.kind == "learned" and ended and segment not in self.plan.dropped:
            self.cache.begin_learned(segment, latents.device)
            clean = torch.zeros((), device=latents.device)
            self._predict(torch.zeros_like(latents[:, :, :1]), clean, words.wanted, learned=range(1))
            self.cache.write()

    def _predict(self, latents: Tensor, timestep: Tensor, text_BLD: Tensor, learned: range = range(0)) -> Tensor:
        batch, frames = latents.shape[0], latents.shape[2]
        dtype = self._transformer.dtype
        predicted = self._call(
            latents.to(dtype), timestep.expand(batch, frames), text_BLD[:, None].to(dtype), [0] * frames,
            self.cache.attend, learned,
        )  # fmt: skip
        return predicted.float()

    def _lists(self, chunk: int, device: torch.device) -> Any:
        if self.sampling.pattern is None:
            return None
        return sparse_lists(self.plan, chunk, *self._grid, self.sampling.pattern, self.sampling.block_size, device)
