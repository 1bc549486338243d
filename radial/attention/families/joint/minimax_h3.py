"""MiniMax-H3: one sequence packed of text, conditions, sound and, last, the clip; no other attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from radial.attention.family import Call, Family, numbered
from radial.plans.layout import Layout, Segment, TokenGrid


def _clip(call: Call) -> tuple[int, TokenGrid]:
    """Where the clip's tokens begin, and how they lie, by the places that its pipeline gives them.

    The clip's own sound lies right before it; what the clip starts from lies before that, and is of video tokens too.
    """
    start = int(call["audio_indices"][-1]) + 1 if call["audio_indices"].numel() else int(call["text_indices"][-1]) + 1
    places_SX: Tensor = call["position_ids"][start:].cpu()
    tokens = len(places_SX)
    frames = _runs(places_SX[:, 0])
    height = _runs(places_SX[: tokens // max(frames, 1), 1])
    return start, TokenGrid(max(frames, 1), max(height, 1), max(tokens // max(frames * height, 1), 1))


def _runs(numbers: Tensor) -> int:
    """How many runs of the same number follow each other."""
    return int((numbers[1:] != numbers[:-1]).sum()) + 1 if len(numbers) else 0


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    start, grid = _clip(call)
    text, sounds = len(call["text_indices"]), call["audio_indices"].cpu()
    alone = (sounds[1:] - sounds[:-1] != 1).nonzero()  # sounds that it starts from lie further ahead
    sound = len(sounds) - (int(alone[-1]) + 1 if len(alone) else 0)
    before = (Segment("text", text), Segment("history", start - text - sound), Segment("sound", sound))
    return (Layout((*(one for one in before if one.tokens), Segment("clip", grid.tokens, grid))),)


def _refuse(transformer: Any, call: Call) -> str | None:
    start, grid = _clip(call)
    tokens = len(call["position_ids"]) - start
    if grid.tokens != tokens or int(call["video_indices"][-1]) != start + tokens - 1 or tokens < 1:
        return "its clip is not packed last, frame by frame and row by row"
    return None


def _timestep(call: Call) -> float:
    """The clip's: its sound and what it starts from have others."""
    return float(call["timestep"][call["timestep_indices"][call["video_indices"][-1]]])


def _sharding(transformer: Any) -> dict[str, Any]:
    """Of diffusers' plan, with a name for each block: each splits its own copy of what rows are modulated by."""
    stock: dict[str, Any] = transformer._cp_plan
    each, count = stock["transformer_blocks.*"], len(transformer.transformer_blocks)
    blocks = {f"transformer_blocks.{index}": each for index in range(count)}
    blocks["transformer_blocks.0"] = stock["transformer_blocks.0"] | each
    return {name: entry for name, entry in stock.items() if not name.startswith("transformer_blocks")} | blocks


FAMILY = Family(
    layouts=_layouts,
    self_attentions=lambda transformer: numbered(transformer.transformer_blocks, "attn"),
    refuse=_refuse,
    sharding=_sharding,
    timestep=_timestep,
    clean_timestep=1.0,
)
