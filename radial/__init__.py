"""Radial attention for video diffusion: what to attend to, and how a video is made.

The names below load on first use, so importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from radial.version import __version__ as __version__

if TYPE_CHECKING:
    from radial.attention.context_parallel import ContextParallel as ContextParallel
    from radial.attention.install import RadialAttention as RadialAttention
    from radial.attention.install import apply as apply
    from radial.attention.packed.clips import PackedClips as PackedClips
    from radial.errors import GenerationError as GenerationError
    from radial.errors import ModelError as ModelError
    from radial.errors import OutputError as OutputError
    from radial.errors import RadialError as RadialError
    from radial.errors import RequestError as RequestError
    from radial.generation.acceleration.together import generate_together as generate_together
    from radial.generation.pipeline import generate as generate
    from radial.loading.load import load as load
    from radial.plans.block_plan import BlockPlan as BlockPlan
    from radial.plans.layout import TokenGrid as TokenGrid
    from radial.plans.pattern import RadialPattern as RadialPattern
    from radial.plans.policy import Schedule as Schedule
    from radial.request import GenerationRequest as GenerationRequest
    from radial.video.clip import Video as Video

_HOMES = {
    "BlockPlan": "plans.block_plan",
    "ContextParallel": "attention.context_parallel",
    "GenerationError": "errors",
    "GenerationRequest": "request",
    "ModelError": "errors",
    "OutputError": "errors",
    "PackedClips": "attention.packed.clips",
    "RadialAttention": "attention.install",
    "RadialError": "errors",
    "RadialPattern": "plans.pattern",
    "RequestError": "errors",
    "Schedule": "plans.policy",
    "TokenGrid": "plans.layout",
    "Video": "video.clip",
    "apply": "attention.install",
    "generate": "generation.pipeline",
    "generate_together": "generation.acceleration.together",
    "load": "loading.load",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'radial' has no attribute {name!r}")
    return getattr(importlib.import_module(f"radial.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
