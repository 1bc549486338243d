"""Radial attention for video diffusion: what to attend to, and how a video is made.

The names below load on first use, so importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radial.attention import RadialAttention, apply
    from radial.context_parallel import ContextParallel
    from radial.errors import (
        GenerationError,
        ModelError,
        OutputError,
        RadialError,
        RequestError,
    )
    from radial.grid import TokenGrid
    from radial.loading import load
    from radial.pattern import RadialPattern
    from radial.pipeline import generate
    from radial.plan import BlockPlan
    from radial.request import GenerationRequest
    from radial.schedule import Schedule
    from radial.video import Video

__version__ = "0.1.0"

_HOMES = {
    "BlockPlan": "plan",
    "ContextParallel": "context_parallel",
    "GenerationError": "errors",
    "GenerationRequest": "request",
    "ModelError": "errors",
    "OutputError": "errors",
    "RadialAttention": "attention",
    "RadialError": "errors",
    "RadialPattern": "pattern",
    "RequestError": "errors",
    "Schedule": "schedule",
    "TokenGrid": "grid",
    "Video": "video",
    "apply": "attention",
    "generate": "pipeline",
    "load": "loading",
}

__all__ = [
    "BlockPlan",
    "ContextParallel",
    "GenerationError",
    "GenerationRequest",
    "ModelError",
    "OutputError",
    "RadialAttention",
    "RadialError",
    "RadialPattern",
    "RequestError",
    "Schedule",
    "TokenGrid",
    "Video",
    "apply",
    "generate",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'radial' has no attribute {name!r}")
    return getattr(importlib.import_module(f"radial.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
