"""A studio of its own, and a browser that looks at it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: the studio was not tried in a browser"
)
# Ids of the queue's rows, in their order; below them are those that failed.
QUEUE_ROWS = "[...document.querySelectorAll('#queue > ol > li')].map((row) => row.dataset.job)"
PASSWORD = "correct horse battery"  # of the accounts
READY = "#estimate b"  # there once the form stands and the server has said what it makes


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

    def make(self, **fields: Any) -> str:
        """A video of the small model over REST: its id."""
        body = {"prompt": "made over REST", "model": "small", "height": 64, "width": 64, "num_frames": 9, "seed": 5,
                "num_inference_steps": 2} | fields  # fmt: skip
        id_: str = self.call("POST", "/v1/videos", body)["id"]
        return id_

    def make_long(self, **fields: Any) -> str:
        """A video that takes minutes: it is still being made, however long the browser takes to look. It has begun when
        this returns: places in the queue are counted among those that wait."""
        id_ = self.make(**{"num_inference_steps": 1000, "num_frames": 129, "height": 160, "width": 160} | fields)
        self.wait_for(id_, "running")
        return id_

    def give_up(self, *ids: str) -> None:
        """Cancel videos, and wait until nobody is at work on them."""
        for id_ in ids:
            with contextlib.suppress(urllib.error.HTTPError):  # it has ended
                self.call("POST", f"/v1/videos/{id_}/cancel?keep=false", {})
        for id_ in ids:
            self.wait_for(id_, "cancelled", "done", "failed")

    def wait_for(self, id_: str, *states: str) -> Any:
        for _ in range(12_000):
            video = self.call("GET", f"/v1/videos/{id_}")
            if video["state"] in states:
                return video
            time.sleep(0.1)
        raise AssertionError(f"{id_} is {video['state']}, not {states}: {video['note']}")


def new_page(browser: Any, studio: Studio, path: str = "/", **context: Any) -> Any:
    """A fresh page, whose errors, dialogs and requests to elsewhere are kept in ``problems``."""
    # The page forbids eval, which the driver's own waiting needs.
    opened = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "bypass_csp": True} | context)
    page = watch(opened.new_page(), studio)
    page.goto(f"{studio.url}{path}")
    page.wait_for_selector(READY, state="attached")
    return page


def watch(page: Any, studio: Studio) -> Any:
    page.problems = []
    page.set_default_timeout(600_000)  # a busy machine is slow, not wrong
    page.on("pageerror", lambda error: page.problems.append(f"error {error}"))
    page.on("dialog", lambda dialog: (page.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def look(request: Any) -> None:
        if not request.url.startswith((studio.url, "data:", "blob:")):
            page.problems.append(f"outside {request.url}")

    page.on("request", look)
    return page


def go(page: Any, place: str) -> None:
    page.click(f'#pages a[data-place="{place}"]')
    page.wait_for_selector(f"#{place}:not([hidden])")


def open_advanced(page: Any) -> None:
    if not page.evaluate("document.querySelector('#advanced').open"):
        page.click("#advanced > summary")


def keep_settings(page: Any, name: str) -> None:
    """Keep what the form holds under a name."""
    page.click('button:has-text("Keep these settings by name")')
    page.fill('dialog input[aria-label="Name"]', name)
    page.click('dialog button:text-is("Keep")')
    page.wait_for_selector("dialog", state="detached")


def estimate_says(page: Any, *parts: str) -> None:
    """Wait until the line about the clip says all of this."""
    told = "document.querySelector('#estimate').textContent"
    page.wait_for_function(f"(parts) => parts.every((part) => {told}.includes(part))", arg=list(parts))


def pick_small(page: Any, steps: int) -> None:
    """The tiny test checkpoint, in a few steps of few frames."""
    page.select_option("select[name=model]", "small")
    page.fill("input[name=size]", "64x64")
    open_advanced(page)
    page.fill("input[name=num_frames]", "9")
    page.fill("input[name=num_inference_steps]", str(steps))
    estimate_says(page, "64x64", "9 frames")


def press_generate(page: Any) -> str:
    """Generate: the id of what is queued."""
    return queued(page, lambda: page.click("#generate"))


def queued(page: Any, act: Callable[[], None]) -> str:
    """The id of what an act puts into the queue."""

    def is_it(answer: Any) -> bool:
        return bool(answer.request.method == "POST" and answer.url.endswith("/v1/videos"))

    with page.expect_response(is_it) as told:
        act()
    assert told.value.status == 200, told.value.text()
    id_: str = told.value.json()["id"]
    return id_
