"""Clips finished: frames between frames, more pixels, another time, shape and sound, and signals that steer others."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from safetensors.torch import save_file

from radial.errors import ModelError, OutputError, RequestError
from radial.files import locked
from radial.video.clip import Video, read_frames, read_receipt
from radial.video.control import signals_of
from radial.video.cut import trim
from radial.video.encoding import Frames
from radial.video.finishing.between import Pair, add_frames
from radial.video.finishing.enlarge import check_upscaler_file, load_upscaler, resized
from radial.video.finishing.finish import finish, work_of
from radial.video.finishing.latents import load_latent_upsampler, upsampled
from radial.video.finishing.sources import Sources
from radial.video.finishing.steps import make_finish
from radial.video.reader import open_clip
from radial.video.sound import Sound, read_sound

TONE = Sound(np.sin(np.arange(48_000) / 20, dtype=np.float32)[None] / 2, 48_000)


def psnr(one: Any, other: Any) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


def moving(count: int, height: int = 96, width: int = 128) -> Frames:
    """A textured square that moves right and hides a texture that moves left."""
    noise = np.random.default_rng(3).normal(size=(2, height + 64, width + 64, 3))
    back, front = (cv2.GaussianBlur(one, (0, 0), 2.5) * 300 + 128 for one in noise)
    frames = []
    for t in range(count):
        frame = back[16 : 16 + height, t : t + width].copy()
        x, side = 8 + 2 * t, 40
        frame[20 : 20 + side, x : x + side] = front[30 : 30 + side, 30 : 30 + side] * 0.5 + (110, 40, 0)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def test_frames_between_are_nearer_than_repeated_and_blended_ones() -> None:
    """Held-out frames of something that moves two ways at once, what one side hides included."""
    frames = moving(13)
    scores = []
    for before, middle, after in zip(frames[:-2:2], frames[1:-1:2], frames[2::2], strict=True):
        blended = ((before.astype(np.uint16) + after + 1) // 2).astype(np.uint8)
        scores.append([psnr(Pair(before, after).at(0.5), middle), psnr(blended, middle), psnr(before, middle)])
    flow, blend, repeat = np.mean(scores, axis=0)
    assert flow > blend + 2
    assert blend > repeat + 2


def test_frames_are_added_where_nothing_is_cut() -> None:
    """As long as before, each of its own frames among them; across a cut the nearer one is shown."""
    still, other = np.full((64, 64, 3), 30, np.uint8), moving(1, 64, 64)[0] // 2 + 127
    made = [frame() for frame in add_frames([lambda: still, lambda: still, lambda: other], 4)]
    assert len(made) == 12
    assert all(np.array_equal(frame, still) for frame in made[:6])
    assert all(np.array_equal(frame, other) for frame in made[6:])
    assert list(add_frames([], 2)) == []
    tiny = [frame() for frame in add_frames([lambda: still[:16, :16]] * 2, 2)]
    assert np.array_equal(tiny[1], still[:16, :16])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second at 16 frames, with a tone, and a receipt."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    receipt = {"radial": "0", "request": {"prompt": "a"}}
    return Video(moving(16), 16, receipt, TONE).write(path)


def rate_of(path: Path) -> float:
    with open_clip(path) as opened:
        return opened.fps or 0.0


@pytest.mark.parametrize(
    ("fields", "shape", "rate", "seconds"),
    [
        ({"frames": 2}, (32, 96, 128), 32, 1.0), ({"frames": 4, "end": 0.25}, (16, 96, 128), 64, 0.25),
        ({"frames": 2, "speed": 0.5}, (32, 96, 128), 16, 2.0), ({"speed": 2}, (8, 96, 128), 16, 0.5),
        ({"start": 0.5, "loop": 3}, (24, 96, 128), 16, 1.5), ({"fps": 24}, (24, 96, 128), 24, 1.0),
        ({"scale": 2, "end": 0.25}, (4, 192, 256), 16, 0.25), ({"size": "64x48"}, (16, 48, 64), 16, 1.0),
        ({"aspect": "1:1"}, (16, 96, 96), 16, 1.0), ({"aspect": "9:16", "reframe": "pad"}, (16, 228, 128), 16, 1.0),
        ({"reverse": True}, (16, 96, 128), 16, 1.0),
    ],
)  # fmt: skip
def test_what_becomes_of_a_clip(
    fields: dict[str, Any], shape: tuple[int, ...], rate: float, seconds: float, clip: Path, tmp_path: Path
) -> None:
    before = clip.read_bytes()
    told: list[tuple[int, int]] = []
    output = tmp_path / "out.mp4"
    assert finish([clip], output, make_finish(**fields), on_frame=lambda *at: told.append(at)) == ()
    frames = read_frames(output)
    assert (frames.shape[:3], rate_of(output)) == (shape, rate)
    assert told[-1] == (shape[0], shape[0])
    sound = read_sound(output)
    assert sound is not None
    assert sound.samples.shape[1] / sound.rate == pytest.approx(seconds, abs=0.06)
    assert read_receipt(output)["request"] == {"prompt": "a"}
    done = read_receipt(output)["finishing"]
    assert done[0]["clips"] == ["clip.mp4"]
    assert {name: done[0][name] for name in fields} == fields
    assert clip.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4"}
    if "reverse" in fields:
        assert psnr(frames[::-1], read_frames(clip)) > 35


def test_a_receipt_is_not_trusted(tmp_path: Path) -> None:
    clip = Video(moving(4, 64, 64), 16, {"radial": "1", "finishing": 3}).write(tmp_path / "clip.mp4")
    finish([clip], tmp_path / "out.mp4", make_finish())
    assert [one["clips"] for one in read_receipt(tmp_path / "out.mp4")["finishing"]] == [["clip.mp4"]]


@pytest.mark.parametrize(
    ("fields", "pixels", "frame", "disk", "seconds"),
    [
        ({}, 2 * 16 * 96 * 128, 96 * 128, 0, 1.0),
        ({"scale": 0.25, "speed": 20, "loop": 20}, 20 * 16 * (96 * 128 + 24 * 32), 96 * 128, 0, 1.25),
        ({"aspect": "1:4", "reframe": "pad", "scale": 0.25}, 16 * (96 * 128 + 512 * 128 + 128 * 32), 512 * 128, 0, 1.0),
        ({"reverse": True, "scale": 0.5}, 16 * (96 * 128 + 48 * 64), 96 * 128, 3 * 16 * 48 * 64, 1.0),
        ({"frames": 4, "scale": 2, "start": 0.5}, 16 * 96 * 128 + 32 * 192 * 256, 192 * 256, 0, 0.5),
        ({"speed": 0.05}, 16 * 96 * 128 + 320 * 96 * 128, 96 * 128, 0, 20.0),
    ],
)  # fmt: skip
def test_the_work_counts_what_is_read_and_what_is_made_on_the_way(
    fields: dict[str, Any], pixels: int, frame: int, disk: int, seconds: float, clip: Path
) -> None:
    work = work_of(Sources.look([clip]), make_finish(**fields))
    assert (work.pixels, work.frame, work.disk) == (pixels, frame, disk)
    assert work.seconds == pytest.approx(seconds, abs=0.07)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked at where Linux shows them")
def test_frames_that_are_turned_around_are_small_on_the_disk(clip: Path, tmp_path: Path) -> None:
    """As small as they become, whatever was cut before; and in the same pictures as the other way around."""
    fields = {"scale": 0.5, "aspect": "1:1"}
    kept: set[int] = set()

    def look(_done: int, _total: int) -> None:
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(str(tmp_path)) and not link.stat().st_nlink:
                    kept.add(link.stat().st_size)

    finish([clip], tmp_path / "back.mp4", make_finish(reverse=True, **fields), on_frame=look)
    assert kept == {work_of(Sources.look([clip]), make_finish(reverse=True, **fields)).disk} == {3 * 16 * 48 * 48}
    finish([clip], tmp_path / "on.mp4", make_finish(**fields))
    assert psnr(read_frames(tmp_path / "back.mp4")[::-1], read_frames(tmp_path / "on.mp4")) > 35


def test_clips_are_joined_and_sound_is_replaced(clip: Path, tmp_path: Path) -> None:
    silent = Video(moving(8, 64, 64), 16).write(tmp_path / "silent.mp4")
    notes = finish([silent, clip], tmp_path / "both.mp4", make_finish())
    assert notes == ("there is no sound in silent.mp4",)
    assert read_frames(tmp_path / "both.mp4").shape == (24, 64, 64, 3)
    heard = read_sound(tmp_path / "both.mp4")
    assert heard is not None
    assert np.abs(heard.samples[:, : heard.rate // 3]).max() < 0.05 < np.abs(heard.samples[:, heard.rate :]).max()
    assert finish([silent], tmp_path / "heard.mp4", make_finish(sound=str(clip))) == ()
    assert read_sound(tmp_path / "heard.mp4") is not None
    assert finish([clip], tmp_path / "none.mp4", make_finish(sound="none")) == ()
    assert read_sound(tmp_path / "none.mp4") is None
    short = finish([clip], tmp_path / "long.mp4", make_finish(sound=str(clip), loop=3))
    assert short == ("clip.mp4 has 1.0 s of sound, and the clip 3.0 s: its end is silent",)
    finish([tmp_path / "heard.mp4"], tmp_path / "moving.gif", make_finish(frames=2))
    assert len(read_frames(tmp_path / "moving.gif")) in (15, 16)  # two alike may be one


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 3}, "frames must be 1, 2 or 4, not 3"),
        ({"size": "big"}, "size must be WIDTHxHEIGHT, such as 1920x1080, not 'big'"),
        ({"size": "64x64", "scale": 2}, "size and scale say the same"),
        ({"size": "9000x64"}, "9000x64 is too large: 8192 pixels a side are the most"),
        ({"aspect": "1:99999", "reframe": "pad", "scale": 1e-5}, "128x.* is too large: 8192 pixels a side"),
        ({"aspect": "99999:1", "reframe": "pad", "size": "64x64"}, "x96 is too large: 8192 pixels a side are the most"),
        ({"aspect": "tall"}, "aspect must be WIDTH:HEIGHT"), ({"start": 2}, "no frame lies between 2 s and its end"),
        ({"start": 1, "end": 0.5}, "end 0.5 is not after start 1"), ({"speed": 0}, "speed must be greater than"),
        ({"sound": "none.wav"}, "sound: no such file: none.wav"), ({"sound": "SILENT"}, "there is no sound in"),
        ({"upscaler": "a.pth"}, "upscaler must be a .safetensors file, not 'a.pth'"),
        ({"upscaler": "a.safetensors"}, "no such file: a.safetensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(fields: dict[str, Any], message: str, clip: Path, tmp_path: Path) -> None:
    if fields.get("sound") == "SILENT":
        fields = {"sound": str(Video(moving(2), 16).write(tmp_path / "silent.mp4"))}
    with pytest.raises(RequestError, match=message):
        finish([clip], tmp_path / "out.mp4", make_finish(**fields))
    assert not (tmp_path / "out.mp4").exists()


def clip_shown_at(path: Path, *seconds: float) -> Path:
    """A file whose frames are shown from these seconds on."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=16)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, instant in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(instant * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def test_time_stamps_that_are_off_are_told(tmp_path: Path) -> None:
    slow = clip_shown_at(tmp_path / "slow.mp4", 0, 3000, 6000)
    far = clip_shown_at(tmp_path / "far.mkv", 0, 1, 2e8)
    for one, says in ((slow, "slow.mp4 has one frame in 2,000 s"), (far, "shows one frame for 199,999,999 s")):
        with pytest.raises(OutputError, match=says):
            finish([one], tmp_path / "out.mp4", make_finish())
    with pytest.raises(OutputError, match=r"slow.mp4 has one frame in 2,000 s"):
        trim(slow, tmp_path / "out.mp4", 0.5, 1.5)
    with pytest.raises(OutputError, match="is a folder, and a video file is taken here"):
        finish([tmp_path], tmp_path / "out.mp4", make_finish())
    with open_clip(far) as opened, pytest.raises(OutputError, match=r"far.mkv shows one frame .* an hour is the most"):
        list(opened.at(1))
    assert not (tmp_path / "out.mp4").exists()
    held = clip_shown_at(tmp_path / "held.mkv", 0, 90, 91)  # a still that is shown for long stays
    finish([held], tmp_path / "out.mp4", make_finish(fps=1))
    assert len(read_frames(tmp_path / "out.mp4")) in (91, 92)


def test_the_clip_itself_is_kept(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is the clip itself, which is kept as it is"):
        finish([clip], clip, make_finish(frames=2), overwrite=True)
    with pytest.raises(OutputError, match="no such file"):
        finish([tmp_path / "gone.mp4"], tmp_path / "out.mp4", make_finish(frames=2))


def test_a_killed_run_leaves_nothing_that_the_next_does_not_remove(tmp_path: Path) -> None:
    source = Video(moving(40, 256, 256), 16).write(tmp_path / "clip.mp4")
    code = (
        "import sys; from pathlib import Path; from radial.video.finishing.finish import finish; "
        "from radial.video.finishing.steps import make_finish; "
        "finish([Path(sys.argv[1])], Path(sys.argv[2]), make_finish(frames=4, scale=2))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(tmp_path / "out.mp4")])
    for _ in range(600):
        if left := list(tmp_path.glob(".out.*.partial.mp4")):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert left
    assert not (tmp_path / "out.mp4").exists()
    finish([source], tmp_path / "out.mp4", make_finish(end=0.25))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


def upscaler_weights(kind: str, wide: int = 6, grown: int = 32) -> dict[str, torch.Tensor]:
    """A tiny ESRGAN of one block that makes sides of four times the pixels, under the names that public files have:
    those of Real-ESRGAN, of BSRGAN, or of the first ESRGAN."""
    dice = torch.Generator().manual_seed(0)
    names = {
        "real": ("conv_first", "body.0.rdb{}.conv{}", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
        "bsr": ("conv_first", "RRDB_trunk.0.RDB{}.conv{}", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
        "first": ("model.0", "model.1.sub.0.RDB{}.conv{}.0", "model.1.sub.1", "model.3", "model.6", "model.8",
                  "model.10"),
    }[kind]  # fmt: skip
    shapes = {names[0]: (wide, 3), names[6]: (3, wide)} | dict.fromkeys(names[2:6], (wide, wide))
    for block, number in itertools.product(range(1, 4), range(1, 6)):
        out = grown if number < 5 else wide
        shapes[names[1].format(block, number)] = (out, wide + (number - 1) * grown)
    found = {}
    for name, (out, into) in shapes.items():
        found[f"{name}.weight"] = torch.randn((out, into, 3, 3), generator=dice) * (0.5 / into**0.5)
        found[f"{name}.bias"] = torch.randn(out, generator=dice) * 0.05
    found[f"{names[6]}.bias"] += 0.5
    return found


def enlarged_by_formula(weights: dict[str, torch.Tensor], frame: Any) -> Any:
    """What those of Real-ESRGAN's names make of a frame, in 64 bits: dense blocks whose ends are added at a fifth."""
    functional = torch.nn.functional

    def convolve(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double(), padding=1)

    def leak(x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, 0.2)

    first = convolve(torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].double() / 255, "conv_first")
    x = first
    for block in range(1, 4):
        seen = [x]
        for number in range(1, 5):
            seen.append(leak(convolve(torch.cat(seen, 1), f"body.0.rdb{block}.conv{number}")))
        x = x + 0.2 * convolve(torch.cat(seen, 1), f"body.0.rdb{block}.conv5")
    x = first + convolve(first + 0.2 * x, "conv_body")
    for name in ("conv_up1", "conv_up2"):
        x = leak(convolve(functional.interpolate(x, scale_factor=2, mode="nearest"), name))
    made = convolve(leak(convolve(x, "conv_hr")), "conv_last")[0].clamp(0, 1).permute(1, 2, 0)
    return (made * 255).round().to(torch.uint8).numpy()


def test_an_upscalers_file_makes_pixels_tile_by_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, files = moving(1)[0], {kind: tmp_path / f"{kind}.safetensors" for kind in ("real", "bsr", "first")}
    for kind, file in files.items():
        save_file(upscaler_weights(kind), file)
    try:
        import spandrel  # noqa: F401
    except (ImportError, RuntimeError):  # torchvision, which it wants, may not fit the torch that is here
        with pytest.raises(ModelError, match=r"needs spandrel .*pip install 'radial-video\[upscale\]'"):
            load_upscaler(files["real"])
        pytest.skip("spandrel cannot be loaded here: pip install 'radial-video[upscale]'")
    truth = enlarged_by_formula(upscaler_weights("real"), frame)
    assert truth.std() > 5
    for file in files.values():
        enlarge, scale = load_upscaler(file, "cpu")
        assert scale == 4
        assert np.abs(enlarge(frame).astype(int) - truth).max() <= 1, file.stem
    for name, value in (("_TILE", 48), ("_SHARED", 24)):
        monkeypatch.setattr(f"radial.video.finishing.enlarge.{name}", value)
    assert np.abs(enlarge(frame).astype(int) - truth).max() <= 1
    clip = Video(moving(3, 64, 64), 16).write(tmp_path / "clip.mp4")
    finish([clip], tmp_path / "large.mp4", make_finish(upscaler=str(files["real"])))
    assert read_frames(tmp_path / "large.mp4").shape == (3, 256, 256, 3)


def ltx_folder(folder: Path, second: bool, channels: int = 8) -> Path:
    """An upsampler of latents of LTX-Video, or of LTX-2, beside the autoencoder that it is for."""
    torch.manual_seed(0)
    blocks = {"latent_channels": 8, "block_out_channels": (8, 8, 8, 8)}
    if second:
        vae: Any = diffusers.AutoencoderKLLTX2Video(
            **blocks, decoder_block_out_channels=(8, 16, 32), layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1), spatial_compression_ratio=32, temporal_compression_ratio=8,
        )  # fmt: skip
    else:
        vae = diffusers.AutoencoderKLLTXVideo(
            **blocks, decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1), timestep_conditioning=False,
        )  # fmt: skip
    kind = LTX2LatentUpsamplerModel if second else LTXLatentUpsamplerModel
    vae.save_pretrained(folder / "vae")
    kind(in_channels=channels, mid_channels=32, num_blocks_per_stage=1).save_pretrained(folder / "latent_upsampler")
    return folder


@pytest.mark.parametrize("second", [False, True])
def test_upsamplers_of_latents_make_what_diffusers_own_pipeline_makes(second: bool, tmp_path: Path) -> None:
    folder = ltx_folder(tmp_path / "ltx", second)
    kind: Any = diffusers.LTX2LatentUpsamplePipeline if second else diffusers.LTXLatentUpsamplePipeline
    upsampler: Any = LTX2LatentUpsamplerModel if second else LTXLatentUpsamplerModel
    coder: Any = diffusers.AutoencoderKLLTX2Video if second else diffusers.AutoencoderKLLTXVideo
    stock = kind(coder.from_pretrained(folder / "vae"), upsampler.from_pretrained(folder / "latent_upsampler"))
    clip = moving(9, 64, 96)[:, 20:52, :64]
    truth = stock(
        video=[PIL.Image.fromarray(frame) for frame in clip], height=32, width=64, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).frames[0]  # fmt: skip
    upsample = load_latent_upsampler(folder)
    assert upsample.scale == 2
    assert np.array_equal(upsample(clip), (truth * 255).round().clip(0, 255).astype(np.uint8))
    if not second:  # what its steps want more of is cut off again
        Video(clip[:6, :, :50], 16).write(tmp_path / "clip.mp4")
        finish([tmp_path / "clip.mp4"], tmp_path / "large.mp4", make_finish(upscaler=str(folder), frames=2))
        assert read_frames(tmp_path / "large.mp4").shape == (12, 64, 100, 3)


def test_long_clips_go_through_upsamplers_in_windows_that_fade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made but what is asked for, and where windows meet each counts for as much as it should."""
    monkeypatch.setattr("radial.video.finishing.latents._WINDOW", 9)
    monkeypatch.setattr("radial.video.finishing.latents._SHARED", 3)
    asked: list[int] = []

    def numbered(frames: Any) -> Frames:
        asked.append(len(frames))
        return np.stack([np.full((2, 2, 3), 100 * len(asked), np.uint8) for _ in frames])

    frames = list(upsampled([lambda: np.zeros((1, 1, 3), np.uint8)] * 14, numbered))
    assert (len(frames), asked) == (14, [])
    assert [int(frame()[0, 0, 0]) for frame in frames] == [100] * 6 + [125, 150, 175] + [200] * 5
    assert asked == [9, 8]


def test_folders_that_hold_no_whole_upsampler_are_refused(tmp_path: Path) -> None:
    for part, message in (("vae", "does not hold both"), ("latent_upsampler", "does not hold both")):
        folder = ltx_folder(tmp_path / part, second=False)
        (folder / part / "config.json").unlink()
        with pytest.raises(RequestError, match=message):
            load_latent_upsampler(folder)
    folder = ltx_folder(tmp_path / "mixed", second=False)
    shutil.copytree(ltx_folder(tmp_path / "second", second=True) / "vae", folder / "vae", dirs_exist_ok=True)
    with pytest.raises(RequestError, match="LTXLatentUpsamplerModel beside AutoencoderKLLTX2Video, which do not go"):
        load_latent_upsampler(folder)
    with pytest.raises(RequestError, match="takes latents of 4 channels, and its autoencoder makes 8"):
        load_latent_upsampler(ltx_folder(tmp_path / "other", second=True, channels=4))
    temporal = LTXLatentUpsamplerModel(8, 32, 1, spatial_upsample=False, temporal_upsample=True)
    temporal.save_pretrained(ltx_folder(tmp_path / "time", second=False) / "latent_upsampler")
    with pytest.raises(RequestError, match="makes frames, not pixels"):
        check_upscaler_file(tmp_path / "time")


def test_a_file_that_is_no_upscaler_is_refused(tmp_path: Path) -> None:
    torch.save(upscaler_weights("real"), tmp_path / "real.pth")
    with pytest.raises(RequestError, match=r"must be a .safetensors file, not 'real.pth': others may run code"):
        load_upscaler(tmp_path / "real.pth")
    for upsampler in (LTXLatentUpsamplerModel, LTX2LatentUpsamplerModel):
        upsampler(in_channels=4, mid_channels=32, num_blocks_per_stage=1).save_pretrained(tmp_path)
        with pytest.raises(RequestError, match=r"upsamples latents, as LTX-Video's do, and cannot tell of which auto"):
            load_upscaler(tmp_path / "diffusion_pytorch_model.safetensors")
    try:
        import spandrel  # noqa: F401
    except (ImportError, RuntimeError):
        pytest.skip("spandrel cannot be loaded here: pip install 'radial-video[upscale]'")
    torch.save(upscaler_weights("real"), tmp_path / "pickled.safetensors")
    with pytest.raises(RequestError, match=r"pickled.safetensors is no file of safetensors"):
        load_upscaler(tmp_path / "pickled.safetensors")
    cut = (tmp_path / "cut.safetensors", upscaler_weights("real"))
    save_file(cut[1], cut[0])
    cut[0].write_bytes(cut[0].read_bytes()[:-100])
    with pytest.raises(RequestError, match=r"cut.safetensors is no file of safetensors"):
        load_upscaler(cut[0])
    for name, weights in (
        ("nothing", {"a": torch.zeros(3)}),
        ("adapter", {"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 8)}),
        ("torn", {name: x for name, x in upscaler_weights("real").items() if "conv_hr" not in name}),
    ):
        save_file(weights, tmp_path / f"{name}.safetensors")
        with pytest.raises(RequestError, match=f"{name}.safetensors holds no upscaler that spandrel knows"):
            load_upscaler(tmp_path / f"{name}.safetensors", "cpu")


def test_a_failed_run_leaves_nothing_behind(clip: Path, tmp_path: Path) -> None:
    """No part and no lock, whatever it failed of; and while another one writes it is told."""
    with pytest.raises(ZeroDivisionError):
        finish([clip], tmp_path / "out.mp4", make_finish(), on_frame=lambda done, total: print(done // 0))
    assert list(tmp_path.iterdir()) == []
    with (
        locked(tmp_path / ".out.mp4.lock", "busy"),
        pytest.raises(OutputError, match=r"out.mp4 is being written by another command"),
    ):
        finish([clip], tmp_path / "out.mp4", make_finish())
    finish([clip], tmp_path / "out.mp4", make_finish(end=0.25))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_signals_show_edges_grey_levels_and_motion() -> None:
    frames = moving(3)
    edges = list(signals_of(frames, "canny"))
    assert [edge.shape for edge in edges] == [(96, 128, 3)] * 3
    assert set(np.unique(edges[0])) == {0, 255}
    assert edges[0][17:24, 12:44].max() == 255  # the square's upper side
    (grey,) = signals_of(frames[:1], "grey")
    assert np.array_equal(grey, np.repeat(cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2))
    flow = list(signals_of(frames, "flow"))
    assert len(flow) == 3
    assert np.array_equal(flow[2], flow[1])  # nothing follows the last one
    inside, outside = flow[0][30:50, 18:38].mean((0, 1)), flow[0][70:90, 60:100].mean((0, 1))
    assert inside[0] > inside[2] + 50  # to the right: red
    assert outside[2] > outside[0] + 20  # to the left: cyan
    (still,) = signals_of(frames[:1], "flow")
    assert (still == 255).all()


def test_pixels_by_lanczos_keep_what_is_there() -> None:
    frame = moving(1)[0]
    assert np.array_equal(resized(frame, 96, 128), frame)
    back = resized(resized(frame, 192, 256), 96, 128)
    assert psnr(back, frame) > 35
