"""Stories at the world's own speed, and a score that sees what is wrong with one: each fault by its own measure."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from radial_finetune.evaluate.story_score import StoryScore, score_story
from radial_finetune.world.render import to_pixels
from radial_finetune.world.scene import Figure, draw_scene, pose
from radial_finetune.world.story import UNIT, Actor, Event, Story, draw_story, permuted, state_at, story_of
from radial_finetune.world.story_caption import describe_story, describe_unit, words_in_time
from radial_finetune.world.story_render import render_stories, story_tracks


def sequence(*motions: str, background: str = "grey", shape: str = "square") -> Story:
    """One figure that does these, one after the other, all of it around the middle."""
    actor = Actor(Figure(shape, "red", "small", "rest", "normal"), tuple(map(Event, motions)), (0.0, 0.0))
    states = [state_at(actor, frame) for frame in range(UNIT * len(motions) + 1)]
    ways = [[state[axis] for state in states if state is not None] for axis in (0, 1)]
    start = tuple(0.5 - (min(way) + max(way)) / 2 for way in ways)
    return Story((replace(actor, start=(start[0], start[1])),), background, 7, len(motions))


def drawn(story: Story) -> Any:
    return to_pixels(render_stories([story])[0])


def test_an_event_takes_the_time_it_takes() -> None:
    """The first unit of a longer story is the native clip's motion, and each goes on from where the last one ended."""
    for motion in ("right", "rise", "zigzag", "orbit", "spin", "bounce"):
        long = sequence(motion, "rest", "rest")
        actor = long.actors[0]
        native = replace(actor.figure, motion=motion)
        first = pose(native, 0.0)
        for frame in (0, 7, 16, 31):
            state, truth = state_at(actor, frame), pose(native, frame / UNIT)
            assert state is not None
            assert state[0] - actor.start[0] == pytest.approx(truth[0] - first[0], abs=1e-9)
            assert state[1] - actor.start[1] == pytest.approx(truth[1] - first[1], abs=1e-9)
            assert state[3] == pytest.approx(truth[3], abs=1e-9)
        assert state_at(actor, UNIT) == state_at(actor, 3 * UNIT)  # then it rests
    rng = random.Random(0)
    for units in (1, 2, 4, 8, 16):
        for _ in range(40):
            story = draw_story(rng, units)
            assert story.num_frames == 32 * units + 1
            for track, actor in zip(story_tracks(story), story.actors, strict=True):
                inside = np.array(track.present)
                steps = np.hypot(np.diff(track.x), np.diff(track.y))[inside[1:] & inside[:-1]]
                assert steps.max(initial=0) < 25, actor  # no jump; the fastest hops are that fast
                assert inside.any()


def test_captions_tell_every_event_and_fit() -> None:
    rng = random.Random(1)
    for units in (1, 2, 4, 8, 16):
        for _ in range(30):
            story = draw_story(rng, units)
            caption = describe_story(story, rng)
            assert len(caption.spans) == sum(len(actor.events) for actor in story.actors)
            parts = [caption.text[start:end] for *_, start, end in caption.spans]
            assert all(part in caption.text and part == part.strip() for part in parts)
            several = any(len(actor.events) > 1 for actor in story.actors)
            assert (", then " in caption.text) == several
    assert describe_story(sequence("rise", "spin"), random.Random(3)).text.count(", then ") == 1


def test_a_native_scene_is_a_story_of_one_unit() -> None:
    rng = random.Random(2)
    for _ in range(20):
        scene = draw_scene(rng, 1)
        story = story_of(scene, 4)
        figure = scene.figures[0]
        for frame in (0, 11, 32):
            state, truth = state_at(story.actors[0], frame), pose(figure, frame / UNIT)
            assert state is not None
            assert state[0] == pytest.approx(truth[0], abs=1e-6)
            assert state[2] == pytest.approx(truth[2], abs=1e-6)


@pytest.fixture(scope="module")
def story() -> Story:
    return sequence("right", "rise", "spin", "fall", background="striped")


@pytest.fixture(scope="module")
def truth(story: Story) -> Any:
    return drawn(story)


def judge(frames: Any, story: Story, truth: Any) -> set[str]:
    """All that a score finds wrong."""
    score = score_story(frames, story, truth)
    found = {score.fault} - {""}
    for name in ("flicker", "drift", "noise"):
        found |= {name} if getattr(score, name) else set()
    found |= {"slip"} if score.slip > 0.15 else set()
    found |= {"persistence"} if score.persistence < 0.95 else set()
    found |= {name for name in ("colour", "shape") if getattr(score, name) < 1}
    return found


def of_truth(name: str, truth: Any) -> Any:
    """The truth with one thing wrong."""
    count, rng = len(truth), np.random.default_rng(0)
    index, wide = np.arange(count), truth.astype(np.int16)
    brighter = {
        "flicker": np.where(index % 2, 4, -4)[:, None, None, None],
        "drift": np.linspace(-30, 30, count)[:, None, None, None], "noise": rng.normal(0, 12, truth.shape),
    }  # fmt: skip
    if name in brighter:
        return (wide + brighter[name]).clip(0, 255).astype(np.uint8)
    return {
        "nothing": truth, "4 times slower": truth[index // 4], "2 times slower": truth[index // 2],
        "frozen quarter": truth[np.minimum(index, 3 * count // 4)], "looped event": truth[index % 33],
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fault"),
    [("nothing", None), ("4 times slower", "speed"), ("2 times slower", "speed"), ("frozen quarter", "freeze"),
     ("looped event", "repetition"), ("flicker", "flicker"), ("drift", "drift"), ("noise", "noise")],
)  # fmt: skip
def test_each_fault_is_seen_by_its_own_measure(name: str, fault: str | None, story: Story, truth: Any) -> None:
    assert judge(of_truth(name, truth), story, truth) == ({fault} if fault else set())


def test_a_wrong_order_is_only_that(story: Story, truth: Any) -> None:
    shuffled = drawn(permuted(story, [1, 0, 3, 2]))
    assert judge(shuffled, story, truth) == {"order"}
    score = score_story(shuffled, story, truth)
    assert (score.events, score.motion < 0.5, score.prompt) == (1.0, True, False)


def test_another_event_is_missed(story: Story, truth: Any) -> None:
    assert judge(drawn(sequence("right", "rise", "spin", "sway", background="striped")), story, truth) == {"events"}


def test_a_figure_that_goes_for_a_while(story: Story, truth: Any) -> None:
    gone = replace(story, actors=(replace(story.actors[0], enters=99),))
    frames, empty = truth.copy(), drawn(gone)
    away = [t for t in range(len(frames)) if t % 33 in range(12, 17)]
    frames[away] = empty[away]
    assert judge(frames, story, truth) == {"persistence"}


def test_another_figure_is_told_by_its_looks(story: Story, truth: Any) -> None:
    figure = story.actors[0].figure
    for name, value in (("colour", "blue"), ("shape", "cross")):
        other = replace(story, actors=(replace(story.actors[0], figure=replace(figure, **{name: value})),))
        found = judge(drawn(other), story, truth)
        assert name in found
        assert not found & {"speed", "freeze", "repetition", "events", "order", "flicker", "drift", "noise"}


def test_a_ground_that_moves_must() -> None:
    moving = replace(sequence("right", "spin"), background="checkered", drift=(0.25, 0.0))
    truth, still = drawn(moving), drawn(replace(moving, drift=(0.0, 0.0)))
    assert judge(truth, moving, truth) == set()
    assert judge(still, moving, truth) == {"slip"}
    assert judge(drawn(replace(moving, drift=(-0.25, 0.0))), moving, truth) == {"slip"}
    assert judge(drawn(replace(moving, drift=(0.18, 0.0))), moving, truth) == set()  # words do not say how fast


def test_words_at_a_time_say_how_large_a_figure_is_then() -> None:
    story = sequence("spin", "grow", "rise")
    small, large = replace(story.actors[0], scale=0.55), story.actors[0].figure
    story = replace(story, actors=(replace(small, figure=replace(large, size="large")),))
    told = words_in_time(story, random.Random(0))
    assert [any(word in text for word in ("large", "big", "huge")) for text in told] == [False, True, True]
    assert [any(word in text for word in ("small", "tiny", "little")) for text in told] == [True, False, False]
    scene, _ = describe_unit(story, 0, random.Random(0))
    assert scene is not None
    assert scene.figures[0].size == "small"


def test_those_who_leave_and_come() -> None:
    """One after the other in the same place; the camera moves."""
    rng = random.Random(4)
    found: list[StoryScore] = []
    while len(found) < 4:
        story = draw_story(rng, 4)
        if any(event.motion.startswith("leave") for actor in story.actors for event in actor.events) or story.camera[0]:
            frames = drawn(story)
            found.append(score_story(frames, story, frames))
    assert all(score.prompt and score.steady for score in found)
    assert all(score.persistence > 0.95 for score in found)


def test_drawing_is_the_same_on_every_machine() -> None:
    story = draw_story(random.Random(9), 3)
    assert story == draw_story(random.Random(9), 3)
    assert torch.equal(render_stories([story]), render_stories([story]))
