"""The studio with many jobs, and under many polls: ``python benchmarks/studio.py [--jobs 1000]``.

Fills a queue with finished jobs, opens the studio in chromium, and times the first page and what a user does on it.
Then a clip is rendered again and again while clients poll the REST interface, in turn with renders that nobody polls:
the ratio of their medians is what the polls cost.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from radial.request import make_request
from radial.video.clip import Video
from radial_app.client import Client
from radial_app.jobs.job import Job, Output, ResultFile
from radial_app.jobs.results import digest_file
from radial_app.jobs.store import JobStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two polls of a client")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-polls", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, options.jobs)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "radial_app", "studio", "--no-browser", "--port", str(port), "--device", "cpu",
                   "--data-dir", str(folder / "data")]  # fmt: skip
        server = subprocess.Popen(command, cwd=folder)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(url)
            time.sleep(20)  # its worker has loaded what it needs
            print(f"{options.jobs} finished jobs", flush=True)
            print(f"  {'memory of the server, idle':<44} {psutil.Process(server.pid).memory_info().rss >> 20:6} MB")
            for what, seconds in browse(url).items():
                print(f"  {what:<44} {1000 * seconds:6.0f} ms", flush=True)
            if not options.no_polls:
                poll(url, options, psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait(60)


def fill(folder: Path, count: int) -> None:
    """Finished jobs, each with a file of its own name."""
    outputs = folder / "outputs"
    outputs.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (9, 8, 8, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    clip = Video(noise, 16).write(outputs / "clip.mp4")
    digest = digest_file(clip)
    with JobStore(folder / "data") as store:
        jobs = store.add(
            Job(
                id="", request=make_request(prompt=f"clip number {n}", seed=n).resolve(),
                output=Output(folder=str(outputs)),
            )
            for n in range(count)
        )  # fmt: skip
        for job in jobs:
            path = outputs / f"{job.id}.mp4"
            path.hardlink_to(clip)
            store.claim("benchmark", only=job.id)
            store.record_file(job.id, 0, ResultFile(str(path), digest, job.request.seed, 10.0, done=True))
            store.end(job.id, "done")


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/healthz").read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the studio did not start")


def open_chromium(playwright: Any) -> Any:
    """The system's own browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


def browse(url: str) -> dict[str, float]:
    """Seconds until a user sees what they asked for, medians of three visits, with the browser's cache empty."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = open_chromium(playwright)
        for _ in range(4):
            page = browser.new_context(viewport={"width": 1360, "height": 900}, bypass_csp=True).new_page()

            _visit(page, url, times)
            page.context.close()
        browser.close()
    return {what: statistics.median(values[1:]) for what, values in times.items()}


def _visit(page: Any, url: str, times: dict[str, list[float]]) -> None:
    def timed(what: str, act: Any, ready: str) -> None:
        started = time.perf_counter()
        act()
        page.wait_for_function(ready, polling=20)
        times.setdefault(what, []).append(time.perf_counter() - started)

    def tab(name: str) -> None:
        page.click(f'#pages a[data-place="{name}"]')

    found = "[...document.querySelectorAll('#gallery .tile .prompt')].every((p) => p.innerText.includes('77'))"
    timed("first page ready", lambda: page.goto(url),
          "document.querySelector('#estimate b') && document.querySelector('#now [data-job]')")  # fmt: skip
    timed("a length chosen, told what it takes", lambda: page.click('.choices button:has-text("2x")'),
          "document.querySelector('#estimate').textContent.includes('65 frames')")  # fmt: skip
    timed("gallery open, 24 videos", lambda: tab("gallery"),
          "document.querySelectorAll('#gallery .tile').length === 24")  # fmt: skip
    timed("search, answered", lambda: page.fill("#gallery input[type=search]", "number 77"), found)
    timed("a video open", lambda: page.click("#gallery .tile a"), "document.querySelector('dialog video')")
    page.keyboard.press("Escape")
    timed("queue open", lambda: tab("queue"), "document.querySelector('#queue .head')")


def poll(url: str, options: argparse.Namespace, server: psutil.Process) -> None:
    """Renders with and without clients that poll, in turn."""
    client = Client(url)
    quiet: list[float] = []
    polled: list[float] = []
    answers: list[float] = []
    failures: list[Any] = []
    used: dict[bool, list[float]] = {True: [], False: []}  # shares of a core
    for number in range(2 * options.rounds + 1):
        stop = threading.Event()
        video = client.create("a red circle moves left", num_inference_steps=12, seed=1)
        polls = number > 0 and number % 2 == 0
        thread = threading.Thread(target=_poll_all, args=(url, video.id, options, stop, answers, failures))
        before = sum(server.cpu_times()[:2])
        if polls:
            thread.start()
        done = client.wait(video.id)
        stop.set()
        if polls:
            thread.join()
        if number:  # the first one loads the model
            seconds = done.raw["files"][0]["render_seconds"]
            (polled if polls else quiet).append(seconds)
            used[polls].append((sum(server.cpu_times()[:2]) - before) / seconds)
    ratio = statistics.median(polled) / statistics.median(quiet)
    print(f"{options.clients} clients, each polling every {options.every:g} s while a clip is rendered on the CPU")
    print(f"  polls answered {len(answers)}, errors {len(failures)} {failures[:1]}")
    print(f"  a poll takes {1000 * statistics.median(answers):.0f} ms, the slowest of a hundred "
          f"{1000 * sorted(answers)[int(0.99 * len(answers))]:.0f} ms")  # fmt: skip
    extra = statistics.median(used[True]) - statistics.median(used[False])
    print(f"  the server takes {100 * extra:.1f} % of a core more for them")
    print(f"  seconds a clip: alone {quiet}, polled {polled}; {100 * (ratio - 1):+.1f} %")


def _poll_all(
    url: str, id: str, options: argparse.Namespace, stop: threading.Event, answers: list[float], failures: list[Any]
) -> None:
    """All clients, each with a connection of its own and its own turn. They take as little of the cores as can be:
    what they cost is not the server's."""
    port = int(url.rpartition(":")[2])
    ask = f"GET /v1/videos/{id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(options.clients)]
    for client in clients:
        client.settimeout(20)
    turn, began = 0, time.monotonic()
    while not stop.is_set():
        client = clients[turn % len(clients)]
        time.sleep(max(0.0, began + turn * options.every / len(clients) - time.monotonic()))
        started = time.perf_counter()
        try:
            client.sendall(ask)
            answer = client.recv(1 << 16)
            head, _, body = answer.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < size:
                more = client.recv(1 << 16)
                if not more:
                    raise OSError("the connection ended in the middle of an answer")
                body += more
            (answers if b" 200 " in head[:20] else failures).append(time.perf_counter() - started)
        except (OSError, ValueError) as error:
            failures.append(str(error))
        turn += 1
    for client in clients:
        client.close()


if __name__ == "__main__":
    main()
