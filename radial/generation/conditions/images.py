"""The images that a clip shows at certain frames: read from their files, at the clip's size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from radial.request import GenerationRequest
from radial.video.images import Before, fit_image, read_image

if TYPE_CHECKING:
    from PIL.Image import Image


def start_and_end(request: GenerationRequest, before: Before | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The start and end images, by diffusers' names, and what the user should hear of them; a clip that goes on starts
    from the last frame ``before`` it."""
    from PIL import Image

    images: dict[str, Any] = {}
    notes = () if before is None else before.notes
    for name, path in (("image", request.image), ("last_image", request.last_image)):
        if path is not None:
            images[name], told = _at_size(path, request)
            notes = (*notes, *told)
    if before is not None:
        images["image"] = Image.fromarray(before.frames[-1])
    return images, notes


def at_frames(request: GenerationRequest, images: dict[str, Any]) -> tuple[dict[int, Image], tuple[str, ...]]:
    """All images of a resolved request by the frames that they stand at, from 0: keyframes, and the start and end
    ``images``, too; and what the user should hear of them."""
    last = request.clip_frames - 1
    found: dict[int, Image] = {}
    notes: tuple[str, ...] = ()
    for name, frame in (("image", 0), ("last_image", last)):
        if name in images:
            found[frame] = images[name]
    for keyframe in request.keyframes:
        image, told = _at_size(keyframe.image, request)
        found[keyframe.frame if keyframe.frame >= 0 else request.clip_frames + keyframe.frame] = image
        notes = (*notes, *told)
    return found, notes


def _at_size(path: str, request: GenerationRequest) -> tuple[Image, tuple[str, ...]]:
    image, notes = read_image(Path(path), request.image_ground)
    size = (request.clip_height, request.clip_width)
    return fit_image(image, *size, request.image_fit, request.image_ground), notes
