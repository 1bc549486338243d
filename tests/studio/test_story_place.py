"""The Story tab: lines by mouse and keys, a film that plays while it is made, stopped, and on from there."""

from __future__ import annotations

from typing import Any

from browser import NEEDS_BROWSER, Studio, go

pytestmark = NEEDS_BROWSER
PROMPTS = "[...document.querySelectorAll('#story .lines .says')].map((one) => one.value)"
STAGE = "document.querySelector('#film-now .stage')?.textContent"


def says(page: Any, what: str) -> None:
    page.wait_for_function(f"(what) => ({STAGE} ?? '').includes(what)", arg=what)


def test_a_story_from_lines_to_a_film_that_goes_on(page: Any, studio: Studio) -> None:
    go(page, "story")
    page.wait_for_selector("#story .lines .says")
    # What is made of it is said before anything is queued; what cannot be is no choice.
    assert (
        page.evaluate(
            "[...document.querySelector('[name=story-model]').options].some((one) => /mochi/.test(one.value))"
        )
        is False
    )
    page.select_option("[name=story-model]", "small")
    page.click("#make-story")
    page.wait_for_selector('#story-told [role="alert"]:has-text("Line 1 is empty")')
    page.fill(".says >> nth=0", "spins")
    page.click("#add-line")
    assert page.evaluate("document.activeElement.ariaLabel") == "Prompt of line 2"
    page.keyboard.type("a red star rises")
    page.fill('[aria-label="Name of the figure of line 2"]', "anna")
    page.fill('[aria-label="Name of the figure of line 1"]', "anna")
    page.fill('[aria-label="Look of the figure of line 2"]', "a small one")
    page.focus(".lines .up >> nth=1")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{PROMPTS}[0] === 'a red star rises'")
    assert page.evaluate("document.activeElement.textContent") == "Move down line 1"
    page.click("#add-line")
    page.fill(".says >> nth=2", "a blue ring falls")
    assert page.is_hidden('[aria-label="Look of the figure of line 3"]')  # who has no name has none
    page.check("#cut-3")
    page.drag_and_drop(".grip >> nth=2", ".lines li >> nth=1")
    page.wait_for_function(f"{PROMPTS}[1] === 'a blue ring falls'")
    told = '[aria-label="Look of the figure of line 3"]'
    assert page.get_attribute(told, "placeholder") == "a small one"  # what its line is told with
    page.fill("[name=story-seconds]", "0.5")
    for line in (2, 3):  # these take minutes: they are still being made, however long the browser takes to look
        page.fill(f'[aria-label="Seconds of line {line}"]', "10")
    page.fill("[name=story-size]", "64x64")
    page.fill("[name=story-num_inference_steps]", "200")
    page.wait_for_selector('#story-told:has-text("In windows")')
    page.wait_for_selector('#story-told:has-text("64x64")')
    page.reload()  # no word is lost
    page.wait_for_function(f"{PROMPTS}.length === 3")
    page.wait_for_selector('#story-told:has-text("64x64")')

    with page.expect_response(
        lambda answer: answer.request.method == "POST" and answer.url.endswith("/v1/stories")
    ) as told:
        page.click("#make-story")
    assert told.value.status == 200, told.value.text()
    story = told.value.json()["id"]
    sent = told.value.request.post_data_json
    assert [line["prompt"] for line in sent["lines"]] == ["a red star rises", "a blue ring falls", "spins"]
    assert (sent["lines"][0]["name"], sent["lines"][1]["cut"], sent["seconds"]) == ("anna", True, 0.5)
    assert [line.get("look") for line in sent["lines"]] == ["a small one", None, None]
    assert [line["look"] for line in told.value.json()["segments"]] == ["a small one", None, "a small one"]

    # Its first segment plays while the second one is made.
    page.wait_for_selector("#film-now .segments li.done img")
    says(page, "segment 2 of 3")
    page.wait_for_function("document.querySelector('#film-now video')?.readyState >= 2")
    assert "upto=" in page.evaluate("document.querySelector('#film-now video').src")
    page.wait_for_function("document.querySelector('#film-now video').currentTime > 0.1")
    page.click('#film-now button:has-text("Stop and keep")')
    says(page, "Stopped; what is finished plays")
    stopped = studio.call("GET", f"/v1/stories/{story}")
    assert (stopped["state"], [one["done"] for one in stopped["segments"]]) == ("cancelled", [True, False, False])

    # On from its first segment, which stays, with other words behind it.
    page.click('#film-now button:has-text("Go on with more lines")')
    assert page.evaluate(PROMPTS) == ["a blue ring falls", "spins"]
    page.click('.lines li:nth-child(1) button[title="Remove it"]')
    page.wait_for_selector('#story-told:has-text("2 segments")')
    with page.expect_response(lambda answer: answer.url.endswith(f"/{story}/continue")) as told:
        page.click("#make-story")
    longer = told.value.json()
    assert [one["prompt"] for one in longer["segments"]] == ["anna: a red star rises", "anna: spins"]
    says(page, "segment 2 of 2")
    page.click('#film-now button:has-text("Pause")')
    says(page, "On hold")
    page.click('#film-now button:has-text("Go on")')
    says(page, "segment 2 of 2")
    page.click('#film-now button:has-text("Discard")')
    page.click('dialog button:has-text("Discard it")')
    says(page, "Given up")
    page.goto(f"{studio.url}/story/{story}")
    says(page, "Stopped; what is finished plays")
    for id_ in (longer["id"], story):
        studio.call("DELETE", f"/v1/stories/{id_}")


def test_memory_is_pinned_dropped_and_replaced_beside_the_pictures(page: Any, studio: Studio) -> None:
    lines = [{"prompt": f"a star {how}", "cut": False} for how in ("rises", "spins", "falls", "grows")]
    made = {"model": "small", "size": "32x32", "fps": 16, "num_inference_steps": 1, "seconds": 0.25, "seed": 4,
            "causal": True, "chunk_frames": 1, "window_frames": 2}  # fmt: skip
    story = studio.call("POST", "/v1/stories", {"lines": lines} | made)["id"]
    page.goto(f"{studio.url}/story/{story}")
    says(page, "Done")
    # Segment 1 is what the last one remembers: without it, that one is made anew.
    page.select_option('[aria-label="Memory of segment 2"]', "1")
    page.wait_for_selector('#film-now .of-memory button:has-text("As it was")')
    page.select_option('[aria-label="Memory of segment 2"]', "")
    page.wait_for_function("!document.querySelector('#film-now .of-memory button')")
    page.select_option('[aria-label="Memory of segment 1"]', "drop")
    with page.expect_response(lambda answer: answer.url.endswith(f"/{story}/continue")) as told:
        page.click('button:has-text("Make it anew with this memory")')
    assert told.value.request.post_data_json == {"remember": {"1": "drop"}, "keep": 4}
    other = told.value.json()
    assert "from segment 4 on, the first that reads what was changed" in other["notes"][-1]
    page.wait_for_selector(f'#film-now img[src*="{other["id"]}/segments/4/"]')
    says(page, "Done")
    assert page.input_value('[aria-label="Memory of segment 1"]') == "drop"

    # In rows: a line that is remembered as another one follows it.
    page.click('button[aria-label="Make it anew from segment 2 on"]')
    page.select_option('.lines [aria-label="Memory of line 2"]', "4")
    page.click(".lines .down >> nth=1")
    page.wait_for_function(f"{PROMPTS}.join() === 'a star spins,a star grows,a star falls'")
    assert page.input_value('.lines [aria-label="Memory of line 2"]') == "3"
    page.wait_for_selector('#story-told:has-text("In chunks")')
    with page.expect_response(lambda answer: answer.url.endswith("/continue")) as told:
        page.click("#make-story")
    sent = [line.get("remember") for line in told.value.request.post_data_json["lines"]]
    assert (told.value.status, sent) == (200, [3, None, None])
    assert [one["remember"] for one in told.value.json()["segments"]] == ["drop", 3, None, None]
    last = told.value.json()["id"]
    page.wait_for_selector(f'#film-now img[src*="{last}/segments/4/"]')
    says(page, "Done")
    page.click('#story-form button:has-text("Start over")')  # windows have no memory
    page.wait_for_selector('#story-told:has-text("In windows")')
    assert page.is_hidden('.lines [aria-label="Memory of line 1"]')
    for id_ in (last, other["id"], story):
        studio.call("DELETE", f"/v1/stories/{id_}")
