"""Images that clips start from: read as their makers see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from radial import RequestError, Video
from radial.request import make_request
from radial.video.images import check_clip, check_image, fit_image, read_image


def test_images_are_read_safely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(RequestError, match="not an image that can be read"):
        read_image(tmp_path / "text.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    half = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    with pytest.raises(RequestError, match=r"half\.png is torn"):
        read_image(tmp_path / "half.png")
    monkeypatch.setattr("radial.video.images.MAX_PIXELS", 1000)
    with pytest.raises(RequestError, match="64x64 pixels"):
        read_image(tmp_path / "whole.png")


def test_images_are_turned_upright_and_lose_their_transparency(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 128))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    read, notes = read_image(tmp_path / "turned.png")
    assert notes == ("turned.png is see-through in parts: what lies under them is black",)
    assert (read.size, read.mode) == ((10, 20), "RGB")


@pytest.mark.parametrize(("fit", "corner", "edge"), [("crop", 255, 255), ("pad", 0, 0), ("stretch", 255, 255)])
def test_images_of_another_shape(fit: Any, corner: int, edge: int) -> None:
    fitted = np.asarray(fit_image(Image.new("RGB", (100, 20), "white"), 32, 48, fit))
    assert fitted.shape == (32, 48, 3)
    assert fitted[0, 0, 0] == corner
    assert fitted[0, 24, 0] == edge
    assert fitted[16, 24, 0] == 255


def see(path: Path, ground: str = "black") -> Any:
    """An image's pixels, as whole numbers that can be subtracted."""
    return np.asarray(read_image(path, ground)[0]).astype(int)


@pytest.mark.parametrize("kind", ["png", "webp", "palette", "grey", "avif", "one colour"])
@pytest.mark.parametrize(
    ("ground", "under"), [("black", (0, 0, 0)), ("white", (255, 255, 255)), ("#0a141e", (10, 20, 30))]
)
def test_what_is_cut_out_lies_on_a_plain_ground(tmp_path: Path, kind: str, ground: str, under: Any) -> None:
    """And not on the colours that are hidden under it, here magenta."""
    image = Image.new("RGBA", (32, 32), (255, 0, 255, 0))
    image.paste((40, 200, 80, 255), (8, 8, 24, 24))
    path = tmp_path / f"a.{'avif' if kind == 'avif' else 'webp' if kind == 'webp' else 'png'}"
    inner = (40, 200, 80)
    if kind == "palette":
        image.quantize(4).save(path)
    elif kind == "grey":
        image.convert("LA").save(path)
        inner = (round(0.299 * 40 + 0.587 * 200 + 0.114 * 80),) * 3
    elif kind == "one colour":  # a colour that stands for nothing, as PNG has it without alpha
        image.convert("RGB").save(path, transparency=(255, 0, 255))
    else:
        image.save(path, **({"lossless": True} if kind == "webp" else {"quality": 100} if kind == "avif" else {}))
    seen = see(path, ground)
    assert np.abs(seen[0, 0] - under).max() <= 2
    assert np.abs(seen[16, 16] - inner).max() <= 4
    assert read_image(path, ground)[1] == (f"{path.name} is see-through in parts: what lies under them is {ground}",)


def test_an_image_with_alpha_that_hides_nothing_needs_no_word(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[1] == ()


@pytest.mark.parametrize("kind", ["16 bit png", "16 bit tiff", "32 bit tiff", "float to 1", "float to 255", "1 bit"])
def test_levels_of_every_depth(tmp_path: Path, kind: str) -> None:
    ramp = np.tile(np.linspace(0, 1, 256), (16, 1))
    path = tmp_path / f"a.{'png' if 'png' in kind else 'tiff'}"
    if kind.startswith("16"):
        Image.fromarray((ramp * 65535).round().astype(np.uint16)).save(path)
    elif kind.startswith("32"):
        Image.fromarray((ramp * 65535).round().astype(np.int32)).save(path)
    elif kind == "1 bit":
        ramp = (ramp > 0.5).astype(float)
        Image.fromarray((ramp * 255).astype(np.uint8)).convert("1").save(path)
    else:
        Image.fromarray((ramp * (255 if "255" in kind else 1)).astype(np.float32)).save(path)
    assert np.abs(see(path)[..., 0] - 255 * ramp).max() <= 1


def test_colours_of_print_and_of_phones(tmp_path: Path) -> None:
    """Without a profile CMYK is as Pillow has it; with one, here of linear light, colours go by it."""
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(see(tmp_path / "a.jpg")[4, 4] - (255, 0, 0)).max() <= 3
    half = Image.new("RGB", (8, 8), (128, 128, 128))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    half.save(tmp_path / "b.png", icc_profile=profile)
    assert np.abs(see(tmp_path / "b.png") - 128).max() <= 1
    lab = ImageCms.createProfile("LAB")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "c.png", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    assert (see(tmp_path / "c.png") == 9).all()  # a profile that cannot be of this image
    half.save(tmp_path / "d.png", icc_profile=b"torn")
    assert (see(tmp_path / "d.png") == 128).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff", "avif"])
def test_the_first_of_several_is_taken_and_told(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    image, notes = read_image(tmp_path / f"a.{suffix}")
    assert np.abs(np.asarray(image).astype(int)[16, 16] - (255, 0, 0)).max() <= 6
    assert notes == (f"a.{suffix} has several pictures: the first is taken",)


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_pictures_of_phones(tmp_path: Path, format: str) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    image.save(tmp_path / "a.jpg", format=format, quality=95)  # whatever its name says
    seen = see(tmp_path / "a.jpg")
    assert seen.shape == (32, 64, 3)
    assert np.abs(seen[16, 8] - (255, 0, 0)).max() < 12
    assert np.abs(seen[16, 56] - (0, 0, 255)).max() < 12


def test_kinds_are_told_by_content_before_the_render(tmp_path: Path) -> None:
    Video(np.zeros((4, 32, 32, 3), np.uint8), 16).write(tmp_path / "clip.mp4")
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.mp4", format="AVIF")
    (tmp_path / "text.png").write_text("no picture")
    check_image(tmp_path / "picture.mp4")
    check_clip(tmp_path / "clip.mp4")
    for fields, told in (
        ({"image": "clip.mp4"}, r"clip\.mp4 is a clip, and no image: take it as the clip to extend"),
        ({"extend": "picture.mp4"}, r"picture\.mp4 is an image, and no clip: take it as image"),
        ({"image": "text.png"}, r"text\.png is not an image that can be read"),
        ({"image": "picture.mp4", "last_image": "none.png"}, "last_image: no such file"),
        ({"extend": "none.mp4"}, "no such file"),
    ):
        files = {name: str(tmp_path / file) for name, file in fields.items()}
        with pytest.raises(RequestError, match=told):
            make_request(prompt="a", **files).check_files()


def test_a_ground_is_a_colour() -> None:
    assert make_request(prompt="a", image_ground="#fff").image_ground == "#fff"
    with pytest.raises(RequestError, match="image_ground must be a colour, such as white or #7f7f7f, not 'nocolour'"):
        make_request(prompt="a", image_ground="nocolour")
    padded = np.asarray(fit_image(Image.new("RGB", (100, 20), "red"), 32, 48, "pad", "#0a141e"))
    assert padded[0, 0].tolist() == [10, 20, 30]
