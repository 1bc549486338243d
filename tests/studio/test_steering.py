"""Clips and images that steer a clip, dropped into the form, and a clip of the gallery finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import NEEDS_BROWSER, Studio
from PIL import Image
from test_ten_tasks import Hand
from tiny_pipelines import CASES

from radial.video.clip import Video, read_frames
from radial.video.control import read_mask

pytestmark = NEEDS_BROWSER


@pytest.fixture
def hand(page: Any, studio: Studio, tmp_path: Path) -> Hand:
    steered = studio.folder / "data" / "models" / "steered"
    if not steered.exists():
        CASES["wan-vace"].build().save_pretrained(steered)
        CASES["wan-animate"].build().save_pretrained(steered.with_name("animated"))
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    Video(np.full((9, 64, 64, 3), 90, np.uint8), 16).write(tmp_path / "clip.mp4")
    page.goto(studio.url)
    page.wait_for_selector("#estimate b")
    return Hand(page, studio, tmp_path)


def test_zones_for_what_a_model_is_steered_by(hand: Hand) -> None:
    hand.click('[aria-label="Models on this machine"] button:has-text("steered")')
    hand.click("#steering summary")
    assert hand.page.locator('[data-zone="mask"]').count() == 0  # it is for a clip
    hand.drop("clip.mp4", '[data-zone="control_video"]')
    hand.page.wait_for_selector('[data-zone="control_video"] video')
    hand.drop("mask.png", '[data-zone="mask"]')
    hand.page.wait_for_selector('[data-zone="mask"] img')
    hand.drop("red.png", '[data-zone="references.0"]')
    hand.page.wait_for_selector('[data-zone="references.1"]')
    hand.drop("red.png", '[data-zone="keyframes.0"]')
    hand.page.wait_for_selector('[data-zone="keyframes.0"] img')
    hand.page.fill('input[aria-label^="Frame of this image"]', "4")
    hand.page.press('input[aria-label^="Frame of this image"]', "Tab")
    hand.drop("clip.mp4", '[data-zone="references.1"]')
    hand.page.wait_for_selector("#toasts p:has-text('this is a clip; an image goes here')")
    hand.write("#prompt", "a red star")
    body = hand.generate()
    assert body["control_video"].endswith(".mp4")
    assert [body[name].endswith(".png") for name in ("mask",)] == [True]
    assert body["references"] == [body["keyframes"][0]["image"]]
    assert body["keyframes"][0]["frame"] == 4
    assert "strength" not in body
    hand.click('[aria-label="Models on this machine"] button:has-text("small")')
    hand.page.wait_for_selector('[data-zone="control_video"] video')  # a clip to make over, now
    hand.page.wait_for_selector("#toasts p:has-text('left out: Mask, References, Images at frames.')")
    assert hand.page.locator('[data-zone="references.0"]').count() == 0
    hand.page.fill("input[name=strength]", "0.4")
    body = hand.generate()
    assert (body["model"], body["strength"], "mask" in body) == ("small", 0.4, False)


def test_a_mask_is_drawn_on_a_frame_and_followed_through_the_clip(hand: Hand, tmp_path: Path) -> None:
    """With a look at it before it is used; what it leaves black stays to the pixel, unless that is unticked."""
    frames = np.full((9, 96, 128, 3), 90, np.uint8)
    for index in range(9):
        frames[index, 30:60, 20 + 6 * index : 50 + 6 * index] = (210, 60, 40)
    Video(frames, 16).write(tmp_path / "moving.mp4")
    hand.click('[aria-label="Models on this machine"] button:has-text("steered")')
    hand.click("#steering summary")
    hand.drop("moving.mp4", '[data-zone="control_video"]')
    hand.page.wait_for_selector('[data-zone="control_video"] video')
    tick = hand.page.locator("input[name=keep_unmasked]")
    assert tick.is_hidden()
    hand.click('button:has-text("Draw a mask")')
    hand.page.wait_for_function("document.querySelector('canvas.drawn').width === 128")
    hand.page.fill("#mask-time", "0.25")  # the fifth frame
    box = hand.page.locator("canvas.drawn").bounding_box()
    side = box["width"] / 128
    for row in (36, 42, 48, 54):
        hand.page.mouse.move(box["x"] + 50 * side, box["y"] + row * side)
        hand.page.mouse.down()
        hand.page.mouse.move(box["x"] + 68 * side, box["y"] + row * side, steps=4)
        hand.page.mouse.up()
    hand.page.fill("input[name=mask-grow]", "0")
    hand.click('button:has-text("Follow it through the clip")')
    hand.page.wait_for_selector("#mask-preview")
    hand.click('button:has-text("Use this mask")')
    hand.page.wait_for_selector('[data-zone="mask"] video')
    assert tick.is_checked()
    tick.uncheck()
    hand.write("#prompt", "a red star")
    body = hand.generate()
    assert body["keep_unmasked"] is False
    inputs = hand.studio.folder / "data" / "inputs" / "local"
    white, _ = read_mask(inputs / body["mask"], 96, 128, 9, 16, "crop")
    truth = frames[..., 0] > 150
    shared = (white & truth).sum((1, 2)) / (white | truth).sum((1, 2))
    assert shared.min() > 0.8


def test_zones_for_someone_moved_as_another(hand: Hand) -> None:
    """Poses and faces; a mask where there is a clip to take a place in, and gone with it."""
    hand.click('[aria-label="Models on this machine"] button:has-text("animated")')
    hand.click("#steering summary")
    hand.drop("clip.mp4", '[data-zone="control_video"]')
    hand.page.wait_for_selector('[data-zone="control_video"] video')
    assert hand.page.locator('[data-zone="mask"]').count() == 0
    for name, file in (("face_video", "clip.mp4"), ("background_video", "clip.mp4"), ("mask", "mask.png")):
        hand.drop(file, f'[data-zone="{name}"]')
        hand.page.wait_for_selector(f'[data-zone="{name}"] :is(video, img)')
    hand.drop("red.png", '[data-zone="references.0"]')
    hand.page.wait_for_selector('[data-zone="references.0"] img')
    assert hand.page.locator('[data-zone="references.1"]').count() == 0
    hand.write("#prompt", "a red star")
    body = hand.generate()
    clips = [body[name] for name in ("control_video", "face_video", "background_video")]
    assert all(clip.endswith(".mp4") for clip in clips)
    assert (body["mask"][-4:], len(body["references"])) == (".png", 1)


def test_a_clip_of_the_gallery_is_finished(hand: Hand, tmp_path: Path) -> None:
    id_ = hand.studio.make()
    hand.studio.wait_for(id_, "done")
    hand.page.goto(f"{hand.studio.url}/gallery/{id_}")
    hand.click('dialog summary:has-text("Finish it")')
    link = hand.page.locator('dialog a:has-text("Download it finished")')
    assert link.get_attribute("href") is None
    hand.choose("#finish-frames", "2")
    hand.choose("#finish-aspect", "1:1")
    with hand.page.expect_download() as told:
        link.click()
    told.value.save_as(tmp_path / "finished.mp4")
    assert read_frames(tmp_path / "finished.mp4").shape == (18, 64, 64, 3)


def test_a_clip_is_finished_through_the_queue(hand: Hand, tmp_path: Path) -> None:
    """After its render, as the form says, and again from the gallery; by an upscaler where the server has one."""
    hand.write("#prompt", "a red star")
    hand.click("#advanced > summary")
    hand.choose("#then-frames", "2")
    body = hand.generate()
    assert body["finish"] == {"frames": 2}
    (first,) = hand.studio.call("GET", "/v1/videos?limit=1")["data"]
    hand.studio.wait_for(first["id"], "done")
    told = hand.studio.call("GET", f"/v1/videos/{first['id']}")
    assert [file["finished"] for file in told["files"]] == [False, True]
    hand.page.goto(f"{hand.studio.url}/gallery/{first['id']}")
    hand.page.wait_for_selector('dialog button:has-text("finished")')
    hand.click('dialog summary:has-text("Finish it")')
    queue = hand.page.locator('dialog button:has-text("Put it into the queue")')
    assert queue.is_disabled()
    hand.choose("#finish-sound", "none")
    assert hand.page.locator('dialog a:has-text("Download it finished")').get_attribute("href") is None
    hand.choose("#finish-scale", "2")
    queue.click()
    hand.page.wait_for_selector("#toasts p:has-text('comes into the gallery')")
    (second,) = hand.studio.call("GET", "/v1/videos?limit=1")["data"]
    assert (second["renders"], second["finish"]) == (0, {"scale": 2.0, "sound": "none"})
    hand.studio.wait_for(second["id"], "done")
    hand.page.goto(f"{hand.studio.url}/gallery/{second['id']}")
    hand.page.wait_for_selector("dialog p:has-text('finished: 2 times as large, silent')")
    assert hand.page.locator('dialog button:has-text("Small variations")').count() == 0
