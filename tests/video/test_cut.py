"""Joining and trimming: the frames are those that were asked for, copied wherever that gives them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from radial.errors import OutputError, RequestError
from radial.video.clip import read_frames
from radial.video.cut import join, trim
from radial.video.encoding import Encoding, encode
from radial.video.reader import open_clip
from radial.video.sound import Sound, read_sound


def write(
    path: Path, count: int, seed: int = 0, size: tuple[int, int] = (64, 96), fps: int = 16, codec: str | None = None,
    sound: Sound | None = None,
) -> Path:  # fmt: skip
    """A clip whose frames differ, smooth enough that codecs use frames of both sides."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [(np.sin(x / 9 + 0.3 * t + seed), np.cos(y / 7 - 0.2 * t), 0 * x + t / 25 - 1) for t in range(count)]
    frames = (128 + 100 * np.stack([np.stack(wave, -1) for wave in waves])).clip(0, 255).astype(np.uint8)
    encode(frames, fps, {}, path, Encoding.model_validate({"format": path.suffix[1:], "codec": codec}), sound)
    return path


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("mp4", "h265"), ("webm", "vp9")])
def test_clips_of_one_kind_are_joined_as_they_are(tmp_path: Path, suffix: str, codec: str) -> None:
    one, two = write(tmp_path / f"1.{suffix}", 33, codec=codec), write(tmp_path / f"2.{suffix}", 21, 2, codec=codec)
    assert join([one, two, one], tmp_path / f"all.{suffix}")
    frames = [read_frames(path) for path in (one, two, one)]
    assert np.array_equal(read_frames(tmp_path / f"all.{suffix}"), np.concatenate(frames))
    with open_clip(tmp_path / f"all.{suffix}") as clip:
        assert [round(16 * second) for second, _ in clip.frames()] == list(range(87))


def test_clips_of_other_kinds_are_fitted(tmp_path: Path) -> None:
    """The size and the rate of the first; times and sounds stay where they belong."""
    sound = Sound(np.sin(np.arange(48_000) / 20, dtype=np.float32)[None] / 2, 48_000)
    one, two = write(tmp_path / "1.mp4", 32), write(tmp_path / "2.webm", 24, size=(96, 64), fps=24, sound=sound)
    assert not join([one, two], tmp_path / "all.mp4")
    joined = read_frames(tmp_path / "all.mp4")
    assert joined.shape == (48, 64, 96, 3)
    assert np.abs(joined[:32].astype(float) - read_frames(one)).mean() < 4
    assert joined[40, :, :20].mean() < 10  # framed
    heard = read_sound(tmp_path / "all.mp4")
    assert heard is not None
    loud = np.abs(heard.samples[0])
    assert loud[: heard.rate].max() < 0.01 < 0.2 < loud[int(2.2 * heard.rate) : int(2.8 * heard.rate)].max()


def test_a_part_is_exact(tmp_path: Path) -> None:
    """Wherever it is cut; its packets are copied where no other frame is needed to show it."""
    clip = write(tmp_path / "a.mp4", 48)
    whole, copied = read_frames(clip), []
    for first, last in [(0, 48), (0, 1), (0, 17), (0, 30), (5, 20), (47, 48)]:
        out = tmp_path / f"{first}-{last}.mp4"
        copied.append(trim(clip, out, first / 16, last / 16))
        part = read_frames(out)
        assert len(part) == last - first, (first, last)
        distance = np.abs(part.astype(float) - whole[first:last])
        assert distance.max() == 0 if copied[-1] else distance.mean() < 4, (first, last)
    assert copied[0]
    assert not copied[4]
    assert not trim(clip, tmp_path / "a.gif", 1.0)
    assert len(read_frames(tmp_path / "a.gif")) == 32


def test_joined_clips_are_cut_where_one_begins(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.mp4", 33), write(tmp_path / "2.mp4", 21, 2)
    join([one, two], tmp_path / "all.mp4")
    assert trim(tmp_path / "all.mp4", tmp_path / "again.mp4", 33 / 16)
    assert np.array_equal(read_frames(tmp_path / "again.mp4"), read_frames(two))


def test_what_phones_turn_is_joined_upright(tmp_path: Path) -> None:
    """Packets know nothing of how a clip is turned."""
    file = write(tmp_path / "a.mp4", 4)
    content = file.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    file.write_bytes(content[:at] + turned + content[at + 36 :])
    assert not join([file, file], tmp_path / "two.mp4")
    assert read_frames(tmp_path / "two.mp4").shape == (8, 96, 64, 3)


def test_what_cannot_be(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.mp4", 16)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(RequestError, match="two clips or more, not 1"):
        join([clip], tmp_path / "x.mp4")
    with pytest.raises(OutputError, match=r"b.mp4 is not a video"):
        join([clip, tmp_path / "b.mp4"], tmp_path / "x.mp4")
    with pytest.raises(RequestError, match=r"no frame lies between 3 s and its end: the clip has 1 s"):
        trim(clip, tmp_path / "x.mp4", 3)
    with pytest.raises(RequestError, match=r"no frame lies between 0.5 s and 0.5 s"):
        trim(clip, tmp_path / "x.mp4", 0.5, 0.5)
    with pytest.raises(RequestError, match=r"end in .mp4, .webm or .gif"):
        trim(clip, tmp_path / "x.avi", 0)
    assert not (tmp_path / "x.mp4").exists()
