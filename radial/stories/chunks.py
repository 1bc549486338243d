"""The pieces of a film that is made chunk by chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from radial.generation.sampler import scheduler_for
from radial.loading.load import LoadedModel
from radial.plans.pattern import RadialPattern
from radial.request import GenerationRequest
from radial.stories.decoding import ChunkDecoder
from radial.stories.engine import Sampling, StoryEngine, Words
from radial.stories.request import StoryRequest
from radial.video.encoding import Frames

_LATENTS = "latents"


class Chunks:
    """Makes chunks, or takes up those that were made before.

    Raises:
        ModelError: the model is none that makes stories chunk by chunk.
        RequestError: it knows too few places in time for what its chunks would see.
    """

    def __init__(self, story: StoryRequest, model: LoadedModel) -> None:
        request = story.request
        self._story, self._model, self._plan = story, model, story.plan()
        self._size = latent_size(request, model)
        pattern = None
        if story.read_decay is not None:
            pattern = RadialPattern(decay=story.read_decay, skip_width=model.spec.pattern.skip_width)
        sampling = Sampling(
            request.num_inference_steps or model.spec.num_inference_steps, request.guidance_scale or 1.0, pattern,
            model.spec.block_size, story.rectify_every,
        )  # fmt: skip
        scheduler_of = functools.partial(scheduler_for, model.pipe, request.sampler or "model", request.flow_shift)
        self._decoder = ChunkDecoder(model.pipe.vae)
        self.engine = StoryEngine(model.pipe.transformer, scheduler_of, self._plan, sampling, self._size)
        self._words: tuple[int, Words] | None = None

    def make(self, piece: int, on_step: Callable[[int], None]) -> tuple[Frames, dict[str, Tensor]]:
        """A chunk's frames, and what the next ones need of it."""
        # A seed for each chunk, on the CPU: it does not depend on how many were made in this process.
        generator = torch.Generator("cpu").manual_seed(self._story.seed_of(piece, 2**63))
        channels = self._model.pipe.transformer.config.in_channels
        shape = (1, channels, len(self._plan.frames_of(piece)), *self._size)
        noise = torch.randn(shape, generator=generator).to(self._model.device)
        words = self._words_of(piece)
        latents = self.engine.make(piece, noise, words, generator, on_step)
        self.engine.take(piece, latents, words)
        return self._decoder.decode(latents[0]), {_LATENTS: latents[0]}

    def restore(self, piece: int, tensors: dict[str, Tensor], until: int) -> None:
        """Take up a chunk that was made before.

        Args:
            until: chunks that are taken up in all.
        """
        latents = tensors[_LATENTS].to(self._model.device)
        self.engine.take(piece, latents[None], self._words_of(piece))
        if self._plan.frames_of(until - 1).stop - self._plan.frames_of(piece).stop < self._decoder.remembers:
            self._decoder.decode(latents)

    def close(self) -> None:
        """Put the model back as it was."""
        self.engine.close()

    def _words_of(self, piece: int) -> Words:
        segment = self._plan.segment_of(piece)
        if self._words is None or self._words[0] != segment:
            told = self._story.lines[segment].words(named=True)
            self._words = segment, encode_words(self._story.request, self._model, [told])
        return self._words[1]


def latent_size(request: GenerationRequest, model: LoadedModel) -> tuple[int, int]:
    """Rows and columns of the latents of a request's clips."""
    _, rows, columns = model.spec.stride
    patch = model.pipe.transformer.config.patch_size
    return request.clip_height * patch[1] // rows, request.clip_width * patch[2] // columns


@torch.inference_mode()
def encode_words(request: GenerationRequest, model: LoadedModel, prompts: list[str]) -> Words:
    """What a segment of each of several stories shows, and what a request has avoided where it is guided."""
    pipe: Any = model.pipe
    guided = request.is_guided(model.spec)
    wanted, avoided = pipe.encode_prompt(
        [model.spec.words_for(prompt) for prompt in prompts], [request.negative_prompt or ""] * len(prompts),
        do_classifier_free_guidance=guided, max_sequence_length=model.spec.max_sequence_length,
        device=pipe._execution_device,
    )  # fmt: skip
    return Words(wanted, avoided if guided else None)
