"""A cache of stories for fine-tuning the bundled model, encoded without files between: ``python -m
radial_finetune.pretrain.story_data --out CACHE --clips 65=512 129=1024``; with ``--cast``, stories of named figures
that return, for causal training."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from radial.loading.load import LoadedModel, load
from radial.request import make_request
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import (
    CachedClip,
    CacheIndex,
    Shards,
    empty_text_file,
    write_index,
    write_tensors,
)
from radial_finetune.data.prepare import encode_texts
from radial_finetune.objective import find_objective
from radial_finetune.pretrain.autoencoder import encode_clip
from radial_finetune.world import describe, draw_scene
from radial_finetune.world.cast import PATTERNS, bare_words, cast_parts, draw_cast_story
from radial_finetune.world.story import UNIT, draw_story, story_of
from radial_finetune.world.story_caption import describe_story, words_in_time
from radial_finetune.world.story_render import StoryParts, paint_scenes, story_parts

_SIDE, _FPS = 128, 16.0
_TWO_FIGURES = 0.3  # of the native clips
_EVENTFUL = 0.6  # of the longer ones in which all go on with one thing, which is soon learned, give way to others
_INVENTED = 0.9  # of the names of a cast: a model that is told of anybody must learn who it is
_RETURNS = 0.8  # of the scenes of a cast that bring back whom they can
_IN_TIME = 0.8  # of the longer ones, whose words come one event at a time

# A clip's key, what its scenes are painted from, its words, one prompt after the other, before which the picture cuts,
# and of a cast the same words without looks.
_Drawn = tuple[str, tuple[StoryParts, ...], tuple[str, ...], tuple[int, ...], tuple[str, ...]]
_Wanted = tuple[int, int, int, bool]  # frames, the number of the story, the seed, and whether it has a cast


def write_story_cache(
    out: Path, model: LoadedModel, clips: dict[int, int], seed: int = 0, batch: int = 8, *, cast: bool = False
) -> None:
    """Write a cache that ``radial finetune run`` takes.

    Args:
        clips: how many of each length in frames; those of the native length are drawn as the model's own were.
        cast: whether they are stories with a cast, of as many segments as 32 frames go into them.
    """
    objective = find_objective(model.pipe, model.spec)
    vae = model.pipe.vae
    shape = (1, -1, 1, 1, 1)
    mean, std = (
        torch.tensor(values, device=vae.device, dtype=torch.float32).view(shape)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    out.mkdir(parents=True, exist_ok=True)
    shards, cached = Shards(out), []
    write_tensors(empty_text_file(out, model.fingerprint), encode_texts(objective, [""])[0], overwrite=True)
    wanted = [(frames, number, seed, cast) for frames, count in sorted(clips.items()) for number in range(count)]
    for frames, members in _in_batches(wanted, batch):
        encoded = iter(encode_texts(objective, [text for _, _, words, _, bare in members for text in (*words, *bare)]))
        texts = [[next(encoded) for _ in told] for _, _, words, _, bare in members for told in (words, bare)]
        with torch.inference_mode():
            painted = torch.stack([paint_scenes(parts, vae.device) for _, parts, *_ in members])
            pixels = (((painted + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1).to(vae.dtype)
            latents = ((encode_clip(vae, pixels)[0].float() - mean) / std).to(torch.float16)
        for (key, _, words, cuts, bare), latent, text, short in zip(
            members, latents, texts[::2], texts[1::2], strict=True
        ):
            shards.add(
                key, latent, text[0] if len(text) == 1 else objective.join_texts(text),
                bare=objective.join_texts(short) if short else None,
            )  # fmt: skip
            cached.append((key, Bucket(frames, _SIDE, _SIDE), words, cuts, bare))
    shards.flush()
    known = tuple(
        CachedClip(key, shards.found[key], bucket, words[0], key, 0, then=words[1:], cuts=cuts, bare=bare)
        for key, bucket, words, cuts, bare in cached
    )
    write_index(out, CacheIndex(model.spec.name, model.fingerprint, _FPS, known))


def _in_batches(wanted: list[_Wanted], size: int) -> Iterator[tuple[int, list[_Drawn]]]:
    """Clips of one length at a time, drawn by processes of their own."""
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 16), initializer=_use_one_thread) as pool:
        ready: list[_Drawn] = []
        length = 0
        for (frames, _, _, _), made in zip(wanted, pool.imap(_draw, wanted, chunksize=4), strict=True):
            if ready and (frames != length or len(ready) == size):
                yield length, ready
                ready = []
            length = frames
            ready.append(made)
        if ready:
            yield length, ready


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _draw(wanted: _Wanted) -> _Drawn:
    frames, number, seed, cast = wanted
    rng = random.Random(f"story {seed} {frames} {number}")
    units = (frames - 1) // UNIT
    if cast:
        told = draw_cast_story(rng, units, number % PATTERNS, returns=_RETURNS, gone=1, invented=_INVENTED)
        return _key(wanted), _thin(*cast_parts(told, _SIDE, _SIDE)), told.words, told.cuts, bare_words(told, rng)
    words: tuple[str, ...]
    if units == 1:
        scene = draw_scene(rng, 2 if rng.random() < _TWO_FIGURES else 1)
        story, words = story_of(scene, 1), (describe(scene, rng).text,)
    else:
        story = draw_story(rng, units)
        while all(actor.goes_on for actor in story.actors) and rng.random() < _EVENTFUL:
            story = draw_story(rng, units)
        words = words_in_time(story, rng) if rng.random() < _IN_TIME else (describe_story(story, rng).text,)
    return _key(wanted[:3]), _thin(story_parts(story, _SIDE, _SIDE)), words, (), ()


def _thin(*parts: StoryParts) -> tuple[StoryParts, ...]:
    """The same in half precision, for the process that paints."""
    return tuple(replace(one, ground_THW=one.ground_THW.astype(np.float16)) for one in parts)


def _key(wanted: tuple[object, ...]) -> str:
    return hashlib.blake2b(f"{wanted}".encode(), digest_size=12).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m radial_finetune.pretrain.story_data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", nargs="+", required=True, metavar="FRAMES=COUNT")
    parser.add_argument("--cast", action="store_true", help="stories of named figures that return")
    parser.add_argument("--batch", type=int, default=8, help="clips that are encoded at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    clips = {int(frames): int(count) for frames, _, count in (one.partition("=") for one in options.clips)}
    model = load(make_request(prompt="stories", model="tiny", device=options.device, dtype=options.dtype, seed=0))
    write_story_cache(options.out, model, clips, options.seed, options.batch, cast=options.cast)
    print(options.out)


if __name__ == "__main__":
    main()
