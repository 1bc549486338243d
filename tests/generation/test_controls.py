"""What steers a clip beside its words: the fields mean what the pipelines' own arguments do, and bad ones are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import CASES

from radial import RequestError
from radial.generation.conditions.controls import controls_for
from radial.generation.pipeline import describe_run, generate
from radial.generation.resume import Step
from radial.generation.snapshot import Snapshot
from radial.generation.watch import Event
from radial.input_files import named_files, with_files
from radial.loading.load import load
from radial.request import make_request
from radial.video.clip import Video
from radial.video.control import read_control, read_mask
from radial.video.images import fit_frame

CLIP = {"height": 64, "width": 96, "num_frames": 9}
WIDE = {"height": 128, "width": 192, "num_frames": 17}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip of 9 frames, a mask of its right half, and two pictures."""
    folder = tmp_path_factory.mktemp("controls")
    frames = np.full((9, 64, 96, 3), 60, np.uint8)
    for index in range(9):
        frames[index, 10 + 2 * index : 30 + 2 * index, 20 + 4 * index : 50 + 4 * index] = (200, 120, 40)
    _as_pngs(frames, folder / "clip")
    Video(frames, 16).write(folder / "clip.mp4")
    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    for colour in ("red", "blue"):
        Image.new("RGB", (96, 64), colour).save(folder / f"{colour}.png")
    Image.linear_gradient("L").resize((120, 40)).convert("RGB").save(folder / "wide.png")
    return folder


def _as_pngs(frames: Any, folder: Path) -> None:
    """Frames without loss."""
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]


def arguments_of(name: str, place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a request, and the arguments that diffusers' pipeline takes for the same."""
    clip = pictures(place / "clip")
    red, blue = (Image.open(place / f"{colour}.png") for colour in ("red", "blue"))
    control = {"control_video": str(place / "clip")}
    if name == "wan-vace":
        mask, grey = Image.open(place / "mask.png"), Image.new("RGB", (96, 64), (128, 128, 128))
        seen = [Image.composite(grey, frame, mask) for frame in clip]
        masks = [mask] * 9
        seen[5], masks[5], seen[8], masks[8] = red, Image.new("L", (96, 64)), blue, Image.new("L", (96, 64))
        fields = control | {
            "mask": str(place / "mask.png"), "references": [str(place / "blue.png")],
            "keyframes": [{"frame": 5, "image": str(place / "red.png")}, f"-1:{place / 'blue.png'}"],
        }  # fmt: skip
        return fields | CLIP, {"video": seen, "mask": masks, "reference_images": [blue]} | CLIP
    if name == "ltx-condition":
        from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

        large = [image.resize((192, 128), Image.Resampling.LANCZOS) for image in (red, blue)]
        conditions = [LTXVideoCondition(image=x, frame_index=f) for x, f in zip(large, (0, 12), strict=True)]
        fields = {"image": str(place / "red.png"), "keyframes": f"12:{place / 'blue.png'}", "fps": 25}
        return fields | WIDE, {"conditions": conditions, "frame_rate": 25, "decode_timestep": 0.05,
                               "decode_noise_scale": 0.025} | WIDE  # fmt: skip
    size = {key: CLIP[key] for key in ("height", "width")}
    if name == "wan-animate":
        mask, none = Image.open(place / "mask.png"), Image.new("RGB", (96, 64))
        faces = [Image.fromarray(fit_frame(np.asarray(frame), 16, 16, "crop", "black")) for frame in clip]
        fields = control | {
            "face_video": str(place / "clip"), "references": str(place / "wide.png"),
            "background_video": str(place / "clip"), "mask": str(place / "mask.png"),
        }  # fmt: skip
        return fields | CLIP, size | {
            "image": Image.open(place / "wide.png"), "pose_video": clip, "face_video": faces, "mode": "replace",
            "background_video": [Image.composite(none, frame, mask) for frame in clip], "mask_video": [mask] * 9,
            "segment_frame_length": 9,
        }  # fmt: skip
    if name == "cogvideox-fun":
        return control | CLIP, {"control_video": clip} | size
    return control | {"strength": 0.5} | CLIP, {"video": clip, "strength": 0.5} | size


@pytest.mark.parametrize("name", ["wan-vace", "wan", "ltx-condition", "cogvideox", "cogvideox-fun", "wan-animate"])
def test_fields_mean_what_the_pipelines_arguments_mean(name: str, place: Path) -> None:
    """With stock attention a clip of the app is diffusers' own, frame for frame."""
    folder = place / name
    CASES[name].build().save_pretrained(folder)
    fields, own = arguments_of(name, place)
    request = make_request(
        prompt="a red circle", model=str(folder), seed=4, num_inference_steps=4, guidance_scale=3.0, attention="dense",
        keep_unmasked=False, **fields,
    ).resolve()  # fmt: skip
    model = load(request)
    (video,) = generate(request, model=model)
    more: dict[str, Any] = dict(model.spec.pipeline_arguments)
    with torch.inference_mode():
        made = model.pipe(
            prompt="a red circle", negative_prompt="", guidance_scale=3.0, num_inference_steps=4, output_type="np",
            max_sequence_length=model.spec.max_sequence_length, generator=torch.Generator().manual_seed(4),
            **more | own,
        ).frames[0]  # fmt: skip
    assert np.array_equal(video.frames, (made * 255).round().clip(0, 255).astype("uint8"))
    assert set(video.receipt["inputs"]) == {label for label, _ in named_files(request.model_dump())}


@pytest.mark.parametrize("name", ["wan-vace", "wan-animate"])
def test_what_a_mask_leaves_black_comes_back_as_it_was_given(name: str, place: Path, tmp_path: Path) -> None:
    """To the bit before the file is encoded, whatever rate, size and length the clip had; off it is the pipeline's."""
    CASES[name].build().save_pretrained(tmp_path / name)
    source = "background_video" if name == "wan-animate" else "control_video"
    Video(np.stack([np.full((40, 96, 3), 20 * t, np.uint8) for t in range(6)]), 8).write(tmp_path / "other.mp4")
    fields, _ = arguments_of(name, place)
    fields |= {source: str(tmp_path / "other.mp4"), "prompt": "a", "model": str(tmp_path / name), "seed": 4}
    request = make_request(**fields, num_inference_steps=2).resolve()
    model = load(request)
    (plain,) = generate(request.with_values(keep_unmasked=False), model=model)
    (kept,) = generate(request, model=model)
    given, _ = read_control(tmp_path / "other.mp4", 64, 96, 9, float(request.fps or 0), "crop")
    if name == "wan-vace":
        for frame, colour in ((5, "red"), (8, "blue")):
            given[frame] = np.asarray(Image.open(place / f"{colour}.png"))
    assert np.array_equal(kept.frames[:, :, :48], given[:, :, :48])
    assert np.array_equal(kept.frames[:, :, 48 + 5 :], plain.frames[:, :, 48 + 5 :])
    assert not np.array_equal(plain.frames[:, :, :48], given[:, :, :48])
    assert kept.receipt["kept"] == {"share": 0.5, "soft_edge": 4}
    assert "kept" not in plain.receipt
    assert describe_run(request, model) == describe_run(request.with_values(keep_unmasked=False), model)


def test_a_clip_made_over_stays_nearer_the_less_it_is(place: Path) -> None:
    """From the bundled model: at little strength the clip is hardly another, at full strength it is forgotten."""
    fields = {"prompt": "a red circle rises", "seed": 1, "num_inference_steps": 8, "num_frames": 9, "height": 64,
              "width": 96, "flow_shift": 1.0, "control_video": str(place / "clip.mp4")}  # fmt: skip
    source = np.stack([np.asarray(frame, np.float32) for frame in pictures(place / "clip")])
    model = load(make_request(**fields, strength=1.0))
    apart = []
    for strength in (0.125, 0.5, 1.0):
        (video,) = generate(make_request(**fields, strength=strength), model=model)
        apart.append(float(np.abs(video.frames - source).mean()))
    assert apart[0] < 12
    assert apart[0] < apart[1] < apart[2]


def test_a_run_with_controls_goes_on_bit_for_bit_and_with_no_others(place: Path, tmp_path: Path) -> None:
    """What a snapshot depends on is the content of the files, too."""
    CASES["wan"].build().save_pretrained(tmp_path / "wan")
    (tmp_path / "a.mp4").write_bytes((place / "clip.mp4").read_bytes())
    request = make_request(prompt="a", model=str(tmp_path / "wan"), seed=1, num_inference_steps=6, strength=0.5,
                           control_video=str(tmp_path / "a.mp4"), **CLIP).resolve()  # fmt: skip
    model = load(request)
    kept: dict[int, Snapshot] = {}

    def on_step(step: Step) -> Any:
        kept[step.step] = step.snapshot()
        return "go on"

    (whole,) = generate(request, model=model, on_step=on_step)
    assert set(kept) == {1, 2, 3}
    events: list[Event] = []
    (resumed,) = generate(request, model=model, snapshot=kept[2], on_event=events.append)
    assert np.array_equal(resumed.frames, whole.frames)
    assert [e.step for e in events if e.stage == "denoise" and e.step] == [2, 3]
    about = describe_run(request, model)
    Video(np.zeros((9, 64, 96, 3), np.uint8), 16).write(tmp_path / "a.mp4", overwrite=True)
    assert describe_run(request, model) != about


def test_what_does_not_fit_is_brought_there_and_told(place: Path, tmp_path: Path) -> None:
    CASES["wan-vace"].build().save_pretrained(tmp_path / "vace")
    Video(np.full((3, 40, 96, 3), 90, np.uint8), 8).write(tmp_path / "short.mp4")
    model = load(make_request(prompt="a", model=str(tmp_path / "vace"), **CLIP))
    fields = {"prompt": "a", "model": str(tmp_path / "vace"), "seed": 1, **CLIP}
    request = make_request(**fields, control_video=str(tmp_path / "short.mp4")).resolve()
    arguments, notes, kept = controls_for(model.pipe, request, {}, torch.Generator())
    assert kept is None
    assert len(arguments["video"]) == len(arguments["mask"]) == 9
    assert arguments["video"][0].size == (96, 64)
    assert all(np.asarray(mask).min() == 255 for mask in arguments["mask"])  # a signal: all is made anew
    told = "; ".join(notes)
    assert "short.mp4 has 8 frames a second and is read at 16: its speed stays as it is" in told
    assert "short.mp4 is 96x40 and is brought to 96x64, by image_fit crop" in told
    assert "short.mp4 has 6 frames at 16 a second, and the clip 9: its last one stays" in told
    request = make_request(**fields | {"num_frames": 5}, control_video=str(place / "clip.mp4")).resolve()
    _, notes, _ = controls_for(model.pipe, request, {}, torch.Generator())
    assert notes == ("clip.mp4 is longer than the clip: its first 5 frames at 16 a second count",)


def test_images_of_ltx_2_stand_in_latent_frames(place: Path, tmp_path: Path) -> None:
    """In clips of its pipeline for text: the same frames as its own pipeline with the same conditions."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    CASES["ltx2"].build().save_pretrained(tmp_path / "ltx2")
    keyframes = [f"0:{place / 'red.png'}", f"12:{place / 'blue.png'}"]
    fields = {"prompt": "a red circle", "model": str(tmp_path / "ltx2"), "height": 64, "width": 96, "num_frames": 17,
              "fps": 8, "seed": 3, "num_inference_steps": 2, "guidance_scale": 1.0, "attention": "dense"}  # fmt: skip
    request = make_request(**fields, keyframes=keyframes).resolve()
    model = load(request)
    events: list[Event] = []
    (video,) = generate(request, model=model, on_event=events.append)
    assert [event.note for event in events if event.note] == ["images stand at every 8th frame: that of frame 12 at 9"]
    images = [Image.open(place / f"{colour}.png") for colour in ("red", "blue")]
    conditions = [LTX2VideoCondition(frames=image, index=index) for image, index in zip(images, (0, 2), strict=True)]
    with torch.inference_mode():
        made = model.pipe(
            conditions=conditions, prompt="a red circle", negative_prompt="", height=64, width=96, num_frames=17,
            frame_rate=8, num_inference_steps=2, guidance_scale=1.0, audio_guidance_scale=1.0, stg_scale=0.0,
            modality_scale=1.0, audio_stg_scale=0.0, audio_modality_scale=1.0, output_type="np",
            max_sequence_length=model.spec.max_sequence_length, generator=torch.Generator().manual_seed(3),
            **dict(model.spec.pipeline_arguments),
        ).frames[0]  # fmt: skip
    assert np.array_equal(video.frames, (made * 255).round().clip(0, 255).astype("uint8"))
    near = request.with_values(keyframes=[f"9:{place / 'red.png'}", f"12:{place / 'blue.png'}"])
    with pytest.raises(RequestError, match="images at frames 9 and 12 are too near: give 8 between them"):
        next(generate(near, model=model))


ANIMATE = "wan2.2-animate-14b"
DRIVEN: dict[str, Any] = {"model": ANIMATE, "control_video": "a", "face_video": "a", "references": "a"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control_video": "a.mp4"}, r"tiny takes no control_video; models that do: (?:tiny-control, )?"
         r"wan2\.1-vace-1\.3b, "
         r"wan2\.1-vace-14b, wan2\.2-animate-14b, cogvideox-fun-5b-pose; with strength 0\.6, say, it makes the clip "
         "itself over"),
        ({"control_video": "a", "model": "mochi"}, "mochi takes no control_video; models that do"),
        ({"references": "a.png"}, r"tiny takes no references; models that do: .*wan2\.1-vace-1\.3b, .*wan2\.2-animate"),
        ({"keyframes": "3:a.png"}, "tiny takes no keyframes; models that do: .*wan2.1-vace"),
        ({"control_video": "a", "mask": "b", "model": "cogvideox-fun-5b-pose"}, "takes no mask; models that do"),
        ({"control_video": "a", "strength": 0.5, "model": "wan2.2-a14b"}, "takes no strength; models that do: tiny"),
        ({"control_video": "a", "strength": 0.5, "model": "wan2.1-vace-14b"}, "takes no strength"),
        ({"mask": "a.png", "model": "wan2.1-vace-14b"}, "mask needs control_video"),
        ({"strength": 0.5}, "strength needs control_video"),
        ({"control_video": "a", "strength": 0.5, "references": "a"}, "strength and references exclude each other"),
        ({"control_video": "a", "strength": 0}, "strength must be greater than 0, not 0"),
        ({"control_video": "a", "strength": 0.02}, r"strength 0\.02 leaves none of 20 steps: 0\.05 or more does"),
        ({"control_video": "a", "strength": 1, "image": "a"}, "does not start from an image where it takes strength"),
        ({"control_video": "a", "strength": 0.5, "cache": "auto"}, "cache auto does not go with strength"),
        ({"control_video": "a", "strength": 0.5, "guidance_end": 0.5}, "leave guidance_start and guidance_end out"),
        ({"control_video": "a", "strength": 0.5, "then": ["b"]}, "then does not go with strength"),
        ({"references": ["a"] * 5, "model": "wan2.1-vace-14b"}, "references must be at most 4 for .*, not 5"),
        ({"keyframes": "81:a", "model": "wan2.1-vace-14b"}, "at 81 lies beyond the clip, whose frames are 0 to 80"),
        ({"keyframes": ["80:a", "-1:b"], "model": "wan2.1-vace-14b"}, "two images cannot be at frame 80"),
        ({"keyframes": "0:a", "image": "b", "model": "wan2.1-vace-14b"}, "a keyframe, and the start image"),
        ({"keyframes": "a.png", "model": "wan2.1-vace-14b"}, r"must be FRAME:FILE, such as .*, not 'a\.png'"),
        ({"keyframes": "1:a", "model": "ltx-video-0.9.5", "sampler": "unipc"}, "unipc does not go with keyframes"),
        ({"keyframes": "1:a", "model": "ltx-video-0.9.5", "token_order": "columns"}, "take raster"),
        ({"model": "cogvideox-fun-5b-pose"}, "follows another clip: give --control-video"),
        ({"model": ANIMATE}, "follows another clip: give --control-video and --face-video and --references"),
        ({"control_video": "a", "model": ANIMATE}, "needs face_video: the face that it follows: a square cut out"),
        ({**DRIVEN, "references": ()}, "needs references: images of who or what appears"),
        ({**DRIVEN, "references": ["a", "b"]}, "references must be at most 1 for wan2.2-animate-14b, not 2"),
        ({**DRIVEN, "image": "a"}, "does not start from an image where it takes control_video: it is a reference"),
        ({**DRIVEN, "mask": "a"}, "mask goes with background_video for wan2.2-animate-14b: of poses no part is kept"),
        ({**DRIVEN, "background_video": "a"}, "background_video needs mask, which is white where"),
        ({**DRIVEN, "num_frames": 1}, "the nearest are 5 and 9"),
        ({**DRIVEN, "num_frames": 81, "decoder": "tiny"}, "decoder tiny is for clips of up to 77 frames"),
        ({"face_video": "a"}, r"tiny takes no face_video; models that do: wan2\.2-animate-14b$"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_request(**{"prompt": "a", **fields}).resolve()


def test_files_are_looked_at_before_they_are_needed(place: Path, tmp_path: Path) -> None:
    Image.new("L", (96, 64), 90).save(tmp_path / "black.png")
    Video(np.zeros((3, 64, 96, 3), np.uint8), 16).write(tmp_path / "black.mp4")
    base = {"prompt": "a", "control_video": str(place / "clip.mp4")}
    make_request(**base, mask=str(place / "mask.png")).check_files()
    for name in ("black.png", "black.mp4"):
        with pytest.raises(RequestError, match=rf"mask: .*{name} is black all over: a mask is white where"):
            make_request(**base, mask=str(tmp_path / name)).check_files()
        make_request(**base, mask=str(tmp_path / name)).check_files(by_head=True)
        with pytest.raises(RequestError, match=rf"{name} is black all over: a mask is white where"):
            read_mask(tmp_path / name, 64, 96, 3, 16, "crop")  # as the worker tells it
    with pytest.raises(RequestError, match=r"mask: .* no clip|mask: .* is not a video"):
        make_request(**base, mask=__file__).check_files(by_head=True)
    for fields, message in (
        ({"control_video": str(place / "red.png")}, "control_video: .* is an image, and no clip"),
        ({"references": [str(place / "clip.mp4")]}, "references: .* is a clip, and no image"),
        ({"keyframes": f"3:{tmp_path / 'none.png'}"}, "keyframes: no such file"),
    ):
        with pytest.raises(RequestError, match=message):
            make_request(prompt="a", **fields).check_files()


def test_every_file_of_a_request_is_found_and_placed_anew() -> None:
    """As written and as checked: what guards paths sees each of them."""
    written = {"prompt": "a", "image": "a", "control_video": "b", "mask": "c", "references": "d",
               "keyframes": ["3:e", {"frame": 4, "image": "f"}], "face_video": "g",
               "background_video": "h"}  # fmt: skip
    request = make_request(**written)
    assert sorted(path for _, path in named_files(request.model_dump())) == [*"abcdefgh"]
    placed = make_request(**written | with_files(written, lambda name, path: f"/{name}/{path}"))
    assert {path for _, path in named_files(placed.model_dump())} == {
        "/image/a", "/control_video/b", "/mask/c", "/references/d", "/keyframes/e", "/keyframes/f", "/face_video/g",
        "/background_video/h",
    }  # fmt: skip
    assert with_files(written, lambda *_: None) == {
        "image": None, "control_video": None, "mask": None, "references": [], "keyframes": [], "face_video": None,
        "background_video": None,
    }  # fmt: skip
