"""The command of a clip makes the same clip: it is run, as far as the queue."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from radial import Video
from radial.request import make_request
from radial_app.cli.main import main
from radial_app.jobs.command import command_of
from radial_app.jobs.job import Job, anchored, make_output
from radial_app.jobs.store import JobStore

REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "another model": {"model": "wan2.1-1.3b"},
    "from an image": {"model": "wan2.1-i2v-14b-480p", "image": "a.png"},
    "from image to image": {"model": "wan2.1-flf2v-14b", "image": "a.png", "last_image": "a.png", "image_fit": "pad"},
    "image or text, with settings of their own": {"model": "skyreels-v2-df-1.3b", "image": "a.png"},
    "from a clip": {"model": "wan2.2-ti2v-5b", "extend": "a.mp4", "image_ground": "#102030"},
    "made over": {"control_video": "a.mp4", "strength": 0.5},
    "steered": {"model": "wan2.1-vace-1.3b", "control_video": "a.mp4", "mask": "a.png", "image": "a.png",
                "references": ["a.png", "a.png"], "keyframes": ["3:a.png", "-1:a.png"]},
    "animated": {"model": "wan2.2-animate-14b", "control_video": "a.mp4", "face_video": "a.mp4",
                 "references": ["a.png"], "background_video": "a.mp4", "mask": "a.png", "num_frames": 81},
    "prompts one after the other": {"then": ["it stops", "it falls"], "num_frames": 65, "long_adapter": False},
    "longer, with the adapter that comes for it": {"num_frames": 65},
    "longer, without it": {"num_frames": 65, "long_adapter": False},
    "adapters": {"loras": [{"path": "bundled:tiny-long", "weight": -0.5}, {"path": "bundled:tiny-long"}]},
    "another length than an adapter's": {"loras": [{"path": "bundled:tiny-long"}], "num_frames": 33},
    "numbers": {"guidance_scale": 0, "num_inference_steps": 7, "fps": 8, "flow_shift": 2.5, "sampler": "unipc",
                "num_videos": 3, "seed": 0},
    "attention": {"attention": "dense", "decay": 0.5, "dense_layers": 0, "dense_steps": 0, "dense_last_steps": 1,
                  "block_size": 32, "sink_frames": 0, "variant": "paper", "skip_width": 4,
                  "far_field": "pyramid", "token_order": "columns"},
    "attention by content": {"attention": "adaptive", "density": 0.2, "dense_steps": 3, "early_density": 0.5,
                             "dense_every": 4, "dense_above": 0.2},
    "two experts": {"model": "wan2.2-a14b", "guidance_scale_2": 1.5, "height": 480, "width": 832},
    "words": {"prompt": "--a 'quoted' \"word\" $HOME; ls\n字", "negative_prompt": "-dark"},
    "no words to avoid": {"model": "wan2.1-14b", "negative_prompt": ""},
    "slower": {"riflex": True, "num_frames": 65, "precision": "eight_bit_weights", "dtype": "float32", "memory": "low",
               "device": "cpu"},
    "not slower, though an adapter was": {"loras": [{"path": "bundled:tiny-long"}], "riflex": False},
    "less computed": {"cache": "fast", "guidance_start": 0.1, "guidance_end": 0.6},
    "a draft": {"decoder": "lightx2v/Autoencoders/taew2_1.safetensors", "batched_guidance": True},
    "snapped": {"num_frames": 34, "height": 130, "snap": True},
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(
    "encoding",
    [{}, pytest.param({"format": "webm", "codec": "av1", "crf": 30, "metadata": False}, marks=pytest.mark.slow)],
)
def test_a_command_makes_the_same_request(
    name: str, encoding: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    Video(np.zeros((5, 64, 64, 3), np.uint8), 16).write(tmp_path / "a.mp4")
    monkeypatch.setenv("RADIAL_FORCE", "1")
    monkeypatch.setenv("RADIAL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    request = anchored(make_request(**{"prompt": "a red fox", "seed": 5} | REQUESTS[name])).resolve()
    job = Job(id="", request=request, output=make_output(folder=str(tmp_path), encoding=encoding))
    words = shlex.split(command_of(job))
    assert words[:2] == ["radial", "generate"]
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--queue", *words[2:]])
    assert ended.value.code == 0, capsys.readouterr().err
    with JobStore() as store:
        (again,) = store.find()
    left_out = {"snap"}
    assert again.request.model_dump(exclude=left_out) == request.model_dump(exclude=left_out)
    assert again.output.encoding == job.output.encoding
    if name == "plain" and not encoding:
        assert words == ["radial", "generate", "a red fox", "--seed", "5"]
