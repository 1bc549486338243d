"""Which layers and steps are dense."""

from __future__ import annotations

import pytest

from radial import RequestError, Schedule


def test_dense_layers_and_steps() -> None:
    schedule = Schedule(dense_layers=2, dense_steps=3, dense_last_steps=1)
    assert [layer for layer in range(5) if schedule.is_dense(layer, 5, 10)] == [0, 1]
    assert [step for step in range(10) if schedule.is_dense(4, step, 10)] == [0, 1, 2, 9]
    assert Schedule().dense_share(4, 10) == 0
    assert not Schedule().is_dense(0, 5, 1)  # where nobody knows how many steps there are, none is the last
    assert schedule.dense_share(4, 10) == pytest.approx((4 * 4 + 6 * 2) / 40)


@pytest.mark.parametrize("field", ["dense_layers", "dense_steps", "dense_last_steps"])
def test_negative_numbers_are_refused(field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} must be 0 or more, not -1"):
        Schedule(**{field: -1})
