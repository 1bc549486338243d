"""A batch on a Ray cluster of this machine, with an actor that is killed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run

from radial import OutputError, RequestError
from radial.errors import DeviceLost
from radial.generation.pipeline import generate
from radial.request import make_request
from radial.video.clip import read_frames
from radial_app.cli.terminal.batch import BatchView
from radial_app.jobs.job import Job, Output, load_key
from radial_app.jobs.store import JobStore
from radial_app.worker import attempt, ray_backend
from radial_app.worker.inputs import pack_inputs, unpack_inputs
from radial_app.worker.ray_backend import render_on_cluster
from radial_app.worker.rendering import RemoteError

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "seed": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs of this machine as a cluster, for all tests."""
    ray = pytest.importorskip("ray", reason="the cluster extra is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _tell_of_actors(monkeypatch: pytest.MonkeyPatch, actors: list[Any]) -> None:
    plain = ray_backend._RayRenderer.__init__

    def init(self: Any, new_actor: Any) -> None:
        plain(self, lambda: actors.append(new_actor()) or actors[-1])

    monkeypatch.setattr(ray_backend._RayRenderer, "__init__", init)


def test_a_killed_actor_loses_nothing(
    cluster: None, data_folder: Path, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    requests = [  # the first is long enough to be killed in
        make_request(prompt=f"a red circle {n}", model=str(wan_folder), num_inference_steps=steps, **SMALL)
        for n, steps in enumerate((60, 4, 4))
    ]
    with JobStore() as store:
        output = Output(folder=str(tmp_path / "out"), name="{slug}")
        jobs = store.add([Job(id="", request=r.resolve(), output=output, batch="b") for r in requests])
        renderers: list[Any] = []

        def kill_the_first() -> None:
            with JobStore(data_folder) as ours:
                while not any(ours.snapshot_path(job.id).exists() for job in ours.find(["running"])):
                    time.sleep(0.02)
            ray.kill(renderers[0])

        killer = threading.Thread(target=kill_the_first)
        killer.start()
        ids = [job.id for job in jobs]
        _tell_of_actors(monkeypatch, renderers)
        render_on_cluster(store, "local", "b", lambda: BatchView(store, ids), snapshot_seconds=0.0)
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

        class Cancelling(BatchView):
            def look(self) -> bool:
                if store.get(kept.id).step > 3:
                    store.cancel([kept.id], keep=True)
                return super().look()

        render_on_cluster(store, "local", "b", lambda: Cancelling(store, [kept.id, failing.id]))
        assert store.get(failing.id).state == "failed"
        assert "model_index.json" in store.get(failing.id).error
        assert "what there was is kept" in store.get(kept.id).error
    assert os.listdir(tmp_path / "out") == ["long.mp4"]


def test_an_actor_whose_gpu_is_lost_is_replaced(
    cluster: None, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ray_backend.Actor):
        """Its first GPU stops answering, in whichever process it is."""

        def _render(self, *args: Any) -> Any:
            try:
                (tmp_path / "broken").rmdir()
            except OSError:
                return super()._render(*args)
            return ray_backend.Failure("DeviceLost", "cuda:0 has stopped answering")

    monkeypatch.setattr(ray_backend, "Actor", Broken)
    (tmp_path / "broken").mkdir()
    request = make_request(prompt="a", model=str(wan_folder), num_inference_steps=2, **SMALL).resolve()
    with JobStore() as store:
        output = Output(folder=str(tmp_path / "out"), name="{slug}")
        first, second = store.add([Job(id="", request=request, output=output, batch="b") for _ in range(2)])
        actors: list[Any] = []
        _tell_of_actors(monkeypatch, actors)
        render_on_cluster(store, "local", "b", lambda: BatchView(store, [first.id, second.id]))
        assert [store.get(job.id).state for job in (first, second)] == ["done", "done"]
        log = [text for job in (first, second) for *_, text in store.events(job.id)]
        assert any("cuda:0 has stopped answering" in text for text in log)
    assert len(actors) == 2  # another for the lost one


def test_an_error_of_an_actor_comes_back_as_it_was() -> None:
    for error in (RequestError("a"), OutputError(errno.EBUSY, "b"), DeviceLost("c")):
        with pytest.raises(type(error), match=str(error).replace("[", r"\[").replace("]", r"\]")) as found:
            ray_backend.Failure(type(error).__name__, str(error), getattr(error, "errno", None)).rethrow()
        assert getattr(found.value, "errno", None) == getattr(error, "errno", None)
    with pytest.raises(RemoteError, match="TypeError: a bug") as found:
        ray_backend.Failure("", "TypeError: a bug", trace="Traceback").rethrow()
    assert found.value.traceback == "Traceback"


def test_an_adapter_that_changed_is_loaded_anew(tmp_path: Path) -> None:
    """The key of a model in memory is of its adapters as an actor writes them: by their content."""
    keys = []
    for content in (b"one", b"another"):
        (tmp_path / "a.safetensors").write_bytes(content)
        request = make_request(prompt="a", loras=[{"path": str(tmp_path / "a.safetensors")}])
        keys.append(load_key(unpack_inputs(request, pack_inputs(request))))
    assert keys[0] != keys[1]


def test_a_database_that_is_locked_meanwhile_costs_no_second_rendering(
    cluster: None, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(prompt="a", model=str(wan_folder), num_inference_steps=4, **SMALL).resolve()
    plain, locked = JobStore.record_receipt, [1]

    def record_receipt(self: JobStore, *args: Any) -> None:
        if locked:
            locked.pop()
            raise OutputError(errno.EBUSY, "the jobs are locked by another program")
        plain(self, *args)

    monkeypatch.setattr(JobStore, "record_receipt", record_receipt)
    monkeypatch.setattr(JobStore, "progress", _locked_at_first(JobStore.progress))
    with JobStore() as store:
        output = Output(folder=str(tmp_path / "out"), name="{slug}")
        (job,) = store.add([Job(id="", request=request, output=output, batch="b")])
        monkeypatch.setattr(attempt, "DISK_SECONDS", 0.1)
        render_on_cluster(store, "local", "b", lambda: BatchView(store, [job.id]), snapshot_seconds=0.0)
        assert store.get(job.id).state == "done"
        assert any("goes on from step 4 of 4" in text for *_, text in store.events(job.id))
    assert os.listdir(tmp_path / "out") == ["a.mp4"]


def _locked_at_first(plain: Any) -> Any:
    calls = []

    def call(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OutputError(errno.EBUSY, "the jobs are locked by another program")
        plain(*args)

    return call


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
