"""Requests: limits, messages fit for a user, and what a model fills in."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radial import GenerationRequest, ModelError, RequestError
from radial.models.checkpoint import check_checkpoint
from radial.models.find import find_model
from radial.models.table import MODELS, models_page
from radial.request import make_request


def test_open_fields_take_the_models_values() -> None:
    request = make_request(prompt="a red circle rises").resolve()
    assert (request.height, request.width, request.num_frames, request.fps) == (128, 128, 33, 16)
    assert request.seed >= 0
    assert make_request(prompt="a", num_frames=17, seed=4).resolve().num_frames == 17
    left_open = {name for name, value in request.model_dump().items() if value is None}
    assert left_open == {
        "guidance_scale_2",
        "true_cfg_scale",
        "flow_shift",
        "image",
        "last_image",
        "extend",
        "positions",
        "control_video",
        "mask",
        "strength",
        "face_video",
        "background_video",
        "enhance",
        "original_prompt",
        "policy",
        "target_share",
        "target_speed",
    }


def test_a_drawn_seed_is_recorded_and_kept() -> None:
    first, second = make_request(prompt="a").resolve(), make_request(prompt="a").resolve()
    assert first.seed != second.seed
    assert first.resolve() == first


def test_requests_survive_json() -> None:
    request = make_request(prompt="ä 字", loras=[{"path": "a.safetensors", "weight": 0.5}], seed=3).resolve()
    assert GenerationRequest(**json.loads(request.model_dump_json())) == request


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "   "}, "prompt must not be empty"),
        ({"height": 100}, r"height must be a multiple of 16 for tiny, not 100; the nearest are 96 and 112"),
        ({"width": 130}, r"width .* the nearest are 128 and 144"),
        ({"num_frames": 32}, r"multiple of 4 plus 1 for tiny, not 32; the nearest are 29 and 33"),
        ({"num_frames": 2}, r"the nearest are 1 and 5"),
        ({"num_inference_steps": 0}, "num_inference_steps must be greater than or equal to 1, not 0"),
        ({"num_inference_steps": -3}, "num_inference_steps .* not -3"),
        ({"seed": -2}, "seed .* not -2"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"attention": "sparse"}, "attention must be 'radial', 'adaptive' or 'dense', not 'sparse'"),
        ({"block_size": 48}, "block_size must be 16, 32, 64, 128 or 256, not 48"),
        ({"model": "wan9"}, r"unknown model 'wan9'; give one of `radial models`"),
        ({"colour": "red"}, "colour"),
        ({"loras": [{"path": "a", "weight": "x"}]}, r"loras\.0\.weight"),
        ({"seed": 2**53 - 1, "num_videos": 2}, "leaves no room"),
    ],
)
def test_wrong_values_are_named_with_the_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_request(**{"prompt": "a red circle", **fields}).resolve()


values = st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(list(GenerationRequest.model_fields)), values))
def test_any_input_gives_a_request_or_our_error(fields: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError, ModelError):
        make_request(**fields).resolve()


def test_models_are_found_by_name_hub_id_and_folder(wan_folder: Path) -> None:
    assert find_model("tiny") is MODELS["tiny"]
    assert find_model("Wan-AI/Wan2.1-T2V-14B-Diffusers") is MODELS["wan2.1-14b"]
    with pytest.raises(ModelError, match="no folder someone/their-wan here, and the Hugging Face hub is not asked"):
        find_model("someone/their-wan")
    assert find_model(str(wan_folder)).stride == (4, 16, 16)


def test_every_model_can_make_its_own_defaults() -> None:
    for spec in MODELS.values():
        spec.check_size(spec.height, spec.width, spec.num_frames)
        assert (spec.native_frames - spec.first_frame) % spec.stride[0] == 0


def test_folders_that_cannot_be_loaded_safely(tmp_path: Path, wan_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        find_model(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{broken")
    with pytest.raises(ModelError, match="cannot read"):
        find_model(str(tmp_path))
    index = {"_class_name": "DDPMPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="holds a DDPMPipeline; radial drives Allegro"):
        check_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanPipeline"}))
    with pytest.raises(ModelError, match="lacks the weights of its transformer"):
        check_checkpoint(tmp_path)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="only pickled weights"):
        check_checkpoint(tmp_path)
    check_checkpoint(wan_folder)


def test_the_page_of_models_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text() == models_page(), "run: python -m radial.models.table > docs/models.md"
