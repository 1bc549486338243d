"""The words that the bundled model is said to know are those of the captions it was trained on."""

from __future__ import annotations

import random
import re
from importlib.resources import files

from radial_finetune.world.caption import describe
from radial_finetune.world.scene import draw_scene
from radial_finetune.world.story import draw_story
from radial_finetune.world.story_caption import describe_story


def test_the_bundled_model_knows_the_words_of_its_captions() -> None:
    known = set((files("radial_assets") / "tiny" / "words.txt").read_text(encoding="utf-8").split())
    dice = random.Random(0)
    said = {
        word for number in range(4000)
        for word in re.findall(r"[a-z]+(?:-[a-z]+)*", describe(draw_scene(dice, 1 + number % 2), dice).text.lower())
    }  # fmt: skip
    told = [describe_story(draw_story(dice, 1 + number % 6), dice).text for number in range(2000)]
    said |= {word for text in told for word in re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())}
    assert said <= known
    assert known - said <= {"the"}
