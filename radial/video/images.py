"""Images a clip starts from or ends on: read safely, and fitted to the clip's size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from radial.errors import OutputError, RequestError
from radial.video.encoding import decode_frames

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad", "stretch"]
Frames = NDArray[np.uint8]
MAX_PIXELS = 100_000_000  # what a decompressed image may have
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def read_image(path: Path) -> Image:
    """An image file in RGB, turned upright as its camera says.

    Raises:
        RequestError: the file is missing, no image, or larger than 100 megapixels.
    """
    from PIL import Image, ImageOps

    if not os.path.isfile(path):  # False for names that no path can be
        raise RequestError(f"no image {path}")
    try:
        image = Image.open(path, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(f"{path} has {image.width}x{image.height} pixels; 100 megapixels are the most")
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is not an image that can be read ({', '.join(_FORMATS)})") from error
    return ImageOps.exif_transpose(image).convert("RGB")


def read_clip(path: Path, height: int, width: int, fit: Fit) -> Frames:
    """The frames of a clip to go on from, at the size of the clip to be made; one at a time is decoded.

    Raises:
        RequestError: the file is missing or no video.
    """
    try:
        return np.stack([_fit_frame(frame, height, width, fit) for frame in decode_frames(path)])
    except (OutputError, ValueError) as error:
        raise RequestError(str(error) if isinstance(error, OutputError) else f"{path} has no frames") from error


def fit_image(image: Image, height: int, width: int, fit: Fit) -> Image:
    """The image at a clip's size: cut at the longer sides, framed in black, or stretched."""
    from PIL import Image, ImageOps

    size, filter_ = (width, height), Image.Resampling.LANCZOS
    if fit == "crop":
        return ImageOps.fit(image, size, filter_)
    if fit == "pad":
        return ImageOps.pad(image, size, filter_, color="black")
    return image.resize(size, filter_)


def _fit_frame(frame: NDArray[np.uint8], height: int, width: int, fit: Fit) -> NDArray[np.uint8]:
    """A frame at another clip's size; one of that size already as it is."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(fit_image(Image.fromarray(frame), height, width, fit))
