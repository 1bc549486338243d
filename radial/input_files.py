"""The files that a request names: which fields name them, what they must be, and how others come in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from radial.errors import RequestError
from radial.files import BUNDLED
from radial.models.find import check_language_model

FileKind = Literal["image", "clip", "image or clip", "policy"]
KINDS: dict[str, FileKind] = {
    "image": "image", "last_image": "image", "extend": "clip", "control_video": "clip", "mask": "image or clip",
    "references": "image", "keyframes": "image", "face_video": "clip", "background_video": "clip", "policy": "policy",
}  # fmt: skip
"""The fields of a request that name files, and what these must be."""
Place = Callable[[str, str], Any]
_KEYFRAME = re.compile(r"\s*(-?\d{1,6})\s*:\s*(.+)", re.DOTALL)


def _check_colour(ground: str) -> str:
    if ground != "black":
        from PIL import ImageColor

        try:
            ImageColor.getrgb(ground)
        except ValueError:
            raise ValueError(f"must be a colour, such as white or #7f7f7f, not {ground!r}") from None
    return ground


Ground = Annotated[str, Field(max_length=40), AfterValidator(_check_colour)]


class Keyframe(BaseModel):
    """An image that a clip shows at a frame: frames count from 0, and from -1, the last one, back. ``FRAME:FILE`` says
    the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=4096)

    frame: int = Field(ge=-4097, le=4096)
    image: str

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        if (match := _KEYFRAME.fullmatch(given)) is None:
            raise ValueError(f"must be FRAME:FILE, such as 40:corner.png, not {given[:200]!r}")
        return {"frame": int(match[1]), "image": match[2]}

    def __str__(self) -> str:
        """As the command line takes it."""
        return f"{self.frame}:{self.image}"


def several(given: Any) -> Any:
    """A field's list where one is written alone."""
    return [given] if isinstance(given, (str, Mapping)) else given


def named_files(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that a request's checked fields name, each by its field; those of a list with their places in it. What
    comes with the package is none."""
    for name in KINDS:
        value = fields.get(name)
        if isinstance(value, str) and not _is_bundled(name, value):
            yield name, value
        for place, one in enumerate(value if isinstance(value, (list, tuple)) else ()):
            yield f"{name}.{place}", one if isinstance(one, str) else one["image"]


def with_files(fields: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The fields that name files, and no others, with what ``place`` makes of a field's name and a file in its place;
    where that is None, the file is left out.

    Fields may be as they were written, and what is not written as a file is refused: a request might take it for one.

    Raises:
        RequestError: a field holds something else than a file, or than a list of them where it takes several.
    """
    changed: dict[str, Any] = {}
    for name in KINDS:
        value = fields.get(name)
        if value is None:
            continue
        if name not in ("references", "keyframes"):
            if not isinstance(value, str):
                raise RequestError(f"{name} must be a file, not {_shown(value)}")
            changed[name] = value if _is_bundled(name, value) else place(name, value)
            continue
        ones = several(value)
        if not isinstance(ones, (list, tuple)):
            raise RequestError(f"{name} must be a list of files, not {_shown(value)}")
        placed = [_placed(name, one, place) for one in ones]
        changed[name] = [one for one in placed if one is not None]
    return changed


def _is_bundled(name: str, value: str) -> bool:
    return KINDS[name] == "policy" and value.startswith(BUNDLED)


def _placed(name: str, one: Any, place: Place) -> Any:
    if name == "references":
        if not isinstance(one, str):
            raise RequestError(f"references must be files, not {_shown(one)}")
        return place(name, one)
    if isinstance(one, str) and (match := _KEYFRAME.fullmatch(one)):
        one = {"frame": int(match[1]), "image": match[2]}
    if not isinstance(one, Mapping) or not isinstance(one.get("image"), str):
        raise RequestError(f"keyframes must be FRAME:FILE, such as 40:corner.png, not {_shown(one)}")
    found = place(name, one["image"])
    return None if found is None else {**one, "image": found}


def _shown(value: Any) -> str:
    return repr(value)[:200]


def check_input_files(fields: Mapping[str, Any], *, by_head: bool = False) -> None:
    """Make sure that the files that a request's checked fields name are there, and of the kinds that these take, and
    that the language model that is to enhance its prompt can be one.

    Args:
        by_head: look at how files begin alone; else masks are read, too.

    Raises:
        RequestError: one is not, or a mask that is read is black all over.
    """
    from radial.plans.measured.policy_file import check_policy_file
    from radial.video.control import check_mask, is_image
    from radial.video.images import check_clip, check_image

    if fields.get("enhance") is not None and fields.get("original_prompt") is None:
        check_language_model(fields["enhance"])
    for label, path in named_files(fields):
        name = label.partition(".")[0]
        try:
            if name == "mask" and not by_head:
                check_mask(Path(path))
            elif name == "mask":
                if not is_image(Path(path)):
                    check_clip(Path(path))
            else:
                {"image": check_image, "clip": check_clip, "policy": check_policy_file}[KINDS[name]](Path(path))
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from error
