"""What may be said in place of a request's fields, wherever one is written: ``size``, ``seconds`` and ``preset``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from radial.errors import RequestError
from radial.models.find import find_model
from radial.models.table import find_preset
from radial.request import MAX_FRAMES, GenerationRequest

SHORTHANDS = ("size", "seconds", "preset")


def spell_out(written: Mapping[str, Any], like: GenerationRequest | None = None) -> dict[str, Any]:
    """The fields that are meant: ``size`` is WIDTHxHEIGHT, ``seconds`` the length, ``preset`` the name of settings that
    go together, before which what is given by name goes.

    Args:
        like: the request that changes, whose model and rate count where none are written.

    Raises:
        RequestError: a shorthand breaks its rule, or says what a field says, too.
    """
    given = {name: written[name] for name in SHORTHANDS if written.get(name) is not None}
    fields = {name: value for name, value in written.items() if name not in SHORTHANDS}
    if not given:
        return fields
    for name, others in (("size", ("height", "width")), ("seconds", ("num_frames",))):
        if twice := next((other for other in others if name in given and fields.get(other) is not None), None):
            raise RequestError(f"{name} and {twice} say the same: give one of them")
    if "size" in given:
        fields |= _size(given["size"])
    if {"seconds", "preset"} & given.keys():
        spec = find_model(str(fields.get("model") or (like.model if like else "tiny")))
        if "preset" in given:
            settings = find_preset(str(given["preset"]), spec)
            fields |= {name: value for name, value in settings.items() if fields.get(name) is None}
        if "seconds" in given:
            fps = _number("fps", fields.get("fps") or (like.fps if like else None) or spec.fps)
            frames = max(1, round(_number("seconds", given["seconds"]) * fps))
            if frames > MAX_FRAMES:
                raise RequestError(
                    f"seconds must be at most {MAX_FRAMES / fps:.4g} at {fps:g} frames a second, not "
                    f"{given['seconds']}: a clip has {MAX_FRAMES:,} frames at most"
                )
            fields["num_frames"] = spec.snap_size(spec.height, spec.width, frames)[2]
    return fields


def _size(size: Any) -> dict[str, int]:
    match = re.fullmatch(r"(\d{1,5}) ?x ?(\d{1,5})", str(size).strip().lower())
    if not match:
        raise RequestError(f"size must be WIDTHxHEIGHT, such as 832x480, not {size!r}")
    return {"width": int(match[1]), "height": int(match[2])}


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < 1e6:
        raise RequestError(f"{name} must be a number above 0, not {value!r}")
    return number
