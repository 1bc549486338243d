"""Recall and its controls: the truth is right, another's film is not, and twins' memories are each other's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from radial.attention.story.cache import StoryCache
from radial.loading.load import load
from radial.plans.story.memory import StoryMemory, StoryPlan
from radial.request import make_request
from radial.stories.request import StoryRequest, make_story_request
from radial.stories.script import Line
from radial.stories.windows import Windows
from radial_finetune.evaluate.casts import (
    CONTROLS,
    held_out_casts,
    make_films,
    memory_for,
    score_film,
    summarise,
    true_films,
)
from radial_finetune.evaluate.story_windows import make_window_films, words_with_looks
from radial_finetune.world.story import UNIT

MEMORY = StoryMemory(chunk_frames=4, window_frames=8)


def test_the_truth_is_right_and_a_twin_s_film_is_the_twin_s() -> None:
    group = held_out_casts(2, 6, MEMORY, 8)[0]
    films = true_films(group)
    right = [score_film(films[place], group[place], group[place ^ 1]) for place in (0, 1)]
    for film in right:
        assert all(one.colour and one.size for one in film)
        assert sum(one.shape for one in film) >= 5
        assert not any(one.confused or one.twin for one in film)
        assert [one.segment for one in film] == list(range(6))
    wrong = [score_film(films[place ^ 1], group[place], group[place ^ 1]) for place in (0, 1)]
    seen = [one for film in wrong for one in film]
    assert sum(one.twin for one in seen) >= 9
    assert not any(one.colour and one.shape for one in seen if one.twin)
    told = summarise(right)
    assert told["new: colour"][0] == 1.0
    assert told["drift of new colour, a segment"] == (0.0, 0.0, 0.0)


def test_returns_come_from_beyond_the_window_and_are_not_described() -> None:
    returned = 0
    for story in itertools.chain(*held_out_casts(12, 12, MEMORY, 8, at_once=2)):
        for scene in story.scenes:
            figure = scene.story.actors[0].figure
            words = story.words[scene.first].split()
            assert (figure.colour in words) <= (scene.returns == 0)
            returned += scene.returns > 0
            assert scene.returns == 0 or (scene.returns - 1) * 8 >= MEMORY.window_frames
    assert returned > 12
    one, other = held_out_casts(2, 12, MEMORY, 8)[0]
    assert [(s.name, s.returns) for s in one.scenes] == [(s.name, s.returns) for s in other.scenes]


def test_controls_see_what_they_say(wan_folder: Path) -> None:
    model = load(make_request(prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=0))
    torch.manual_seed(0)
    request = make_request(
        prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=0, num_inference_steps=1,
        attention="dense", guidance_scale=1.0,
    ).resolve()  # fmt: skip
    group = held_out_casts(2, 4, MEMORY, 8)[0]
    films, tokens = {}, {}
    for control in ("memory", "none", "shuffled", "looks"):
        kept: list[int] = []

        def count(chunk: int, cache: StoryCache, kept: list[int] = kept) -> None:
            kept.append(cache.tokens)

        films[control] = make_films(request, model, MEMORY, group, control, on_chunk=count)
        tokens[control] = kept[-1]
        assert all(film.shape == (129, 32, 32, 3) for film in films[control])
    assert tokens["memory"] == tokens["shuffled"] > tokens["none"] == tokens["looks"]
    early = 1 + 4 * 8  # frames of chunks that read nothing but their window
    for control in ("none", "shuffled"):
        assert np.array_equal(films["memory"][0][:early], films[control][0][:early])
        assert not np.array_equal(films["memory"][0], films[control][0]), control
    assert not np.array_equal(films["none"][0], films["looks"][0])


def test_windows_beside_each_other_are_those_of_films_alone(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = held_out_casts(2, 3, MEMORY, 8)[0]
    told = [words_with_looks(story, named=True) for story in group]
    for story, words in zip(group, told, strict=True):
        for segment, line in enumerate(words):
            assert story.scene_of(segment)[0].story.actors[0].figure.colour in line.split()
    fields = {"model": str(wan_folder), "height": 32, "width": 32, "fps": 16, "seed": 0, "num_inference_steps": 2,
              "guidance_scale": 1.0, "dtype": "float32", "device": "cpu"}  # fmt: skip
    cuts = group[0].cuts
    lines = [Line(words, cut=number in cuts) for number, words in enumerate(told[1])]
    film = make_story_request(lines, fields, seconds=UNIT / 16)
    model = load(film.request)
    films = make_window_films(film.request, model, group)
    assert [one.shape for one in films] == 2 * [(1 + 3 * UNIT, 32, 32, 3)]
    # The second story's, from the same seeds.
    monkeypatch.setattr(StoryRequest, "seed_of", lambda self, piece, most: 2 * piece + 1)
    windows = Windows(film, model, tmp_path)
    alone = np.concatenate([windows.make(piece, lambda step: None)[0] for piece in range(3)])
    assert np.abs(alone.astype(int) - films[1]).max() <= 1


@pytest.mark.parametrize("control", CONTROLS)
def test_what_a_control_changes(control: str) -> None:
    seen = StoryPlan(memory_for(control, MEMORY, 97), (2,) * 12).reads(20)
    beyond = {frame for read in seen for frame in read.frames if frame < 1 + 20 * 4 - MEMORY.window_frames}
    last = set(range(8, 73, 8))
    assert beyond == {"none": {0}, "looks": {0}, "window": set(), "full": set(range(73))}.get(control, last | {0})
