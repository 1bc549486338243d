"""What film-makers reach for: a job edited whole, several at once, the best of four in full, parts and wholes of clips,
settings and keys of one's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from browser import (
    NEEDS_BROWSER,
    PASSWORD,
    QUEUE_ROWS,
    READY,
    Studio,
    go,
    keep_settings,
    open_advanced,
    pick_small,
    queued,
)

from radial.video.clip import read_frames

pytestmark = NEEDS_BROWSER


def downloaded(page: Any, act: Any, place: Path) -> Path:
    with page.expect_download() as download:
        act()
    download.value.save_as(place)
    return place


def test_a_job_that_waits_is_edited_in_the_form(page: Any, studio: Studio) -> None:
    """Every field of it; it is held meanwhile and keeps its place, and what was in the form comes back."""
    block = studio.make_long(prompt="in front")
    ids = [studio.make(prompt=f"waits {n}", decay=0.5) for n in range(2)]
    page.fill("#prompt", "what I was writing")
    go(page, "queue")
    page.click(f'#queue [data-job="{ids[0]}"] button:has-text("Edit")')
    page.click('dialog button:has-text("Edit all of it in the form")')
    page.wait_for_selector('#generate:has-text("Save it")')
    studio.wait_for(ids[0], "paused")
    open_advanced(page)
    assert page.input_value("#prompt") == "waits 0"
    assert page.input_value("input[name=decay]") == "0.5"
    page.reload()
    page.wait_for_selector(READY, state="attached")
    page.wait_for_selector('#generate:has-text("Save it")')
    open_advanced(page)
    page.fill("input[name=decay]", "0.25")
    page.fill("input[name=name]", "")
    page.select_option("select[name=attention]", "radial")
    page.click("#generate")
    page.wait_for_selector('#toasts p:has-text("keeps its place")')
    assert page.input_value("#prompt") == "what I was writing"
    waiting = studio.call("GET", "/v1/queue")["waiting"]
    assert [(one["id"], one["state"]) for one in waiting[1:]] == [(id_, "queued") for id_ in ids]
    assert [one["request"]["decay"] for one in waiting[1:]] == [0.25, 0.5]
    studio.give_up(*ids, block)


def test_several_that_wait_are_handled_at_once(page: Any, studio: Studio) -> None:
    block = studio.make_long(prompt="in front")
    ids = [studio.make(prompt=f"waits {n}") for n in range(4)]
    go(page, "queue")
    for id_ in (ids[1], ids[3]):
        page.check(f'#queue [data-job="{id_}"] .pick')
    page.click('#queue .picked button:has-text("To the front")')
    page.wait_for_function(
        f"(ids) => {QUEUE_ROWS}.slice(1).join() === ids",
        arg=",".join((ids[1], ids[3], ids[0], ids[2])),
    )
    page.click('#queue .picked button:has-text("Hold them")')
    page.wait_for_selector(f'#queue [data-job="{ids[3]}"].paused')
    assert page.locator("#queue li.paused").count() == 2
    page.click('#queue .picked button:has-text("Cancel them")')
    page.click('dialog button:has-text("Give up")')
    studio.wait_for(ids[1], "cancelled")
    studio.wait_for(ids[3], "cancelled")
    page.wait_for_selector("#queue .picked", state="detached")
    studio.give_up(ids[0], ids[2], block)


def test_the_best_of_four_is_made_in_full(page: Any, studio: Studio) -> None:
    whole = studio.make(prompt="in full", num_inference_steps=15)
    studio.wait_for(whole, "done")
    page.goto(f"{studio.url}/gallery/{whole}")
    page.click('dialog summary:has-text("Compare")')
    quick = queued_by(page, lambda: page.click('dialog button:has-text("Small variations")'))
    made = studio.wait_for(quick, "done")
    assert [made["request"]["num_videos"], made["request"]["num_inference_steps"]] == [4, 5]
    page.goto(f"{studio.url}/gallery/{quick}")
    seed = made["files"][2]["seed"]
    page.click(f'dialog button:has-text("seed {seed}")')
    full = queued_by(page, lambda: page.click('dialog button:has-text("Make it in full")'))
    request = studio.wait_for(full, "done")["request"]
    assert (request["seed"], request["num_videos"], request["num_inference_steps"]) == (seed, 1, 15)


def queued_by(page: Any, act: Any) -> str:
    with page.expect_response(lambda r: r.request.method == "POST" and r.url.endswith("/duplicate")) as told:
        act()
    id_: str = told.value.json()["id"]
    return id_


def test_clips_are_joined_and_cut(page: Any, studio: Studio, tmp_path: Path) -> None:
    ids = [studio.make(prompt=f"to be joined {n}", seed=n) for n in range(2)]
    frames = [read_frames(studio.folder / "outputs" / studio.wait_for(i, "done")["files"][0]["name"]) for i in ids]
    go(page, "gallery")
    for id_ in ids:
        page.check(f'#gallery [data-job="{id_}"] .pick')
    joined = downloaded(page, lambda: page.click('#gallery a:has-text("Join")'), tmp_path / "joined.mp4")
    assert np.array_equal(read_frames(joined), np.concatenate(frames))
    page.goto(f"{studio.url}/gallery/{ids[0]}")
    page.wait_for_function("document.querySelector('dialog video')?.readyState >= 2")
    page.evaluate("document.querySelector('dialog video').pause()")
    page.click('dialog summary:has-text("Cut a part out")')
    page.evaluate("document.querySelector('dialog video').currentTime = 2.5 / 16")
    page.click('dialog button:has-text("Begins at this frame")')
    page.evaluate("document.querySelector('dialog video').currentTime = 5.5 / 16")
    page.click('dialog button:has-text("Ends with this frame")')
    page.wait_for_selector('dialog:has-text("from 0.13 s to 0.38 s")')
    part = downloaded(page, lambda: page.click('dialog a:has-text("Download the part")'), tmp_path / "part.mp4")
    assert len(read_frames(part)) == 4
    wrong = httpx.get(f"{studio.url}/v1/videos/{ids[0]}/part?start=4", timeout=600)
    assert (wrong.status_code, "the clip has" in wrong.json()["error"]["message"]) == (422, True)
    assert httpx.get(f"{studio.url}/v1/join?ids={ids[0]}", timeout=600).status_code == 422


def test_a_picture_that_is_dropped_is_what_the_clip_starts_from(page: Any, studio: Studio) -> None:
    """Where no model here takes one, which to download is asked; the words stay."""
    page.fill("#prompt", "it rises")
    content = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(content, "PNG")
    transfer = page.evaluate_handle(
        "(data) => { const all = new DataTransfer(); "
        "all.items.add(new File([new Uint8Array(data)], 'a.png', { type: 'image/png' })); return all; }",
        list(content.getvalue()),
    )
    page.dispatch_event("main", "drop", {"dataTransfer": transfer, "bubbles": True})
    page.select_option('dialog select[aria-label="Model"]', "wan2.1-i2v-14b-480p")
    page.click('dialog button:has-text("Take it")')
    page.wait_for_function("document.querySelector('.zone[data-zone=image] img')?.naturalWidth === 64")
    assert page.input_value("#prompt") == "it rises"
    page.click('#toasts button:has-text("Undo")')
    assert page.input_value("select[name=model]") == "tiny"
    assert page.input_value("#prompt") == "it rises"


def test_a_new_form_begins_as_its_user_wants(page: Any, studio: Studio) -> None:
    pick_small(page, 2)
    go(page, "settings")
    page.click('#settings button:has-text("What Create holds now")')
    page.wait_for_selector('#settings p:has-text("model small")')
    page.click('#settings button:has-text("24 hours")')
    go(page, "create")
    page.fill("#prompt", "words")
    page.select_option("select[name=model]", "tiny")
    page.click("#start-over")
    assert page.input_value("select[name=model]") == "small"
    assert page.input_value("input[name=size]") == "64x64"
    assert page.input_value("#prompt") == ""
    page.fill("#prompt", "by default")
    id_ = queued(page, lambda: page.click("#generate"))
    assert studio.wait_for(id_, "done")["request"]["num_inference_steps"] == 2
    go(page, "gallery")
    told = page.inner_text(f'#gallery [data-job="{id_}"] .quiet')
    assert "AM" not in told
    assert "PM" not in told


def test_settings_by_name_are_those_of_the_command_line(page: Any, studio: Studio) -> None:
    open_advanced(page)
    page.fill("input[name=guidance_scale]", "2")
    keep_settings(page, "soft")
    assert (studio.folder / "data" / "presets" / "soft.yaml").read_text() == "guidance_scale: 2\n"
    (studio.folder / "data" / "presets" / "by hand.yaml").write_text("num_inference_steps: 3\ndecay: 0.5\n")
    page.reload()
    page.wait_for_selector(READY, state="attached")
    page.select_option("select[name=quality]", "own:by hand")
    open_advanced(page)
    assert page.input_value("input[name=decay]") == "0.5"
    made = studio.call("POST", "/v1/videos", {"prompt": "a", "preset": "soft", "num_frames": 5, "size": "64x64"})
    assert made["request"]["guidance_scale"] == 2
    page.click('button:has-text("Keep these settings by name")')
    page.click('dialog button:has-text("Forget \\"soft\\"")')
    page.wait_for_selector("dialog", state="detached")
    assert not (studio.folder / "data" / "presets" / "soft.yaml").exists()
    (studio.folder / "data" / "presets" / "by hand.yaml").unlink()
    studio.give_up(made["id"])


def test_stop_and_keep_is_not_taken_back_by_pause(page: Any, studio: Studio) -> None:
    """What was asked of a clip is what happens: until the step has ended nothing else can be asked."""
    id_ = studio.make_long(prompt="stopped", num_frames=33, height=96, width=96)
    page.wait_for_function("document.querySelector('#now .stage')?.innerText.includes('step')")
    page.evaluate(
        "() => { for (const words of ['Stop and keep', 'Pause']) "
        "[...document.querySelectorAll('#now button')].find((one) => one.innerText === words).click(); }"
    )
    assert studio.wait_for(id_, "cancelled", "paused")["state"] == "cancelled"


def test_words_of_many_lines_stay_in_their_tile(page: Any, studio: Studio) -> None:
    """Two lines of them, from the left, and no third one peeping out."""
    long = " ".join(f"word {n}" for n in range(200))
    for prompt in (long, "short"):
        studio.wait_for(studio.make(prompt=prompt, num_inference_steps=1), "done")
    go(page, "gallery")
    page.wait_for_selector('#gallery .prompt:text-is("short")')
    boxes = page.evaluate(
        "[...document.querySelectorAll('#gallery .prompt')].map((one) => { const style = getComputedStyle(one); return "
        "[one.getBoundingClientRect().height, parseFloat(style.lineHeight), style.textAlign, "
        "one.scrollHeight > one.clientHeight]; })"
    )
    assert any(cut for *_, cut in boxes)  # the long one
    for height, line, align, _ in boxes:
        assert height <= 2 * line + 1, boxes
        assert align in ("left", "start")


def test_the_last_step_of_training_names_what_is_done(page: Any, studio: Studio) -> None:
    """Samples after the last step take long: they are not "0 s left"."""
    run = {
        "name": "last", "state": "training", "preparation": {"dataset": "d", "model": "small", "num_frames": [9]},
        "training": {"steps": 8, "rank": 4, "learning_rate": 1e-4}, "prepared": {"kept": 4, "files": 4}, "pictures": [],
        "step": 8, "steps": 8, "eta": 0, "loss": 0.1, "losses": [], "held_out": [], "samples": [], "adapter": False,
        "problem": "", "log": [],
    }  # fmt: skip
    page.route("**/v1/tuning", lambda route: route.fulfill(json=[run]))
    go(page, "tune")
    page.wait_for_selector('.tune-run .eta:has-text("writing the adapter and its samples")')
    assert "0 s left" not in page.inner_text(".tune-run")
    page.unroute("**/v1/tuning")


def test_keys_are_made_and_taken_back_in_the_page(chromium: Any, guarded: Studio) -> None:
    page = chromium.new_context(bypass_csp=True).new_page()
    page.goto(guarded.url)
    page.fill("input[name=name]", "bob")
    page.fill("input[name=password]", PASSWORD)
    page.click("button")
    page.wait_for_selector(READY)
    go(page, "settings")
    page.fill("#keys input", "for <b>scripts</b>")
    page.click('#keys button:has-text("Make a key")')
    key = page.inner_text("dialog pre")
    page.keyboard.press("Escape")
    page.wait_for_selector('#keys li:has-text("for <b>scripts</b>")')
    with httpx.Client(base_url=guarded.url, headers={"authorization": f"Bearer {key}"}, timeout=600) as program:
        assert program.get("/v1/about").json()["account"] == "bob"
        for answer in (program.get("/v1/keys"), program.post("/v1/keys", json={})):
            assert (answer.status_code, "not by a key" in answer.text) == (403, True)
        page.click('#keys li:has-text("for <b>scripts</b>") button:has-text("Take it back")')
        page.click('dialog button:has-text("Take it back")')
        page.wait_for_selector('#keys li:has-text("for <b>scripts</b>")', state="detached")
        assert program.get("/v1/about").status_code == 401
    page.context.close()


def test_nobody_needs_a_key_where_there_are_no_accounts(studio: Studio) -> None:
    answer = httpx.get(f"{studio.url}/v1/keys", timeout=600)
    assert (answer.status_code, "no accounts" in answer.text) == (409, True)
