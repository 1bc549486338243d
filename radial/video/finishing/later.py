"""Frames that are made when somebody asks for them: what is there already is passed over for nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from radial.video.colour import Frame

Later = Callable[[], Frame]
Made = TypeVar("Made")


def once(make: Callable[..., Made], *given: Any) -> Callable[[], Made]:
    """What makes something of what is given, the first time that it is asked."""
    return functools.cache(functools.partial(make, *given))
