"""Which layers and steps are dense."""

from __future__ import annotations

import pytest

from radial import RequestError, Schedule
from radial.advice import advise
from radial.models.find import find_model
from radial.plans.policy import DENSE
from radial.request import make_request


def dense_steps(schedule: Schedule, steps: int) -> list[int]:
    return [step for step in range(steps) if schedule.choose(4, step, steps) == DENSE]


def test_dense_layers_and_steps() -> None:
    schedule = Schedule(dense_layers=2, dense_steps=3, dense_last_steps=1)
    assert [layer for layer in range(5) if schedule.choose(layer, 5, 10) == DENSE] == [0, 1]
    assert dense_steps(schedule, 10) == [0, 1, 2, 9]
    assert not dense_steps(Schedule(), 1)  # where nobody knows how many steps there are, none is the last


def test_dense_steps_in_between() -> None:
    """Counted from the leading ones on, which may be computed by another planner."""
    assert dense_steps(Schedule(dense_every=4), 10) == [3, 7]
    assert dense_steps(Schedule(dense_steps=1, dense_every=4), 10) == [0, 4, 8]
    assert dense_steps(Schedule(dense_every=1), 3) == [0, 1, 2]
    assert dense_steps(Schedule(dense_every=11), 10) == []
    early = Schedule(dense_layers=1, dense_steps=2, dense_every=3, dense_last_steps=1, early=2)
    assert [early.choose(1, step, 8) for step in range(8)] == [2, 2, 1, 1, 0, 1, 1, 0]
    assert not any(early.choose(0, step, 8) for step in range(8))


@pytest.mark.parametrize("field", ["dense_layers", "dense_steps", "dense_last_steps", "dense_every"])
def test_negative_numbers_are_refused(field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} must be 0 or more, not -1"):
        Schedule(**{field: -1})


def test_what_has_no_effect_is_told() -> None:
    def notes(**fields: object) -> str:
        return " ".join(advise(make_request(prompt="a", **fields).resolve(), find_model("tiny")))

    assert "dense_every 3 has no effect: dense attention" in notes(dense_every=3, attention="dense")
    assert "dense_every 40 has no effect: fewer steps" in notes(dense_every=40)
    assert "early_density 0.5 has no effect on radial" in notes(early_density=0.5)
    assert "dense_steps says of how many" in notes(early_density=0.5, attention="adaptive", dense_steps=0)
    assert "no effect" not in notes(early_density=0.5, attention="adaptive", dense_steps=4, dense_every=3)
