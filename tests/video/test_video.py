"""Clips to files and back."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radial import OutputError, RequestError, Video
from radial.files import check_output
from radial.video.clip import read_frames, read_receipt
from radial.video.encoding import Encoding

RECEIPT: dict[str, Any] = {"radial": "1", "request": {"prompt": 'a "red" circle; ä 字 <b>\n', "seed": 5}}


def clip(height: int = 48, width: int = 80, frames: int = 9) -> Video:
    rows, columns, times = np.mgrid[:height, :width, :frames]
    image = np.stack([rows * 4, columns * 3, times * 20], -1).transpose(2, 0, 1, 3)
    return Video((image % 256).astype(np.uint8), 16, RECEIPT)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (50, 82), (33, 47), (128, 128)])
def test_exact_size_frames_and_rate(tmp_path: Path, height: int, width: int) -> None:
    video = clip(height, width)
    path = video.write(tmp_path / "a.mp4")
    frames = read_frames(path)
    assert frames.shape == video.frames.shape
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 16
    error = np.abs(frames.astype(int) - video.frames)
    assert error.mean() < 12


@pytest.mark.parametrize("encoding", [Encoding(codec="h264"), Encoding(codec="h265"), Encoding(codec="av1")])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_clips_of_few_frames(tmp_path: Path, encoding: Encoding, count: int) -> None:
    """x265 makes up times where there are fewer frames than it reorders: by chance, so each is tried often."""
    for number in range(4):
        path = clip(64, 64, count).write(tmp_path / f"{number}.mp4", encoding=encoding)
        with av.open(str(path)) as container:
            times = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None]
        assert sorted(times) == [Fraction(index, 16) for index in range(count)]


def test_receipt_survives_a_remux(tmp_path: Path) -> None:
    path = clip().write(str(tmp_path / "a.mp4"))
    assert read_receipt(path) == RECEIPT | {"encoding": Encoding().model_dump()}
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        target.metadata.update(source.metadata)
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_receipt(tmp_path / "b.mp4") == read_receipt(path)


def test_same_frames_same_file(tmp_path: Path) -> None:
    """Whatever was in memory before: the C library fills it with a different byte in each process. The clip is a soft
    one that the model made; on such, the encoder's defaults read memory they never wrote."""
    code = (
        "import numpy as np, sys; from pathlib import Path; from radial import Video;"
        "Video(np.load(sys.argv[1])['frames'], 16).write(Path(sys.argv[2]))"
    )
    clip_file = str(Path(__file__).parent / "soft_clip.npz")
    files = set()
    for filler in ("1", "90", "165", "255"):
        path = tmp_path / f"{filler}.mp4"
        environment = {**os.environ, "MALLOC_PERTURB_": filler}
        subprocess.run([sys.executable, "-c", code, clip_file, str(path)], env=environment, check=True)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = clip().write(tmp_path / "a.mp4")
    assert len(read_frames(path)) == 9
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_existing_files_are_kept_unless_told(tmp_path: Path) -> None:
    path = clip().write(tmp_path / "a.mp4")
    before = path.read_bytes()
    with pytest.raises(RequestError, match="exists; pass --overwrite"):
        clip(64, 64).write(path)
    assert path.read_bytes() == before
    clip(64, 64).write(path, overwrite=True)
    assert read_frames(path).shape[1:3] == (64, 64)


def test_a_name_taken_while_encoding_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = tmp_path / "a.mp4", Video.encode

    def taken_meanwhile(self: Video, partial: Path, encoding: Encoding) -> None:
        plain(self, partial, encoding)
        path.write_text("someone else's")

    monkeypatch.setattr(Video, "encode", taken_meanwhile)
    with pytest.raises(OutputError, match="exists"):
        clip().write(path)
    assert path.read_text() == "someone else's"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Video, partial: Path, encoding: Encoding) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Video, "encode", full)
    with pytest.raises(OutputError, match="No space left"):
        clip().write(tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        check_output(tmp_path / "file" / "a.mp4", ".mp4", overwrite=False)
    with pytest.raises(RequestError, match=r"must end in \.mp4"):
        check_output(tmp_path / "a.avi", ".mp4", overwrite=False)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        check_output(tmp_path / "folder.mp4", ".mp4", overwrite=False)


def test_files_without_a_receipt(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such file"):
        read_receipt(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(OutputError, match="not a video"):
        read_receipt(tmp_path / "text.mp4")
    path = Video(clip().frames, 16).write(tmp_path / "plain.mp4")
    with pytest.raises(OutputError, match="carries no receipt"):
        read_receipt(path)


FORMATS = [
    {"format": "mp4", "codec": "h265"}, {"format": "mp4", "codec": "av1"}, {"format": "webm"}, {"format": "gif"},
    {"format": "png"}, {"format": "mp4", "crf": 40}, {"format": "webm", "codec": "av1"},
]  # fmt: skip


@pytest.mark.parametrize("fields", FORMATS, ids=str)
@pytest.mark.parametrize(("height", "width"), [(96, 128), (65, 97)])
def test_every_format_gives_back_frames_and_receipt(
    tmp_path: Path, fields: dict[str, Any], height: int, width: int
) -> None:
    video, encoding = clip(height, width), Encoding(**fields)
    path = video.write(tmp_path / f"a{encoding.suffix}", encoding=encoding)
    frames = read_frames(path)
    if encoding.codec == "av1":  # of even sides alone
        frames = frames[:, :height, :width]
    assert frames.shape == video.frames.shape
    assert np.abs(frames.astype(int) - video.frames).mean() < (0.1 if encoding.format == "png" else 24)
    assert read_receipt(path) == RECEIPT | {"encoding": encoding.model_dump()}
    silent = encoding.model_copy(update={"metadata": False})
    plain = video.write(tmp_path / f"b{encoding.suffix}", encoding=silent)
    with pytest.raises(OutputError, match="carries no receipt"):
        read_receipt(plain)
    assert RECEIPT["request"]["prompt"].encode() not in b"".join(
        file.read_bytes() for file in (plain.iterdir() if plain.is_dir() else [plain])
    )
    with pytest.raises((OutputError, RequestError), match="exists"):
        video.write(path, encoding=encoding)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": "webm", "codec": "h264"}, "h264 goes into mp4, not webm"),
        ({"format": "gif", "crf": 3}, "crf is for mp4 and webm"),
        ({"crf": 60}, "at most 51"),
    ],
)
def test_formats_that_do_not_go_together(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Encoding(**fields)


def test_a_gif_keeps_its_length(tmp_path: Path) -> None:
    path = Video(clip().frames, 24).write(tmp_path / "a.gif")
    with Image.open(path) as image:
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
    assert total == pytest.approx(1000 * 9 / 24, abs=10)


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".mp4", ".webm", ".gif", ".png", ".txt"]))
def test_whatever_lies_in_a_file_is_read_or_refused(
    content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("any") / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(OutputError):
        read_receipt(file)
