"""Sound goes into every container that holds any, in step with the frames, and comes out again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from radial import OutputError
from radial.video.clip import Video, read_frames, read_receipt
from radial.video.encoding import Encoding
from radial.video.sound import Sound, read_sound

SECONDS, FPS, RATE = 2, 8, 24_000


def tone(*hertz: float) -> Sound:
    seconds = np.arange(SECONDS * RATE) / RATE
    return Sound(np.stack([0.5 * np.sin(2 * np.pi * one * seconds) for one in hertz]).astype(np.float32), RATE)


def clip(sound: Sound | None) -> Video:
    frames = np.random.default_rng(0).integers(0, 256, (SECONDS * FPS, 64, 64, 3), np.uint8)
    return Video(frames, FPS, {"radial": "0"}, sound)


def loudest(samples: np.ndarray, rate: int) -> int:
    """In hertz, of the first second."""
    return int(np.abs(np.fft.rfft(samples[:rate])).argmax())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
@pytest.mark.parametrize("hertz", [(440,), (440, 660)])
def test_what_is_written_is_heard(name: str, hertz: tuple[float, ...], tmp_path: Path) -> None:
    path = clip(tone(*hertz)).write(tmp_path / name)
    heard = read_sound(path)
    assert heard is not None
    assert heard.samples.shape[0] == len(hertz)
    assert heard.samples.shape[1] / heard.rate == pytest.approx(SECONDS, abs=0.06)  # encoders pad to whole blocks
    assert [loudest(samples, heard.rate) for samples in heard.samples] == list(hertz)
    assert np.abs(heard.samples).max() == pytest.approx(0.5, abs=0.1)
    assert read_receipt(path)["radial"] == "0"
    assert len(read_frames(path)) == SECONDS * FPS


def test_sound_behind_silence_starts_where_it_is_to() -> None:
    late = tone(440).after(0.5)
    assert late.samples.shape[1] == 2.5 * RATE
    assert not late.samples[:, : RATE // 2].any()


@pytest.mark.parametrize("encoding", [Encoding(format="gif"), Encoding(format="png")])
def test_containers_without_sound_take_the_frames(encoding: Encoding, tmp_path: Path) -> None:
    path = tmp_path / f"clip{encoding.suffix}"
    clip(tone(440)).encode(path, encoding)
    assert read_frames(path).shape[1:] == (64, 64, 3)


def test_the_same_sound_makes_the_same_file(tmp_path: Path) -> None:
    video = clip(tone(440, 660))
    one, two = (video.write(tmp_path / f"{name}.mp4").read_bytes() for name in "ab")
    assert one == two


def test_silent_clips_and_what_is_no_clip(tmp_path: Path) -> None:
    assert read_sound(replace(clip(None)).write(tmp_path / "silent.mp4")) is None
    (tmp_path / "torn.mp4").write_bytes(b"torn")
    with pytest.raises(OutputError, match=r"the sound of .*torn\.mp4 cannot be read"):
        read_sound(tmp_path / "torn.mp4")
