"""What layers contribute is measured, kept, and becomes a policy that is followed exactly."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import radial
from radial import ModelError, RadialError, RequestError
from radial.generation.pipeline import describe_run, generate
from radial.generation.snapshot import read_snapshot
from radial.loading.load import load
from radial.plans.measured.budget import spend
from radial.plans.measured.policy_file import About, PolicyFile, bundled_policies, policy_path, read_policy
from radial.plans.planner import AdaptivePlanner
from radial.plans.policy import DENSE, TablePolicy
from radial.profiling.profile import profile
from radial.request import GenerationRequest, make_request
from radial_app.cli.main import main
from radial_app.jobs.presets import Presets
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Visitor
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths
from radial_app.server.uploads import Inputs

LAYERS, PARTS, STEPS = 3, 2, 4


def clip(folder: Path, **fields: Any) -> GenerationRequest:
    return make_request(
        **{"model": str(folder), "prompt": "a", "height": 64, "width": 64, "num_frames": 17, "block_size": 16,
           "num_inference_steps": STEPS, "seed": 1} | fields
    )  # fmt: skip


def written(path: Path, error: Any, **about: Any) -> Path:
    """A file of numbers, for the clips of :func:`clip`."""
    told = About(
        **{"model": "wan", "grid": (5, 4, 4), "height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 4,
           "densities": (0.2, 0.6), "block_size": 16, "far_field": "mean", "token_order": "columns", "sink_frames": 1,
           "prompts": 1, "weights": "x", "device": "cpu", "radial": "0"} | about
    )  # fmt: skip
    shares, seconds = np.array([1, 0.25, 0.625], np.float32), np.array([2, 1, 1.5], np.float32)
    PolicyFile(told, np.array(error, np.float32), shares, seconds).write(path, overwrite=True)
    return path


# The first layer counts everywhere, the last in the first half: of two parts, three layers, two planners.
COUNTS = [[[9, 8], [0.1, 0.01], [3, 0.2]], [[9, 8], [0.2, 0.1], [0.3, 0.01]]]


def test_the_budget_is_spent_where_it_counts() -> None:
    """As well as any spending of it, but for one cell's step, and never beyond it."""
    generator = np.random.default_rng(0)
    costs = np.array([1, 0.2, 0.4], np.float32)
    for _ in range(20):
        error = generator.random((1, 4, 2)).astype(np.float32)
        whole = np.concatenate([np.zeros((1, 4, 1), np.float32), error], -1)
        for budget in (0.2, 0.35, 0.6, 1.0):
            (row,) = spend(error, costs, budget).rows
            ours = whole[0, range(4), row].sum()
            assert costs[list(row)].mean() <= budget + 1e-6
            for others in itertools.product(range(3), repeat=4):
                if costs[list(others)].mean() <= budget - 0.8 / 4 + 1e-6:
                    assert ours <= whole[0, range(4), others].sum() + 1e-6
            assert (row == (DENSE,) * 4) == (budget == 1)
    table = TablePolicy(((0, 1), (2, 1), (1, 1)))
    assert [table.choose(0, step, 7) for step in range(7)] == [0, 0, 0, 2, 2, 1, 1]
    with pytest.raises(ModelError, match="measured on 2 layers"):
        table.choose(2, 0, 7)


def test_a_profile_stops_goes_on_and_is_right(wan_folder: Path, tmp_path: Path) -> None:
    request = clip(wan_folder)
    model = load(request.resolve())
    settings: dict[str, Any] = {"densities": (0.2, 0.8), "parts": PARTS, "model": model}
    total = 2 * PARTS * LAYERS * 2

    def stop(done: int, _total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    output = tmp_path / "some.safetensors"
    with pytest.raises(KeyboardInterrupt):
        profile(request, ["a", "a red circle"], output, on_progress=stop, **settings)
    kept = tmp_path / "some.safetensors.progress"
    assert not output.exists()
    assert len(kept.read_text().splitlines()) == 1 + 1 + 15  # what it is of, seconds, numbers
    with pytest.raises(RequestError, match="profile with other settings"):
        profile(request, ["a"], output, **settings)
    kept.write_text(kept.read_text() + '{"place": [0, ')  # killed while it wrote
    calls: list[int] = []
    found = profile(request, ["a", "a red circle"], output, on_progress=lambda done, _: calls.append(done), **settings)
    assert calls == list(range(15, total + 1))
    assert not kept.exists()
    assert read_policy(output).about == found.about
    assert (found.about.model, found.about.grid, found.about.token_order) == ("wan", (5, 4, 4), "columns")
    assert found.shares[0] == 1
    assert 0.2 < found.shares[1] < found.shares[2] < 1

    # Two numbers, measured another way: dense runs whose last layer is sparse at the middle step of a part.
    def velocities(policy: TablePolicy, prompt: str) -> list[torch.Tensor]:
        taken: list[torch.Tensor] = []
        planners = [AdaptivePlanner(0.2, 16)]
        hook = model.pipe.transformer.register_forward_hook(lambda *args: taken.append(args[-1][0].clone()))
        with radial.apply(
            model.pipe, planners=planners, policy=policy, far_field="mean", token_order="columns", block_size=16
        ):
            list(generate(request.with_values(attention="dense", prompt=prompt), model=model))
        hook.remove()
        return taken[::2]  # guided: two calls a step

    dense, sparse = (0, 0, 0), (0, 0, 1)
    errors = []
    for prompt in ("a", "a red circle"):
        reals = velocities(TablePolicy((dense,) * 4), prompt)
        for step in (1, 3):
            table = TablePolicy(tuple(sparse if one == step else dense for one in range(4)))
            ours, real = velocities(table, prompt)[step], reals[step]
            errors.append(float((ours - real).square().sum() / real.square().sum()))
    means = np.reshape(errors, (2, 2)).mean(0)
    assert found.error_KLM[:, 2, 0].tolist() == pytest.approx(means.tolist(), rel=1e-3)


def test_a_policy_is_followed_exactly(wan_folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "wan.safetensors", COUNTS)
    request = clip(wan_folder, policy=str(file), target_share=0.6).resolve()
    assert (request.attention, request.far_field, request.token_order) == ("adaptive", "mean", "columns")
    table = request.attention_settings.make_policy()
    assert table == TablePolicy(((0, 1, 2), (0, 1, 1)))
    faster = clip(wan_folder, policy=str(file), target_speed=1.6).resolve()
    assert faster.attention_settings.make_policy() == TablePolicy(((0, 1, 2), (1, 1, 1)))
    assert clip(wan_folder, policy=str(file)).resolve().target_share == 0.4
    model = load(request)
    chosen: list[tuple[int, ...]] = []
    blocks = model.pipe.transformer.blocks
    hook = blocks[0].register_forward_pre_hook(
        lambda *_: chosen.append(tuple(block.attn1.processor.radial_choice for block in blocks))
    )

    def on_step(step: Any) -> Any:
        step.snapshot().write(tmp_path / f"{step.step}.safetensors")
        return "go on"

    (video,) = generate(request, model=model, on_step=on_step)
    assert chosen == [(0, 1, 2)] * 4 + [(0, 1, 1)] * 4  # guided: two calls a step
    told = video.receipt["attention"]
    assert told["policy"] == {
        "name": "wan.safetensors", "fingerprint": video.receipt["inputs"]["policy"]["fingerprint"], "target_share": 0.6,
    }  # fmt: skip
    with radial.apply(model.pipe, **read_policy(file).as_arguments(target_share=0.6)) as installed:  # of one's own
        model.pipe(
            "a", height=64, width=64, num_frames=17, num_inference_steps=STEPS, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert installed.computed_share == pytest.approx(told["computed_share"], abs=1e-3)
    settings = request.attention_settings.model_copy(update={"far_field": "drop"})  # a receipt tells of blocks alone
    shares = settings.shares(request.grid(model.spec))
    assert told["computed_share"] == pytest.approx(settings.work(shares, LAYERS, STEPS).mean(), abs=1e-3)
    snapshot = read_snapshot(tmp_path / "3.safetensors", describe_run(request, model))
    assert snapshot is not None
    (resumed,) = generate(request, model=model, snapshot=snapshot)
    assert np.array_equal(resumed.frames, video.frames)
    assert resumed.receipt["attention"] == told
    before = describe_run(request, model)
    written(file, np.array(COUNTS)[:, ::-1])  # the same file, other numbers: another run
    assert describe_run(request, model) != before
    (other,) = generate(request, model=model, snapshot=snapshot)
    assert not np.array_equal(other.frames, video.frames)
    hook.remove()


def test_what_a_policy_is_not_for_is_refused(wan_folder: Path, tmp_path: Path) -> None:
    file = str(written(tmp_path / "a.safetensors", COUNTS))

    def refuse(says: str, **fields: Any) -> None:
        with pytest.raises(RadialError, match=says):
            clip(wan_folder, **{"policy": file} | fields).resolve()

    refuse("measured on wan, not on tiny", model="tiny", height=128, width=128, num_frames=33)
    refuse("measured at 64x64 and 17 frames", num_frames=33)
    refuse("measured at 64x64", width=128)
    refuse("policy is for adaptive attention, not radial", attention="radial")
    refuse("measured with far_field mean, not drop", far_field="drop")
    refuse(r"target_share must be at least 0\.25 .*, not 0\.1", target_share=0.1)
    refuse(r"target_speed must be at most 2 .*on cpu, not 3", target_speed=3)
    refuse("exclude each other", target_speed=1.5, target_share=0.5)
    refuse("target_share needs policy", policy=None, target_share=0.5)
    refuse("no policy file", policy=str(tmp_path / "gone.safetensors"))
    refuse("names no policy", policy="bundled:../a")
    assert clip(wan_folder, policy=file, num_frames=21).resolve().clip_frames == 21  # near enough
    for name in bundled_policies():  # what comes with the package is for what it says
        about = read_policy(policy_path(name)).about
        size = {"height": about.height, "width": about.width, "num_frames": about.num_frames}
        own = make_request(prompt="a", model=about.model, policy=name, **size).resolve()
        assert [Path(lora.path).name for lora in own.loras] == [lora["name"] for lora in about.loras]
    text = Path(file).read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(text[:-9])
    refuse("torn.safetensors is broken", policy=str(tmp_path / "torn.safetensors"))
    later = text.replace(b'{\\"version\\":1', b'{\\"version\\":7')
    assert later != text
    (tmp_path / "later.safetensors").write_bytes(later)
    refuse("version 7, and this radial reads 1", policy=str(tmp_path / "later.safetensors"))
    adapter = clip(wan_folder, policy=str(Path(__file__).parents[1] / "before" / "adapter.safetensors"))
    with pytest.raises(RequestError, match=r"policy: adapter\.safetensors is no policy"):
        adapter.check_files()
    for numbers in (np.full((1, 1, 2), np.nan), np.full((1, 1, 3), 1.0), np.full((1, 1, 2), -1.0)):
        with pytest.raises(ValueError, match="its tables"):
            written(tmp_path / "bad.safetensors", numbers)


def test_commands_profile_and_draw(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("# two\na\n\na red circle\n")

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--model", str(wan_folder), "--size", "64x64", "--num-frames", "17"])
        return int(ended.value.code or 0), *capsys.readouterr()

    steps = ("--num-inference-steps", "2", "--parts", "1", "--density", "0.3")
    code, out, err = run("profile", "--prompts", "few.txt", "-o", "p.safetensors", *steps)
    assert (code, out.strip()) == (0, "p.safetensors"), err
    assert read_policy(Path("p.safetensors")).about.prompts == 2
    code, _, err = run("profile", "--prompts", "few.txt", "-o", "p.safetensors", *steps)
    assert code == 2
    assert "exists" in err
    drawn = ("--policy", "p.safetensors", "--target-share", "0.9", "--json", "-o", "p.png")
    code, out, err = run("inspect", *drawn[:-2], "--output", "p.png")
    assert code == 0, err
    (plan,) = json.loads(out)["plans"]  # of the one density: what is not dense
    assert plan["of_layers_and_steps"] == pytest.approx(1 / 3)
    assert 0.5 < json.loads(out)["attention_computed"] <= 0.9
    assert Path("p.png").stat().st_size > 1000
    code, _, err = run("inspect", "--policy", "p.safetensors", "--target-share", "0.05")
    assert code == 2
    assert "--target-share must be at least" in err


def test_a_server_knows_policies_by_name(tmp_path: Path) -> None:
    paths = ServerPaths(tmp_path / "data", tmp_path / "out")
    paths.data.mkdir()
    client = TestClient(make_app(paths), base_url="http://127.0.0.1")
    file = written(
        tmp_path / "of-tiny.safetensors", COUNTS, model="tiny", grid=(9, 8, 8), height=128, width=128, num_frames=33
    )
    bad = client.post("/v1/policies", files={"file": ("a.safetensors", b"pickle")})
    assert bad.status_code == 422
    name = client.post("/v1/policies", files={"file": ("../of tiny.safetensors", file.read_bytes())}).json()["id"]
    assert name == "of-tiny.safetensors"
    listed = {one["id"]: one for one in client.get("/v1/policies").json()}
    assert (listed[name]["model"], listed[name]["num_frames"]) == ("tiny", 33)
    picture = client.get(f"/v1/policies/{name}/work.png?target_share=0.5&steps=7")
    assert picture.content.startswith(b"\x89PNG")
    assert client.get(f"/v1/policies/{name}/work.png?target_share=0.01").status_code == 422
    fields = {"prompt": "a red circle", "policy": name, "target_share": 0.5}
    made = client.post("/v1/videos", json=fields)
    assert made.status_code in (200, 201, 202), made.text
    assert made.json()["request"]["policy"] == name  # no path is told
    for path in (str(file), "../of-tiny.safetensors", str(paths.data / "policies" / name)):
        refused = client.post("/v1/videos", json=fields | {"policy": path})
        assert refused.status_code == 422
        assert "there is no policy" in refused.text
    kept = client.put("/v1/presets/quick", json={"policy": name, "target_share": 0.5, "prompt": "no setting"})
    assert kept.json()["fields"] == {"policy": name, "target_share": 0.5}
    assert client.put("/v1/presets/other", json={"policy": str(file)}).status_code == 422
    made = client.post("/v1/videos", json={"prompt": "a red circle", "preset": "quick"}).json()["request"]
    assert (made["policy"], made["attention"], made["target_share"]) == (name, "adaptive", 0.5)
    # What is given says the same in its own way.
    applied = Presets(paths.data).apply({"prompt": "a", "target_speed": 1.5, "preset": "quick"})
    assert (applied["target_speed"], applied.get("target_share"), Path(applied["policy"]).name) == (1.5, None, name)
    refused = client.post("/v1/videos", json={"prompt": "a", "model": "wan2.1-1.3b", "preset": "quick"})
    assert "the policy was measured on tiny, not on wan2.1-1.3b" in refused.text
    with JobStore(paths.data) as store:
        inputs = Inputs(store, Visitor("", admin=True))
        with pytest.raises(RequestError, match="policy names no upload"):
            inputs.check(make_request(prompt="a", policy=str(file)))
    assert client.delete(f"/v1/policies/{name}").status_code == 200
    assert client.get("/v1/policies").json() == [one for one in listed.values() if one["bundled"]]
    assert policy_path("bundled:none").name == "none.safetensors"
