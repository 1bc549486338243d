"""Every place of the page in both colours, on a desktop and on a phone: axe finds nothing against WCAG 2.2 AA."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from browser import NEEDS_BROWSER, PASSWORD, READY, Studio, go, new_page, open_advanced

pytestmark = NEEDS_BROWSER
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


# Rules that colours decide; to all others a page is the same in either.
OF_COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}


def faults(page: Any, only: Any = TAGS) -> list[str]:
    """What axe finds: the rule, and where."""
    found = page.evaluate("(only) => axe.run(document, { runOnly: only, resultTypes: ['violations'] })", only)
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.fixture(scope="module")
def made(studio: Studio) -> list[str]:
    """Videos in every state that the page shows."""
    ids = [studio.make(prompt=f"a clip, number {n}") for n in range(3)]
    for id_ in ids:
        studio.wait_for(id_, "done")
    body = {"lines": ["a circle", {"prompt": "falls", "name": "ben", "cut": True}], "model": "small", "size": "64x64",
            "seconds": 0.5, "num_inference_steps": 1, "seed": 1}  # fmt: skip
    studio.wait_for(studio.call("POST", "/v1/stories", body)["id"], "done")
    ids.append(studio.make(prompt="fails", model="ltx-video", height=None, width=None, num_frames=None))
    studio.wait_for(ids[-1], "failed")
    return ids


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(
    chromium: Any, studio: Studio, made: list[str], device: dict[str, Any], subtests: pytest.Subtests
) -> None:
    page = new_page(chromium, studio, reduced_motion="reduce", **device)
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())

    def look(what: str) -> None:
        page.wait_for_timeout(400)
        page.evaluate("document.querySelector('#toasts').replaceChildren()")  # they lie over what is below, for seconds
        for colours, only in (("light", TAGS), ("dark", OF_COLOURS)):
            page.evaluate("(name) => { document.documentElement.dataset.theme = name; }", colours)
            with subtests.test(f"{what}, {colours}"):
                for _ in range(5):  # what is drawn changes while a clip is made, and a busy machine is slow to draw
                    if not (found := faults(page, only)):
                        break
                    page.wait_for_timeout(1000)
                assert found == []

    open_advanced(page)
    look("create")
    page.fill("input[name=size]", "100x99")
    page.wait_for_selector("#problem")
    look("a size that cannot be")
    page.fill("input[name=size]", "")
    page.select_option("select[name=model]", "wan2.2-i2v-a14b")
    page.wait_for_selector(".zone")
    look("a model that starts from images")
    page.select_option("select[name=model]", "tiny")
    go(page, "story")
    page.wait_for_selector("#film-now .segments li.done img")
    page.wait_for_selector("#story-told .fits")
    look("story")
    page.click('.segments button:has-text("From here on") >> nth=1')
    page.wait_for_selector("#story .notice")
    look("a film that goes on")
    page.click('#story-form button:has-text("Start over")')
    go(page, "create")
    block = studio.make_long(prompt="in front")
    waits = studio.make(prompt="waits")
    page.wait_for_selector("#now .stage")
    look("while a clip is made")
    go(page, "queue")
    page.wait_for_selector(f'#queue [data-job="{waits}"]')
    page.wait_for_selector("#queue .failed li")
    look("queue")
    page.click(f'#queue [data-job="{waits}"] button:has-text("Edit")')
    look("edit")
    page.click('dialog button:has-text("Edit all of it in the form")')
    page.wait_for_selector('#generate:has-text("Save it")')
    look("a job in the form")
    page.click('button:has-text("Leave it as it was")')
    go(page, "queue")
    page.check("#queue .pick >> nth=0")
    look("some of the queue chosen")
    page.click('#queue button:has-text("Add many")')
    page.fill("dialog textarea", "a {red|blue} circle")
    page.click('dialog button:has-text("See what it makes")')
    page.wait_for_selector("dialog tbody tr")
    look("a list")
    page.keyboard.press("Escape")
    studio.give_up(waits, block)
    look("the queue without any")
    go(page, "gallery")
    page.wait_for_selector(".tile img")
    page.check(".tile .pick >> nth=0")
    look("gallery")
    page.click('#gallery button:has-text("Trash")')
    page.wait_for_selector("dialog")
    look("trash")
    page.keyboard.press("Escape")
    page.click(f'.tile[data-job="{made[0]}"] a')
    page.wait_for_selector("dialog video")
    for summary in page.query_selector_all("dialog details:not([open]) summary"):
        summary.click()
    look("a video")
    page.click('dialog button:has-text("With another")')
    page.click(f'dialog .tile[data-job="{made[1]}"]')
    page.wait_for_selector(".measures")
    look("two compared")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    for place, there in (("tune", "#tune-new .card"), ("models", "#models table"), ("settings", "#settings h1")):
        go(page, place)
        page.wait_for_selector(there)
        look(place)
    page.keyboard.press("?")
    page.wait_for_selector("dialog")
    look("keys")
    page.context.close()
    assert page.problems == []


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_at_the_doors(
    chromium: Any, guarded: Studio, device: dict[str, Any], subtests: pytest.Subtests
) -> None:
    """The login, and the page of the REST interface."""
    page = chromium.new_context(**{"bypass_csp": True, "reduced_motion": "reduce"} | device).new_page()

    def look(what: str) -> None:
        page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
        for colours, only in (("light", TAGS), ("dark", OF_COLOURS)):
            page.evaluate("(name) => { document.documentElement.dataset.theme = name; }", colours)
            page.wait_for_timeout(300)
            with subtests.test(f"{what}, {colours}"):
                assert faults(page, only) == []

    page.goto(guarded.url)
    page.wait_for_selector("input[name=password]")
    look("login")
    page.fill("input[name=name]", "ada")
    page.fill("input[name=password]", "wrong")
    page.click("button")
    page.wait_for_selector('[role="alert"], .problem')
    look("a wrong password")
    page.fill("input[name=name]", "ada")
    page.fill("input[name=password]", PASSWORD)
    page.click("button")
    page.wait_for_selector("#estimate b", state="attached")
    page.goto(f"{guarded.url}/docs")
    page.wait_for_selector("main details")
    page.click("main details summary >> nth=0")
    look("docs")
    page.context.close()


def test_axe_would_find_something(chromium: Any, studio: Studio) -> None:
    """The measure sees what it should: grey on grey, a picture without words, a field without a label."""
    page = new_page(chromium, studio)
    page.wait_for_selector(READY)
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', "
        '\'<p style="color:#999;background:#aaa">pale</p><img src="/ui/icon.svg"><input>\')'
    )
    found = " ".join(faults(page))
    assert all(rule in found for rule in ("color-contrast", "image-alt", "label"))
    of_colours = " ".join(faults(page, OF_COLOURS))
    assert "color-contrast" in of_colours
    assert "image-alt" not in of_colours
    page.context.close()
