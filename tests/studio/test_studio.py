"""The studio in a browser: what users see and do, through Debian's chromium where there is one."""

from __future__ import annotations

import contextlib
import os
import signal
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_hub
import numpy as np
import pytest
from browser import (
    NEEDS_BROWSER,
    PASSWORD,
    QUEUE_ROWS,
    READY,
    Studio,
    estimate_says,
    go,
    new_page,
    open_advanced,
    pick_small,
    press_generate,
    queued,
    watch,
)
from PIL import Image

from radial import OutputError, RadialError, RequestError
from radial.version import __version__
from radial.video.clip import Video, read_frames
from radial_app.client import Client
from radial_app.server.accounts import Accounts

pytestmark = NEEDS_BROWSER
# What a finger would miss, and fields that a phone would zoom in on.
TOO_SMALL = """[...document.querySelectorAll('button, select, textarea, input, nav a')]
    .filter((e) => e.offsetParent && !e.matches('.link, [type=checkbox], [type=range], [type=file]'))
    .filter((e) => e.getBoundingClientRect().height < 43.5
        || (e.matches('input, select, textarea') && parseFloat(getComputedStyle(e).fontSize) < 16))
    .map((e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 30)}`)"""
PROMPT = "a red circle <img src=x onerror=alert(1)> moves left"


def text_of(page: Any, selector: str) -> str:
    text: str = page.inner_text(selector)
    return text


def test_one_field_and_one_key_make_a_video(page: Any, studio: Studio) -> None:
    pick_small(page, 3)
    page.fill("#prompt", PROMPT)
    id_ = queued(page, lambda: page.press("#prompt", "Control+Enter"))
    page.goto("about:blank")  # whoever closes the page loses nothing
    studio.wait_for(id_, "done")
    page.goto(studio.url)
    page.wait_for_selector(f'#now [data-job="{id_}"] video')
    page.wait_for_function("document.querySelector('#now video').videoWidth === 64")
    page.wait_for_function("document.querySelector('#now video').currentTime > 0")
    assert PROMPT in text_of(page, "#now")  # as text
    video = studio.call("GET", f"/v1/videos/{id_}")
    assert (video["model"], video["steps"], video["request"]["num_inference_steps"]) == ("small", 3, 3)


def test_a_clip_that_is_stopped_is_kept(page: Any, studio: Studio) -> None:
    id_ = studio.make_long(num_frames=33, height=96, width=96, prompt="long")
    page.wait_for_selector(f'#now [data-job="{id_}"]')
    page.wait_for_function("document.querySelector('#now .stage').innerText.includes('step')")
    assert "left" in page.wait_for_selector("#now .eta:not(:empty)").inner_text()
    page.click('#now button:has-text("Stop and keep")')
    video = studio.wait_for(id_, "cancelled")
    assert video["files"][0]["partial"]
    page.wait_for_selector(f'#now [data-job="{id_}"] video')
    go(page, "gallery")
    page.wait_for_selector(f'#gallery [data-job="{id_}"] .stopped')


def test_the_queue_is_handled(page: Any, studio: Studio) -> None:
    block = studio.make_long(prompt="in front")
    ids = [studio.make(prompt=f"waits {n}") for n in range(3)]
    go(page, "queue")

    def wait_for_order(*wanted: str) -> None:
        page.wait_for_function(
            f"(ids) => {QUEUE_ROWS}.slice(1).join() == ids",
            arg=",".join(wanted),
        )

    # Places are counted among those that wait: the one in front must have begun.
    page.wait_for_selector(f'#queue [data-job="{block}"].running')
    page.wait_for_selector(f'#queue [data-job="{ids[2]}"]')
    assert text_of(page, '#pages [data-place="queue"] .count') == "4"
    page.focus(f'#queue [data-job="{ids[2]}"] [data-act="up"]')
    page.keyboard.press("Enter")
    wait_for_order(ids[0], ids[2], ids[1])
    # Whoever moves a row by keys stays on it.
    focused = "document.activeElement.closest('[data-job]')?.dataset.job + document.activeElement.dataset.act"
    page.wait_for_function(f"(wanted) => {focused} === wanted", arg=f"{ids[2]}up")
    page.drag_and_drop(f'#queue [data-job="{ids[1]}"]', f'#queue [data-job="{ids[0]}"]')
    wait_for_order(ids[1], ids[0], ids[2])
    page.click(f'#queue [data-job="{ids[0]}"] button:has-text("Hold")')
    page.wait_for_selector(f'#queue [data-job="{ids[0]}"].paused')
    page.click(f'#queue [data-job="{ids[1]}"] button:has-text("Edit")')
    page.fill("#edit-prompt", "")
    page.click('dialog button:has-text("Save")')
    page.wait_for_selector('dialog [role="alert"]:has-text("Prompt must not be empty")')
    page.fill("#edit-prompt", "edited")
    page.fill("#edit-num_inference_steps", "3")
    page.click('dialog button:has-text("Save")')
    page.wait_for_selector(f'#queue [data-job="{ids[1]}"] .prompt:has-text("edited")')
    page.click(f'#queue [data-job="{ids[2]}"] button:has-text("Cancel")')
    page.click(f'#queue [data-job="{block}"] button:has-text("Discard")')
    studio.wait_for(block, "cancelled")
    assert studio.wait_for(ids[1], "done")["request"]["num_inference_steps"] == 3
    page.click('#queue button:has-text("Go on with all")')
    studio.wait_for(ids[0], "done")
    page.wait_for_function(f"{QUEUE_ROWS}.length === 0")


def test_a_list_is_seen_before_it_is_queued(page: Any, studio: Studio) -> None:
    pick_small(page, 1)
    go(page, "queue")
    page.click('#queue button:has-text("Add many")')
    page.fill("dialog textarea", "a {red|blue} circle\nsquare <b>1</b>")
    page.click('dialog button:has-text("See what it makes")')
    page.wait_for_selector("dialog tbody tr")
    rows = page.locator("dialog tbody tr").all_inner_texts()
    assert [row.split("\t")[1:4] for row in rows] == [
        [prompt, "small", "64x64"] for prompt in ("a red circle", "a blue circle", "square <b>1</b>")
    ]
    page.select_option("dialog select", "csv")
    page.fill("dialog textarea", "prompt,steps\na,1")
    page.click('dialog button:has-text("See what it makes")')
    page.wait_for_selector("dialog [role=alert]:has-text(\"list.csv:1: unknown column 'steps'\")")
    page.set_input_files("dialog input[type=file]", {
        "name": "mine.jsonl", "mimeType": "text/plain", "buffer": b'{"prompt": "one of many", "seed": 3}',
    })  # fmt: skip
    page.click('dialog button:has-text("Queue 1 video")')
    page.wait_for_selector("dialog", state="detached")
    (video,) = studio.call("GET", "/v1/videos?search=one+of+many")["data"]
    assert studio.wait_for(video["id"], "done")["request"]["num_frames"] == 9


def test_the_gallery_compares_and_gives_settings_back(page: Any, studio: Studio) -> None:
    ids = [studio.make(seed=seed, prompt=f"seed {seed}", guidance_scale=2.5, decay=0.5) for seed in (21, 22)]
    for id_ in ids:
        studio.wait_for(id_, "done")
    go(page, "gallery")
    page.fill('#gallery input[type="search"]', "seed 2")
    page.wait_for_function("document.querySelectorAll('#gallery .tile').length === 2")
    page.wait_for_function("[...document.querySelectorAll('#gallery .tile img')].every((i) => i.naturalWidth > 0)")
    page.click(f'#gallery [data-job="{ids[0]}"] a')
    page.wait_for_function("document.querySelector('dialog video')?.videoWidth === 64")
    assert page.url.endswith(f"/gallery/{ids[0]}")
    page.click('dialog button:has-text("Favourite")')
    page.click('dialog summary:has-text("Compare")')
    page.click('dialog button:has-text("With another")')
    page.click(f'dialog .tile[data-job="{ids[1]}"]')
    page.wait_for_selector('.measures:has-text("PSNR")')
    page.wait_for_function("[...document.querySelectorAll('.compare video')].every((v) => v.videoWidth === 64)")
    page.fill(".wipe", "80")
    assert page.evaluate("document.querySelector('.compare').style.getPropertyValue('--cut')") == "80%"
    page.fill(".time", "500")
    half = "(v) => Math.abs(v.currentTime / v.duration - 0.5) < 0.1"
    page.wait_for_function(f"[...document.querySelectorAll('.compare video')].every({half})")
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.click('dialog a:has-text("Download")')
    saved = studio.folder / "downloaded.mp4"
    download.value.save_as(saved)
    page.click('dialog button:has-text("Use these settings")')
    wait_for_form(page, "seed 21", 21)
    open_advanced(page)
    assert page.input_value("input[name=num_frames]") == "9"
    # The same out of the file, on a fresh page.
    page.evaluate("localStorage.clear()")
    page.goto(f"{studio.url}/settings")
    page.wait_for_selector("#settings h1")
    page.set_input_files("#settings input[type=file]", saved)
    wait_for_form(page, "seed 21", 21)
    open_advanced(page)
    assert page.input_value("input[name=guidance_scale]") == "2.5"
    assert page.input_value("input[name=decay]") == "0.5"
    again = studio.wait_for(press_generate(page), "done")
    first = studio.call("GET", f"/v1/videos/{ids[0]}")
    assert again["request"] == first["request"]
    assert studio.call("GET", f"/v1/compare?a={ids[0]}&b={again['id']}")["psnr"] == 100.0
    # Several at once, and deleted to the trash.
    go(page, "gallery")
    for id_ in (again["id"], ids[0]):
        page.check(f'#gallery [data-job="{id_}"] .pick')
    with page.expect_download() as download:
        page.click('#gallery a:has-text("Download as zip")')
    download.value.save_as(studio.folder / "several.zip")
    with zipfile.ZipFile(studio.folder / "several.zip") as archive:
        assert len(archive.namelist()) == 2
        assert archive.testzip() is None
    page.uncheck(f'#gallery [data-job="{ids[0]}"] .pick')
    page.click('#gallery .picked button:has-text("Delete")')
    page.click('dialog button:has-text("Move to the trash")')
    page.wait_for_selector(f'#gallery [data-job="{again["id"]}"]', state="detached")
    assert list((studio.folder / "outputs" / ".trash").iterdir())
    page.click('#gallery button:has-text("Trash")')
    page.click(f'dialog [data-job="{again["id"]}"] button:has-text("Bring it back")')
    page.wait_for_selector(f'dialog [data-job="{again["id"]}"]', state="detached")
    page.keyboard.press("Escape")
    page.wait_for_selector(f'#gallery [data-job="{again["id"]}"]')


def wait_for_form(page: Any, prompt: str, seed: int) -> None:
    page.wait_for_function(
        "([prompt, seed]) => document.querySelector('#prompt').value === prompt "
        "&& document.querySelector('input[name=seed]').value === String(seed)",
        arg=[prompt, seed],
    )


def test_it_goes_on_after_kill_9(page: Any, studio: Studio) -> None:
    id_ = studio.make(num_inference_steps=60, prompt="through a crash")
    page.wait_for_selector(f'#now [data-job="{id_}"]')
    page.fill("#prompt", "what I was writing")
    studio.stop(signal.SIGKILL)
    page.wait_for_selector("#banner:not([hidden])")
    assert text_of(page, "#status") == "no connection"
    assert page.locator('[role="alert"]:visible').count() == 1
    studio.start()
    page.wait_for_selector("#banner", state="hidden")
    assert page.input_value("#prompt") == "what I was writing"
    studio.wait_for(id_, "done")
    page.wait_for_selector(f'#now [data-job="{id_}"] video')  # on the page that stayed open


def test_a_phone_shows_all_of_it(chromium: Any, studio: Studio) -> None:
    studio.wait_for(studio.make(prompt="for a phone"), "done")
    page = new_page(chromium, studio, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True,
                    color_scheme="dark")  # fmt: skip
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    for place in ("create", "queue", "gallery", "tune", "models", "settings"):
        go(page, place)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, place
        assert page.evaluate(TOO_SMALL) == [], place
    go(page, "gallery")
    page.click("#gallery .tile a >> nth=0")
    box = page.wait_for_selector("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["width"] <= 390
    page.context.close()
    assert page.problems == []


def test_a_model_is_tuned_in_the_browser(page: Any, studio: Studio, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "my squares.zip", "w") as archive:
        for number in range(4):
            frames = np.zeros((20, 64, 64, 3), np.uint8)
            for step, frame in enumerate(frames):
                frame[8 + 8 * number : 24 + 8 * number, 2 * step : 2 * step + 20] = 90 + 40 * number
            Video(frames, 16, None).write(tmp_path / f"{number}.mp4")
            archive.write(tmp_path / f"{number}.mp4", f"{number}.mp4")
            archive.writestr(f"{number}.txt", f"square <b>{number}</b>")
    go(page, "tune")
    page.wait_for_selector("#tune-frames")
    with page.expect_file_chooser() as chooser:
        page.click('#tune button:has-text("Bring a zip file")')
    chooser.value.set_files(tmp_path / "my squares.zip")
    page.wait_for_selector('#tune-dataset option[value="my-squares"]', state="attached")
    page.select_option("#tune-model", "small")
    page.fill("#tune-size", "64x64")
    page.fill("#tune-frames", "nine")
    page.click("#tune-prepare")
    page.wait_for_selector('#tune-new .fault:has-text("say lengths in frames")')
    page.fill("#tune-frames", "30")
    page.wait_for_selector('#tune-new .fault:has-text("small makes 29 or 33 frames, not 30")')
    page.fill("#tune-frames", "9")
    page.fill("#tune-name", "-no")
    page.click("#tune-prepare")
    page.wait_for_selector('#tune-new .fault:has-text("letters, digits")')
    page.fill("#tune-frames", "9")
    page.fill("#tune-name", "squares")
    page.click("#tune-prepare")
    page.wait_for_selector(".tune-run .state.prepared")
    page.wait_for_function("[...document.querySelectorAll('.pictures img')].every((one) => one.naturalWidth > 100)")
    assert "8 clips of 4 files" in text_of(page, ".tune-run")
    for name, value in {"steps": "5000", "rank": "4", "held_out": "2", "sample_every": "1"}.items():
        page.fill(f".tune-run [name={name}]", value)
    page.fill(".tune-run [name=sample_prompts]", "square <b>1</b>")
    page.fill(
        ".tune-run [name=more]", "sample_steps = 1\nsample_frames = [5]\nvalidate_every = 2\ncheckpoint_every = 5"
    )
    page.click('.tune-run button:has-text("Start training")')
    page.wait_for_selector(".tune-run .state.training")
    page.reload()  # whoever looks again finds the run
    page.wait_for_selector(".plot polyline.held-out[points]")
    # More clips than a browser has connections: what is shown no more lets go of its own.
    page.wait_for_selector('.samples th:has-text("step 9")')
    page.wait_for_function("[...document.querySelectorAll('.samples video')].slice(-1)[0].videoWidth === 64")
    assert "square <b>1</b>" in text_of(page, ".samples")  # as text
    page.screenshot(path=studio.folder / "tune.png", full_page=True)
    page.click('.tune-run button:has-text("Stop")')
    page.wait_for_selector(".tune-run .state.stopped")
    reached = studio.call("GET", "/v1/tuning/squares")["step"]
    page.fill(".tune-run [name=steps]", str(reached + 1))
    page.click('.tune-run button:has-text("Go on")')
    page.wait_for_selector(".tune-run .state.done")
    page.click('.tune-run button:has-text("Use in Create")')
    page.wait_for_selector('#loras li:has-text("squares.safetensors")')
    estimate_says(page, "9 frames", "64x64")


def test_a_model_comes_from_the_hub(chromium: Any, tmp_path: Path, wan_folder: Path, monkeypatch: Any) -> None:
    name = "someone/small-wan"
    with fake_hub.serve(name, wan_folder) as hub:
        hub.pause = 2.0
        for variable, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        running = Studio(tmp_path)
        running.start()
        page = new_page(chromium, running, "/models")
        page.fill("#hub-id", name)
        page.click('#models form button:has-text("Download")')
        page.wait_for_selector(f'[data-model="{name}"] .eta:has-text("of 1")')
        page.click(f'[data-model="{name}"] button:has-text("Stop")')
        page.wait_for_selector(f'[data-model="{name}"] :text("was stopped")')
        hub.pause = 0.0
        page.click(f'[data-model="{name}"] button:has-text("Go on")')
        page.wait_for_selector(f'[data-model="{name}"]', state="detached")
        (done,) = running.call("GET", "/v1/downloads")
        assert (done["state"], done["done"] > 1e6) == ("done", True)
        page.fill("#hub-id", "someone/else")
        page.click('#models form button:has-text("Download")')
        page.wait_for_selector('[data-model="someone/else"] .problem:has-text("no such model")')
        page.context.close()
        assert page.problems == []
        assert "Traceback" not in running.stop()


def test_nothing_secret_is_served(studio: Studio) -> None:
    """Gradio serves files of its working folder that calls name; the guard stands before all of it."""
    (studio.folder / "secret.txt").write_text("secret")
    for path in (
        f"/gradio/gradio_api/file={studio.folder}/secret.txt", "/gradio/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={studio.folder}/data/jobs.db", "/ui/%2e%2e/app.py", "/ui/../../server.py",
    ):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(studio.url + path)
        assert refused.value.code in (403, 404), path


def test_gradios_clients_make_videos(studio: Studio) -> None:
    import gradio_client
    from gradio_client.exceptions import AppError

    client = gradio_client.Client(f"{studio.url}/gradio/", verbose=False)
    more = '{"num_frames": 9, "num_inference_steps": 2}'
    made = client.predict("by a client of Gradio's", "small", "64x64", 0, 7, more, api_name="/generate")
    studio.wait_for(made["id"], "done")
    told = client.predict(made["id"], api_name="/status")
    assert (told["status"], told["prompt"]) == ("completed", "by a client of Gradio's")
    assert urllib.request.urlopen(studio.url + told["content"][0]).read(12)[4:8] == b"ftyp"
    with pytest.raises(AppError, match="height must be a multiple of 16"):
        client.predict("a", "small", "64x99", 0, 7, "", api_name="/generate")
    config = urllib.request.urlopen(f"{studio.url}/gradio/config", timeout=1800).read().decode()
    assert '"analytics_enabled":false' in config
    assert os.environ.get("GRADIO_ANALYTICS_ENABLED") is None  # only of the server's own process


def test_agents_find_tools(studio: Studio) -> None:
    """Over MCP, as a client of that protocol speaks."""
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def speak() -> tuple[set[str], Any, Any]:
        async with (
            streamablehttp_client(f"{studio.url}/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            assert (await session.initialize()).serverInfo.version == __version__
            tools = {tool.name for tool in (await session.list_tools()).tools}
            made = await session.call_tool(
                "generate_video", {"prompt": "by an agent", "size": "64x64", "model": "small"}
            )
            bad = await session.call_tool("generate_video", {"prompt": "", "model": "small"})
            return tools, made, bad

    with ThreadPoolExecutor(1) as thread:  # the browser's driver keeps a loop in this one
        tools, made, bad = thread.submit(asyncio.run, speak()).result()
    assert tools == {"generate_video", "video_status", "list_videos"}
    (told,) = studio.call("GET", "/v1/videos?limit=1")["data"]
    assert told["prompt"] == "by an agent"
    assert told["id"] in made.content[0].text
    assert bad.isError
    assert "prompt must not be empty" in bad.content[0].text


def test_the_client_makes_and_fetches(studio: Studio, tmp_path: Path) -> None:
    client = Client(studio.url)
    with pytest.raises(RequestError, match="multiple of 4 plus 1"):
        client.create("a", num_frames=34)
    seen: list[int] = []
    video = client.create("by the client", model="small", size="64x64", num_frames=9, num_inference_steps=30)
    done = client.wait(video.id, on_change=lambda one: seen.append(one.progress))
    assert (done.status, done.files, seen[-1]) == ("completed", 1, 100)
    path = client.download(video.id, tmp_path / "a.mp4")
    assert read_frames(path).shape == (9, 64, 64, 3)
    with pytest.raises(RadialError):
        client.download(video.id, path)
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    assert client.upload(picture).endswith(".png")
    assert client.list(show="done", limit=1)[0].id == video.id
    client.delete(video.id)
    with pytest.raises(RequestError, match="there is no video"):
        client.get(video.id)
    with pytest.raises(OutputError, match="does not answer"):
        Client("http://127.0.0.1:9").get("x")


def test_tools_know_whose_key_it_is(chromium: Any, guarded: Studio) -> None:
    """With accounts: an agent's key opens the tools, and its videos are its own; the page asks people to log in."""
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    with Accounts(guarded.folder / "data") as accounts:
        keys = {name: accounts.new_key(name) for name in ("ada", "bob")}

    async def speak(key: str, tool: str, arguments: dict[str, Any]) -> str:
        headers = {"authorization": f"Bearer {key}", "x-forwarded-host": "127.0.0.1:9"}
        async with (
            streamablehttp_client(f"{guarded.url}/mcp/", headers=headers) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            answer = await session.call_tool(tool, arguments)
            assert not answer.isError, answer
            return str(answer.content)

    def ask(name: str, tool: str, **arguments: Any) -> str:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, speak(keys[name], tool, arguments)).result()

    ask("bob", "generate_video", prompt="made by bob", model="small", size="64x64")
    assert "made by bob" in ask("bob", "list_videos")
    (video,) = Client(guarded.url, keys["bob"]).list()
    assert video.raw["owner"] == "bob"
    assert "made by bob" in ask("ada", "list_videos")  # an admin
    page = watch(chromium.new_context(bypass_csp=True).new_page(), guarded)
    page.goto(guarded.url)
    page.fill("input[name=name]", "bob")
    page.fill("input[name=password]", PASSWORD)
    page.click("button")
    page.wait_for_selector(READY)
    page.wait_for_selector('#now .card:has-text("made by bob")')
    go(page, "settings")
    told = page.wait_for_selector("#settings table").inner_text()
    assert "bob" in told
    assert "Videos go to" not in told  # where the server keeps things is its admins' to know
    page.context.close()
    with contextlib.suppress(RequestError):  # it has ended
        Client(guarded.url, keys["bob"]).cancel(video.id, keep=False)
