"""Allegro: text has cross-attention of its own."""

from __future__ import annotations

from typing import Any

from radial.attention.family import Call, Family


def _refuse(transformer: Any, call: Call) -> str | None:
    mask = call.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        return "the call masks parts of the clip"
    return None


# The pipeline passes a mask of ones, which the refusal above has seen.
FAMILY = Family(masks_padding=True, refuse=_refuse)
