"""Requests that are made together: each video as by itself, and each run on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radial import GenerationError, RequestError, Video
from radial.generation.acceleration import meeting as module
from radial.generation.acceleration.together import generate_together
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.loading.load import LoadedModel, load
from radial.request import GenerationRequest, make_request


@pytest.fixture(scope="module")
def model(wan_folder: Path) -> LoadedModel:
    return load(make_request(prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=0))


def requests_of(folder: Path, **values: Any) -> list[GenerationRequest]:
    sparse = {} if "attention" in values else {"decay": 0.3, "dense_steps": 1}
    common = {"model": str(folder), "num_inference_steps": 2, "seed": 3} | sparse | values
    return [
        make_request(prompt="a red circle", num_frames=9, height=32, width=32, **common),
        make_request(prompt="a", num_frames=5, height=48, width=32, guidance_scale=1.0, **common),
        make_request(prompt="a circle", num_frames=9, height=32, width=32, **common | {"seed": 4}),
    ]


@pytest.mark.parametrize("attention", ["radial", "dense"])
def test_each_video_is_as_alone(wan_folder: Path, model: LoadedModel, attention: str) -> None:
    """One of them unguided, so that it waits for no second call; the receipt says how many shared their calls."""
    requests = requests_of(wan_folder, **({"attention": "dense"} if attention == "dense" else {}))
    alone = [next(generate(request, model=model)) for request in requests]
    before = [block.attn1.processor for block in model.pipe.transformer.blocks]
    events: list[tuple[int, Event]] = []
    videos = generate_together(requests, model=model, on_event=lambda *told: events.append(told))
    assert [block.attn1.processor for block in model.pipe.transformer.blocks] == before
    for number, (one, other) in enumerate(zip(alone, videos, strict=True)):
        assert isinstance(other, Video)
        assert np.abs(one.frames.astype(int) - other.frames).max() <= 1
        assert other.receipt["packed"] == 3
        assert other.receipt["attention"] == one.receipt["attention"]
        steps = [event.step for told, event in events if told == number and event.stage == "denoise"]
        assert steps[-1] == 2
    assert not np.array_equal(videos[0].frames, videos[2].frames)  # type: ignore[union-attr]


def test_one_that_fails_fails_alone(wan_folder: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose latents stop being numbers, and one that is ended from without."""
    requests = requests_of(wan_folder)
    (wanted,) = generate(requests[1], model=model)
    plain = module.Meeting.call

    def broken(self: Any, number: int, call: dict[str, Any]) -> Any:
        if number == 0:
            call = call | {"hidden_states": call["hidden_states"] * float("nan")}
        return plain(self, number, call)

    def ended(number: int, event: Event) -> None:
        if number == 2 and event.stage == "denoise" and event.step == 1:
            raise GenerationError("its user ended it")

    monkeypatch.setattr(module.Meeting, "call", broken)
    first, second, third = generate_together(requests, model=model, on_event=ended)
    assert isinstance(first, GenerationError)
    assert "stopped being numbers at step 1" in str(first)
    assert isinstance(third, GenerationError)
    assert str(third) == "its user ended it"
    assert isinstance(second, Video)
    assert np.abs(wanted.frames.astype(int) - second.frames).max() <= 1


def test_what_cannot_share_calls_is_refused(wan_folder: Path, model: LoadedModel) -> None:
    first, *rest = requests_of(wan_folder)
    for other, why in (
        (first.model_copy(update={"num_inference_steps": 3}), "share num_inference_steps: it is 2 of one and 3"),
        (first.model_copy(update={"decay": 0.5}), "share the settings of attention"),
        (first.model_copy(update={"num_videos": 2}), "one video each, not 2"),
        (first.model_copy(update={"batched_guidance": True}), "batched_guidance does not go with"),
    ):
        with pytest.raises(RequestError, match=why):
            generate_together([first, *rest, other], model=model)
    with pytest.raises(RequestError, match="no requests"):
        generate_together([], model=model)
