"""When it pays to make clips together: measured, not guessed.

A pack computes what its clips would compute one by one, so it gains where one clip leaves a device idle, between small
kernels: small models, few tokens. One large clip fills a GPU by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 1.1  # times as fast: less is not worth that a clip waits for others


@dataclass(frozen=True)
class Rate:
    """What was measured of a pack of like clips.

    Attributes:
        model: its name in the table of models.
        device: ``cpu``, or how the name of a GPU begins.
        tokens: of each clip.
        clips: in the pack.
        faster: times as fast as one by one.
        measured: where, when, and by what.
    """

    model: str
    device: str
    tokens: int
    clips: int
    faster: float
    measured: str


RATES: tuple[Rate, ...] = ()


def clips_together(model: str, tokens: int, device: str) -> int:
    """How many clips of a model are made together on a device, 1 where that was not measured or does not pay.

    Args:
        tokens: of the longest of them. What pays for clips of so many tokens pays for shorter ones.
        device: ``cpu``, or the name of a GPU.
    """
    paying = [
        rate.clips for rate in RATES
        if rate.model == model and device.startswith(rate.device) and tokens <= rate.tokens and rate.faster >= _LEAST
    ]  # fmt: skip
    return max(paying, default=1)
