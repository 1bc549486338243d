"""Puts a story into words: what each figure does, one thing then the next, and what moves besides."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from radial_finetune.world.caption import GROUND_WORDS, JOINS, MOTION_WORDS, SPEED_WORDS, describe, name_figure
from radial_finetune.world.scene import Scene
from radial_finetune.world.story import COMING, LEAVING, Actor, Event, Story, figure_in, scene_of

_LEAVE = {"leave-left": "leaves to the left", "leave-right": "leaves to the right"}
_COME = {"come-left": "comes from the left", "come-right": "comes from the right"}


@dataclass(frozen=True)
class StoryCaption:
    """A caption, and the character spans ``(actor, event, start, end)`` of the words of each event; those that name a
    figure belong to its first."""

    text: str
    spans: tuple[tuple[int, int, int, int], ...]


def describe_story(story: Story, rng: random.Random) -> StoryCaption:
    """Describe a story in random words; many events are told in short ones."""
    short = sum(len(actor.events) for actor in story.actors) > 6
    text, spans = "", []
    join = rng.choice(JOINS)
    for number, actor in enumerate(story.actors):
        # Whoever comes later is told of after what was before, and others at the same time.
        text += "" if not number else ", then " if actor.enters else join
        for index, event in enumerate(actor.events):
            text += ", then " if index else ""
            start = len(text)
            text += _words(actor, event, rng, short, named=index == 0)
            spans.append((number, index, start, len(text)))
    text += f" {_pick(GROUND_WORDS[story.background], rng, short)}"
    if story.drift != (0.0, 0.0):
        x, y = story.drift
        verb = "move" if text.endswith("s") else "moves"
        text += f" that {verb} {'up' if y < 0 else 'down' if y > 0 else 'to the left' if x < 0 else 'to the right'}"
    if story.camera != (0.0, 0.0):
        text += ", the camera moves"
    return StoryCaption(text, tuple(spans))


def describe_unit(story: Story, unit: int, rng: random.Random) -> tuple[Scene | None, str]:
    """What happens in a unit as a native scene, where the native world has such, and in the native world's words."""
    parts = [scene_of(actor, unit, story) for actor in story.actors if actor.event_at(unit)]
    if all(part is not None for part in parts):
        figures = tuple(part.figures[0] for part in parts if part is not None)
        scene = Scene(figures, story.background, story.texture_seed)
        return scene, describe(scene, rng).text
    return None, describe_story(replace(_within(story, unit), drift=(0.0, 0.0), camera=(0.0, 0.0)), rng).text


def describe_event(story: Story, unit: int, rng: random.Random, *, named: bool) -> str:
    """What the only figure does in a unit, with or without a word of how it looks, and the ground."""
    actor = story.actors[0]
    event = actor.event_at(unit) or Event("rest")
    actor = replace(actor, figure=figure_in(actor, unit))  # as large as it is then
    return f"{_words(actor, event, rng, False, named=named)} {rng.choice(GROUND_WORDS[story.background])}"


def words_in_time(story: Story, rng: random.Random) -> tuple[str, ...]:
    """A prompt for each unit, as a user would write those that follow one another: whoever is there, as large as they
    are then, what they do, and whatever moves besides."""
    return tuple(describe_story(_within(story, unit), rng).text for unit in range(story.units))


def _within(story: Story, unit: int) -> Story:
    """What happens in one unit, as a story of its own."""
    doing = [(actor, event) for actor in story.actors if (event := actor.event_at(unit))]
    actors = (replace(a, figure=figure_in(a, unit), events=(event,), enters=0, goes_on=False) for a, event in doing)
    return replace(story, actors=tuple(actors))


def _words(actor: Actor, event: Event, rng: random.Random, short: bool, *, named: bool) -> str:
    if event.motion in LEAVING + COMING:
        does, speed = (_LEAVE | _COME)[event.motion], ""
    else:
        does = _pick(MOTION_WORDS[event.motion], rng, short)
        speed = "" if event.motion == "rest" else _pick(SPEED_WORDS[event.speed], rng, short)
    return " ".join(word for word in (name_figure(actor.figure, rng) if named else "", does, speed) if word)


def _pick(words: tuple[str, ...], rng: random.Random, short: bool) -> str:
    return min(words, key=len) if short else rng.choice(words)
