"""Images and clips that a clip starts from or ends on: read as their makers see them, and fitted to the clip's size."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from radial.errors import OutputError, RequestError
from radial.video.reader import decode_frames, open_clip, rate_note
from radial.video.sound import Sound, read_sound

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "pad", "stretch"]
Frames = NDArray[np.uint8]
MAX_PIXELS = 100_000_000  # what a decompressed image may have
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".heic", ".bmp", ".tif", ".tiff")  # to tune on
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF")


def read_image(file: Path | bytes, ground: str = "black", name: str | None = None) -> tuple[Image, tuple[str, ...]]:
    """An image file, or the content of one, in RGB as it is shown: upright, in sRGB, the first of several; and what the
    user should hear.

    Args:
        ground: the colour under its see-through parts.
        name: what to call it in messages.

    Raises:
        RequestError: the file is missing, no image, or larger than 100 megapixels.
    """
    from PIL import Image, ImageOps

    notes = []
    image = _open(file, name)
    told = name or (file.name if isinstance(file, Path) else "the image")
    try:
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.append(f"{told} has several pictures: the first is taken")
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise RequestError(f"{name or _name_of(file)} is torn: it cannot be read to its end") from error
    image = _in_srgb(_in_eight_bit(ImageOps.exif_transpose(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min(initial=255) < 255:
            notes.append(f"{told} is see-through in parts: what lies under them is {ground}")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB"), tuple(notes)


# Pictures in a clip's container, by the brand that it names.
_BRANDS = {b"avif": ".avif", b"avis": ".avif"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), ".heic"
)


def picture_suffix(head: bytes) -> str | None:
    """The suffix of a picture in a clip's container, as those of phones are, by the first 32 bytes; None of others."""
    if head[4:8] != b"ftyp":
        return None
    also = {head[at : at + 4] for at in range(16, len(head), 4)}  # what else it is, where its own name says little
    return ".avif" if head[8:12] in (b"mif1", b"msf1") and b"avif" in also else _BRANDS.get(head[8:12])


def check_image(path: Path) -> None:
    """Make sure, by how a file begins, that it is an image.

    Raises:
        RequestError: it is missing, or another kind of file.
    """
    _open(path).close()


def check_clip(path: Path) -> None:
    """Make sure, by how a file begins, that it is a clip.

    Raises:
        RequestError: it is missing, or another kind of file.
    """
    if path.is_dir():
        return
    try:
        with open_clip(path), path.open("rb") as content:
            if picture_suffix(content.read(32)) is None:
                return
        problem = f"{path} is no clip"
    except OutputError as error:
        problem = str(error)
    with contextlib.suppress(RequestError):
        check_image(path)
        problem = f"{path} is an image, and no clip: take it as image"
    raise RequestError(problem)


def _name_of(file: Path | bytes) -> str:
    return str(file) if isinstance(file, Path) else "the image"


def _open(file: Path | bytes, name: str | None = None) -> Image:
    from PIL import Image

    name = name or _name_of(file)
    if isinstance(file, Path) and not os.path.isfile(file):  # False for names that no path can be
        raise RequestError(f"no such file: {name}")
    _register_heif(file, name)
    Image.init()
    content = file if isinstance(file, Path) else io.BytesIO(file)
    try:
        image: Image.Image = Image.open(content, formats=[kind for kind in _FORMATS if kind in Image.ID])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"{name} is not an image that can be read ({', '.join(_FORMATS)})"
        with contextlib.suppress(OutputError), open_clip(file):
            problem = f"{name} is a clip, and no image: take it as the clip to extend"
        raise RequestError(problem) from error
    if image.width * image.height > MAX_PIXELS:
        raise RequestError(f"{name} has {image.width}x{image.height} pixels; 100 megapixels are the most")
    return image


def _register_heif(file: Path | bytes, name: str) -> None:
    """Have Pillow read the pictures of phones.

    Raises:
        RequestError: the file is one, and the package that reads it is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        head = file[:32] if isinstance(file, bytes) else b""
        if isinstance(file, Path):
            with file.open("rb") as content:
                head = content.read(32)
        if picture_suffix(head) == ".heic":
            raise RequestError(f"{name} is a HEIC picture, which needs pillow-heif: pip install pillow-heif") from error
        return
    pillow_heif.register_heif_opener()


def _in_eight_bit(image: Image) -> Image:
    """Grey levels of 16 bits, of 32, and in floating point as 0 to 255; all others as they are."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I"):  # whole numbers: of 16 bits, though Pillow may hold them in 32
        most = 65535.0 if values.max(initial=0) <= 65535 else float(2**31 - 1)
    else:
        most = next((float(m) for m in (1, 255, 65535) if np.nanmax(values, initial=0) <= m), float(np.nanmax(values)))
    return Image.fromarray((np.nan_to_num(values) / most * 255).round().clip(0, 255).astype(np.uint8))


def _in_srgb(image: Image) -> Image:
    """Colours by the profile that the file brings, such as those of phones and of print."""
    from PIL import Image, ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return image
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
        opaque = image.convert({"RGBA": "RGB", "LA": "L", "P": "RGB"}.get(image.mode, image.mode))
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(opaque, own, srgb, outputMode="RGB")
        if isinstance(found, Image.Image):
            if alpha is not None:
                found.putalpha(alpha)
            return found
    return image


@dataclass(frozen=True, eq=False)
class Before:
    """A clip to go on from: frames ``[T, H, W, 3]`` at the size and rate of what follows, its sound, and notes."""

    frames: Frames
    sound: Sound | None
    notes: tuple[str, ...]


def read_clip(
    path: Path, height: int, width: int, fit: Fit, fps: float, ground: str = "black", most: int = 1 << 14
) -> Before:
    """A clip to go on from, by time: at each instant the frame that is shown then; one at a time is decoded.

    Args:
        fps: frames a second of what follows.
        ground: the colour around frames of another shape that are padded, and under see-through parts.
        most: frames that it may have.

    Raises:
        RequestError: the file is missing, no video, or too long.
    """
    frames: list[NDArray[np.uint8]] = []
    notes: tuple[str, ...] = ()
    sound = None
    try:
        if path.is_dir():
            frames = [fit_frame(frame, height, width, fit, ground) for frame in decode_frames(path)]
        else:
            with open_clip(path, path.name, ground) as clip:
                for frame in clip.at(fps):
                    if len(frames) == most:
                        raise RequestError(f"{path} has more than {most:,} frames at {fps:g} a second; cut it first")
                    frames.append(fit_frame(frame, height, width, fit, ground))
                notes = tuple(filter(None, (rate_note(clip, fps), *clip.notes)))
            sound = read_sound(path)
            sound = sound and sound.until(len(frames) / fps)
    except OutputError as error:
        raise RequestError(str(error)) from error
    if not frames:
        raise RequestError(f"{path} has no frames")
    return Before(np.stack(frames), sound, notes)


def fit_image(image: Image, height: int, width: int, fit: Fit, ground: str = "black") -> Image:
    """The image at a clip's size: cut at the longer sides, framed, or stretched."""
    from PIL import Image, ImageOps

    size, filter_ = (width, height), Image.Resampling.LANCZOS
    if fit == "crop":
        return ImageOps.fit(image, size, filter_)
    if fit == "pad":
        return ImageOps.pad(image, size, filter_, color=ground)
    return image.resize(size, filter_)


def fit_frame(frame: NDArray[np.uint8], height: int, width: int, fit: Fit, ground: str) -> NDArray[np.uint8]:
    """A frame at another clip's size; one of that size already as it is."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(fit_image(Image.fromarray(frame), height, width, fit, ground))
