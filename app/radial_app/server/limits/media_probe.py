"""What a file is that somebody brought, found out by a process that can do no harm: it has little memory and little
time, and ends when its answer is given.

``python -m radial_app.server.limits.media_probe QUESTION FILE`` is that process.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from radial.errors import RequestError

Question = Literal["image", "clip", "comment"]
MAX_PIXELS = 64_000_000  # of an image; a phone's have 12 to 50 million
MAX_SIDE = 8192  # of a clip
MAX_FRAMES = 4097
MAX_COMMENT = 1 << 20  # bytes; a receipt takes a few thousand
_MEMORY = {"image": 380 << 20, "clip": 300 << 20, "comment": 150 << 20}  # bytes beyond the decoders' own
_SECONDS = 20
_AT_ONCE = threading.BoundedSemaphore(2)
_OF_VISITOR: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def probe(question: Question, path: Path, visitor: str) -> dict[str, Any]:
    """Ask for an image's or a clip's ``width`` and ``height``, or a video's ``comment``. One file of a visitor's is
    looked at at a time.

    Raises:
        RequestError: it cannot be read, is too large, or takes too much to be read.
    """
    command = [sys.executable, "-P", "-m", "radial_app.server.limits.media_probe", question, str(path)]
    with _OF_VISITOR[visitor], _AT_ONCE:
        try:
            run = subprocess.run(command, capture_output=True, timeout=2 * _SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise RequestError(_too_much(question)) from None
    try:
        answer = json.loads(run.stdout)
    except (ValueError, RecursionError):  # it was ended, or ended without a word
        raise RequestError(_too_much(question)) from None
    if "problem" in answer:
        raise RequestError(answer["problem"])
    found: dict[str, Any] = answer
    return found


def _too_much(question: Question) -> str:
    what = "image" if question == "image" else "clip"
    return f"the {what} takes more than {_MEMORY[question] >> 20} MB or {_SECONDS} s to be read: save it anew, smaller"


def main() -> None:
    """Answer on stdout, as JSON."""
    question, file = sys.argv[1], Path(sys.argv[2])
    answer = {"image": _look_at_image, "clip": _look_at_clip, "comment": _read_comment}[question]
    try:
        found = answer(file)
    except MemoryError:
        sys.exit(1)
    except RequestError as error:
        found = {"problem": str(error)}
    print(json.dumps(found))


def _limit(memory: int) -> None:
    """Take no more from here on, once the decoders are loaded."""
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _look_at_image(path: Path) -> dict[str, Any]:
    from PIL import AvifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None  # counted here
    _limit(_MEMORY["image"])
    try:
        formats = tuple(name for name in ("PNG", "JPEG", "WEBP", "AVIF", "HEIF") if name in Image.ID)
        with Image.open(path, formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise RequestError(
                    f"the image has {width}x{height} pixels; {MAX_PIXELS // 1_000_000} megapixels are the most"
                )
            image.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth
            image.load()
    except RequestError:
        raise
    except (OSError, SyntaxError, ValueError, ArithmeticError, TypeError) as error:
        raise RequestError("the image cannot be read") from error
    return {"width": width, "height": height}


def _look_at_clip(path: Path) -> dict[str, Any]:
    import av

    _limit(_MEMORY["clip"])
    try:
        with av.open(str(path), format="mp4" if path.suffix == ".mp4" else "matroska") as container:
            stream = next(iter(container.streams.video))
            stream.codec_context.thread_count = 1
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 16 <= width <= MAX_SIDE or not 16 <= height <= MAX_SIDE:
                raise RequestError(
                    f"the clip has {width}x{height} pixels; from 16x16 to {MAX_SIDE}x{MAX_SIDE} are taken"
                )
            if (frames := _count_frames(container, stream)) > MAX_FRAMES:
                raise RequestError(f"the clip has more than the {MAX_FRAMES} frames that are taken")
            container.seek(0)
            picture = next(container.decode(stream))
            if (picture.width, picture.height) != (width, height):
                raise RequestError("the clip's frames have another size than it says")
    except RequestError:
        raise
    except (av.FFmpegError, StopIteration, OSError, ValueError, ArithmeticError) as error:
        raise RequestError("the clip cannot be read") from error
    return {"width": width, "height": height, "frames": frames}


def _count_frames(container: Any, stream: Any) -> int:
    """Frames by their packets, whatever the file says of itself; it stops counting beyond what is taken."""
    count = 0
    for packet in container.demux(stream):
        count += packet.size > 0
        if count > MAX_FRAMES:
            break
    return count


def _read_comment(path: Path) -> dict[str, Any]:
    import av

    _limit(_MEMORY["comment"])
    try:
        with av.open(str(path), format="mp4" if path.suffix == ".mp4" else "matroska") as container:
            told = container.metadata
    except (av.FFmpegError, OSError, ValueError) as error:
        raise RequestError("this is no MP4 or WebM file that can be read") from error
    comment = next((text for name, text in told.items() if name.lower() == "comment"), "")
    if len(comment) > MAX_COMMENT:
        raise RequestError("this video carries no settings: what it says of itself is too long to be ours")
    return {"comment": comment}


if __name__ == "__main__":
    main()
