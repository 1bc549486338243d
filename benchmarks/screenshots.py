"""The pictures of docs/studio.md: ``python benchmarks/screenshots.py``, with chromium and some minutes of the CPU;
``--only story`` takes the place of stories alone.

Renders clips of the bundled model in a studio of its own, and takes every page, light and dark, on a desktop and on a
phone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from studio import open_chromium, wait_for

from radial_app.client import Client

PORT = 7869
URL = f"http://127.0.0.1:{PORT}"
PROMPTS = (
    "a large red star moves from left to right on a striped background", "a purple triangle grows on a grey background",
    "a small green square rises on a dotted background", "a yellow circle and a blue square cross",
    "a white ring turns on a dark background", "an orange heart moves up on a checkered background",
)  # fmt: skip
STORY = (
    {"name": "anna", "prompt": "a large red star rises on a white background", "seconds": 2},
    {"name": "anna", "prompt": "moves from left to right on white"},
    {"name": "ben", "prompt": "a small blue ring falls on a black background", "cut": True},
    {"name": "ben", "prompt": "grows on black", "seconds": 1.5},
    {"name": "anna", "prompt": "spins on white", "cut": True},
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/studio"))
    parser.add_argument("--only", choices=["story"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "radial_app", "studio", "--no-browser", "--port", str(PORT), "--device", "cpu",
                   "--data-dir", f"{folder}/data"]  # fmt: skip
        server = subprocess.Popen(command, cwd=folder)
        try:
            wait_for(URL)
            take(out, only=options.only)
        finally:
            server.terminate()
            server.wait(60)


def take(out: Path, only: str | None) -> None:
    from playwright.sync_api import sync_playwright

    client = Client(URL)
    film = tell(client)
    made = []
    if only is None:
        made = [client.create(prompt, num_inference_steps=12, seed=7) for prompt in PROMPTS]
        made.append(client.create(PROMPTS[0], num_inference_steps=12, seed=7, attention="dense"))
        for video in made:
            client.wait(video.id)
        tune()
    with sync_playwright() as playwright:
        browser = open_chromium(playwright)
        for device in ("desktop", "phone"):
            for colours in ("light", "dark"):
                size = {"width": 1360, "height": 860} if device == "desktop" else {"width": 390, "height": 844}
                context = browser.new_context(viewport=size, color_scheme=colours, is_mobile=device == "phone",
                                              has_touch=device == "phone", bypass_csp=True)  # fmt: skip
                page = context.new_page()
                page.goto(URL)
                page.wait_for_selector("#estimate b")
                path = lambda name, d=device, c=colours: out / f"{name}-{d}-{c}.png"  # noqa: E731
                _story(page, film, path)
                if made:
                    _pages(page, client, made, path)
                context.close()
        browser.close()


def tell(client: Client) -> str:
    """A film of some lines, with a memory where an adapter is there that remembers."""
    adapters = httpx.get(f"{URL}/v1/adapters", timeout=60).json()
    loras = [{"path": one["id"]} for one in adapters if one.get("remembers")][:1]
    story = client.create_story(STORY, model="tiny", num_inference_steps=20, seed=3, loras=loras)
    client.wait(story.id)
    return story.id


def _story(page: Any, film: str, path: Any) -> None:
    """The place of stories: the lines of a film, written again, beside the film."""
    lines = json.dumps({"lines": [{"seconds": None, "cut": False} | line for line in STORY], "shown": film,
                        "fields": {"model": "tiny"}, "from": None})  # fmt: skip
    page.evaluate("(lines) => localStorage.setItem('radial-story', lines)", lines)
    page.goto(f"{URL}/story/{film}")
    page.wait_for_selector(f"#film-now .segments li.done:nth-child({len(STORY)}) img")
    page.wait_for_selector("#story-told .fits")
    page.wait_for_function("document.querySelector('#film-now video')?.readyState >= 2")
    page.evaluate("document.querySelector('#film-now video').pause()")
    time.sleep(2)
    page.screenshot(path=path("story"))
    page.goto(URL)
    page.wait_for_selector("#estimate b")


def tune() -> None:
    """A fine-tuning run of a few steps, on clips of the shapes world."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "radial_finetune.world",
            "--out",
            "clips",
            "--clips",
            "24",
            "--num-frames",
            "33",
        ]
        subprocess.run(command, cwd=folder, check=True)
        archive = shutil.make_archive(f"{folder}/shapes", "zip", f"{folder}/clips")
        files = {"file": ("shapes.zip", Path(archive).read_bytes())}
        httpx.post(f"{URL}/v1/datasets", files=files, data={"name": "shapes"}, timeout=60).raise_for_status()
    run = {"name": "longer-shapes", "dataset": "shapes", "num_frames": [33]}
    httpx.post(f"{URL}/v1/tuning", json=run, timeout=60).raise_for_status()
    _wait_for_run("preparing")
    training = {"steps": 24, "rank": 16, "held_out": 4, "sample_every": 8, "sample_prompts": [PROMPTS[0]],
                "more": "sample_steps = 8\nsample_frames = [33]\nvalidate_every = 4"}  # fmt: skip
    httpx.post(f"{URL}/v1/tuning/longer-shapes/train", json=training, timeout=60).raise_for_status()
    _wait_for_run("training")


def _wait_for_run(state: str) -> None:
    while (run := httpx.get(f"{URL}/v1/tuning/longer-shapes", timeout=60).json())["state"] == state:
        time.sleep(1)
    if run["state"] == "failed":
        raise SystemExit(run["problem"])


def _pages(page: Any, client: Client, made: list[Any], path: Any) -> None:
    page.fill("#prompt", PROMPTS[0])
    running = client.create(PROMPTS[0], num_frames=65, seed=11)
    waiting = [client.create(prompt, seed=12) for prompt in PROMPTS[1:4]]
    page.wait_for_function(
        "document.querySelector('#now .screen img:not([hidden])')?.naturalWidth > 0", timeout=120_000
    )
    time.sleep(1)
    page.screenshot(path=path("create"))
    _place(page, "queue", path)
    client.cancel(running.id, keep=False)
    for video in waiting:
        client.cancel(video.id, keep=False)
    while any(one.state in ("running", "queued") for one in client.list("waiting")):
        time.sleep(0.3)
    for place in ("gallery", "tune", "models", "settings"):
        _place(page, place, path)
    page.click('#pages a[data-place="gallery"]')
    page.click(f'#gallery [data-job="{made[0].id}"] a')
    page.wait_for_function("document.querySelector('dialog video')?.readyState >= 2")
    time.sleep(1)
    page.screenshot(path=path("video"))
    page.click('dialog summary:has-text("Compare")')
    page.click('dialog button:has-text("With another")')
    page.click(f'dialog .tile[data-job="{made[-1].id}"]')
    page.wait_for_selector('.measures:has-text("PSNR")')
    time.sleep(1.5)
    page.screenshot(path=path("compare"))


def _place(page: Any, place: str, path: Any) -> None:
    page.click(f'#pages a[data-place="{place}"]')
    time.sleep(1.5)
    page.screenshot(path=path(place))


if __name__ == "__main__":
    main()
