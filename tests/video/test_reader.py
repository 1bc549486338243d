"""Clips that users bring: shown as players show them, and read by time."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from radial import OutputError, RequestError, Video
from radial.video.images import read_clip
from radial.video.reader import at_rate, decode_frames, open_clip, rate_note
from radial.video.sound import Sound


def shades(count: int, height: int = 64, width: int = 64) -> Any:
    """Frames that each have a grey of their own."""
    levels = np.linspace(20, 235, count).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def which(frames: Any, of: Any) -> list[int]:
    """The index of the shade of each frame."""
    levels = of[:, 0, 0, 0].astype(int)
    return [int(np.abs(levels - float(np.asarray(frame).mean())).argmin()) for frame in frames]


def write(path: Path, frames: Any, times: list[float], rate: int = 16) -> Path:
    """A file whose frames are shown from these seconds on."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "10", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
@pytest.mark.parametrize("fps", [8, 16, 24, 30])
def test_a_clip_of_the_wanted_rate_is_read_frame_by_frame(tmp_path: Path, suffix: str, fps: int) -> None:
    """Also where a container rounds times: 16 a second are 62, 125, 188 thousandths in webm, 6, 13, 19 of a GIF's."""
    frames = shades(40)
    file = Video(frames, fps).write(tmp_path / f"a.{suffix}")
    with open_clip(file) as clip:
        if suffix != "gif":
            assert rate_note(clip, fps) is None
        assert which(clip.at(fps), frames) == list(range(40))


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [("mov", "prores_ks", "yuva444p10le"), ("webm", "libvpx-vp9", "yuva420p"), ("mov", "qtrle", "argb"),
     ("mov", "png", "rgba")],
)  # fmt: skip
@pytest.mark.parametrize("ground", ["black", "white"])
def test_what_is_seen_through_shows_the_ground(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str, ground: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0], pixels[:, 32:, 3] = 200, 255
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pix_fmt
        for frame in (av.VideoFrame.from_ndarray(pixels, format="rgba"), None):
            for packet in stream.encode(frame):
                container.mux(packet)
    before = read_clip(path, 64, 64, "crop", 8, ground)
    np.testing.assert_allclose(before.frames[0, 30, 8], 0 if ground == "black" else 255, atol=6)
    np.testing.assert_allclose(before.frames[0, 30, 56], (200, 0, 0), atol=8)
    assert before.notes == (f"a.{suffix} is see-through in parts: what lies under them is {ground}",)


@pytest.mark.parametrize(("own", "wanted"), [(48, 16), (24, 16), (60, 25), (8, 16), (16, 24)])
def test_at_another_rate_the_frame_of_each_instant(tmp_path: Path, own: int, wanted: int) -> None:
    frames = shades(24)
    file = Video(frames, own).write(tmp_path / "a.mp4")
    with open_clip(file, "a.mp4") as clip:
        taken = which(clip.at(wanted), frames)
        assert (
            rate_note(clip, wanted)
            == f"a.mp4 has {own} frames a second and is read at {wanted}: its speed stays as it is"
        )
    want = [index * own // wanted for index in range(-(-24 * wanted // own))]
    assert taken == want
    assert which(at_rate(iter(frames), own, wanted), frames) == want


def test_frames_of_uneven_length_are_held_as_long_as_they_are_shown(tmp_path: Path) -> None:
    frames = shades(4)
    file = write(tmp_path / "a.mkv", frames, [0, 0.5, 0.625, 2.0])
    with open_clip(file) as clip:
        taken = which(clip.at(8), frames)
    assert taken[:16] == [0] * 4 + [1] + [2] * 11
    assert set(taken[16:]) == {3}


def test_turned_as_phones_say(tmp_path: Path) -> None:
    frames = shades(3, 64, 96)
    frames[:, :, :24] = (255, 0, 0)  # red at the left as filmed
    file = Video(frames, 16).write(tmp_path / "a.mp4")
    content = file.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # the matrix of the track's header
    assert struct.unpack(">9i", content[at : at + 36])[0] == 1 << 16
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    file.write_bytes(content[:at] + turned + content[at + 36 :])
    upright = next(decode_frames(file))
    assert upright.shape == (96, 64, 3)
    assert upright[:20, :, 0].mean() > 240  # what was left is on top
    assert np.ptp(upright[30:].astype(int)) < 30
    extended = read_clip(file, 96, 64, "crop", 16)
    assert extended.frames.shape == (3, 96, 64, 3)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(shades(1)[0], format="rgb24")), *stream.encode()):
            container.mux(packet)
    with open_clip(tmp_path / "a.mp4", "a.mp4") as clip:
        ((_, frame),) = clip.frames()
        assert frame.shape == (64, 128, 3)
        assert clip.notes == ["a.mp4 has pixels that are not square: shown 128x64"]


def test_fields_are_made_whole(tmp_path: Path) -> None:
    """A bar that moves 8 pixels a field: woven, its edge is a comb."""
    frames = np.zeros((12, 64, 96, 3), np.uint8)
    for index, image in enumerate(frames):
        image[0::2, 16 * index % 80 : 16 * index % 80 + 16] = 255
        image[1::2, (16 * index + 8) % 80 : (16 * index + 8) % 80 + 16] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        options = {"x264-params": "interlaced=1:tff=1", "crf": "12"}
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    with open_clip(tmp_path / "a.mp4", "a.mp4") as clip:
        whole = [frame.astype(int) for _, frame in clip.frames()]
        assert clip.notes == ["a.mp4 is interlaced: its fields are made whole frames"]
    assert len(whole) == 12
    combed = np.abs(frames[4, 1:].astype(int) - frames[4, :-1]).mean()
    assert np.abs(whole[4][1:] - whole[4][:-1]).mean() < combed / 4


def test_sound_of_a_clip_that_is_gone_on_from(tmp_path: Path) -> None:
    tone = np.sin(np.arange(48_000) / 20, dtype=np.float32)[None] * 0.5
    file = Video(shades(16), 16, sound=Sound(tone, 48_000)).write(tmp_path / "a.mp4")
    before = read_clip(file, 64, 64, "crop", 16)
    assert before.sound is not None
    assert before.sound.samples.shape[1] == 48_000
    new = Sound(np.full((2, 24_000), 0.25, np.float32), 24_000).after(15 / 16, before.sound)
    assert new.samples.shape == (2, 22_500 + 24_000)
    assert np.abs(new.samples[:, 2000:20_000]).max() > 0.4
    assert (new.samples[:, -24_000:] == 0.25).all()
    assert (Sound(tone, 48_000).after(0.5).samples[:, :24_000] == 0).all()


def test_what_is_no_clip_or_too_long_is_named(tmp_path: Path) -> None:
    file = Video(shades(40), 16).write(tmp_path / "a.mp4")
    with pytest.raises(RequestError, match=r"a\.mp4 has more than 20 frames at 16 a second; cut it first"):
        read_clip(file, 64, 64, "crop", 16, most=20)
    (tmp_path / "torn.mp4").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OutputError, match=r"torn\.mp4"):
        list(decode_frames(tmp_path / "torn.mp4"))
    with pytest.raises(OutputError, match="no such file"):
        list(decode_frames(tmp_path / "none.mp4"))


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    with pytest.raises(RequestError, match=r"a\.mp4 has no pictures"):
        read_clip(tmp_path / "a.mp4", 64, 64, "crop", 16)
    with pytest.raises(OutputError, match=r"a\.mp4 has no pictures"):
        list(decode_frames(tmp_path / "a.mp4"))


def test_a_list_of_other_files_is_no_clip(tmp_path: Path) -> None:
    """Playlists would have the reader open what they name."""
    Video(shades(4), 16).write(tmp_path / "secret.mp4")
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(OutputError, match="not a video that can be read"):
            list(decode_frames(tmp_path / name))
