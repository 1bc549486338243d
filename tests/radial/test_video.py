"""Clips to files and back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from radial import OutputError, RequestError, Video
from radial.files import check_output
from radial.video import read_frames, read_receipt

RECEIPT = {"radial": "1", "request": {"prompt": 'a "red" circle; ä 字 <b>\n', "seed": 5}}


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


def test_receipt_survives_a_remux(tmp_path: Path) -> None:
    path = clip().write(tmp_path / "a.mp4")
    assert read_receipt(path) == RECEIPT
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        target.metadata.update(source.metadata)
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_receipt(tmp_path / "b.mp4") == RECEIPT


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
    path, plain = tmp_path / "a.mp4", Video._encode

    def taken_meanwhile(self: Video, partial: Path) -> None:
        plain(self, partial)
        path.write_text("someone else's")

    monkeypatch.setattr(Video, "_encode", taken_meanwhile)
    with pytest.raises(OutputError, match="exists"):
        clip().write(path)
    assert path.read_text() == "someone else's"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Video, partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Video, "_encode", full)
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
