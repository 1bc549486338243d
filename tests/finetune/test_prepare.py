"""Videos into clips, clips into a cache: what is taken, what is left out, and what is said of it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_files import CUT, write_video
from PIL import Image

from radial import ModelError, OutputError, RequestError
from radial.loading.load import LoadedModel
from radial_finetune.data import decoding
from radial_finetune.data import prepare as preparing
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.cache import read_clip, read_index
from radial_finetune.data.clips import Cut, read_clips, resample
from radial_finetune.data.prepare import prepare
from radial_finetune.data.scenes import has_dissolve
from radial_finetune.data.sources import Source, find_sources


def source(path: Path) -> Source:
    return Source(path.name, "a shape", path)


def moving(count: int, height: int = 48, width: int = 64, channel: int = 0) -> Any:
    """A pattern that moves sideways, in one colour."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    ramp = np.tile(np.arange(width, dtype=np.uint8) * 3, (height, 1))
    frames[..., channel] = 60 + np.stack([np.roll(ramp, i, 1) for i in range(count)])
    return frames


# From files to clips


def test_speed_stays_as_it_is_at_another_rate(tmp_path: Path) -> None:
    """A second is a second: at 24 frames a second of material, 16 are taken, each the one shown at its instant."""
    shades = (np.arange(24)[:, None, None, None] * 10 * np.ones((1, 32, 32, 3))).astype(np.uint8)
    write_video(tmp_path / "a.mp4", shades, 24)
    taken = [int(frame.mean()) for frame in resample(source(tmp_path / "a.mp4"), 16)]
    want = [int(24 * i / 16) * 10 for i in range(16)]
    assert len(taken) == 16
    assert np.abs(np.array(taken) - want).max() <= 3
    assert len(list(resample(source(tmp_path / "a.mp4"), 48))) == 48


def test_scenes_are_cut_and_what_stands_still_is_left_out(tmp_path: Path) -> None:
    still = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 48, 64, 3), dtype=np.uint8), 12, 0)
    write_video(tmp_path / "a.mp4", np.concatenate([moving(12, channel=0), moving(12, channel=2), still]))
    dropped = Counter[str]()
    clips = list(read_clips(source(tmp_path / "a.mp4"), CUT, dropped))
    assert [clip.shape for clip in clips] == [(9, 32, 32, 3)] * 2
    assert clips[0][..., 0].mean() > 100 > clips[0][..., 2].mean()  # nothing of the next scene in it
    assert clips[1][..., 2].mean() > 100 > clips[1][..., 0].mean()
    assert dropped == {"too short": 3, "static": 1}


def test_a_slow_motion_is_a_motion(tmp_path: Path) -> None:
    """What moves a pixel a second is kept, however little changes from one frame to the next."""
    frames = np.repeat(moving(4), 12, 0)
    write_video(tmp_path / "a.mp4", frames)
    cut = Cut((Bucket(45, 32, 32),), fps=16)
    assert len(list(read_clips(source(tmp_path / "a.mp4"), cut, Counter()))) == 1


def test_clips_go_to_the_bucket_of_their_shape_and_length(tmp_path: Path) -> None:
    wide, tall = Bucket(9, 32, 64), Bucket(9, 64, 32)
    buckets = (wide, tall, Bucket(5, 32, 64), Bucket(21, 32, 64), Bucket(9, 64, 128))
    cut = Cut(buckets, fps=16)
    write_video(tmp_path / "wide.mp4", moving(36, 40, 80))
    write_video(tmp_path / "tall.mp4", moving(10, 80, 40))
    write_video(tmp_path / "large.mp4", moving(10, 128, 256))
    found = {
        name: [clip.shape[:3] for clip in read_clips(source(tmp_path / f"{name}.mp4"), cut, Counter())]
        for name in ("wide", "tall", "large")
    }
    assert found["wide"] == [(21, 32, 64), (9, 32, 64), (5, 32, 64)]  # 36 frames: the longest first
    assert found["tall"] == [(9, 64, 32)]
    assert found["large"] == [(9, 64, 128)]  # of one shape, the largest that is not scaled up


def test_random_crops_are_steady_within_a_clip_and_the_same_again(tmp_path: Path) -> None:
    frames = np.zeros((9, 32, 128, 3), np.uint8)
    frames[..., 0] = np.arange(128)  # where a pixel was
    frames[:, :8, :, 1] = (np.arange(9) * 20)[:, None, None]  # something moves
    write_video(tmp_path / "a.mp4", frames)
    cut = Cut((Bucket(9, 32, 32),), fps=16, crop="random")
    (one,) = read_clips(source(tmp_path / "a.mp4"), cut, Counter())
    (two,) = read_clips(source(tmp_path / "a.mp4"), cut, Counter())
    assert np.array_equal(one, two)
    left = one[:, 20:, 0, 0].astype(int).mean(1)
    assert np.ptp(left) <= 2
    places = set()
    for name in "bcdef":
        os.link(tmp_path / "a.mp4", tmp_path / f"{name}.mp4")
        (clip,) = read_clips(source(tmp_path / f"{name}.mp4"), cut, Counter())
        places.add(int(clip[0, 20:, 0, 0].mean()))
    assert len(places) > 2


# Where they come from


def test_captions_beside_files_or_in_a_table(data: Path, tmp_path: Path) -> None:
    beside = find_sources(data)
    assert len(beside) == 8
    for name, text in (
        ("metadata.jsonl", "".join(json.dumps({"file": s.name, "caption": s.caption}) + "\n" for s in beside)),
        ("metadata.csv", "file_name,text\n" + "".join(f'{s.name},"{s.caption}"\n' for s in beside)),
    ):
        for found in beside:
            if not (tmp_path / found.name).exists():
                os.link(data / found.name, tmp_path / found.name)
        (tmp_path / name).write_text(text)
        assert find_sources(tmp_path / name) == beside
    assert find_sources(tmp_path) == beside  # the table in a folder is found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file": "a.mp4"}', "row 1, must have a file and a caption"),
        ("metadata.jsonl", "[1]", "row 1, must have a file and a caption"),
        ("metadata.jsonl", "{", "line 1, is not JSON"),
        ("metadata.jsonl", '{"file": "../a.mp4", "caption": "x"}', r"no file \.\./a\.mp4"),
        ("metadata.csv", "file,caption\nnone.mp4,x\n", r"no file none\.mp4"),
        ("metadata.csv", "file,caption\n", "names no clips"),
        ("a.mp4", "", r"1 of 1 files have no caption beside them, such as a\.mp4"),
        ("notes.md", "", "has no videos"),
        ("a.tar", "", "cannot be read as a dataset"),
        ("a.parquet", "", "cannot be read as a dataset"),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message):
        find_sources(tmp_path)


def test_webdataset_shards_and_saved_datasets(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same videos out of WebDataset, a dataset that was saved, and Parquet, as out of their folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    beside = find_sources(data)
    want = [[clip.tobytes() for clip in read_clips(s, CUT, Counter())] for s in beside]
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for found in beside[4 * shard : 4 * shard + 4]:
                stem = found.name.removesuffix(".mp4")
                for suffix, content in (("mp4", (data / found.name).read_bytes()), ("txt", found.caption.encode())):
                    info = tarfile.TarInfo(f"{stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    rows = datasets.Dataset.from_dict(
        {
            "video": [{"bytes": (data / s.name).read_bytes(), "path": s.name} for s in beside],
            "caption": [s.caption for s in beside],
        },
        features=datasets.Features({"video": datasets.Video(decode=False), "caption": datasets.Value("string")}),
    )
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "rows.parquet")
    for kind in ("shards", "saved", "parquet"):
        found_rows = find_sources(tmp_path / kind)
        assert [s.caption for s in found_rows] == [s.caption for s in beside], kind
        assert [[c.tobytes() for c in read_clips(s, CUT, Counter())] for s in found_rows] == want, kind
    rows.remove_columns("caption").save_to_disk(tmp_path / "untold")
    with pytest.raises(RequestError, match="row 0, has no caption"):
        find_sources(tmp_path / "untold")


# The cache


def test_a_cache_holds_what_the_pipeline_would_see(cache: Path, data: Path, model: LoadedModel) -> None:
    index = read_index(cache)
    assert len(index.clips) == 8
    latents, text = read_clip(cache, index.clips[0])
    assert latents.shape == (16, 3, 4, 4)
    with torch.inference_mode():
        want = model.pipe.encode_prompt(index.clips[0].caption, do_classifier_free_guidance=False,
                                        max_sequence_length=model.spec.max_sequence_length)[0]  # fmt: skip
        from radial_finetune.objective import find_objective

        stacked = find_objective(model.pipe, model.spec).stack_text([text])["prompt_embeds"]
        assert torch.equal(stacked, want)  # trimmed in the file, whole when used
        assert len(text["prompt_embeds"]) < len(stacked[0])
        clip = next(read_clips(source(data / index.clips[0].source), CUT, Counter()))
        # The pipeline's own way back from latents to frames undoes what was done here.
        vae = model.pipe.vae
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
        pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
        assert torch.allclose(latents[None] * std + mean, vae.encode(pixels).latent_dist.mode(), atol=1e-4)


def test_a_report_says_and_shows_what_was_taken(two_lengths: Path) -> None:
    index, report = read_index(two_lengths), json.loads((two_lengths / "report.json").read_text())
    assert report["buckets"] == {"5x32x32": 8, "13x32x32": 8}
    assert (report["files"], report["kept"], report["corrupt"]) == (8, 16, [])
    assert [str(bucket) for bucket in index.buckets] == ["5x32x32", "13x32x32"]
    for name in ("report.png", "sheet.png"):
        with Image.open(two_lengths / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20


def test_preparing_again_encodes_nothing_new(
    data: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    plain = preparing._encode

    def count(objective: Any, clips: Any, shards: Any) -> None:
        encoded.append(len(clips))
        plain(objective, clips, shards)

    monkeypatch.setattr(preparing, "_encode", count)
    prepare(find_sources(data)[:6], tmp_path, model, CUT, batch_size=4)
    assert encoded == [4, 2]
    whole = read_index(tmp_path)
    prepare(find_sources(data), tmp_path, model, CUT)
    assert sum(encoded) == 8  # the two new ones alone
    more = read_index(tmp_path)
    assert more.clips[:6] == whole.clips
    with pytest.raises(RequestError, match=r"this cache holds clips at 16 fps, not 24; take another --out"):
        prepare(find_sources(data), tmp_path, model, replace(CUT, fps=24))


def test_files_that_are_as_they_were_are_not_even_decoded(
    data: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_THUMBNAILS", 2)
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    decoded: list[str] = []
    plain = decoding.read_clips
    monkeypatch.setattr(decoding, "read_clips", lambda s, *a: (decoded.append(s.name), plain(s, *a))[1])
    first = prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    index = read_index(tmp_path / "cache")
    assert sorted(decoded) == [f"{i}.mp4" for i in range(8)]
    decoded.clear()
    (tmp_path / "5.txt").write_text("another caption")
    os.utime(tmp_path / "6.mp4", ns=(1, 1))
    again = prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    assert sorted(decoded) == ["0.mp4", "1.mp4", "5.mp4", "6.mp4"]  # two for the report, two that changed
    assert again == first
    changed = [
        one.source for one, two in zip(index.clips, read_index(tmp_path / "cache").clips, strict=True) if one != two
    ]
    assert changed == ["5.mp4"]
    decoded.clear()
    with (tmp_path / "cache" / "sources.jsonl").open("a") as lines:
        lines.write('{"file": "torn')
    next((tmp_path / "cache").glob("shard-00000.safetensors")).unlink()
    prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)  # what is lost is encoded again
    assert sorted(decoded) == [f"{i}.mp4" for i in range(8) if i != 5]  # whose new clip has a shard of its own
    for clip in read_index(tmp_path / "cache").clips:
        read_clip(tmp_path / "cache", clip)


def test_an_error_that_nobody_expects_ends_it(
    data: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise MemoryError("of the decoder")

    monkeypatch.setattr(decoding, "read_clips", broken)
    with pytest.raises(MemoryError, match="of the decoder"):
        prepare(find_sources(data), tmp_path, model, CUT)


def test_a_cache_that_was_cut_off_goes_on(
    data: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    plain = preparing._encode
    calls: list[int] = []

    def fail(objective: Any, clips: Any, shards: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        plain(objective, clips, shards)

    monkeypatch.setattr(preparing, "_encode", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(find_sources(data), tmp_path, model, CUT)
    with pytest.raises(RequestError, match="is no cache"):
        read_index(tmp_path)
    monkeypatch.setattr(preparing, "_encode", lambda *a: (calls.append(1), plain(*a)))
    calls.clear()
    prepare(find_sources(data), tmp_path, model, CUT)
    assert len(calls) == 5  # three of the eight were kept
    keys = [clip.key for clip in read_index(tmp_path).clips]
    assert keys == [clip.key for clip in read_index(cache).clips]
    assert not list(tmp_path.glob(".*partial*"))


def test_corrupt_files_are_named_and_counted(data: Path, model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.txt").write_text("x")
    with pytest.raises(ModelError, match=r"none of the 1 files can be read as a video or picture, such as bad\.mp4"):
        prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    os.link(data / "0.mp4", tmp_path / "good.mp4")
    (tmp_path / "good.txt").write_text("a shape")
    report = prepare(find_sources(tmp_path), tmp_path / "cache", model, CUT)
    assert (report.files, report.kept, report.corrupt) == (2, 1, ["bad.mp4"])
    (tmp_path / "bad.mp4").unlink()
    long = Cut((Bucket(81, 32, 32),), 16)
    with pytest.raises(RequestError, match="no clip of 81 frames at 16 fps is left: 1 too short"):
        prepare(find_sources(tmp_path), tmp_path / "long", model, long)


def test_a_full_disk_is_said_and_what_is_there_stays(
    data: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radial_finetune.data import cache as caching

    plain, written = caching.write_tensors, []

    def full(path: Path, tensors: Any, *, overwrite: bool) -> None:
        if len(written) == 2:
            raise OutputError(f"cannot write {path}: No space left on device")
        written.append(path)
        plain(path, tensors, overwrite=overwrite)

    monkeypatch.setattr(caching, "write_tensors", full)
    monkeypatch.setattr(caching.Shards, "__init__", small_shards)
    with pytest.raises(OutputError, match="No space left"):
        prepare(find_sources(data), tmp_path, model, CUT)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 2


plain_shards = preparing.Shards.__init__


def small_shards(self: Any, cache: Path) -> None:
    plain_shards(self, cache, max_clips=2)


def test_caches_that_are_none_are_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "index.json").write_text('{"version": 1}')
    with pytest.raises(RequestError, match="was made by another version"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 2, "clips": [{"key": 1}]}')
    with pytest.raises(RequestError, match=r"index\.json cannot be read"):
        read_index(tmp_path)
    clip = replace(read_index(cache).clips[0], shard="shard-99999.safetensors")
    with pytest.raises(RequestError, match="is missing or torn"):
        read_clip(cache, clip)


def test_every_files_fate_is_told(model: LoadedModel, tmp_path: Path) -> None:
    """Kept, of another rate, mostly repeated frames, torn: in the report, also when prepared again."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (32, 6, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, frames, fps in (("good", noise, 16), ("half", noise, 32), ("slow", noise[:10], 5)):
        write_video(folder / f"{name}.mp4", frames, fps)
    (folder / "torn.mp4").write_bytes((folder / "good.mp4").read_bytes()[:300])
    for name in ("good", "half", "slow", "torn"):
        (folder / f"{name}.txt").write_text("noise")
    cut = Cut((Bucket(9, 32, 32),), fps=16, cut_threshold=999)
    for _ in range(2):
        prepare(find_sources(folder), tmp_path / "cache", model, cut)
        report = json.loads((tmp_path / "cache" / "report.json").read_text())
        fates = {fate["file"]: (fate["kept"], fate["left_out"]) for fate in report["fates"]}
        assert fates["good.mp4"] == (3, {"too short": 1})
        assert fates["slow.mp4"][0] == 0
        assert fates["slow.mp4"][1]["mostly repeated frames"] == 3
        assert fates["torn.mp4"] == (0, {"corrupt": 1})
        notes = {fate["file"]: fate["notes"] for fate in report["fates"]}
        assert notes["good.mp4"] == []
        assert "32 frames a second and is read at 16" in notes["half.mp4"][0]


def test_single_frames_are_taken_one_a_scene(model: LoadedModel, data: Path, tmp_path: Path) -> None:
    report = prepare(find_sources(data), tmp_path, model, Cut((Bucket(1, 32, 32),), fps=16, cut_threshold=999))
    assert (report.kept, report.buckets) == (8, {"1x32x32": 8})


def test_a_gap_between_time_stamps_is_capped(tmp_path: Path) -> None:
    """A frame that is shown for half an hour counts for ten seconds; one of two hours is no clip."""
    file = with_gap(tmp_path / "gap.mkv", 1800)
    notes: list[str] = []
    frames = list(resample(Source("gap.mkv", "a", file), 16, notes))
    assert 160 <= len(frames) <= 170
    assert any("shows a frame for more than 10 s" in note for note in notes)
    file = with_gap(tmp_path / "off.mkv", 7200)
    with pytest.raises(ModelError, match=r"off.mkv shows one frame for 7,200 s, and an hour is the most"):
        list(resample(Source("off.mkv", "a", file), 16))


def with_gap(file: Path, seconds: int) -> Path:
    """Eight frames, and so long between two of them."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts = number + (seconds * 16 if number > 3 else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def mixed(one: Any, two: Any, shares: Any) -> Any:
    """A square runs over two grounds, of which so much of the second is seen; none over black."""
    frames = []
    for number, share in enumerate(shares):
        both = [ground.copy() for ground in (one, two)]
        for ground in both:
            ground[8:16, number % 48 : number % 48 + 8] = 250 * bool(ground.any())
        frames.append((1 - share) * both[0] + share * both[1])
    return np.stack(frames).round().astype(np.uint8)


@pytest.mark.parametrize("frames", [8, 16, 24])
def test_clips_with_a_dissolve_or_a_fade_are_left_out(tmp_path: Path, frames: int) -> None:
    rng = np.random.default_rng(1)
    one, two = (rng.integers(0, 250, (6, 8, 3)).repeat(8, 0).repeat(8, 1) for _ in range(2))
    dissolve = mixed(one, two, np.concatenate([np.zeros(14), np.linspace(0, 1, frames + 2), np.ones(40)])[:56])
    fade = mixed(one, np.zeros_like(two), np.concatenate([np.zeros(53 - frames), np.linspace(0, 1, frames)]))
    plain = mixed(one, two, np.zeros(56))
    assert [has_dissolve(clip, 16, 15.0) for clip in (dissolve, fade, fade[::-1], plain)] == [True, True, True, False]
    for name, clip, want in (("dissolve", dissolve, 0), ("plain", plain, 1)):
        write_video(tmp_path / "a.mp4", clip)
        dropped = Counter[str]()
        assert len(list(read_clips(source(tmp_path / "a.mp4"), Cut((Bucket(53, 32, 32),), fps=16), dropped))) == want
        assert dropped["dissolve"] == 1 - want, name


@pytest.mark.parametrize("speed", [1, 3, 6])
def test_a_pan_is_no_dissolve(tmp_path: Path, speed: int) -> None:
    """Over a soft ground and over a rough one, also one that begins and ends at rest."""
    rng = np.random.default_rng(2)
    rough = rng.integers(0, 250, (6, 60, 3)).repeat(8, 0).repeat(8, 1)
    soft = np.tile((np.arange(480) * 0.5)[None, :, None], (48, 1, 3))
    places = np.concatenate([np.zeros(8), np.arange(24), np.full(8, 23)]).astype(int) * speed
    for name, ground in (("rough", rough), ("soft", soft)):
        ramp = moving(40 * speed, 48, 96)[::speed]  # what goes out on one side comes in on the other
        assert not has_dissolve(ramp, 16, 15.0)
        for kind, steps in (("whole", np.arange(40) * speed), ("resting", places)):
            write_video(tmp_path / "a.mp4", np.stack([ground[:, x : x + 64] for x in steps]).astype(np.uint8))
            dropped = Counter[str]()
            list(read_clips(source(tmp_path / "a.mp4"), Cut((Bucket(37, 32, 32),), fps=16), dropped))
            assert not dropped["dissolve"], (name, kind)


def test_frames_that_are_shown_again_are_told(tmp_path: Path) -> None:
    """At 16 a second: of 24 none, of 14 an eighth, of 8 half."""
    for fps, told in ((24, []), (14, ["12%"]), (8, ["50%"])):
        write_video(tmp_path / "a.mp4", moving(4 * fps, width=96), fps)
        notes: list[str] = []
        list(resample(source(tmp_path / "a.mp4"), 16, notes))
        again = [note for note in notes if "are shown again" in note]
        assert [note.split(": ")[1].split()[0] for note in again] == told


def edges_of(clip: Any) -> list[float]:
    """How bright the outermost rows and columns are."""
    return [float(edge[..., 0].mean()) for edge in (clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1])]


@pytest.mark.parametrize(("above", "below", "left", "right"), [(12, 12, 0, 0), (0, 0, 16, 16), (8, 8, 10, 10)])
def test_black_bars_are_told_or_cut_off(tmp_path: Path, above: int, below: int, left: int, right: int) -> None:
    """A letterbox, a pillarbox, and both; where they are cut off, the shape within chooses the size."""
    inner = moving(17, 96 - above - below, 128 - left - right)
    framed = np.pad(inner, ((0, 0), (above, below), (left, right), (0, 0)))
    write_video(tmp_path / "a.mp4", framed)
    sizes = ((24, 64), (48, 48), (32, 64), (36, 48))
    cut = Cut(tuple(Bucket(9, *size) for size in sizes), fps=16)
    notes: list[str] = []
    (kept,) = read_clips(source(tmp_path / "a.mp4"), cut, Counter(), notes)
    assert kept.shape == (9, 36, 48, 3)  # the shape of the whole frame
    assert min(edges_of(kept)) < 10
    assert [note.split(":")[0] for note in notes] == ["a.mp4 has black bars around it"]
    assert "--crop-bars" in notes[0]
    notes.clear()
    (kept,) = read_clips(source(tmp_path / "a.mp4"), replace(cut, crop_bars=True), Counter(), notes)
    assert min(edges_of(kept)) > 40
    assert "its black bars are cut off" in notes[0]
    want = min(sizes, key=lambda size: abs(np.log(size[1] / size[0] * inner.shape[1] / inner.shape[2])))
    assert kept.shape[1:3] == want


@pytest.mark.parametrize("pads", [((12, 0), (0, 0)), ((0, 0), (0, 40)), ((0, 0), (0, 0)), ((40, 40), (0, 0))])
def test_what_is_dark_on_one_side_is_no_bar(tmp_path: Path, pads: Any) -> None:
    """Nor what is bright at some time, nor a small thing on a black ground."""
    framed = np.pad(moving(17, 96 - sum(pads[0]), 128 - sum(pads[1])), ((0, 0), *pads, (0, 0)))
    if not any(map(any, pads)):
        framed[:, :12] = framed[:, -12:] = 0
        framed[16, :12, 5] = 200  # a light in what seemed a bar
    write_video(tmp_path / "a.mp4", framed)
    for crop_bars in (False, True):
        notes: list[str] = []
        cut = Cut((Bucket(9, 48, 64),), fps=16, crop_bars=crop_bars)
        list(read_clips(source(tmp_path / "a.mp4"), cut, Counter(), notes))
        assert not any("bars" in note for note in notes)
