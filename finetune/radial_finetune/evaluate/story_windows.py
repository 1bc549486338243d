"""What stories are by a model without a memory, whose every line says what its figure looks like: the rival of recall
that needs no training.

Windows as :mod:`radial.stories.windows` makes them, of many stories of one pattern beside each other.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

import numpy as np

from radial.attention.install import transformers_of
from radial.loading.load import LoadedModel
from radial.request import GenerationRequest
from radial.stories.request import OVERLAP
from radial.stories.windows import encode_last, held
from radial_finetune.data.clips import Frames
from radial_finetune.evaluate.shapes import HELD_OUT_SEED, generate_clips
from radial_finetune.world.cast import CastStory
from radial_finetune.world.story import UNIT
from radial_finetune.world.story_caption import describe_event


def words_with_looks(story: CastStory, *, named: bool) -> tuple[str, ...]:
    """A story's words where every line tells its figure's look; and its name, where that is told too."""
    told = []
    for segment, line in enumerate(story.words):
        scene, unit = story.scene_of(segment)
        rng = random.Random(f"{HELD_OUT_SEED} looks {line} {segment}")
        words = describe_event(scene.story, unit, rng, named=True)
        told.append(f"{scene.name}: {words}" if named else words)
    return tuple(told)


def make_window_films(
    request: GenerationRequest, model: LoadedModel, stories: Sequence[CastStory], seed: int = 0
) -> list[Frames]:
    """Films of stories of one pattern, a window a segment.

    Args:
        request: resolved, of native clips.
    """
    words = [words_with_looks(story, named=model.spec.reads_names) for story in stories]
    films: list[Frames] = []
    for segment in range(stories[0].segments):
        alone = segment == 0 or segment in stories[0].cuts
        before = (0 if segment == 0 else 1) if alone else OVERLAP
        window = request.model_copy(update={"num_frames": UNIT + (1 if alone else OVERLAP)})
        prompts, first_seed = [told[segment] for told in words], 1_000_003 * seed + len(stories) * segment
        with contextlib.ExitStack() as stack:
            if not alone:
                known = encode_last(model, np.stack([film[-OVERLAP:] for film in films]))
                stack.enter_context(held(transformers_of(model.pipe), known))
            made = generate_clips(window, model, prompts, len(prompts), first_seed)
        own = [clip[before:] for clip in made]
        films = own if not films else [np.concatenate(pair) for pair in zip(films, own, strict=True)]
    return films
