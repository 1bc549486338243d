"""CogVideoX and ConsisID: one attention over the text and, after it, the clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from radial.families import Call, Family, patched_grid
from radial.grid import TokenGrid


def _grids(transformer: Any, call: Call) -> tuple[TokenGrid, ...]:
    frames, _, height, width = call["hidden_states"].shape[1:]
    text = call["encoder_hidden_states"].shape[1]
    return (replace(patched_grid(transformer, (frames, height, width)), before=text),)


FAMILY = Family(grids=_grids)
