"""The queue: its order, who may take what, and that nothing is lost or doubled."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radial import OutputError, RequestError
from radial.request import make_request
from radial_app.jobs import store as store_module
from radial_app.jobs.job import Job, Output, ResultFile, make_output, slug
from radial_app.jobs.recovery import MAX_ATTEMPTS
from radial_app.jobs.schema import _SCHEMA
from radial_app.jobs.store import JobStore, new_id


@pytest.fixture
def store(data_folder: Path) -> JobStore:
    return JobStore()


def jobs(count: int, **fields: Any) -> list[Job]:
    requests = [make_request(prompt=f"prompt {index}", seed=index).resolve() for index in range(count)]
    return [Job(id="", request=request, **fields) for request in requests]


def prompts(found: list[Job]) -> list[str]:
    return [job.request.prompt.removeprefix("prompt ") for job in found]


def test_a_job_comes_back_as_it_was(store: JobStore, data_folder: Path) -> None:
    output = make_output(folder="/somewhere", name="{index:03}-{slug}", encoding={"format": "webm", "crf": 30})
    request = make_request(prompt="x", loras=[{"path": "/b", "weight": 0.3}, {"path": "/a", "weight": -1}], seed=5)
    (added,) = store.add([Job(id="", request=request, output=output, batch="b", source="s:1", digest="d", index=7)])
    with JobStore(data_folder) as other:
        assert other.get(added.id) == added
        assert other.get(added.id[:-2]) == added
    with pytest.raises(RequestError, match="no job 'zzz'"):
        store.get("zzz")


def test_a_job_that_goes_back_too_often_fails(store: JobStore) -> None:
    (job,) = store.add(jobs(1))
    for _ in range(MAX_ATTEMPTS + 3):  # what was no failure of its own does not count
        assert store.claim("w") is not None
        assert store.end(job.id, "queued", "told to stop", failed_attempt=False) == "queued"
    ends = []
    for _ in range(MAX_ATTEMPTS):
        assert store.claim("w") is not None
        ends.append(store.end(job.id, "queued", "lost"))
    assert ends == ["queued"] * (MAX_ATTEMPTS - 1) + ["failed"]
    assert store.get(job.id).error == f"lost, {MAX_ATTEMPTS} times in a row"
    store.retry([job.id])
    assert store.claim("w") is not None
    store.got_further(job.id)
    store.cancel([job.id], keep=False)
    assert store.end(job.id, "queued", "lost") == "cancelled"  # its user's wish goes first


def test_order_priority_and_moves(store: JobStore) -> None:
    added = store.add(jobs(5))
    assert prompts(store.find()) == ["0", "1", "2", "3", "4"]
    store.move(added[4].id, 2)
    assert prompts(store.find()) == ["0", "4", "1", "2", "3"]
    store.move(added[0].id, 99)
    assert prompts(store.find()) == ["4", "1", "2", "3", "0"]
    store.prioritise([added[3].id], 5)
    assert prompts(store.find()) == ["3", "4", "1", "2", "0"]
    store.move(added[2].id, 1)
    assert prompts(store.find()) == ["2", "3", "4", "1", "0"]
    assert prompts([store.claim("w") for _ in range(5)]) == ["2", "3", "4", "1", "0"]  # type: ignore[misc]
    assert store.claim("w") is None


@given(
    st.lists(st.tuples(st.sampled_from(["move", "pause", "resume", "prioritise", "add"]), st.integers(0, 5),
                       st.integers(1, 7)), max_size=14)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_moved_job_stays_where_it_was_put(steps: list[tuple[str, int, int]]) -> None:
    """Among all jobs that are seen to wait, paused ones included, whatever happens to others."""
    with tempfile.TemporaryDirectory() as folder, JobStore(Path(folder)) as store:
        ids = [job.id for job in store.add(jobs(4))]
        for what, which, place in steps:
            id_ = ids[which % len(ids)]
            before = [job.id for job in store.find()]
            if what == "move":
                store.move(id_, place)
                rest = [one for one in before if one != id_]
                rest.insert(min(place - 1, len(rest)), id_)
                assert [job.id for job in store.find()] == rest
            elif what == "prioritise":
                store.prioritise([id_], place - 3)
                kept = [one for one in before if one != id_]
                assert [job.id for job in store.find() if job.id != id_] == kept
            elif what == "add":
                ids += [job.id for job in store.add(jobs(1))]
                assert [job.id for job in store.find() if job.id != ids[-1]] == before
            else:
                (store.pause if what == "pause" else store.resume)([id_])
                assert [job.id for job in store.find()] == before
        waiting = [job.id for job in store.find(("queued",))]
        claimed = [found.id for found in iter(lambda: store.claim("w"), None)]
        assert claimed == waiting


def test_pause_cancel_retry_edit_duplicate_remove(store: JobStore) -> None:
    one, two, three = store.add(jobs(3))
    assert store.pause([one.id]) == [one.id]
    claimed = store.claim("w")
    assert claimed is not None
    assert claimed.id == two.id
    assert store.pause([two.id]) == [two.id]
    assert (store.get(two.id).state, store.control_of(two.id)) == ("running", "pause")
    assert store.resume([two.id]) == [two.id]  # before its step ended
    assert (store.get(two.id).state, store.control_of(two.id)) == ("running", "")
    assert store.resume([two.id]) == []
    store.move(two.id, 1)  # what runs has no place
    assert store.get(two.id).position == two.position
    assert store.pause([two.id]) == [two.id]
    store.end(two.id, "paused")
    assert (store.get(two.id).state, store.control_of(two.id)) == ("paused", "")
    assert store.resume([one.id, two.id, three.id]) == [one.id, two.id]
    assert prompts(store.find()) == ["0", "1", "2"]  # back at their old places
    edited = store.edit(one.id, prompt="another", num_inference_steps=7)
    assert (edited.request.prompt, edited.request.num_inference_steps) == ("another", 7)
    with pytest.raises(RequestError, match="nearest"):
        store.edit(one.id, height=33)
    assert store.get(one.id).request.prompt == "another"
    store.cancel([three.id], keep=True)
    assert store.get(three.id).state == "cancelled"
    with pytest.raises(RequestError, match="only jobs that wait can be edited"):
        store.edit(three.id, prompt="late")
    (copy,) = store.duplicate([three.id], seed=99)
    assert (copy.request.seed, copy.request.prompt) == (99, three.request.prompt)
    assert store.retry([three.id, one.id]) == [three.id]
    store.claim("w", only=one.id)
    assert store.remove([one.id, two.id]) == [two.id]
    assert store.cancel([one.id], keep=False) == [one.id]
    assert store.control_of(one.id) == "cancel"
    assert store.control_of(two.id) == "cancel"  # gone: whoever renders it is to stop


def test_what_the_user_wants_outlives_the_worker(store: JobStore) -> None:
    """A job that would go back to the queue is cancelled or paused if that was asked for meanwhile."""
    one, two = store.add(jobs(2))
    for job, ask, state in ((one, lambda i: store.cancel(i, keep=False), "cancelled"), (two, store.pause, "paused")):
        store.claim("w")
        ask([job.id])
        store.end(job.id, "queued", "its worker was told to stop")
        assert store.get(job.id).state == state
    store.resume([two.id])
    store.claim("w")
    store.pause([two.id])
    store.resume([two.id])
    assert store.control_of(two.id) == ""


def test_editing_follows_the_model_and_begins_anew(store: JobStore) -> None:
    (job,) = store.add(jobs(1))
    store.pause([job.id])
    store.record_file(job.id, 0, ResultFile("/a.mp4", "x", 0, done=True))
    edited = store.edit(job.id, model="wan2.1-1.3b", seed=5)
    assert (edited.request.height, edited.request.num_frames, edited.request.num_inference_steps) == (480, 81, 50)
    assert (edited.request.seed, edited.files) == (5, ())
    longer = store.edit(job.id, model="tiny", num_frames=129)
    assert longer.request.loras[0].path == "bundled:tiny-long"
    back = store.edit(job.id, num_frames=33, guidance_scale=2.0)
    assert (back.request.loras, back.request.decay, back.request.guidance_scale) == ((), job.request.decay, 2.0)


def test_interrupted_transactions_leave_nothing_open(store: JobStore) -> None:
    def interrupted() -> Any:
        yield from jobs(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(interrupted())
    assert store.find() == []
    assert len(store.add(jobs(1))) == 1


def test_many_ids_at_once(store: JobStore) -> None:
    assert len({new_id() for _ in range(50_000)}) == 50_000
    ids = [job.id for job in store.add(jobs(1) * 1200)]
    ids.reverse()
    assert list(store.states([*ids, "gone"])) == ids


def test_devices_and_batches(store: JobStore) -> None:
    on_gpu = make_request(prompt="gpu", device="cuda:1", seed=1)
    store.add([Job(id="", request=on_gpu), *jobs(1, batch="b")])
    assert store.claim("w", devices=("auto", "cpu"), batch="c") is None
    claimed = store.claim("w", devices=("auto", "cpu"))
    assert claimed is not None
    assert claimed.batch == "b"
    assert store.claim("w", devices=("auto", "cpu")) is None
    assert store.claim("w", devices=("auto", "cuda:1")) is not None


def hold(folder: Path, name: str, claimed: Any) -> None:
    with JobStore(folder) as store, store.locks.alive(name):
        job = store.claim(name)
        claimed.put(job and job.id)
        time.sleep(60)


def test_jobs_of_dead_workers_go_back(store: JobStore, data_folder: Path) -> None:
    (job,) = store.add(jobs(1))
    context = multiprocessing.get_context("spawn")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claimed: Any = context.Queue()  # one each: a process that is killed may leave its lock behind
        process = context.Process(target=hold, args=(data_folder, f"w{attempt}", claimed))
        process.start()
        assert claimed.get(timeout=1800) == job.id
        assert store.recover() == []
        assert store.locks.living() == [f"w{attempt}"]
        store.progress(job.id, "denoise", 3, 20, 0, None)
        process.kill()
        process.join()
        assert [found.id for found in store.recover()] == [job.id]
        assert store.locks.living() == []
    found = store.get(job.id)
    assert found.state == "failed"
    assert found.error == f"its worker died in stage denoise, step 3 of 20, {MAX_ATTEMPTS} times in a row"
    assert sum(kind == "error" for _, _, kind, _ in store.events(job.id)) == MAX_ATTEMPTS
    store.retry([job.id])
    assert store.get(job.id).attempts == 0


def test_jobs_that_get_further_are_not_poison(store: JobStore) -> None:
    (job,) = store.add(jobs(1))
    for _ in range(2 * MAX_ATTEMPTS):
        assert store.claim("dead") is not None
        store.got_further(job.id)
        store.recover()
        assert store.get(job.id).state == "queued"


def take(folder: Path, number: int, taken: Any) -> None:
    mine = []
    with JobStore(folder) as store:
        while (job := store.claim(f"w{number}")) is not None:
            mine.append(job.id)
    taken.put(mine)


def test_no_job_is_taken_twice(store: JobStore, data_folder: Path) -> None:
    added = store.add(jobs(40))
    context = multiprocessing.get_context("spawn")
    taken: Any = context.Queue()
    processes = [context.Process(target=take, args=(data_folder, number, taken)) for number in range(3)]
    for process in processes:
        process.start()
    everything = [id_ for _ in processes for id_ in taken.get(timeout=1800)]
    assert sorted(everything) == sorted(job.id for job in added)


def test_a_clock_that_jumps_back(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = store.add(jobs(1))
    assert store.claim("w") is not None
    store.end(job.id, "queued", "waits for disk space", wait=30)
    assert store.claim("w") is None
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now - 10 * 86_400)
    assert store.claim("w") is not None


def test_a_locked_database(store: JobStore, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(jobs(1))
    other = sqlite3.connect(data_folder / "jobs.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    store._database.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(OutputError, match="locked by another program"):
        store.claim("w")
    assert len(store.find()) == 1  # readers never wait
    store._database.execute("PRAGMA busy_timeout = 5000")
    threading.Timer(0.3, other.rollback).start()
    assert store.claim("w") is not None


def test_folders_that_cannot_hold_jobs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--data-dir"):
        JobStore(tmp_path / "file" / "data")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "jobs.db").write_bytes(b"no database" * 100)
    with pytest.raises(OutputError, match="broken"):
        JobStore(tmp_path / "broken")
    JobStore(tmp_path / "later").close()
    database = sqlite3.connect(tmp_path / "later" / "jobs.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(OutputError, match="later version"):
        JobStore(tmp_path / "later")


def test_what_was_made_before(store: JobStore, tmp_path: Path) -> None:
    (job,) = store.add(jobs(1, digest="d"))
    store.claim("w")
    assert store.finished_with("d") is None
    file = tmp_path / "a.mp4"
    file.write_text("a")
    store.record_file(job.id, 0, ResultFile(str(file), "x", 0, 12.5, True))
    store.end(job.id, "done")
    assert store.finished_with("d") is not None
    assert store.seconds_of(job.request) == 12.5
    assert store.seconds_of(job.request.model_copy(update={"num_frames": 129})) is None
    file.unlink()
    assert store.finished_with("d") is None


def test_clips_that_leave_something_out_are_no_measure_of_others(store: JobStore, tmp_path: Path) -> None:
    """Nor the other way round; clips of before there was such a thing count as those that leave nothing out."""
    made = {"off": {}, "cache": {"cache": "auto"}, "interval": {"guidance_end": 0.5}}
    for index, (name, fields) in enumerate(made.items()):
        request = make_request(prompt="a", seed=1, **fields).resolve()
        (job,) = store.add([Job(id="", request=request, output=Output(folder=str(tmp_path)))])
        store.claim("w")
        store.record_file(job.id, 0, ResultFile(str(tmp_path / name), "x", 0, 10.0 * (index + 1), True))
        store.end(job.id, "done")
    plain = make_request(prompt="b", seed=2).resolve()
    database = sqlite3.connect(store.folder / "jobs.db")
    with database:
        database.execute(
            "UPDATE jobs SET request = "
            "json_remove(request, '$.cache', '$.guidance_start', '$.guidance_end', '$.decoder', "
            "'$.batched_guidance')"
            " WHERE json_extract(request, '$.cache') = 'off' AND json_extract(request, '$.guidance_end') = 1"
        )
    database.close()
    assert store.seconds_of(plain) == 10.0
    assert store.seconds_of(plain.with_values(cache="auto")) == 20.0
    assert store.seconds_of(plain.with_values(guidance_end=0.5)) == 30.0
    assert store.seconds_of(plain.with_values(cache="fast")) is None
    assert store.seconds_of(plain.with_values(guidance_start=0.5)) is None
    assert store.seconds_of(plain.with_values(control_video="a.mp4", strength=0.5)) is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{colour}", "known are index"), ("{index.real}", "known are"), ("{index:99999}", "widths such as 03"),
        ("../{seed}", "inside the output folder"), ("/tmp/{seed}", "inside the output folder"), ("{", "no template"),
        ("{seed!r}", "known are"), ("", "inside the output folder"), ("{}", "known are"),
    ],
)  # fmt: skip
def test_templates_that_are_refused(name: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        make_output(name=name)


def test_names_from_templates() -> None:
    request = make_request(prompt="A fox; ../../etc", model="a/b", seed=5, height=32, width=48)
    job = Job(id="j", request=request, index=7, output=Output(folder="/out", name="{model}/{index:03}-{slug}-{seed}"))
    assert job.output.path(job.name_values(request, 0)) == Path("/out/a-b/007-a-fox-etc-5.mp4")
    assert slug("A large red star, moving from left to right; on a striped background!") == (
        "a-large-red-star-moving-from-left-to-right-on-a-striped"
    )
    assert slug("Ein größerer Kreis_für 字!") == "ein-größerer-kreis-für-字"
    assert slug("e\u0301toile") == "\u00e9toile"
    assert slug("!?") == "video"


def test_ids_sort_by_time() -> None:
    code = "from radial_app.jobs.store import new_id; print(new_id())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert new_id()[:8] >= done.stdout.strip()[:8]


def test_jobs_of_an_older_version_are_taken_over(tmp_path: Path) -> None:
    """The tables of version 1 knew no accounts."""
    database = sqlite3.connect(tmp_path / "jobs.db")
    database.executescript(_SCHEMA)
    database.execute("PRAGMA user_version = 1")
    request = make_request(prompt="a", seed=1).resolve().model_dump_json()
    database.execute(
        "INSERT INTO jobs (id, state, position, request, output, created) VALUES ('1a', 'done', 1, ?, '{}', 1)",
        (request,),
    )
    database.commit()
    database.close()
    with JobStore(tmp_path) as store:
        assert (store.get("1a").owner, store.get("1a").favourite) == ("", False)
        store.favour("1a", True)
    with JobStore(tmp_path) as store:
        assert [job.id for job in store.page(("done",), favourites=True)] == ["1a"]
