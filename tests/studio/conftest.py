"""One studio for the tests of a process, and one browser for those of a file: its driver keeps a loop that others
would trip over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, PASSWORD, Studio, new_page

from radial_app.server.accounts import Accounts


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    shutil.copytree(wan_folder, folder / "data" / "models" / "small")
    running = Studio(folder)
    running.start()
    yield running
    err = running.stop()
    assert "Traceback" not in err, err


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path) -> Iterator[Studio]:
    """One with accounts: ada, who is an admin, and bob."""
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(wan_folder, folder / "data" / "models" / "small")
    with Accounts(folder / "data") as accounts:
        for name in ("ada", "bob"):
            accounts.add(name, PASSWORD)
    running = Studio(folder)
    running.start()
    yield running
    err = running.stop()
    assert "Traceback" not in err, err


@pytest.fixture(autouse=True)
def nothing_waits_after(request: pytest.FixtureRequest) -> Iterator[None]:
    """Files run in any order on one studio: what a test left in the queue would be in the next one's."""
    yield
    if "studio" in request.fixturenames:
        studio: Studio = request.getfixturevalue("studio")
        studio.give_up(*(video["id"] for video in studio.call("GET", "/v1/queue")["waiting"]))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, studio: Studio) -> Iterator[Any]:
    """A fresh page, whose errors and requests to elsewhere fail the test."""
    opened = new_page(chromium, studio, accept_downloads=True)
    yield opened
    opened.screenshot(path=studio.folder / "last.png")
    opened.context.close()
    assert opened.problems == []
