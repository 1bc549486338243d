"""What goes wrong on a fresh page: untouched fields, values that cannot be, several tabs, a reload, keys alone.

Each test begins where a user does: a page that nothing was changed on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from browser import (
    NEEDS_BROWSER,
    READY,
    Studio,
    estimate_says,
    go,
    keep_settings,
    new_page,
    open_advanced,
    pick_small,
    press_generate,
    queued,
)

from radial.video.clip import Video

pytestmark = NEEDS_BROWSER
NUMBERS = ("num_inference_steps", "guidance_scale", "fps", "flow_shift", "decay", "dense_layers", "dense_steps", "crf")

# How a field's words look, and how those that stand for its emptiness do.
LOOKS = """(field) => [null, '::placeholder'].map((part) => {
    const style = getComputedStyle(document.querySelector(field), part);
    return style.color + style.fontStyle;
})"""


def sent(page: Any, act: Any) -> dict[str, Any]:
    """The body of the request for a video that an act sends."""
    with page.expect_request(lambda one: one.method == "POST" and one.url.endswith("/v1/videos")) as told:
        act()
    body: dict[str, Any] = json.loads(told.value.post_data)
    return body


def alerts(page: Any) -> list[str]:
    found: list[str] = page.locator('[role="alert"]:visible, .fault:visible').all_inner_texts()
    return found


def give_up_all(studio: Studio) -> None:
    for video in studio.call("GET", "/v1/queue")["waiting"]:
        httpx.post(f"{studio.url}/v1/videos/{video['id']}/cancel?keep=false", timeout=1800)
        studio.wait_for(video["id"], "cancelled", "done", "failed")


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "advanced opened"])
def test_untouched_fields_send_nothing(page: Any, studio: Studio, opened: bool) -> None:
    if opened:
        open_advanced(page)
        for name in NUMBERS:
            assert page.input_value(f"input[name={name}]") == "", name
            page.focus(f"input[name={name}]")
    page.fill("#prompt", "a red circle rises")
    body = sent(page, lambda: page.click("#generate"))
    assert body == {"prompt": "a red circle rises", "model": "tiny"}
    page.wait_for_selector("#toasts p")
    (video,) = studio.call("GET", "/v1/queue")["waiting"]
    assert (video["fps"], video["request"]["num_inference_steps"], video["request"]["guidance_scale"]) == (16, 20, 3.0)
    give_up_all(studio)


def test_the_file_is_one_that_plays_everywhere(page: Any, studio: Studio) -> None:
    """A quality of 0 would be lossless, in a profile that many players refuse."""
    pick_small(page, 1)
    page.fill("#prompt", "a")
    video = studio.wait_for(press_generate(page), "done")
    with av.open(str(studio.folder / "outputs" / video["files"][0]["name"])) as file:
        assert file.streams.video[0].codec_context.profile == "High"
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("num_videos", "0", "Videos: a number from 1 to 1,000, not 0"), ("num_videos", "1.5", "Videos: a whole number"),
     ("fps", "0", "Frames a second: a number from 1 to 240, not 0"), ("crf", "99", "Quality of the file: a number"),
     ("seed", "0.5", "Seed: a whole number"), ("size", "big", "Size: width x height")],
)  # fmt: skip
def test_what_no_field_may_hold_is_told_beside_it(page: Any, studio: Studio, name: str, value: str, said: str) -> None:
    open_advanced(page)
    page.fill("#prompt", "a")
    page.fill(f"input[name={name}]", value)
    page.wait_for_selector(f'[data-field="{name}"] .fault:has-text("{said}")')
    page.click("#generate")
    assert page.evaluate("document.activeElement.name") == name
    assert page.get_attribute(f"input[name={name}]", "aria-invalid") == "true"
    assert len(alerts(page)) == 1
    assert studio.call("GET", "/v1/queue")["waiting"] == []
    page.fill(f"input[name={name}]", "")
    page.wait_for_function("!document.querySelector('.fault:not([hidden])')")


def test_what_the_model_cannot_make_is_told_once_and_mended(page: Any, studio: Studio) -> None:
    page.fill("input[name=size]", "100x99")
    page.wait_for_selector('#estimate [role="alert"]:has-text("multiple of")')
    assert len(alerts(page)) == 1
    told = page.inner_text("#estimate")
    assert "Height must be a multiple of 16 for tiny, not 99" in told
    assert "--" not in told
    assert "num_" not in told
    page.fill("#prompt", "a")
    page.click("#generate")
    page.wait_for_timeout(500)
    assert len(alerts(page)) == 1
    page.click('#estimate button:has-text("Take the nearest")')
    estimate_says(page, "96x96")
    assert page.input_value("input[name=size]") == "96x96"
    assert alerts(page) == []
    assert page.get_attribute("input[name=size]", "aria-invalid") is None


def test_an_empty_prompt_is_told_at_the_prompt(page: Any) -> None:
    page.click("#generate")
    page.wait_for_selector('.fault:has-text("say what the clip shows")')
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.fill("#prompt", "a")
    page.wait_for_function("!document.querySelector('.fault:not([hidden])')")


def test_a_clip_that_does_not_fit_is_made_to(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIAL_FORCE", raising=False)
    running = Studio(tmp_path)
    running.start()
    page = new_page(chromium, running)
    page.fill("input[name=size]", "4096x4096")
    page.wait_for_selector('#estimate [role="alert"]:has-text("does not fit")')
    page.click("#make-it-fit")
    page.wait_for_selector("#estimate .fits")
    assert page.input_value("input[name=size]") != "4096x4096"
    # A large model where there is no GPU is warned of before it is downloaded.
    page.select_option("select[name=model]", "wan2.1-14b")
    page.wait_for_selector('#estimate .warn:has-text("not on this machine yet")')
    page.context.close()
    assert page.problems == []
    running.stop()


def test_a_reload_keeps_the_draft_and_the_place(page: Any, studio: Studio) -> None:
    page.fill("#prompt", "a draft of mine")
    page.click('button:has-text("2x")')
    estimate_says(page, "65 frames")
    page.wait_for_selector('button[aria-pressed="true"]:has-text("2x")')
    page.reload()
    page.wait_for_selector(READY)
    assert page.input_value("#prompt") == "a draft of mine"
    estimate_says(page, "65 frames")
    go(page, "models")
    page.wait_for_selector("#models .card")
    assert (page.url, page.title()) == (f"{studio.url}/models", "Models - Radial")
    page.reload()
    page.wait_for_selector("#models .card")
    page.go_back()
    page.wait_for_selector("#create:not([hidden])")
    assert page.input_value("#prompt") == "a draft of mine"
    page.click("#start-over")
    assert page.input_value("#prompt") == ""


def test_a_video_has_an_address(page: Any, studio: Studio, chromium: Any) -> None:
    id_ = studio.make(prompt="at an address")
    studio.wait_for(id_, "done")
    other = new_page(chromium, studio, f"/gallery/{id_}")
    other.wait_for_selector('dialog:has-text("at an address")')
    assert other.title() == "at an address - Radial"
    other.keyboard.press("Escape")
    other.wait_for_selector("dialog", state="detached")
    assert other.url == f"{studio.url}/gallery"
    other.go_back()
    other.wait_for_selector("dialog")
    other.context.close()
    assert other.problems == []


def test_ten_tabs_are_all_alive(chromium: Any, studio: Studio) -> None:
    """A browser gives a server six connections: the tabs share one stream."""
    first = new_page(chromium, studio)
    tabs = [first]
    for _ in range(9):
        tab = first.context.new_page()
        tab.goto(studio.url, wait_until="commit")
        tabs.append(tab)
    id_ = studio.make(prompt="for all tabs", num_inference_steps=60)
    for tab in tabs:
        tab.set_default_timeout(600_000)
        tab.wait_for_selector(f'#now [data-job="{id_}"]', state="attached")
    tabs[0].close()  # the one that read the stream, perhaps
    studio.wait_for(id_, "done")
    for tab in tabs[1:]:
        tab.wait_for_selector(f'#now [data-job="{id_}"] video', state="attached")
    first.context.close()
    assert first.problems == []


def test_choices_are_seen_and_reached_by_keys(page: Any) -> None:
    """From the prompt on, Tab reaches what the form is made of, and what is chosen looks and sounds so."""
    page.focus("#prompt")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.textContent"))
    assert {"model", "quality", "length", "1x", "4x", "size", "num_videos", "seed"} <= set(reached)
    page.focus('button:has-text("4x")')
    page.keyboard.press("Enter")
    estimate_says(page, "129 frames", "4 times the native length")
    chosen, other = (page.locator(f'.choices button:has-text("{n}")') for n in ("4x", "2x"))
    assert chosen.get_attribute("aria-pressed") == "true"
    colours = [one.evaluate("(e) => getComputedStyle(e).backgroundColor") for one in (chosen, other)]
    assert colours[0] != colours[1]


def test_placeholders_look_like_none(page: Any) -> None:
    """What a field would be when left empty is told from what it holds."""
    for place, field in (("create", "input[name=size]"), ("models", "#hub-id"), ("tune", "#tune-name")):
        go(page, place)
        page.wait_for_selector(field)
        colours = page.evaluate(LOOKS, field)
        assert colours[0] != colours[1], field


def test_fields_that_do_not_apply_are_not_shown(page: Any) -> None:
    open_advanced(page)
    for name in ("guidance_scale_2", "true_cfg_scale", "image_fit"):
        assert not page.is_visible(f"[name={name}]"), name
    assert page.locator("#zones .zone").count() == 2
    assert "takes another model" in page.inner_text('.zone[data-zone="image"]')
    page.select_option("select[name=model]", "wan2.2-i2v-a14b")
    page.wait_for_selector('.zone[data-zone="image"]')
    assert page.is_visible("[name=guidance_scale_2]")
    assert page.is_visible("[name=image_fit]")


def test_a_clip_of_a_model_without_images_goes_on_with_another(page: Any, studio: Studio) -> None:
    id_ = studio.make(prompt="from words")
    studio.wait_for(id_, "done")
    page.goto(f"{studio.url}/gallery/{id_}")
    page.click('dialog button:has-text("Extend this clip")')
    page.wait_for_selector('dialog:has-text("small starts from words alone, and no model on this machine")')
    page.keyboard.press("Escape")  # asked, and not wanted: nothing has changed
    assert page.url.endswith(f"/gallery/{id_}")
    page.click('dialog button:has-text("Start from this frame")')
    page.wait_for_selector('dialog:has-text("A model that starts from an image") select')
    page.select_option('dialog select[aria-label="Model"]', "wan2.1-i2v-14b-480p")
    page.click('dialog button:has-text("Take it")')
    page.wait_for_function("document.querySelector('.zone[data-zone=image] img')?.naturalWidth === 64")


def test_who_is_quicker_than_the_list_of_models_waits_for_it(page: Any, studio: Studio) -> None:
    id_ = studio.make(prompt="from words, at once")
    studio.wait_for(id_, "done")
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto(f"{studio.url}/gallery/{id_}")
    page.click('dialog button:has-text("Extend this clip")')
    page.wait_for_selector('dialog button[aria-busy="true"]:has-text("Extend this clip")')
    for one in held:
        one.continue_()
    page.wait_for_selector('dialog:has-text("small starts from words alone, and no model on this machine")')
    assert page.locator("#toasts .problem").count() == 0


def test_weights_of_an_adapter_are_all_or_none(page: Any, studio: Studio) -> None:
    id_ = studio.call("POST", "/v1/videos", {"prompt": "a red circle rises", "num_frames": 5, "num_inference_steps": 1,
                                             "loras": [{"path": "bundled:tiny-long"}]})["id"]  # fmt: skip
    studio.wait_for(id_, "done")
    page.goto(f"{studio.url}/gallery/{id_}")
    page.click('dialog summary:has-text("Compare")')
    page.click('dialog button:has-text("Adapter weights")')
    page.fill("#weights", "0, 99999")
    page.click('dialog button:has-text("Queue them")')
    page.wait_for_selector('dialog [role="alert"]:has-text("from -10 to 10")')
    assert studio.call("GET", "/v1/queue")["waiting"] == []


def test_a_turned_clip_of_a_phone_stands_upright(page: Any, studio: Studio, tmp_path: Path) -> None:
    """Its picture in the form is the browser's, which heeds the mark; the clip that is made heeds it, too."""
    plain = Video(np.zeros((5, 64, 96, 3), np.uint8), 16).write(tmp_path / "a.mp4").read_bytes()
    turned = plain.replace(  # the matrix of the track: a quarter turn
        b"\x00\x01\x00\x00" + bytes(12) + b"\x00\x01\x00\x00" + bytes(12) + b"\x40\x00\x00\x00" + b"\x00\x60\x00\x00",
        bytes(4) + b"\x00\x01\x00\x00" + bytes(4) + b"\xff\xff\x00\x00" + bytes(12) + bytes(4) + b"\x40\x00\x00\x00"
        + b"\x00\x60\x00\x00",
    )  # fmt: skip
    assert turned != plain
    upload = httpx.post(f"{studio.url}/v1/files", files={"file": ("a.mp4", turned)}, timeout=1800).json()
    assert upload["kind"] == "clip"
    page.set_content(f'<video src="{studio.url}/v1/files/{upload["id"]}">')
    page.wait_for_function("document.querySelector('video').videoWidth === 64")


def test_a_batch_of_tabs_sees_one_prompt_history(page: Any, studio: Studio) -> None:
    pick_small(page, 1)
    page.fill("#prompt", "remembered <b>words</b>")
    studio.wait_for(queued(page, lambda: page.press("#prompt", "Control+Enter")), "done")
    page.fill("#prompt", "others")
    page.click('button:has-text("Earlier prompts")')
    page.click('dialog button:has-text("remembered <b>words</b>")')
    assert page.input_value("#prompt") == "remembered <b>words</b>"


def test_settings_kept_by_name(page: Any) -> None:
    open_advanced(page)
    page.fill("input[name=guidance_scale]", "2")
    keep_settings(page, "soft")
    page.select_option("select[name=quality]", "standard")
    assert page.input_value("input[name=guidance_scale]") == ""
    page.reload()
    page.wait_for_selector(READY)
    page.select_option("select[name=quality]", "own:soft")
    open_advanced(page)
    assert page.input_value("input[name=guidance_scale]") == "2"


def test_nothing_is_asked_for_while_nothing_happens(page: Any, studio: Studio) -> None:
    for place in ("queue", "gallery", "models", "tune", "settings", "create"):
        go(page, place)
        page.wait_for_timeout(700)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(4000)
    assert asked == []


def test_the_page_is_light(chromium: Any, studio: Studio) -> None:
    context = chromium.new_context()
    page = context.new_page()
    sizes: list[int] = []
    # What the page is made of; clips of the gallery are as large as they are.
    page.on("response", lambda answer: sizes.append(len(answer.body())) if "/v1/" not in answer.url else None)
    page.goto(studio.url)
    page.wait_for_selector(READY)
    assert sum(sizes) < 250_000
    assert len(sizes) < 45
    context.close()


def test_no_code_but_our_own_runs(studio: Studio) -> None:
    policy = httpx.get(studio.url, timeout=1800).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
