"""Prompts that follow one another within a clip, from the request to the frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from radial.advice import advise
from radial.errors import RequestError
from radial.generation.pipeline import generate
from radial.generation.unseen_words import unseen_words
from radial.loading.load import LoadedModel, load
from radial.models.find import find_model
from radial.request import make_request
from radial.timed_prompts import begins_of

FIELDS: dict[str, Any] = {
    "num_frames": 9, "num_inference_steps": 2, "seed": 3, "device": "cpu",
    "dtype": "float32",
}  # fmt: skip


RISES, FALLS = "a large red circle rises", "a small blue square moves down"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(make_request(prompt="x", device="cpu", dtype="float32"))


def frames(model: LoadedModel, **more: Any) -> Any:
    (video,) = generate(make_request(prompt=RISES, **FIELDS | more), model=model)
    return video


def test_each_prompt_has_its_time(model: LoadedModel) -> None:
    once, again, other = (frames(model, then=then) for then in ([], [RISES], [FALLS]))
    apart = [np.abs(once.frames.astype(int) - one.frames).mean((1, 2, 3)) for one in (again, other)]
    assert apart[0].max() < 0.01  # the same words all the time are one prompt, to rounding
    assert apart[1][-4:].mean() > 10 * apart[0].max() + 0.5  # the last frames read other words
    assert other.receipt["request"]["then"] == [FALLS]


def test_what_cannot_be_is_told() -> None:
    def refused(match: str, **more: Any) -> None:
        with pytest.raises(RequestError, match=match):
            make_request(prompt="a", **{"num_frames": 33} | more).resolve()

    refused("then must not hold an empty prompt", then=["b", " "])
    refused('this one does not: "c"', then=["1s: b", "c"])
    refused("cannot begin at 1 s, where the one before begins at 1.5 s", then=["1.5s: b", "1s: c"])
    refused("the clip ends at 2.0625 s", then=["3s: b"])
    refused("9 prompts have no room in 33 frames", then=["b"] * 8)
    for name in ("cogvideox-5b", "skyreels-v2-df-1.3b", "wan2.1-i2v-14b-480p"):
        refused(f"{name} cannot read another prompt at another time; models that can: tiny, wan", model=name,
                num_frames=49, then=["b"], **({"image": "a.png"} if "i2v" in name else {}))  # fmt: skip
    refused("does not go with token_order columns", then=["b"], token_order="columns")
    refused("then .* at most 63", then=["b"] * 64)


def test_times_and_lines() -> None:
    assert begins_of(("a", "b", "c"), 4.0) == (0.0, 0.25, 0.5, 0.75)
    assert begins_of(("1s: a", "3.0 s: b"), 4.0) == (0.0, 0.25, 0.75)
    request = make_request(prompt="one", then="two\n\n2s: three\n")
    assert request.then == ("two", "2s: three")
    assert request.prompts == ("one", "two", "three")


def test_all_prompts_are_looked_at(model: LoadedModel) -> None:
    request = make_request(prompt="a red circle rises", then=["a zebra falls, then spins"], num_frames=65).resolve()
    notes = " ".join(advise(request, find_model("tiny")))
    assert "does not know: zebra" in notes
    assert "4 events" in notes
    long = make_request(prompt="a", then=["red " * 600], model="tiny", num_frames=65).resolve()
    assert any("the end" in note or "not its end" in note for note in unseen_words(long, model))
