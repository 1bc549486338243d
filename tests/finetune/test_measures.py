"""Each measure grows with the fault that it is of, and the others stay where they are.

Clips are a disc before a textured ground, 3 seconds at 16 frames a second.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from radial.errors import RequestError
from radial_finetune.evaluate.measures import measure
from radial_finetune.evaluate.measures.recurrence import recurrence

FPS, COUNT, SIDE = 16, 48, 64
TIME = np.arange(COUNT)
RED, BLUE = np.array([220.0, 40, 40]), np.array([40.0, 40, 220])
Clip = NDArray[np.floating[Any]]

# What each measure may move by where another's fault is made.
LITTLE = {
    "motion": 0.7, "subject_motion": 0.7, "pan": 0.7, "jitter": 0.15, "judder": 0.25, "duplicates": 0.01,
    "longest_freeze": 0.13, "flicker": 0.5, "flashes": 0, "warping_error": 1.5, "subject_drift": 4, "subject_seen": 0.3,
    "luminance_drift": 3, "saturation_drift": 5, "contrast_drift": 3, "sharpness_drift": 0.15, "frechet_drift": 4,
    "repetition": 0.15, "cuts": 0,
}  # fmt: skip


@functools.cache
def ground(seed: int = 0, width: int = 500) -> Clip:
    rough = np.random.default_rng(seed).normal(size=(SIDE + 40, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(rough, (0, 0), 2)
    return (soft / soft.std() * 28 + 120).clip(0, 255)


def scene(
    path: Clip | None = None, camera: Clip | None = None, colours: Clip | None = None, seed: int = 0, disc: bool = True
) -> Clip:
    """Frames ``[T, H, W, 3]``.

    Args:
        path: of the disc, before the ground, in pixels.
        camera: its way over the ground.
    """
    path = across(0.8) if path is None else path
    camera = np.zeros((len(path), 2)) if camera is None else camera
    colours = np.broadcast_to(RED, (len(path), 3)) if colours is None else colours
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = []
    for (px, py), (cx, cy), colour in zip(path, camera, colours, strict=True):
        way = np.array([[1, 0, cx + 20], [0, 1, cy + 20]], np.float64)
        frame = cv2.warpAffine(ground(seed), way, (SIDE, SIDE), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        cover = np.clip(8 - np.hypot(x - px + cx, y - py + cy), 0, 1)[..., None]
        frames.append(frame * (1 - cover) + colour * cover if disc else frame)
    return np.stack(frames)


def across(speed: float, count: int = COUNT) -> Clip:
    return np.stack([12 + speed * np.arange(count), np.full(count, 32.0)], axis=-1)


def pan(speed: float, disc: bool = True) -> Clip:
    """The camera follows the disc, which crosses the frame as it does without a pan, and the ground all the faster."""
    camera = np.stack([speed * TIME, 0 * TIME], axis=-1)
    return scene(across(0.8) + camera, camera, disc=disc)


def jitter(size: float, disc: bool = True) -> Clip:
    return scene(camera=size * np.random.default_rng(1).choice([-1, 1], (COUNT, 2)), disc=disc)


def measured(frames: Clip) -> dict[str, Any]:
    whole = np.clip(np.round(frames), 0, 255).astype(np.uint8)
    return dict(_measured(whole.tobytes(), whole.shape))


@functools.cache
def _measured(content: bytes, shape: tuple[int, ...]) -> dict[str, Any]:
    """Several tests look at the same clip."""
    values = asdict(measure(np.frombuffer(content, np.uint8).reshape(shape), FPS))
    values.pop("seconds")
    return values


@functools.cache
def plain() -> dict[str, Any]:
    return measured(scene())


def over(frames: Clip, level: Clip) -> tuple[Clip, Clip]:
    """Frames, and a level for each that can be multiplied with them."""
    return frames, level[:, None, None, None]


def again(every: int) -> Clip:
    """One frame in so many is the one before it, shown again."""
    return scene()[TIME - (TIME % every == every - 1)]


def frozen(count: int) -> Clip:
    return scene()[np.minimum(TIME, COUNT - 1 - count)]


def faster(speed: float) -> Clip:
    return scene(across(speed))


def flickering(size: float) -> Clip:
    return scene() + size * (-1.0) ** TIME[:, None, None, None]


def flashing(times: int) -> Clip:
    frames = scene()
    frames[[20, 30, 40][:times]] = 255
    return frames


def boiling(amount: float) -> Clip:
    """Patches of the ground that come and go from frame to frame."""
    rng = np.random.default_rng(2)
    patches = np.stack([cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE, 3)), (0, 0), 2) for _ in TIME])
    return scene() + amount * patches / patches.std()


def dip(share: float) -> Clip:
    frames, level = over(scene(), np.sin(np.pi * TIME / (COUNT - 1)) ** 2)
    return frames * (1 - share * level)


def washed_out(share: float) -> Clip:
    frames, level = over(scene(), TIME / (COUNT - 1) * share)
    grey = (frames @ [0.299, 0.587, 0.114])[..., None]
    return frames * (1 - level) + grey * level


def flatter(share: float) -> Clip:
    frames, level = over(scene(), TIME / (COUNT - 1) * share)
    return frames * (1 - level) + 120 * level


def blurred(deviation: float) -> Clip:
    return np.stack([cv2.GaussianBlur(f, (0, 0), 0.01 + deviation * i / COUNT) for i, f in enumerate(scene())])


def tinted(amount: float) -> Clip:
    frames, level = over(scene(), TIME / (COUNT - 1) * amount)
    return frames + level * np.array([-0.5, 0, 1])


def circling(share: float) -> Clip:
    """A disc on a circle of one second, that drifts the less the more of it comes back."""
    turn = 2 * np.pi * TIME / 16
    middle = np.stack([24 + 40 * (1 - share) * TIME / COUNT, np.full(COUNT, 32.0)], axis=-1)
    return scene(middle + 9 * np.stack([np.cos(turn), np.sin(turn)], axis=-1))


def recoloured(share: float) -> Clip:
    level = share * np.clip((TIME / COUNT - 0.4) / 0.4, 0, 1)[:, None]
    return scene(colours=RED * (1 - level) + BLUE * level)


def with_cuts(times: int) -> Clip:
    frames = scene()
    for number, first in enumerate((14, 25, 36)[:times]):
        frames[first:] = 0.6 * scene(seed=number + 1)[first:] + np.array([(90, 0, 0), (0, 90, 0), (0, 0, 90)][number])
    return frames


def seen_by(names: str) -> set[str]:
    return set(names.split())


LOOKS = "luminance_drift saturation_drift contrast_drift sharpness_drift frechet_drift"
FLOW = "motion subject_motion judder warping_error"
# Fault: how it is made, three levels, the measures that grow with it, and those that rightly see it as well.
FAULTS: dict[str, tuple[Callable[[Any], Clip], tuple[float, ...], str, str]] = {
    "faster": (faster, (0.2, 0.4, 0.8), "motion subject_motion", "subject_seen"),
    "pan": (pan, (1, 2, 4), "motion pan", f"{LOOKS} subject_motion flicker warping_error"),
    "jitter": (jitter, (0.5, 1, 2), "jitter", "duplicates flicker"),
    "shown again": (again, (8, 4, 2), "judder duplicates", "warping_error"),
    "frozen": (frozen, (8, 16, 24), "longest_freeze duplicates", f"{FLOW} repetition subject_seen"),
    "flicker": (flickering, (2, 4, 8), "flicker", "warping_error"),
    "flashes": (flashing, (1, 2, 3), "flashes", ""),
    "boiling": (boiling, (3, 6, 12), "warping_error flicker", f"{FLOW} sharpness_drift subject_drift"),
    "recoloured": (recoloured, (0.25, 0.5, 1), "subject_drift", "frechet_drift sharpness_drift"),
    "dip": (dip, (0.15, 0.3, 0.6), "luminance_drift", f"{LOOKS} subject_drift warping_error"),
    "washed out": (washed_out, (0.3, 0.6, 0.9), "saturation_drift", f"{LOOKS} subject_drift"),
    "flatter": (flatter, (0.2, 0.4, 0.8), "contrast_drift", f"{LOOKS} subject_drift"),
    "blurred": (blurred, (1, 2, 4), "sharpness_drift", f"{LOOKS} subject_drift"),
    "tinted": (tinted, (15, 30, 60), "frechet_drift", f"{LOOKS} subject_drift"),
    "coming back": (circling, (0, 0.4, 0.8), "repetition", f"{FLOW} subject_drift subject_seen"),
    "cuts": (with_cuts, (1, 2, 3), "cuts", f"{LOOKS} subject_drift subject_seen repetition"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_grows_in_its_own_measure_alone(fault: str) -> None:
    make, levels, own, also = FAULTS[fault]
    found = [measured(make(level)) for level in levels]
    for name in own.split():
        grown = [abs(values[name]) for values in found]
        if fault != "faster":
            grown.insert(0, abs(plain()[name] or 0))
        assert all(b > a for a, b in itertools.pairwise(grown)), (name, grown)
    for values in found:
        for name in LITTLE.keys() - seen_by(own) - seen_by(also):
            if values[name] is not None:
                assert abs(values[name] - plain()[name]) <= LITTLE[name], (name, values[name], plain()[name])


def test_a_clean_pan_is_a_pan_and_nothing_else() -> None:
    values = measured(pan(8, disc=False))
    assert values["pan"] == pytest.approx(8 / SIDE * FPS * 100, rel=0.01)
    assert values["subject_motion"] < 0.5
    assert values["flicker"] < 0.2
    assert values["jitter"] < 0.05
    assert values["cuts"] == 0
    assert values["subject_drift"] is None
    between = measured(pan(2.3, disc=False))  # no whole pixels
    assert between["pan"] == pytest.approx(2.3 / SIDE * FPS * 100, rel=0.02)
    assert between["flicker"] < 1.5


@pytest.mark.parametrize("speed", [1.3, 3, 8])
def test_a_subject_under_a_pan_has_not_changed(speed: float) -> None:
    values = measured(pan(speed))
    assert values["subject_drift"] < 3
    assert values["subject_seen"] > 0.7


@pytest.mark.parametrize("speed", [2, 8])
def test_a_pan_over_a_soft_ground_is_seen(speed: int) -> None:
    """Broad colours without an edge, which are others after each second."""
    y, x = np.mgrid[:SIDE, : SIDE + speed * COUNT]
    tones = [0.3 * x % 180, 120 + 60 * np.sin(x / 23) * np.cos(y / 17), 130 + 60 * np.sin(y / 9 + x / 31)]
    soft = cv2.cvtColor(np.stack(tones, axis=-1).astype(np.uint8), cv2.COLOR_HSV2RGB)
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = []
    for i, (px, py) in enumerate(across(0.8)):
        cover = np.clip(8 - np.hypot(x - px, y - py), 0, 1)[..., None]
        frames.append(soft[:, speed * i : speed * i + SIDE] * (1 - cover) + RED * cover)
    values = measured(np.stack(frames))
    assert values["pan"] == pytest.approx(speed / SIDE * FPS * 100, rel=0.06)
    assert values["subject_drift"] < 2


@pytest.mark.parametrize(("turn", "zoom"), [(0.01, 0), (0, 0.01), (0.005, 0.005)])
def test_turns_and_zooms_move_no_subject(turn: float, zoom: float) -> None:
    middle = np.array([200.0, 52.0])
    frames = []
    for i in TIME:
        scale = np.exp(-zoom * i) * np.array(
            [[np.cos(turn * i), -np.sin(turn * i)], [np.sin(turn * i), np.cos(turn * i)]]
        )
        way = np.column_stack([scale, middle - scale @ [SIDE / 2, SIDE / 2]])
        frames.append(cv2.warpAffine(ground(), way, (SIDE, SIDE), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP))
    values = measured(np.stack(frames))
    assert values["subject_motion"] < 0.5
    assert values["jitter"] < 0.2
    assert values["subject_drift"] is None
    assert values["cuts"] == 0


def test_a_subject_on_an_even_ground_is_no_pan() -> None:
    frames = scene()
    even = np.where(np.abs(frames - RED).max(-1, keepdims=True) < 1, frames, 120.0)
    values = measured(even)
    assert values["pan"] == values["jitter"] == 0
    assert values["subject_motion"] > 0.5


def test_jitter_is_no_motion() -> None:
    shaking, still = measured(jitter(1, disc=False)), measured(scene(disc=False))
    assert still["motion"] == 0
    assert shaking["motion"] < 0.5
    assert shaking["repetition"] < 0.1
    assert shaking["subject_drift"] is None
    assert measured(jitter(1))["motion"] < 1.5 * plain()["motion"]


def test_a_freeze_loses_no_subject() -> None:
    for count in (8, 16, 24, 32):
        values = measured(frozen(count))
        assert values["subject_drift"] is None or values["subject_drift"] < 1
        assert values["longest_freeze"] == count / FPS


def test_a_dip_in_the_middle_is_drift() -> None:
    values = measured(dip(0.5))
    assert values["luminance_drift"] < -30
    assert abs(plain()["luminance_drift"]) < 1


@pytest.mark.parametrize("light", [255, 0])
@pytest.mark.parametrize("first", [0, 24, COUNT - 1])
def test_one_flash_is_a_flash(first: int, light: int) -> None:
    frames = scene()
    frames[first] = light
    values = measured(frames)
    assert values.pop("flashes") == 1
    for name, value in values.items():
        assert value == pytest.approx(plain()[name], abs=0.02 + LITTLE[name] / 4), name


def test_flicker_is_no_repetition_and_no_flash() -> None:
    for size in (1, 8, 16):
        values = measured(scene(disc=False) + size * (TIME % 2)[:, None, None, None])
        assert values["repetition"] == 0
        assert values["flashes"] == 0
        assert values["flicker"] == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("hidden", ["", "ramp", "flash", "flicker", "tint"])
def test_a_loop_cannot_hide(hidden: str) -> None:
    frames = circling(1)
    if hidden == "ramp":
        frames = frames * np.linspace(1, 0.4, COUNT)[:, None, None, None]
    elif hidden == "flash":
        frames[30] = 255
    elif hidden == "flicker":
        frames = frames + 4 * (-1.0) ** TIME[:, None, None, None]
    elif hidden == "tint":
        frames = frames * np.linspace(1, [0.5, 1, 0.8], COUNT)[:, None, None]
    assert measured(frames)["repetition"] > 0.9


def test_judder_is_uneven_motion() -> None:
    pulled_down = scene()[(TIME // 5) * 4 + np.array([0, 0, 1, 2, 2])[TIME % 5]]
    values = measured(pulled_down)
    assert values["judder"] > 5 * plain()["judder"]
    assert values["duplicates"] == pytest.approx(0.4, abs=0.03)
    assert values["jitter"] < 0.1
    for frames in (pan(3)[TIME - (TIME % 5 == 4)], pan(3)[(TIME // 5) * 4 + np.array([0, 1, 2, 3, 3])[TIME % 5]]):
        values = measured(frames)  # frames that were lost, and frames that were put in
        assert values["judder"] > 0.2
        assert values["jitter"] < 0.2
    assert measured(np.repeat(scene()[:1], COUNT, 0))["judder"] is None


def test_a_codec_hides_no_frame_that_is_shown_again() -> None:
    """Codecs change blocks of a frame that stays; motion that only becomes slow is none of it."""
    rng = np.random.default_rng(3)
    blocks = rng.normal(scale=0.7, size=(COUNT, SIDE // 8, SIDE // 8, 1)).repeat(8, 1).repeat(8, 2)
    for every in (2, 4):
        values = measured(again(every) + blocks)
        assert values["duplicates"] == pytest.approx(measured(again(every))["duplicates"], abs=0.05)
    slower = np.minimum(0.8 * TIME, 0.8 * 24 + 0.25 * (TIME - 24))
    assert measured(scene(np.stack([12 + slower, np.full(COUNT, 32.0)], axis=-1)) + blocks)["duplicates"] == 0


def test_what_stands_still_is_all_zero() -> None:
    values = measured(np.repeat(scene()[:1], COUNT, 0))
    assert values.pop("duplicates") == 1
    assert values.pop("longest_freeze") == (COUNT - 1) / FPS
    assert max(abs(value) for value in values.values() if value is not None) < 1e-9


def test_a_clip_is_read_once_and_never_held() -> None:
    living = 0
    most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal living
            living -= 1

    def large() -> Iterator[Any]:
        nonlocal living, most
        for frame in scene()[:12]:
            living += 1
            most = max(most, living)
            yield cv2.resize(frame.clip(0, 255).astype(np.uint8), (1920, 1080)).view(Counted)

    assert measure(large(), FPS).motion > 0
    assert most <= 3


def test_clips_of_any_size_and_length() -> None:
    for frames in (scene()[:2, :9, :33], scene()[:3, :16, :16], scene()[:5], scene()[:20, :64, :20]):
        values = measured(frames)
        assert all(value is None or np.isfinite(value) for value in values.values())
    with pytest.raises(RequestError, match="one frame"):
        measured(scene()[:1])


def test_a_long_clip_comes_back_as_a_short_one_does() -> None:
    small = [cv2.resize(frame.clip(0, 255).astype(np.uint8), (48, 48)) for frame in scene()]
    count = 1100
    nowhere, none = np.zeros((count, 2)), np.zeros(count, np.bool_)
    assert recurrence([small[i % COUNT] for i in range(count)], nowhere, none) > 0.99
    slow = [small[i * COUNT // count] for i in range(count)]
    assert recurrence(slow, nowhere, none) < 0.1
