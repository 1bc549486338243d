"""Pictures beside videos, sizes for every shape, and sources that count more or less than others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_files import CUT, write_video
from PIL import Image
from safetensors.torch import load_file

from radial import ModelError, RequestError
from radial.loading.load import LoadedModel
from radial.models.lora_settings import read_adapter_settings
from radial_app.cli import main as cli
from radial_finetune.data import prepare as preparing
from radial_finetune.data.buckets import Bucket, nearest_size, parse_area, parse_bucket, spread_sizes
from radial_finetune.data.cache import CacheIndex, content_key, read_index, write_index
from radial_finetune.data.clips import Cut, read_clips
from radial_finetune.data.directories import Share
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import Source, find_sources
from radial_finetune.objective import find_objective
from radial_finetune.training import train
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import make_config
from radial_finetune.training.train import finetune


def put_video(folder: Path, name: str, seconds: float = 1.0, size: tuple[int, int] = (48, 64), scene: int = 0) -> Path:
    """A bright square that runs over a ground of noise, and a band that grows brighter."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(scene)
    count = round(16 * seconds)
    ground = rng.integers(0, 120, (size[0] // 8, size[1] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.repeat(ground[None], count, 0)
    for number in range(count):
        left = 2 * number % (size[1] - 16)
        frames[number, 8:24, left : left + 16] = 250
        frames[number, 32:40] = 2 * number % 250  # each moment is another
    write_video(file, frames)
    file.with_suffix(".txt").write_text(f"a square of {name}")
    return file


def put_picture(folder: Path, name: str, size: tuple[int, int] = (48, 64), colour: Any = (200, 40, 40)) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], colour).save(file)
    file.with_suffix(".txt").write_text(f"a picture of {name}")
    return file


def clips_of(sources: Iterable[Source], cut: Cut = CUT) -> dict[str, list[tuple[int, ...]]]:
    return {one.name: [clip.shape[:3] for clip in read_clips(one, cut, Counter())] for one in sources}


# Pictures


def test_pictures_are_clips_of_one_frame(tmp_path: Path) -> None:
    """Of one colour, which in a video would stand still; at the videos' sizes, or at those named for one frame."""
    for suffix in ("jpg", "png", "webp", "bmp"):
        put_picture(tmp_path, f"{suffix}.{suffix}")
    put_video(tmp_path, "video.mp4")
    sources = find_sources(tmp_path)
    assert [one.is_picture for one in sources] == [True, True, True, False, True]
    found = clips_of(sources)
    assert found.pop("video.mp4") == [(9, 32, 32)]
    assert set(found) == {"bmp.bmp", "jpg.jpg", "png.png", "webp.webp"}
    assert all(shapes == [(1, 32, 32)] for shapes in found.values())
    named = replace(CUT, buckets=(Bucket(9, 32, 32), Bucket(1, 48, 64)))
    assert clips_of(sources, named)["png.png"] == [(1, 48, 64)]


def test_pictures_are_read_as_they_are_shown(tmp_path: Path) -> None:
    """Upright by EXIF; see-through parts on the named ground, which is told; too small ones enlarged, which is told."""
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:32] = (250, 0, 0)  # red above, as it is shown
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "turned.txt").write_text("red above black")
    seen_through = np.zeros((16, 16, 4), np.uint8)
    seen_through[:, 8:] = (0, 0, 250, 255)
    Image.fromarray(seen_through).save(tmp_path / "glass.png")
    (tmp_path / "glass.txt").write_text("blue to the right")
    cut = Cut((Bucket(9, 64, 32), Bucket(9, 32, 32)), fps=16, ground="#00fa00")
    notes: dict[str, list[str]] = {"turned.jpg": [], "glass.png": []}
    found = {one.name: next(read_clips(one, cut, Counter(), notes[one.name])) for one in find_sources(tmp_path)}
    assert found["turned.jpg"].shape == (1, 64, 32, 3)
    assert found["turned.jpg"][0, 8, 16, 0] > 200 > 50 > found["turned.jpg"][0, 56, 16, 0]
    assert notes["turned.jpg"] == []
    assert np.abs(found["glass.png"][0, 16, 4].astype(int) - (0, 250, 0)).max() < 4
    assert np.abs(found["glass.png"][0, 16, 28].astype(int) - (0, 0, 250)).max() < 4
    assert notes["glass.png"] == [
        "glass.png is see-through in parts: what lies under them is #00fa00",
        "glass.png is enlarged: it has 16x16 pixels, and 32x32 are made of it",
    ]
    (tmp_path / "torn.png").write_bytes((tmp_path / "glass.png").read_bytes()[:40])
    with pytest.raises(ModelError, match=r"torn\.png"):
        next(read_clips(Source("torn.png", "a", tmp_path / "torn.png", is_picture=True), cut, Counter()))


def test_posters_and_pictures_without_a_caption_are_told(model: LoadedModel, tmp_path: Path) -> None:
    data = tmp_path / "data"
    put_video(data, "a.mp4")
    put_picture(data, "a.jpg")
    put_picture(data, "cover.png").with_suffix(".txt").unlink()
    put_picture(data, "b.png")
    report = prepare(find_sources(data), data / "cache", model, CUT)
    fates = {fate.file: (fate.kept, fate.left_out) for fate in report.fates}
    assert fates == {
        "a.jpg": (0, {"named as the video beside it": 1}),
        "cover.png": (0, {"no caption beside it": 1}),
        "a.mp4": (1, {"too short": 1}),
        "b.png": (1, {}),
    }
    assert len(find_sources(data)) == 4  # what the cache holds is no data, though it lies in the folder
    (data / "a.mp4").unlink()
    with pytest.raises(RequestError, match=r"1 of 3 files have no caption beside them, such as cover\.png"):
        find_sources(data)


def test_pictures_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebDataset shards of pictures, as img2dataset writes them, and a saved dataset, as out of their folder."""
    import tarfile

    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    files = [put_picture(tmp_path / "plain", f"{number}.png", colour=(60 * number, 9, 9)) for number in range(3)]
    want = [[c.tobytes() for c in read_clips(one, CUT, Counter())] for one in find_sources(tmp_path / "plain")]
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
            tar.add(file.with_suffix(".txt"), file.with_suffix(".txt").name)
    rows = datasets.Dataset.from_dict(
        {"image": [str(file) for file in files], "captions": [["a", "b"]] * 3, "num_repeats": [1, 2, 3]},
        features=datasets.Features({
            "image": datasets.Image(), "captions": datasets.List(datasets.Value("string")),
            "num_repeats": datasets.Value("int64"),
        }),
    )  # fmt: skip
    rows.save_to_disk(tmp_path / "saved")
    for kind in ("shards", "saved"):
        found = find_sources(tmp_path / kind)
        assert all(one.is_picture for one in found)
        assert [[c.tobytes() for c in read_clips(one, CUT, Counter())] for one in found] == want, kind
    assert [one.share.num_repeats for one in found] == [1, 2, 3]
    assert found[0].captions == ("a", "b")


# Sizes for every shape


@pytest.mark.parametrize("area", [(480, 832), (720, 1280), (128, 128), (64, 64), (16, 16), (17, 4000)])
@pytest.mark.parametrize("multiple", [(16, 16), (8, 8), (16, 32)])
def test_sizes_are_of_the_area_and_of_whole_multiples(area: tuple[int, int], multiple: tuple[int, int]) -> None:
    if area[0] * area[1] < max(multiple) ** 2:
        with pytest.raises(RequestError, match=r"--area 16x16 is too small: .* so 32x32 is the least"):
            spread_sizes(area, multiple)
        return
    sizes = spread_sizes(area, multiple)
    assert len(set(sizes)) == len(sizes)
    for high, wide in sizes:
        assert high % multiple[0] == wide % multiple[1] == 0
        assert 0 < high * wide <= area[0] * area[1]
    if area[0] * area[1] > 100_000:
        assert len(sizes) == 9
        assert min(high * wide for high, wide in sizes) > 0.9 * area[0] * area[1]


def test_sizes_hold_the_models_own_and_every_cameras() -> None:
    sizes = spread_sizes((480, 832), (16, 16))
    assert {(480, 832), (832, 480), (624, 624)} <= set(sizes)
    for high, wide in ((1080, 1920), (1920, 1080), (2160, 3840), (3024, 4032), (4032, 3024), (1080, 1080), (800, 1920)):
        found = nearest_size(high, wide, sizes)
        kept = min(found[0] / high, found[1] / wide) / max(found[0] / high, found[1] / wide)
        assert kept > 0.94, (high, wide, found)  # of the frame, after the crop


@pytest.mark.parametrize("text", ["", "480", "480x", "480x0", "-1x9", "480x832x3x4", "9" * 400 + "x1", "²x3"])
def test_areas_that_are_none_are_named(text: str) -> None:
    with pytest.raises(RequestError, match="--area takes HEIGHTxWIDTH such as 480x832"):
        parse_area(text)
    with pytest.raises(RequestError, match="--bucket takes FRAMESxHEIGHTxWIDTH"):
        parse_bucket(f"9x{text}x9x9" if text.isdigit() else f"9x{text}")


def test_phone_clips_need_no_sizes_written_by_hand(
    tmp_path: Path, wan_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        put_video(tmp_path / "data", f"upright{number}.mp4", size=(96, 54), scene=number)
    put_video(tmp_path / "data", "lying.mp4", size=(54, 96))
    put_picture(tmp_path / "data", "square.png", size=(100, 100))

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["finetune", "prepare", "data", "--out", "cache", "--model", str(wan_folder), *arguments])
        return int(stop.value.code or 0), "".join(capsys.readouterr())

    code, told = run("--buckets", "auto", "--area", "48x80", "--num-frames", "9", "--cut-threshold", "255")
    assert code == 0, told
    buckets = json.loads((tmp_path / "cache" / "report.json").read_text())["buckets"]
    assert sum(buckets.values()) == 6
    upright = next(size for size, count in buckets.items() if count == 4)
    frames, high, wide = map(int, upright.split("x"))
    assert (frames, high > wide) == (9, True)
    assert any(size.startswith("1x") for size in buckets)
    assert f"of {upright}" in told
    assert "only 1 clip of 9x" in told
    assert f"only 4 clips of {upright}" not in told
    for arguments, message in (
        (("--buckets", "auto", "--height", "32"), "finds heights and widths by itself"),
        (("--area", "32x32"), "--area goes with --buckets auto"),
        (("--tag-dropout", "0.1"), "need --tag-variants of 2 or more: text is encoded once"),
        (("--ground", "nocolour"), "--ground takes a colour"),
    ):
        code, told = run(*arguments)
        assert code == 2
        assert message in " ".join(told.split())


# Sources that count more or less


def test_a_long_source_gives_no_more_than_its_cap(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each part of it, by the seed; the same clips when they wait in memory and when the file is read twice."""
    monkeypatch.setattr(preparing, "_THUMBNAILS", 2)  # beyond them, what is known is not decoded again
    file = put_video(tmp_path, "long.mp4", seconds=9 * 12 / 16, size=(48, 256))
    source = Source("long.mp4", "a", file)
    everything = [clip.tobytes() for clip in read_clips(source, CUT, Counter())]
    assert len(set(everything)) == len(everything) == 12
    chosen = {}
    for seed in range(4):
        dropped = Counter[str]()
        found = list(read_clips(source, replace(CUT, max_clips=3, seed=seed), dropped))
        places = [everything.index(clip.tobytes()) for clip in found]
        assert [place // 4 for place in places] == [0, 1, 2]
        assert dropped["beyond max_clips"] == 9
        chosen[seed] = tuple(places)
    assert len(set(chosen.values())) > 1
    again = list(read_clips(source, replace(CUT, max_clips=3, seed=2), Counter()))
    assert tuple(everything.index(clip.tobytes()) for clip in again) == chosen[2]
    whole = list(read_clips(source, replace(CUT, max_clips=12), Counter()))
    assert [clip.tobytes() for clip in whole] == everything
    own = replace(source, share=Share(max_clips=1))  # what is said of a source goes before
    assert len(list(read_clips(own, replace(CUT, max_clips=3), Counter()))) == 1
    for cut, kept in ((CUT, 12), (replace(CUT, max_clips=2), 2), (replace(CUT, max_clips=2, seed=1), 2)):
        report = prepare([replace(source, name=f"{i}") for i in range(4)], tmp_path / "cache", model, cut)
        assert {fate.kept for fate in report.fates} == {kept}  # also of files that are known from the call before


def test_several_folders_make_one_set(tmp_path: Path) -> None:
    put_video(tmp_path / "films", "long.mp4")
    put_video(tmp_path / "table", "b.mp4")
    (tmp_path / "table" / "metadata.csv").write_text("file,caption,num_repeats,max_clips\nb.mp4,b,4,\n")
    put_picture(tmp_path / "stills", "a.png")
    (tmp_path / "dataset.toml").write_text("""
        [[directory]]
        path = "films"
        max_clips = 2
        [[directory]]
        path = "stills"
        num_repeats = 5
        [[directory]]
        path = "table/metadata.csv"
        num_repeats = 9
    """)
    for data in (tmp_path, tmp_path / "dataset.toml"):
        shares = {one.name: one.share for one in find_sources(data, inside=True)}
        assert shares == {
            "films/long.mp4": Share(max_clips=2),
            "stills/a.png": Share(num_repeats=5),
            "table/metadata.csv/b.mp4": Share(num_repeats=4),  # what a row says goes before
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "directory is missing"),
        ("directory = []", "directory .*at least 1 item"),
        ('[[directory]]\npath = "a"\nrepeats = 2', "unknown key 'directory.0.repeats'; a .* num_repeats, max_clips"),
        ('[[directory]]\npath = "a"\nnum_repeats = 0', "num_repeats greater than or equal to 1, not 0"),
        ('[[directory]]\npath = "none"', "there is no folder .*none"),
        ('[[directory]]\npath = "../.."', r"\.\./\.\. lies outside the folder"),
        ('[[directory]]\npath = "a"\n[[directory]]\npath = "a/"', r"a\.png lies in a and in a/; name each file once"),
        ("path =", "is not TOML"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    put_picture(tmp_path / "a", "a.png")
    (tmp_path / "dataset.toml").write_text(text)
    with pytest.raises(RequestError, match=message):
        find_sources(tmp_path, inside=True)


def test_a_tables_share_is_checked(tmp_path: Path) -> None:
    put_picture(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png", "caption": "a", "max_clips": 0}')
    with pytest.raises(RequestError, match=r"row 1: max_clips greater than or equal to 1, not 0"):
        find_sources(tmp_path)


# In training


def repeated(index: CacheIndex, counts: list[int]) -> CacheIndex:
    return replace(index, clips=tuple(replace(c, num_repeats=n) for c, n in zip(index.clips, counts, strict=True)))


def test_repeats_are_what_an_epoch_holds(cache: Path, model: LoadedModel, tmp_path: Path) -> None:
    counts = [3, 1, 1, 1, 2, 1, 1, 1]
    plain = read_index(cache)
    write_index(tmp_path, repeated(plain, counts))
    index = read_index(tmp_path)
    assert [clip.num_repeats for clip in index.clips] == counts
    assert index.digest != plain.digest  # another run
    objective = find_objective(model.pipe, model.spec)
    config = make_config(data=str(cache), output="", steps=22, caption_dropout=0)
    seen = [batch.latents.numpy().tobytes() for batch in Batches(config, index, objective).iterate(0)]
    assert sorted(Counter(seen[:11]).values(), reverse=True) == sorted(counts, reverse=True)
    assert Counter(seen[:11]) == Counter(seen[11:])
    assert seen[:11] != seen[11:]


def test_caches_and_runs_of_before_go_on(cache: Path, model: LoadedModel, tmp_path: Path) -> None:
    """A clip of one caption has the key that it always had, an index the text, and an epoch the order."""
    frames = (np.arange(5 * 8 * 8 * 3) % 251).astype(np.uint8).reshape(5, 8, 8, 3)
    assert content_key(frames, ("a fox",), "weights") == "da79ad428990d959981a50aa"
    assert repr(Cut((Bucket(5, 32, 32),), 16.0)) == (
        "Cut(buckets=(Bucket(num_frames=5, height=32, width=32),), fps=16.0, crop='centre', cut_threshold=15.0, "
        "static_threshold=1.0)"
    )
    clip = json.loads((cache / "index.json").read_text())["clips"][0]
    assert set(clip) == {"key", "shard", "bucket", "caption", "source", "clip"}
    index = read_index(cache)
    config = make_config(data=str(cache), output="", steps=8, seed=3, caption_dropout=0)
    seen = [
        b.latents.numpy().tobytes() for b in Batches(config, index, find_objective(model.pipe, model.spec)).iterate(0)
    ]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3 * 7919)).tolist()
    from radial_finetune.data.cache import read_clip

    assert seen == [read_clip(cache, index.clips[number])[0][None].float().numpy().tobytes() for number in order]


def test_videos_and_pictures_train_together_bit_for_bit(
    config: dict[str, Any], model: LoadedModel, tmp_path: Path
) -> None:
    """One cache, one run, stopped on the way and gone on with: several captions, repeats, one frame and nine."""
    for number in range(3):
        put_video(tmp_path / "films", f"{number}.mp4", scene=number)
        put_picture(tmp_path / "stills", f"{number}.png", colour=(70 * number, 90, 20)).with_suffix(".txt").write_text(
            "a plain ground\nnothing but a colour\nflat"
        )
    (tmp_path / "dataset.toml").write_text(
        '[[directory]]\npath = "films"\n[[directory]]\npath = "stills"\nnum_repeats = 2\n'
    )
    report = prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    assert report.buckets == {"1x32x32": 3, "9x32x32": 3}
    assert report.notes == [
        "only 3 clips of 1x32x32: a batch of more holds the same one twice",
        "only 3 clips of 9x32x32: a batch of more holds the same one twice",
        "3 clips have 3 captions: each step draws one",
        "3 clips come 2 times an epoch",
    ]
    common = config | {"data": str(tmp_path / "cache"), "steps": 6, "held_out": 1, "batch_size": 1}
    runs = [make_config(**common | {"output": str(tmp_path / name)}) for name in ("whole", "halved")]
    adapter = finetune(runs[0])

    def stop(progress: train.Progress) -> None:
        if progress.step == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        finetune(runs[1], on_step=stop)
    one, two = load_file(adapter), load_file(finetune(runs[1], resume=True))
    assert all(torch.equal(one[name], two[name]) for name in one)
    batches = Batches(runs[0], read_index(tmp_path / "cache"), find_objective(model.pipe, model.spec))
    assert {batch.bucket.num_frames for batch in batches.iterate(0)} == {1, 9}
    settings = read_adapter_settings(adapter)
    assert settings is not None
    assert settings.lengths == (9,)  # it is not for clips of two to eight frames
