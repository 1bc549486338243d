"""Whether torchrun started this process, by what it leaves in the environment."""

from __future__ import annotations

import os

from radial.errors import RequestError


def is_other_rank() -> bool:
    """Whether this is another rank than 0."""
    return _processes() > 1 and os.environ.get("RANK") != "0"


def refuse_several(command: str) -> None:
    """Refuse a command that several processes cannot share.

    Raises:
        RequestError: torchrun started several.
    """
    if _processes() > 1:
        raise RequestError(f"{command} runs in one process; torchrun is for radial generate, jobs run and work")


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
