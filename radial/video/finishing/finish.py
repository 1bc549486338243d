"""A clip finished: in one pass, a frame at a time, into a file of its own beside it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from radial.errors import OutputError, RequestError
from radial.files import check_output, discard, locked, publish
from radial.version import __version__
from radial.video.clip import read_receipt
from radial.video.colour import Frame
from radial.video.encoding import Encoding, encode, encoding_for
from radial.video.finishing.between import add_frames
from radial.video.finishing.enlarge import Enlarge, load_upscaler, resized
from radial.video.finishing.latents import LatentUpsampler, load_latent_upsampler, upsampled
from radial.video.finishing.later import Later, once
from radial.video.finishing.sources import Sources, backwards
from radial.video.finishing.steps import Finish
from radial.video.images import Fit, fit_frame
from radial.video.reader import at_rate
from radial.video.sound import Sound, read_sound


def finish(
    clips: Sequence[Path], output: Path, what: Finish, *, encoding: Encoding | None = None, overwrite: bool = False,
    device: str = "cpu", on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ...]:  # fmt: skip
    """Write a clip, or several one after the other, finished, under a temporary name first; the clips stay as they are.

    A run that was killed leaves nothing but a hidden file, which the next one for the same output removes.

    Args:
        device: where an upscaler computes.
        on_frame: told how many frames are written, and about how many there will be.

    Returns:
        what the user should hear.

    Raises:
        RequestError: a value or a file cannot be, or the output is one of the clips.
        OutputError: a clip cannot be read, or the output not be written.
    """
    encoding = encoding or encoding_for(output)
    if any(output.exists() and output.samefile(clip) for clip in clips if clip.exists()):
        raise RequestError(f"{output} is the clip itself, which is kept as it is: give another output")
    check_output(output, encoding.suffix, overwrite=overwrite)
    clip = FinishRun.prepare(clips, what, device)
    sound, notes = clip.sound(encoding)
    receipt = clip.receipt()

    def counted(frames: Iterable[Later]) -> Iterator[Frame]:
        for index, frame in enumerate(frames, 1):
            yield frame()
            on_frame(index, max(clip.count, index))

    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.with_name(f".{output.name}.lock"), f"{output} is being written by another command"):
        for left in output.parent.glob(f".{_literally(output.stem)}.*.partial{output.suffix}"):
            discard(left)
        frames = counted(clip.frames(output.parent))
        publish(
            output, lambda partial: encode(frames, clip.rate, receipt, partial, encoding, sound), overwrite=overwrite
        )  # fmt: skip
    return notes


@dataclass(frozen=True)
class FinishRun:
    """Clips, and what becomes of them: the size, the rate, and about how many frames there will be."""

    sources: Sources
    what: Finish
    enlarge: Enlarge | None
    upsample: LatentUpsampler | None
    height: int
    width: int
    rate: Fraction
    count: int

    @classmethod
    def prepare(cls, clips: Sequence[Path], what: Finish, device: str = "cpu") -> FinishRun:
        """Look at the clips, and load the upscaler where there is one.

        Raises:
            RequestError: a value or a file cannot be.
            OutputError: a clip cannot be read.
        """
        sources = Sources.look(clips)
        sources.cut(what.start, what.end)
        enlarge, upsample, by_model = None, None, 1.0
        if what.upscaler and Path(what.upscaler).is_dir():
            upsample = load_latent_upsampler(Path(what.upscaler), device)
            by_model = upsample.scale
        elif what.upscaler:
            enlarge, by_model = load_upscaler(Path(what.upscaler), device)
        height, width = what.target(sources.height, sources.width, by_model)
        return cls(sources, what, enlarge, upsample, height, width, what.rate(sources.rate), _count(sources, what))

    def frames(self, folder: Path, look: Callable[[], None] = lambda: None) -> Iterator[Later]:
        """The frames of the file, as often as it is shown, each made when it is asked for.

        Args:
            folder: where frames lie that are turned around.
            look: called at every frame that is read.
        """
        return itertools.chain.from_iterable(self._once(folder, look) for _ in range(self.what.loop))

    def _once(self, folder: Path, look: Callable[[], None]) -> Iterator[Later]:
        what, sources = self.what, self.sources
        frames, before = _looked(sources.frames(what.start, what.end), look), (sources.height, sources.width)
        if what.shape is not None:
            before = what.reframed(*before)
            frames = (once(_reframe, frame, *before, what.reframe) for frame in frames)
        larger = math.prod(before) < self.height * self.width
        if what.reverse and larger:  # what lies on the disk meanwhile is as small as it can be
            frames = backwards(frames, folder)
        if self.upsample is not None:
            frames = upsampled(frames, self.upsample)
        frames = (once(self._resize, frame) for frame in frames)
        if what.reverse and not larger:
            frames = backwards(frames, folder)
        if what.frames > 1:
            frames = add_frames(frames, what.frames)
        shown, rate = float(sources.rate * what.frames) * what.speed, float(self.rate)
        return frames if abs(shown / rate - 1) < 1e-6 else at_rate(frames, shown, rate)

    def _resize(self, frame: Later) -> Frame:
        return resized(frame() if self.enlarge is None else self.enlarge(frame()), self.height, self.width)

    def sound(self, encoding: Encoding) -> tuple[Sound | None, tuple[str, ...]]:
        """What is heard, and what the user should hear of it.

        Raises:
            RequestError: there is no such sound, or the format holds none.
        """
        return _sound(self.sources, self.what, encoding, self.count / float(self.rate))

    def receipt(self) -> dict[str, Any]:
        """That of the first clip that carries one, and what was done to it; none where none does."""
        what = self.what
        for clip in self.sources.paths:
            try:
                receipt = read_receipt(clip)
            except OutputError:
                continue
            done = {"radial": __version__, "clips": [path.name for path in self.sources.paths], **what.told()}
            before = receipt.get("finishing")
            return receipt | {"finishing": [*(before if isinstance(before, list) else ()), done]}
        return {}


def _looked(frames: Iterable[Later], look: Callable[[], None]) -> Iterator[Later]:
    for frame in frames:
        look()
        yield frame


def _reframe(frame: Later, height: int, width: int, way: Fit) -> Frame:
    return fit_frame(frame(), height, width, way, "black")


@dataclass(frozen=True)
class Work:
    """About how much finishing takes.

    Attributes:
        pixels: of all frames that are read, and of all that are made of them, but for the tiles of upscalers.
        frame: pixels of the largest frame: as it is read, in another shape, or as it becomes.
        disk: bytes that lie on the disk meanwhile.
        seconds: that what is made lasts.
    """

    pixels: int
    frame: int
    disk: int
    seconds: float


def work_of(sources: Sources, what: Finish) -> Work:
    """About how much it takes to finish clips.

    Raises:
        RequestError: it cannot be.
    """
    first, last = sources.cut(what.start, what.end)
    last = min(sources.count, last or sources.count)  # what comes before the first is read, too
    own = sources.height * sources.width
    shaped, made = (math.prod(way(sources.height, sources.width)) for way in (what.reframed, what.target))
    count, used = _count(sources, what), last - first
    read = last * own + (used * shaped if what.shape else 0)
    return Work(
        pixels=what.loop * read + max(count, what.loop * used * what.frames) * made, frame=max(own, shaped, made),
        disk=3 * used * min(shaped, made) if what.reverse else 0, seconds=count / float(what.rate(sources.rate)),
    )  # fmt: skip


def _count(sources: Sources, what: Finish) -> int:
    """About how many frames there will be."""
    first, last = sources.cut(what.start, what.end)
    seconds = (min(sources.count, last or sources.count) - first) / float(sources.rate) / what.speed
    return max(1, round(seconds * float(what.rate(sources.rate)))) * what.loop


def _sound(
    sources: Sources, what: Finish, encoding: Encoding, seconds: float
) -> tuple[Sound | None, tuple[str, ...]]:  # fmt: skip
    if what.sound == "none":
        return None, ()
    if encoding.format not in ("mp4", "webm"):
        if what.sound != "keep":
            raise RequestError(f"{encoding.format} holds no sound: take mp4 or webm")
        return None, ()
    if what.sound != "keep":
        path = Path(what.sound)
        if not path.is_file():
            raise RequestError(f"sound: no such file: {path}")
        sound = read_sound(path)
        if sound is None:
            raise RequestError(f"there is no sound in {path}")
        heard = sound.samples.shape[1] / sound.rate
        short = heard < seconds - 0.05
        told = (f"{path.name} has {heard:.1f} s of sound, and the clip {seconds:.1f} s: its end is silent",)
        return sound.until(seconds), told if short else ()
    sound, notes = sources.sound(what.start, what.end)
    if sound is None or not sound.samples.size:
        return None, notes
    sound = sound.backwards() if what.reverse else sound
    sound = sound if what.speed == 1 else sound.at_speed(what.speed)
    return sound.repeated(what.loop), notes


def _literally(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)
