"""When it pays to make clips together: measured, not guessed.

A pack computes what its clips would compute one by one, so it gains where one clip leaves a device idle, between small
kernels: small models, few tokens. One large clip fills a GPU by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 1.25  # times as fast: for less, no clip is to wait until the last of its pack is denoised


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


_CPU = "28 November 2026, seconds of one thread of an x86-64 CPU with other load, 128x128, 3 steps, guided, dense"
# On the CPU, where no small kernel leaves anything idle, there is little to gain: clips are made one by one there. Of
# GPUs none has been measured yet; `python benchmarks/packed.py --part drafts` prints the row.
RATES = (
    Rate("tiny", "cpu", 320, 4, 1.05, f"{_CPU}; median of 3 rounds"),
    Rate("tiny", "cpu", 128, 8, 1.15, f"{_CPU}; the second of 2 rounds, 1.27 in the first"),
)


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
