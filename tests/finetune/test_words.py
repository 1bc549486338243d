"""The words that the bundled model is said to know are those of the captions it was trained on."""

from __future__ import annotations

import random
import re
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional

from radial.loading.load import load
from radial.request import make_request
from radial_finetune.data.prepare import encode_texts
from radial_finetune.objective import find_objective
from radial_finetune.world.caption import describe
from radial_finetune.world.cast import NAMES
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


def test_its_text_encoder_tells_names_apart_whatever_else_is_said() -> None:
    model = load(make_request(prompt="names", model="tiny", device="cpu", seed=0))
    objective = find_objective(model.pipe, model.spec)

    def codes(says: str) -> Tensor:
        told = encode_texts(objective, [f"{name}: {says}" for name in NAMES])
        means = torch.stack([one["prompt_embeds"].float().mean(0) for one in told])
        return functional.normalize(means - means.mean(0), dim=1)

    alike = codes("a red circle rises slowly on grey") @ codes("moves to the left on grey").T
    assert alike.argmax(1).tolist() == list(range(len(NAMES)))
    assert alike.diag().min() > 0.7
    assert (alike - alike.diag().diag()).abs().mean() < 0.3
