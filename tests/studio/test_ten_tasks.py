"""Ten common tasks, from a fresh page to done, in no more acts than other studios need.

Counted are activations by the mouse (a list's choice is two), texts written and files chosen; the numbers of Wan2GP and
FramePack-Studio are those of their documents and sources, in docs/studio.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import NEEDS_BROWSER, Studio, new_page
from PIL import Image

from radial.video.clip import Video

pytestmark = NEEDS_BROWSER
Acts = tuple[int, int, int]  # clicks, texts, files


class Hand:
    """A user's hand on a page, whose acts are counted."""

    def __init__(self, page: Any, studio: Studio, folder: Path) -> None:
        self.page, self.studio, self.folder = page, studio, folder
        self.clicks = self.texts = self.files = 0

    def click(self, what: str) -> None:
        self.page.click(what)
        self.clicks += 1

    def choose(self, where: str, value: str) -> None:
        self.page.select_option(where, value)
        self.clicks += 2

    def write(self, where: str, text: str) -> None:
        self.page.fill(where, text)
        self.texts += 1

    def slide(self, where: str, value: int) -> None:
        self.page.fill(where, str(value))
        self.clicks += 1

    def drop(self, name: str, where: str = "body") -> None:
        """A file dragged from the desktop onto the page."""
        kind = {"png": "image/png", "mp4": "video/mp4", "txt": "text/plain"}[name.rsplit(".")[-1]]
        data = list((self.folder / name).read_bytes())
        transfer = self.page.evaluate_handle(
            "([data, name, type]) => { const all = new DataTransfer(); "
            "all.items.add(new File([new Uint8Array(data)], name, { type })); return all; }", [data, name, kind],
        )  # fmt: skip
        for event in ("dragover", "drop"):
            self.page.dispatch_event(where, event, {"dataTransfer": transfer, "bubbles": True})
        self.files += 1

    def generate(self, act: Callable[[], None] | None = None) -> dict[str, Any]:
        """What is asked of the server: the body of its request."""

        def asks(request: Any) -> bool:
            made: bool = request.method == "POST" and request.url.endswith(("/v1/videos", "/v1/lists"))
            return made

        with self.page.expect_request(asks) as told:
            (act or (lambda: self.click("#generate")))()
        body: dict[str, Any] = json.loads(told.value.post_data)
        self.page.wait_for_selector("#toasts p:has-text('queued')")
        return body


def first_clip(hand: Hand) -> None:
    hand.write("#prompt", "a red star")
    assert hand.generate() == {"prompt": "a red star", "model": "tiny"}


def another_model(hand: Hand) -> None:
    hand.write("#prompt", "a red star")
    hand.click('[aria-label="Models on this machine"] button:has-text("small")')
    assert hand.generate()["model"] == "small"


def from_a_picture(hand: Hand) -> None:
    hand.drop("a.png")
    hand.page.wait_for_selector('.zone[data-zone="image"] img')
    hand.write("#prompt", "it rises")
    body = hand.generate()
    assert (body["model"], body["image"].endswith(".png")) == ("with-images", True)


def ten_seconds(hand: Hand) -> None:
    hand.write("#prompt", "a red star")
    hand.slide("#length", 40)
    assert hand.generate()["num_frames"] == 161


def four_seeds(hand: Hand) -> None:
    hand.write("#prompt", "a red star")
    hand.write("input[name=num_videos]", "4")
    assert hand.generate()["num_videos"] == 4


def prompts_of_a_file(hand: Hand) -> None:
    hand.drop("prompts.txt")
    hand.page.wait_for_selector("dialog tbody tr")
    assert hand.generate(lambda: hand.click('dialog button:has-text("Queue 2 videos")'))["text"] == "a\nb\n"


def prompts_pasted(hand: Hand) -> None:
    hand.write("#prompt", "a red star\na blue star")
    assert hand.generate(lambda: hand.click("#one-a-line"))["text"] == "a red star\na blue star"


def an_adapter(hand: Hand) -> None:
    hand.choose("#add-lora", "bundled:tiny-long")
    hand.write('#loras input[type="number"]', "0.5")
    hand.page.press('#loras input[type="number"]', "Tab")
    hand.write("#prompt", "a red star")
    assert hand.generate()["loras"] == [{"path": "bundled:tiny-long", "weight": 0.5}]


def settings_again(hand: Hand) -> None:
    hand.click('#now button:has-text("Use these settings")')
    hand.write("#prompt", "another")
    body = hand.generate()
    assert (body["prompt"], body["model"], body["num_frames"]) == ("another", "small", 9)


def cancel_one(hand: Hand) -> None:
    hand.page.wait_for_selector(".next li >> nth=2")
    (video,) = (one for one in hand.studio.call("GET", "/v1/queue")["waiting"] if one["prompt"] == "waits 1")
    hand.click(f'.next [data-job="{video["id"]}"] button:has-text("Cancel")')
    hand.studio.wait_for(video["id"], "cancelled")


def reorder(hand: Hand) -> None:
    hand.page.wait_for_selector(".next li >> nth=2")
    ids = [one["id"] for one in hand.studio.call("GET", "/v1/queue")["waiting"][1:]]
    hand.click(f'.next [data-job="{ids[1]}"] [data-act="up"]')
    hand.page.wait_for_function("(id) => document.querySelector('.next li').dataset.job === id", arg=ids[1])


def go_on(hand: Hand) -> None:
    hand.click('#now button:has-text("Extend this clip")')
    hand.write("#prompt", "then it turns")
    body = hand.generate()
    assert (body["model"], body["extend"].startswith("video:")) == ("with-images", True)


def go_on_from_a_file(hand: Hand) -> None:
    hand.drop("a.mp4", '.zone[data-zone="extend"]')
    hand.page.wait_for_selector('.zone[data-zone="extend"] video')
    hand.write("#prompt", "then it turns")
    assert hand.generate()["extend"].endswith(".mp4")


def from_any_frame(hand: Hand) -> None:
    hand.page.wait_for_function("document.querySelector('#now video').videoWidth > 0")
    hand.page.evaluate("document.querySelector('#now video').pause()")
    hand.clicks += 1  # where its user stops it
    hand.click('#now button:has-text("Start from this frame")')
    hand.page.wait_for_selector('.zone[data-zone="image"] img')
    hand.write("#prompt", "it turns")
    assert hand.generate()["image"].endswith(".png")


# The fewest acts of Wan2GP and of FramePack-Studio; None where the task is not offered.
TASKS: dict[str, tuple[Callable[[Hand], None], Acts | None, Acts | None]] = {
    "a first clip": (first_clip, (1, 1, 0), (1, 1, 0)),
    "another model": (another_model, (3, 1, 0), (2, 1, 0)),
    "from a picture": (from_a_picture, (3, 1, 1), (1, 1, 1)),
    "ten seconds": (ten_seconds, (2, 1, 0), (2, 1, 0)),
    "four seeds": (four_seeds, (2, 2, 0), (4, 1, 0)),
    "prompts of a file": (prompts_of_a_file, None, None),
    "prompts pasted": (prompts_pasted, (1, 1, 0), None),
    "an adapter and its weight": (an_adapter, (5, 2, 0), (4, 2, 0)),
    "settings of the last clip, another prompt": (settings_again, (3, 1, 0), (1, 1, 1)),
    "give one up that waits": (cancel_one, (1, 0, 0), None),
    "one before another": (reorder, (1, 0, 0), None),
    "on from the last clip": (go_on, (2, 1, 0), (2, 1, 1)),
    "on from a clip on disk": (go_on_from_a_file, (2, 1, 1), (2, 1, 1)),
    "from any frame of the last clip": (from_any_frame, (5, 2, 0), (12, 1, 1)),
}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path) -> Iterator[Studio]:
    """A studio with two models of one's own, one of which starts from images, and a clip."""
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copytree(wan_folder, folder / "data" / "models" / "small")
    images = shutil.copytree(wan_folder, folder / "data" / "models" / "with-images")
    index = json.loads((images / "model_index.json").read_text())
    (images / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanImageToVideoPipeline"}))
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    Video(np.zeros((9, 64, 64, 3), np.uint8), 16).write(folder / "a.mp4")
    (folder / "prompts.txt").write_text("a\nb\n")
    running = Studio(folder)
    running.start()
    running.wait_for(running.make(prompt="the last clip"), "done")
    yield running
    running.stop()


def tidy(studio: Studio) -> None:
    """All but the last clip is given up and forgotten."""
    studio.give_up(*(video["id"] for video in studio.call("GET", "/v1/queue")["waiting"]))
    for video in studio.call("GET", "/v1/videos?show=finished&limit=100")["data"]:
        if video["prompt"] != "the last clip":
            studio.call("DELETE", f"/v1/videos/{video['id']}")


@pytest.mark.parametrize("name", TASKS)
def test_no_task_takes_more(chromium: Any, furnished: Studio, name: str) -> None:
    act, *others = TASKS[name]
    waits = act in (cancel_one, reorder)
    if waits:
        furnished.make_long(prompt="in front")
        for number in range(3):
            furnished.make(prompt=f"waits {number}")
    page = new_page(chromium, furnished)
    page.wait_for_selector("#now .stage" if waits else "#now video")
    hand = Hand(page, furnished, furnished.folder)
    try:
        act(hand)
    finally:
        tidy(furnished)
    ours = (hand.clicks, hand.texts, hand.files)
    for theirs in others:
        assert theirs is None or sum(ours) <= sum(theirs), (name, ours, theirs)
    page.context.close()
    assert page.problems == []
