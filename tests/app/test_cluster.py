"""A batch on a Ray cluster of this machine, with an actor that is killed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run

from radial import RequestError
from radial.generation.pipeline import generate
from radial.request import make_request
from radial.video.clip import read_frames
from radial_app.cli.terminal.batch import Follower
from radial_app.jobs.job import Job, Output
from radial_app.jobs.store import JobStore
from radial_app.worker.ray_backend import pack_inputs, render_on_cluster, unpack_inputs

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "seed": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs of this machine as a cluster, for all tests."""
    ray = pytest.importorskip("ray", reason="the cluster extra is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_actor_loses_nothing(
    cluster: None, data_folder: Path, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    requests = [make_request(prompt=f"a red circle {n}", model=str(wan_folder), num_inference_steps=40, **SMALL)
                for n in range(3)]  # fmt: skip
    with JobStore() as store:
        output = Output(folder=str(tmp_path / "out"), name="{slug}")
        jobs = store.add([Job(id="", request=r.resolve(), output=output, batch="b") for r in requests])
        renderers: list[Any] = []

        def kill_the_first() -> None:
            with JobStore(data_folder) as ours:
                deadline = time.monotonic() + 120
                while not any(job.step > 5 and ours.snapshot_path(job.id).exists() for job in ours.find(["running"])):
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.02)
            ray.kill(renderers[0])

        killer = threading.Thread(target=kill_the_first)
        killer.start()
        ids = [job.id for job in jobs]
        render_on_cluster(
            store, "local", "b", lambda: Follower(store, ids), snapshot_seconds=0.0, on_renderer=renderers.append
        )
        killer.join()
        assert len(renderers) == 2
        assert [store.get(id_).state for id_ in ids] == ["done"] * 3
        log = [text for id_ in ids for *_, text in store.events(id_)]
        assert any("its renderer died in stage denoise" in text for text in log)
        assert any("goes on from step" in text for text in log)
    assert sorted(os.listdir(tmp_path / "out")) == [f"a-red-circle-{n}.mp4" for n in range(3)]
    for number, request in enumerate(requests):
        (straight,) = generate(request)
        straight.write(tmp_path / "straight.mp4", overwrite=True)
        ours = read_frames(tmp_path / "out" / f"a-red-circle-{number}.mp4")
        assert np.array_equal(ours, read_frames(tmp_path / "straight.mp4"))


def test_cancelling_and_failing_on_a_cluster(cluster: None, wan_folder: Path, tmp_path: Path) -> None:
    long = make_request(prompt="long", model=str(wan_folder), num_inference_steps=600, **SMALL).resolve()
    wrong = make_request(prompt="wrong", model=str(tmp_path), **SMALL)
    with JobStore() as store:
        output = Output(folder=str(tmp_path / "out"), name="{slug}")
        kept, failing = store.add([Job(id="", request=r, output=output, batch="b") for r in (long, wrong)])

        class Cancelling(Follower):
            def look(self) -> bool:
                if store.get(kept.id).step > 3:
                    store.cancel([kept.id], keep=True)
                return super().look()

        render_on_cluster(store, "local", "b", lambda: Cancelling(store, [kept.id, failing.id]))
        assert store.get(failing.id).state == "failed"
        assert "model_index.json" in store.get(failing.id).error
        assert "what there was is kept" in store.get(kept.id).error
    assert os.listdir(tmp_path / "out") == ["long.mp4"]


def test_files_of_a_request_travel(tmp_path: Path) -> None:
    for name in ("a.png", "b.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    request = make_request(
        prompt="a", image=str(tmp_path / "a.png"), loras=[{"path": str(tmp_path / "b.safetensors"), "weight": 0.5}]
    )
    there = unpack_inputs(request, pack_inputs(request))
    assert there.image is not None
    assert there.image != request.image
    assert Path(there.image).read_bytes() == b"a.png"
    assert there.loras[0].weight == 0.5
    assert Path(there.loras[0].path).read_bytes() == b"b.safetensors"
    assert unpack_inputs(request, pack_inputs(request)) == there
    (tmp_path / "a.png").unlink()
    with pytest.raises(RequestError, match=r"cannot read .*a\.png"):
        pack_inputs(request)


def test_a_cluster_that_is_not_there(in_empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    ray.shutdown()
    Path("a.txt").write_text("a\n")
    for address in ("127.0.0.1:1", "nowhere:x"):
        code, _, err = run(capsys, "render", "a.txt", "--ray", address)
        assert code == 2
        assert f"no Ray cluster at '{address}'" in err
