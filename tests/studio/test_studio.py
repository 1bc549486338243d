"""The studio in a browser: what users see and do, through Debian's chromium where there is one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_hub
import numpy as np
import pytest
from PIL import Image

from radial import OutputError, RadialError, RequestError
from radial.models.table import MODELS
from radial.video.clip import Video, read_frames
from radial_app.client import Client
from radial_app.server.accounts import Accounts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the studio was not tried in a browser")
PROMPT = "a red circle <img src=x onerror=alert(1)> moves left"


class Studio:
    """A server with a studio in a folder, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "radial_app", "studio", "--no-browser", "--port", str(self.port), "--device",
                   "cpu", "--snapshot-seconds", "0.5", "--data-dir", str(self.folder / "data")]  # fmt: skip
        self.process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True)
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=1800).read()
                return
            except OSError:
                assert self.process.poll() is None, self.process.communicate()
                time.sleep(0.1)

    def stop(self, how: int = signal.SIGTERM) -> str:
        assert self.process is not None
        self.process.send_signal(how)
        _, err = self.process.communicate(timeout=1800)
        return err

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"content-type": "application/json"}, method=method)
        return json.load(urllib.request.urlopen(request, timeout=1800))

    def wait_for(self, id_: str, *states: str) -> Any:
        for _ in range(1200):
            video = self.call("GET", f"/v1/videos/{id_}")
            if video["state"] in states:
                return video
            time.sleep(0.1)
        raise AssertionError(f"{id_} is {video['state']}, not {states}: {video['note']}")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    shutil.copytree(wan_folder, folder / "data" / "models" / "small")
    running = Studio(folder)
    running.start()
    yield running
    err = running.stop()
    assert "Traceback" not in err, err


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, studio: Studio) -> Iterator[Any]:
    """A page that is ready, whose errors and requests to elsewhere fail the test."""
    context = chromium.new_context(viewport={"width": 1360, "height": 900}, accept_downloads=True)
    opened = watch(context.new_page(), studio)
    opened.goto(studio.url)
    opened.wait_for_selector("#estimate-line b")
    yield opened
    opened.screenshot(path=studio.folder / "last.png")
    context.close()
    assert opened.problems == []


def watch(page: Any, studio: Studio) -> Any:
    page.problems = []
    page.set_default_timeout(1_800_000)  # a busy machine is slow, not wrong
    page.on("pageerror", lambda error: page.problems.append(f"error {error}"))
    page.on("dialog", lambda dialog: (page.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def look(request: Any) -> None:
        if not request.url.startswith((studio.url, "data:", "blob:")):
            page.problems.append(f"outside {request.url}")

    page.on("request", look)
    return page


def open_tab(page: Any, name: str) -> None:
    page.click(f'#pages button[role="tab"]:has-text("{name}")')


def pick_small(page: Any, steps: int) -> None:
    """The tiny test checkpoint, in a few steps of few frames."""
    page.click("#model input")
    page.click('[role="option"]:has-text("small")')
    page.wait_for_selector('#model:has-text("checkpoint folder")')
    page.fill("#size input", "64x64")
    page.press("#size input", "Enter")
    page.fill("#num_frames input[type=number]", "9")
    page.press("#num_frames input[type=number]", "Enter")
    page.wait_for_function("document.querySelector('#estimate-line').innerText.includes('9 frames · 64x64')")
    page.click("#advanced > button")
    page.fill("#num_inference_steps input", str(steps))
    page.press("#num_inference_steps input", "Tab")


def text_of(page: Any, selector: str) -> str:
    text: str = page.inner_text(selector)
    return text


def test_one_field_and_one_key_make_a_video(page: Any, studio: Studio, chromium: Any) -> None:
    pick_small(page, 3)
    page.fill("#prompt textarea", PROMPT)
    page.press("#prompt textarea", "Control+Enter")
    page.wait_for_selector(".radial-said")
    id_ = page.get_attribute(".radial-said", "data-job")
    page.goto("about:blank")  # whoever closes the page loses nothing
    studio.wait_for(id_, "done")
    page.goto(studio.url)
    page.wait_for_selector(f'#live [data-job="{id_}"] video')
    page.wait_for_function("document.querySelector('#live video').videoWidth === 64")
    page.wait_for_function("document.querySelector('#live video').currentTime > 0")
    assert PROMPT in text_of(page, "#live")  # as text
    video = studio.call("GET", f"/v1/videos/{id_}")
    assert (video["model"], video["steps"], video["request"]["num_inference_steps"]) == ("small", 3, 3)


def test_the_form_changes_by_choices_alone(page: Any) -> None:
    pick_small(page, 3)
    steps = "#num_inference_steps input"
    for name in ("model", "preset"):  # left as they were
        page.click(f"#{name} input")
        page.press(f"#{name} input", "Tab")
    page.click("#times label:has-text('2x')")
    page.wait_for_selector("#times input:checked", state="attached")
    page.fill("#num_frames input[type=number]", "13")
    page.press("#num_frames input[type=number]", "Enter")
    page.wait_for_function("document.querySelector('#estimate-line').innerText.includes('13 frames · 64x64')")
    page.wait_for_selector("#times input:checked", state="detached")
    assert page.input_value(steps) == "3"
    page.click("#preset input")
    page.click('[role="option"]:has-text("draft")')
    page.wait_for_function(f"document.querySelector('{steps}').value !== '3'")
    page.fill(steps, "7")
    page.fill("#model input", "tiny")  # by keys alone
    page.press("#model input", "ArrowDown")
    page.press("#model input", "Enter")
    page.wait_for_function("document.querySelector('#estimate-line').innerText.includes('33 frames · 128x128')")
    assert page.input_value(steps) == str(max(4, round(MODELS["tiny"].num_inference_steps / 3)))


def make(studio: Studio, **fields: Any) -> str:
    body = {"prompt": "made over REST", "model": "small", "height": 64, "width": 64, "num_frames": 9, "seed": 5,
            "num_inference_steps": 2} | fields  # fmt: skip
    id_: str = studio.call("POST", "/v1/videos", body)["id"]
    return id_


def test_a_clip_that_is_stopped_is_kept(page: Any, studio: Studio) -> None:
    id_ = make(studio, num_inference_steps=400, prompt="long")
    page.wait_for_selector(f'#live [data-job="{id_}"]')
    page.wait_for_function("document.querySelector('#live .stage').innerText.includes('step')")
    assert "left" in page.wait_for_selector("#live .eta:not(:empty)").inner_text()
    page.click('#live button:has-text("Stop and keep")')
    video = studio.wait_for(id_, "cancelled")
    assert video["files"][0]["partial"]
    page.wait_for_selector(f'#live [data-job="{id_}"] video')


def test_the_queue_is_handled(page: Any, studio: Studio) -> None:
    block = make(studio, num_inference_steps=1000, num_frames=33, prompt="in front")
    ids = [make(studio, prompt=f"waits {n}") for n in range(3)]
    open_tab(page, "Queue")
    # Places are counted among those that wait: the one in front must have begun.
    page.wait_for_selector(f'#queue [data-job="{block}"].running')
    page.wait_for_selector(f'#queue [data-job="{ids[2]}"]')
    page.click(f'#queue [data-job="{ids[2]}"] button[aria-label="Move up"]')
    page.wait_for_function(
        "(ids) => [...document.querySelectorAll('#queue li')].map((row) => row.dataset.job).slice(1).join() === ids",
        arg=",".join([ids[0], ids[2], ids[1]]),
    )
    page.click(f'#queue [data-job="{ids[0]}"] button:has-text("Hold")')
    page.wait_for_selector(f'#queue [data-job="{ids[0]}"].paused')
    page.click(f'#queue [data-job="{ids[1]}"] button:has-text("Edit")')
    page.fill("dialog textarea", "")
    page.click('dialog button:has-text("Save")')
    page.wait_for_selector('dialog [role="alert"]:has-text("prompt must not be empty")')
    page.fill("dialog textarea", "edited")
    page.click('dialog button:has-text("Save")')
    page.wait_for_selector(f'#queue [data-job="{ids[1]}"] .prompt:has-text("edited")')
    page.click(f'#queue [data-job="{ids[2]}"] button:has-text("Cancel")')
    page.click(f'#queue [data-job="{block}"] button:has-text("Discard")')
    studio.wait_for(block, "cancelled")
    studio.wait_for(ids[1], "done")
    page.click(f'#queue [data-job="{ids[0]}"] button:has-text("Go on")')
    studio.wait_for(ids[0], "done")
    page.wait_for_selector("#queue .radial-empty")


def test_the_gallery_compares_and_gives_settings_back(page: Any, studio: Studio) -> None:
    ids = [make(studio, seed=seed, prompt=f"seed {seed}", guidance_scale=2.5, decay=0.5) for seed in (21, 22)]
    for id_ in ids:
        studio.wait_for(id_, "done")
    open_tab(page, "Gallery")
    page.fill('#gallery input[type="search"]', "seed 2")
    page.wait_for_function("document.querySelectorAll('#gallery .tile').length === 2")
    page.wait_for_function("[...document.querySelectorAll('#gallery .tile img')].every((i) => i.naturalWidth > 0)")
    page.click(f'#gallery [data-job="{ids[0]}"]')
    page.wait_for_function("document.querySelector('dialog video')?.videoWidth === 64")
    page.click('dialog button:has-text("Favourite")')
    page.click('dialog button:has-text("Compare with")')
    page.click(f'dialog .tile[data-job="{ids[1]}"]')
    page.wait_for_selector('.measures:has-text("PSNR")')
    page.wait_for_function("[...document.querySelectorAll('.compare video')].every((v) => v.videoWidth === 64)")
    page.locator(".wipe").last.fill("80")
    assert page.evaluate("document.querySelector('.compare').style.getPropertyValue('--cut')") == "80%"
    page.keyboard.press("Escape")
    with page.expect_download() as download:
        page.click('dialog a:has-text("Download")')
    saved = studio.folder / "downloaded.mp4"
    download.value.save_as(saved)
    page.click('dialog button:has-text("Use these settings")')
    wait_for_form(page, "seed 21", 21)
    assert page.input_value("#num_frames input[type=number]") == "9"
    # The same out of the file, on a fresh page.
    page.goto(studio.url)
    page.wait_for_selector("#estimate-line b")
    open_tab(page, "Settings")
    page.set_input_files("#settings input[type=file]", saved)
    wait_for_form(page, "seed 21", 21)
    page.click("#advanced > button")
    assert page.input_value("#guidance_scale input") == "2.5"
    assert page.input_value("#decay input") == "0.5"
    page.click("#generate")
    page.wait_for_selector(".radial-said")
    again = studio.wait_for(page.get_attribute(".radial-said", "data-job"), "done")
    first = studio.call("GET", f"/v1/videos/{ids[0]}")
    assert again["request"] == first["request"]
    assert studio.call("GET", f"/v1/compare?a={ids[0]}&b={again['id']}")["psnr"] == 100.0
    # Deleted to the trash.
    open_tab(page, "Gallery")
    page.click(f'#gallery [data-job="{again["id"]}"]')
    page.click('dialog button:has-text("Delete")')
    page.wait_for_selector(f'#gallery [data-job="{again["id"]}"]', state="detached")
    assert list((studio.folder / "outputs" / ".trash").iterdir())


def wait_for_form(page: Any, prompt: str, seed: int) -> None:
    page.wait_for_function(
        "([prompt, seed]) => document.querySelector('#prompt textarea').value === prompt "
        "&& document.querySelector('#seed input').value === String(seed)",
        arg=[prompt, seed],
    )


def test_what_cannot_be_is_said_at_once(page: Any, studio: Studio) -> None:
    before = studio.call("GET", "/v1/queue")["counts"]
    page.fill("#size input", "100x99")
    page.press("#size input", "Enter")
    page.wait_for_selector('#estimate-line [role="alert"]:has-text("multiple of")')
    page.fill("#prompt textarea", "a")
    page.click("#generate")
    page.wait_for_selector('#answer [role="alert"]:has-text("multiple of")')
    assert studio.call("GET", "/v1/queue")["counts"] == before
    page.set_input_files('#references input[type="file"] >> nth=0', {
        "name": "evil.png", "mimeType": "image/png", "buffer": b"<script>alert(1)</script>",
    })  # fmt: skip
    page.wait_for_selector('#radial-toasts .problem:has-text("no PNG")')


def test_it_goes_on_after_kill_9(page: Any, studio: Studio) -> None:
    id_ = make(studio, num_inference_steps=60, prompt="through a crash")
    page.wait_for_selector(f'#live [data-job="{id_}"]')
    studio.stop(signal.SIGKILL)
    page.wait_for_selector("body.radial-offline")
    studio.start()
    page.wait_for_selector("body:not(.radial-offline)")
    studio.wait_for(id_, "done")
    page.wait_for_selector(f'#live [data-job="{id_}"] video')  # on the page that stayed open


def test_a_phone_shows_all_of_it(chromium: Any, studio: Studio) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True,
                                   color_scheme="dark")  # fmt: skip
    page = watch(context.new_page(), studio)
    page.goto(studio.url)
    page.wait_for_selector("#estimate-line b")
    for tab in ("Create", "Queue", "Gallery", "Models", "Settings"):
        open_tab(page, tab)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    open_tab(page, "Gallery")
    page.click("#gallery .tile >> nth=0")
    box = page.wait_for_selector("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["width"] <= 390
    context.close()
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
    open_tab(page, "Tune")
    page.wait_for_selector("#tune-frames")
    with page.expect_file_chooser() as chooser:
        page.click('#tune button:has-text("Bring a zip file")')
    chooser.value.set_files(tmp_path / "my squares.zip")
    page.wait_for_selector('#tune-dataset option[value="my-squares"]', state="attached")
    page.select_option("#tune-model", "small")
    page.fill("#tune-size", "64x64")
    page.fill("#tune-frames", "nine")
    page.click("#tune-prepare")
    page.wait_for_selector('#radial-toasts .problem:has-text("say lengths in frames")')
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
    page.wait_for_selector("#estimate-line b")
    open_tab(page, "Tune")
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
    page.wait_for_function("document.querySelector('#estimate-line').innerText.includes('9 frames · 64x64')")


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
        page = watch(chromium.new_context(viewport={"width": 1360, "height": 900}).new_page(), running)
        page.goto(running.url)
        page.wait_for_selector("#estimate-line b")
        open_tab(page, "Models")
        page.fill("#hub-id", name)
        page.click('#models .head button:has-text("Download")')
        page.wait_for_selector(f'[data-model="{name}"] .eta:has-text("of 1")')
        page.click(f'[data-model="{name}"] button:has-text("Stop")')
        page.wait_for_selector(f'[data-model="{name}"] :text("was stopped")')
        hub.pause = 0.0
        page.click(f'[data-model="{name}"] button:has-text("Go on")')
        page.wait_for_selector(f'[data-model="{name}"]', state="detached")
        (done,) = running.call("GET", "/v1/downloads")
        assert (done["state"], done["done"] > 1e6) == ("done", True)
        page.fill("#hub-id", "someone/else")
        page.click('#models .head button:has-text("Download")')
        page.wait_for_selector('[data-model="someone/else"] .radial-problem:has-text("no such model")')
        page.context.close()
        assert page.problems == []
        assert "Traceback" not in running.stop()


def test_nothing_secret_is_served(studio: Studio) -> None:
    """Gradio serves files of its working folder that handlers name; the guard stands before all of it."""
    (studio.folder / "secret.txt").write_text("secret")
    for path in (
        f"/gradio_api/file={studio.folder}/secret.txt", "/gradio_api/file=/etc/passwd", "/ui/../../server.py",
        f"/gradio_api/file={studio.folder}/data/jobs.db", "/ui/%2e%2e/app.py",
    ):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(studio.url + path)
        assert refused.value.code in (403, 404), path


def test_settings_of_gradio_stay_at_home(studio: Studio) -> None:
    page = urllib.request.urlopen(studio.url, timeout=1800).read().decode()
    assert '"analytics_enabled":false' in page
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
            await session.initialize()
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


def test_tools_know_whose_key_it_is(chromium: Any, tmp_path: Path, wan_folder: Path) -> None:
    """With accounts: an agent's key opens the tools, and its videos are its own; the page asks people to log in."""
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    with Accounts(tmp_path / "data") as accounts:
        accounts.add("ada", "correct horse battery")
        accounts.add("bob", "correct horse battery")
        keys = {name: accounts.new_key(name) for name in ("ada", "bob")}
    (tmp_path / "data" / "models").mkdir()
    shutil.copytree(wan_folder, tmp_path / "data" / "models" / "small")
    guarded = Studio(tmp_path)
    guarded.start()

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

    try:
        ask("bob", "generate_video", prompt="made by bob", model="small", size="64x64")
        assert "made by bob" in ask("bob", "list_videos")
        assert Client(guarded.url, keys["bob"]).list()[0].raw["owner"] == "bob"
        assert "made by bob" in ask("ada", "list_videos")  # an admin
        page = chromium.new_page()
        page.goto(guarded.url)
        page.fill("input[name=name]", "bob")
        page.fill("input[name=password]", "correct horse battery")
        page.click("button")
        page.wait_for_selector("#estimate-line b")
        page.wait_for_selector('#live .radial-card:has-text("made by bob")')
        page.close()
    finally:
        err = guarded.stop()
    assert "Traceback" not in err, err
