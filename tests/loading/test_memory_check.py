"""What a model needs is known without it, and a clip that a machine cannot make is refused at every door."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from radial.errors import RequestError
from radial.loading.memory_check import check_all_fit, check_fits, find_weights
from radial.models.architecture import named_architectures, named_weights
from radial.models.table import MODELS
from radial.request import make_request
from radial_app.cli.main import main
from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths

# Billions of numbers in a transformer, as its authors or its files say.
SAID = {
    "wan2.1-1.3b": 1.42, "wan2.1-14b": 14.29, "wan2.1-i2v-14b-480p": 16.40, "wan2.2-ti2v-5b": 5.0,
    "hunyuan-video": 12.82,
    "hunyuan-video-1.5": 8.33, "mochi": 10.03, "ltx-video": 1.92, "ltx-2": 18.88, "cogvideox-5b": 5.57, "allegro": 2.77,
    "minimax-h3": 33.12, "anyflow-wan2.1-14b": 14.32,
}  # fmt: skip


@pytest.mark.parametrize(
    "model", [name for name, spec in MODELS.items() if spec.starts_from and not spec.source.startswith("bundled:")]
)
def test_every_offered_model_has_its_sizes(model: str) -> None:
    weights = named_weights(MODELS[model])
    assert weights is not None
    assert {"transformer", "vae", "text_encoder"} <= weights.components.keys()
    assert ("transformer_2" in weights.components) == MODELS[model].has_two_transformers
    one = named_architectures()[model]
    counted = sum(weight.bytes(1) for weight in weights.components["transformer"])
    assert counted == pytest.approx(one.numbers[0], rel=1e-6)
    if model in SAID:
        assert counted / 1e9 == pytest.approx(SAID[model], abs=0.01)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIAL_FORCE", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=25e9))


LARGE = {"prompt": "a red circle rises", "model": "wan2.1-14b", "device": "cpu"}
TOLD = r"needs about \d+ GB of memory, and this machine has 25 GB: take a smaller model"


@pytest.mark.usefixtures("strict")
def test_a_clip_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    large = make_request(**LARGE).resolve()
    with pytest.raises(RequestError, match=TOLD):
        check_fits(large)
    check_fits(make_request(prompt="a red circle rises", device="cpu").resolve())
    monkeypatch.setenv("RADIAL_FORCE", "1")
    check_fits(large)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "larger", [{"height": 1440, "width": 2560}, {"num_frames": 161}, {"precision": "eight_bit_weights"}]
)
def test_of_several_each_that_differs_is_asked(larger: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("radial.loading.memory_check.check_fits", asked.append)
    small = make_request(prompt="a", seed=1).resolve()
    other = make_request(prompt="a", seed=1, **larger).resolve()
    check_all_fit([small, other, make_request(prompt="b", seed=2).resolve()])
    check_all_fit([other, small])
    assert asked == [small, other, other, small]


@pytest.mark.usefixtures("strict")
def test_the_command_line_and_job_files_refuse_it(tmp_path: Path, capsys: Any) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("defaults: {model: wan2.1-14b, device: cpu}\njobs: [{prompt: a red circle}]\n")
    for command in (
        ["generate", "a red circle", "--model", "wan2.1-14b", "--queue"], ["generate", "a", "--model", "wan2.1-14b"],
        ["render", str(jobs)],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*command, *data])
        assert ended.value.code == 2
        assert "this machine has 25 GB" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["generate", "a red circle", "--model", "wan2.1-14b", "--queue", "--force", *data])
    assert ended.value.code == 0


@pytest.mark.usefixtures("strict")
def test_the_server_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    client = TestClient(make_app(ServerPaths(tmp_path / "data", tmp_path / "out")), base_url="http://127.0.0.1")
    refused = client.post("/v1/videos", json={"prompt": "a red circle", "model": "wan2.1-14b"})
    assert refused.status_code == 422
    assert "this machine has 25 GB" in refused.json()["error"]["message"]
    assert client.post("/v1/videos", json={"prompt": "a red circle"}).status_code == 200


def test_a_model_without_a_name_is_asked_by_its_files(wan_folder: Path) -> None:
    request = make_request(prompt="a", model=str(wan_folder)).resolve()
    spec, weights = find_weights(request)
    assert spec.source == str(wan_folder)
    assert weights is not None
    assert weights.components["transformer"][0].shape
