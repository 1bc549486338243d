"""Colours that go into files and come out of them, by their tags, here and in a browser."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from radial import Video
from radial.video.clip import read_frames
from radial.video.encoding import Encoding
from radial.video.reader import open_clip

PURE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}
SIZES = {"hd": (720, 1280), "small": (360, 640)}
CODECS = {"h264": "mp4", "h265": "mp4", "av1": "mp4", "vp9": "webm"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def plain(colour: tuple[int, int, int], height: int, width: int, frames: int = 2) -> Any:
    return np.full((frames, height, width, 3), colour, np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("colours")
    made = {}
    for codec, format in CODECS.items():
        for size, (height, width) in SIZES.items():
            for name, colour in PURE.items():
                key = f"{codec} {size} {name}"
                encoding = Encoding.model_validate({"format": format, "codec": codec})
                path = folder / f"{key.replace(' ', '-')}.{format}"
                made[key] = Video(plain(colour, height, width), 16).write(path, encoding=encoding)
    return made


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", SIZES)
def test_pure_colours_come_back_and_files_say_how_they_are_meant(files: dict[str, Path], codec: str, size: str) -> None:
    for name, colour in PURE.items():
        file = files[f"{codec} {size} {name}"]
        assert np.abs(read_frames(file).astype(int) - colour).max() <= 3, name
        with av.open(str(file)) as container:
            frame = next(container.decode(video=0))
            told = container.streams.video[0].codec_context
        matrix = {"hd": 1, "small": 6}[size]  # BT.709, and BT.601 as SMPTE 170M has it
        for tags in (frame, told):
            assert (tags.colorspace, tags.color_primaries, tags.color_trc, tags.color_range) == (matrix, 1, 1, 1)
    if CODECS[codec] == "mp4":
        assert b"colrnclx" in file.read_bytes()  # for players that do not ask the codec


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: colours were not looked at in a browser")
def test_a_browser_shows_them(files: dict[str, Path]) -> None:
    """By way of a GPU, as users have it: without one it makes 243 of BT.709's blue."""
    from playwright.sync_api import sync_playwright

    shown = {key: file for key, file in files.items() if "h265" not in key}
    folder = next(iter(files.values())).parent
    (folder / "page.html").write_text("<canvas width=8 height=8></canvas>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    look = """async (name) => {
        const video = document.createElement("video");
        video.muted = true;
        video.src = name;
        await new Promise((good, bad) => { video.onloadeddata = good; video.onerror = () => bad(name); });
        const canvas = document.querySelector("canvas").getContext("2d", {willReadFrequently: false});
        let seen = [0, 0, 0];  // until the first frame has come to the GPU
        for (let tries = 0; tries < 200 && Math.max(...seen) === 0; tries++) {
            await new Promise(requestAnimationFrame);
            canvas.drawImage(video, 0, 0, 8, 8);
            seen = [...canvas.getImageData(4, 4, 1, 1).data].slice(0, 3);
        }
        return seen;
    }"""
    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
             "--ignore-gpu-blocklist"]  # fmt: skip
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/page.html")
        seen = {key: page.evaluate(look, file.name) for key, file in shown.items()}
        browser.close()
        server.shutdown()
    off = {key: rgb for key, rgb in seen.items() if np.abs(np.array(rgb) - PURE[key.split()[2]]).max() > 3}
    assert not off, json.dumps(off)


def write_raw(
    path: Path, planes: Any, pix_fmt: str, *, tags: tuple[int, int, int, int] | None = None, encoder: str = "libx264",
    comment: str = "",
) -> Path:  # fmt: skip
    """A file of what a stream is to hold, ``planes`` as PyAV has them, with these tags or none."""
    with av.open(str(path), "w") as container:
        if comment:
            container.metadata["comment"] = comment
        quiet = {"x265-params": "log-level=error:lossless=1:bframes=0"} if encoder == "libx265" else {"qp": "0"}
        stream: Any = container.add_stream(encoder, rate=16, options=quiet)
        stream.pix_fmt = pix_fmt
        frame = av.VideoFrame.from_ndarray(planes, format=pix_fmt)
        stream.width, stream.height = frame.width, frame.height
        if tags is not None:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = tags
        for index in range(2):
            frame.pts = index
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def yuv(colour: tuple[int, int, int], height: int, width: int, matrix: Any, full: bool = False) -> Any:
    kind = ColorRange.JPEG if full else ColorRange.MPEG
    frame = av.VideoFrame.from_ndarray(plain(colour, height, width, 1)[0], format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=kind).to_ndarray()


@pytest.mark.parametrize(
    ("size", "matrix", "full", "tags", "comment"),
    [
        ("hd", Colorspace.ITU709, False, None, ""),  # without tags, as players take them
        ("small", Colorspace.ITU601, False, None, ""),
        ("hd", Colorspace.ITU601, False, (6, 1, 1, 1), ""),  # with tags, whatever the size
        ("small", Colorspace.ITU709, False, (1, 1, 1, 1), ""),
        ("small", Colorspace.ITU601, True, (5, 1, 1, 2), ""),  # of phones: the whole range
        ("hd", Colorspace.BT2020, False, (9, 1, 1, 1), ""),
        ("hd", Colorspace.ITU601, False, None, '{"radial": "0.1", "request": {}}'),  # our own of before there were tags
    ],
)
def test_colours_are_read_by_their_tags(
    tmp_path: Path, size: str, matrix: Any, full: bool, tags: Any, comment: str
) -> None:
    for colour in ((200, 30, 60), (20, 180, 40), (30, 40, 220)):
        planes = yuv(colour, *SIZES[size], matrix, full)
        file = write_raw(tmp_path / "a.mp4", planes, "yuv420p", tags=tags, comment=comment)
        assert np.abs(read_frames(file).astype(int) - colour).max() <= 4


def bt2020_planes(rgb: tuple[float, float, float], height: int = 64, width: int = 64) -> Any:
    """10-bit 4:2:0 of one colour whose codes, 0 to 1, are given in BT.2020's primaries."""
    red, green, blue = rgb
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    values = (64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746)
    rows = [np.full((height, width), values[0])]
    rows += [np.full((height // 4, width), value) for value in values[1:]]
    return np.concatenate(rows).round().astype(np.uint16)


def pq(nits: float) -> float:
    power = (nits / 10_000) ** (2610 / 16384)
    return float(((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32))


def srgb(light: float) -> float:
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


def test_hdr_is_brought_to_plain_screens_and_told(tmp_path: Path) -> None:
    """Grey below the knee as it is, white on paper near white, a sun not beyond it; order and hue are kept."""

    def seen(planes: Any, transfer: int) -> Any:
        file = write_raw(
            tmp_path / f"{transfer}.mkv", planes, "yuv420p10le", tags=(9, 9, transfer, 1), encoder="libx265"
        )
        with open_clip(file, "a.mp4") as clip:
            ((_, frame), *_) = clip.frames()
            assert clip.notes == ["a.mp4 is HDR: its colours are brought to the range of plain screens"]
        return frame.reshape(-1, 3).mean(0)

    dark, paper, bright, sun = (seen(bt2020_planes((pq(n),) * 3), 16) for n in (40, 203, 600, 1000))
    assert dark == pytest.approx([srgb(40 / 203)] * 3, abs=3)
    assert 215 < paper.mean() < bright.mean() < sun.mean() <= 255
    assert sun.mean() > 253
    red = np.array([0.6274, 0.0691, 0.0164]) * 60  # nits of BT.709's red, in BT.2020's primaries
    assert seen(bt2020_planes(tuple(pq(n) for n in red)), 16) == pytest.approx([srgb(60 / 203), 0, 0], abs=6)
    assert 120 < seen(bt2020_planes((0.5,) * 3), 18).mean() < seen(bt2020_planes((0.75,) * 3), 18).mean() < 250


def test_wide_colours_without_hdr(tmp_path: Path) -> None:
    """BT.2020's own red lies beyond what a screen shows, and BT.709's red in it comes out as red."""
    linear = np.array([0.6274, 0.0691, 0.0164])
    codes = tuple(srgb(float(light)) / 255 for light in linear)
    file = write_raw(tmp_path / "a.mp4", bt2020_planes(codes), "yuv420p10le", tags=(9, 9, 14, 1), encoder="libx265")
    assert np.abs(read_frames(file).astype(int) - [255, 0, 0]).max() <= 8
