"""Clips that steer others: read at the size, rate and length of what they steer, and signals made of clips.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from radial.errors import OutputError, RequestError
from radial.video.colour import Frame
from radial.video.flow import dense_flow, grey
from radial.video.images import Fit, Frames, check_clip, check_image, fit_frame, fit_image, read_image
from radial.video.reader import decode_frames, open_clip, rate_note

Signal = Literal["canny", "grey", "flow"]
SIGNALS: tuple[str, ...] = get_args(Signal)
_WHITE = 127  # grey levels above it are white


def read_control(
    path: Path, height: int, width: int, num_frames: int, fps: float, fit: Fit, ground: str = "black"
) -> tuple[Frames, tuple[str, ...]]:
    """A clip's frames, uint8 ``[T, H, W, 3]``, at the instants of a clip of another size, rate and length; and what was
    done to bring them there.

    Beyond its end its last frame stays; what it has beyond the other's end is left out.

    Raises:
        RequestError: the file is missing or no video.
    """
    name, own, notes = path.name, None, []
    frames: list[Frame] = []
    longer = False
    try:
        for frame, told in _at_rate(path, fps, ground):
            notes = list(told)
            own = own or frame.shape[:2]
            if len(frames) == num_frames:
                longer = True
                break
            frames.append(fit_frame(frame, height, width, fit, ground))
    except OutputError as error:
        raise RequestError(str(error)) from error
    if own is None:
        raise RequestError(f"{path} has no frames")
    if own != (height, width):
        shape = "" if abs(own[1] / own[0] - width / height) < 0.01 else f", by image_fit {fit}"
        notes.append(f"{name} is {own[1]}x{own[0]} and is brought to {width}x{height}{shape}")
    if longer:
        notes.append(f"{name} is longer than the clip: its first {num_frames} frames at {fps:g} a second count")
    if len(frames) < num_frames:
        notes.append(
            f"{name} has {len(frames)} frames at {fps:g} a second, and the clip {num_frames}: its last one stays"
        )
        frames += [frames[-1]] * (num_frames - len(frames))
    return np.stack(frames), tuple(notes)


def read_mask(
    path: Path, height: int, width: int, num_frames: int, fps: float, fit: Fit, ground: str = "black"
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Where a mask, an image or a clip, is white: bool ``[T, H, W]``; and what was done to bring it there.

    Raises:
        RequestError: the file is missing or neither, or it is black all over.
    """
    if is_image(path):
        image, notes = read_image(path, ground)
        still = np.asarray(fit_image(image, height, width, fit, ground).convert("L")) > _WHITE
        white_THW = np.broadcast_to(still, (num_frames, height, width))
    else:
        frames, notes = read_control(path, height, width, num_frames, fps, fit, ground)
        white_THW = np.stack([grey(frame) > _WHITE for frame in frames])
    if not white_THW.any():
        raise RequestError(_all_black(path))
    return white_THW, notes


def white_parts(path: Path) -> NDArray[np.bool_]:
    """Where an image is white, at its own size: bool ``[H, W]``.

    Raises:
        RequestError: it is missing, or no image.
    """
    return np.asarray(np.asarray(read_image(path)[0].convert("L")) > _WHITE)


def check_mask(path: Path) -> None:
    """Make sure that a file is an image or a clip with some white in it.

    Raises:
        RequestError: it is neither, or black all over.
    """
    if is_image(path):
        frames: Iterable[Frame] = [np.asarray(read_image(path)[0])]
    else:
        check_clip(path)
        frames = decode_frames(path)
    try:
        if any((grey(frame) > _WHITE).any() for frame in frames):
            return
    except OutputError as error:
        raise RequestError(str(error)) from error
    raise RequestError(_all_black(path))


def is_image(path: Path) -> bool:
    """Whether a file is an image, by how it begins."""
    try:
        check_image(path)
    except RequestError:
        return False
    return True


def signals_of(frames: Iterable[Frame], signal: Signal, low: int = 100, high: int = 200) -> Iterator[Frame]:
    """The control signal of each frame of a clip, uint8 ``[H, W, 3]``.

    Args:
        signal: ``canny``, white edges on black; ``grey``, grey levels; ``flow``, where things go to in the next frame:
            the direction as a hue, the way as its strength, of white where nothing moves.
        low, high: gradients between which Canny takes an edge where it goes on from a strong one, and above which any.
    """
    if signal == "flow":
        yield from _flows(frames)
        return
    each: Callable[[Frame], NDArray[Any]] = grey if signal == "grey" else lambda frame: _canny(frame, low, high)
    for frame in frames:
        yield np.repeat(each(frame)[..., None], 3, axis=2)


def _at_rate(path: Path, fps: float, ground: str) -> Iterator[tuple[Frame, tuple[str, ...]]]:
    """A clip's frames at a rate, each with what is to be said so far; of a folder's frames each once."""
    if path.is_dir():
        for frame in decode_frames(path):
            yield frame, ()
        return
    with open_clip(path, path.name, ground) as clip:
        for frame in clip.at(fps):
            yield frame, tuple(filter(None, (rate_note(clip, fps), *clip.notes)))


def _all_black(path: Path) -> str:
    return f"{path} is black all over: a mask is white where the clip is made anew"


def _canny(frame: Frame, low: int, high: int) -> NDArray[Any]:
    """Edges of colours: at each pixel the gradient of the colour that changes most, as two may be equally bright."""
    import cv2

    smooth = cv2.GaussianBlur(np.ascontiguousarray(frame), (3, 3), 0)
    across_HW3, down_HW3 = (cv2.Sobel(smooth, cv2.CV_16S, *way) for way in ((1, 0), (0, 1)))
    steepest = (np.abs(across_HW3) + np.abs(down_HW3)).argmax(-1)[..., None]
    across, down = (np.take_along_axis(one, steepest, -1)[..., 0] for one in (across_HW3, down_HW3))
    return np.asarray(cv2.Canny(np.ascontiguousarray(across), np.ascontiguousarray(down), low, high))


def _flows(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Flow as pictures; the last frame, which nothing follows, goes on as the one before it."""
    before: NDArray[Any] | None = None
    shown: Frame | None = None
    for frame in frames:
        now = grey(frame)
        if before is not None:
            shown = _as_picture(dense_flow(before, now))
            yield shown
        before = now
    if before is not None:
        yield np.full((*before.shape, 3), 255, np.uint8) if shown is None else shown


def _as_picture(flow_HW2: NDArray[Any]) -> Frame:
    """A flow as colours: hue of its direction, saturated in full at a twentieth of the longer side a frame."""
    import cv2

    way, angle = cv2.cartToPolar(flow_HW2[..., 0], flow_HW2[..., 1], angleInDegrees=True)
    most = max(flow_HW2.shape[:2]) / 20
    hsv = np.full((*flow_HW2.shape[:2], 3), 255, np.uint8)
    hsv[..., 0] = (angle / 2).astype(np.uint8) % 180
    hsv[..., 1] = (np.minimum(way / most, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
