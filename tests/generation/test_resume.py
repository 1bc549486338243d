"""A run that goes on from a snapshot is the run that was never stopped, for every pipeline that can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_every_pipeline import DRIVEN
from tiny_pipelines import CASES

from radial import GenerationError, OutputError
from radial.generation.pipeline import describe_run, generate
from radial.generation.preview import preview_frame
from radial.generation.resume import RESUMABLE, GeneratorPart, Step, resumable_steps
from radial.generation.snapshot import Snapshot, read_snapshot
from radial.generation.watch import Event
from radial.loading.load import LoadedModel, load
from radial.request import GenerationRequest, make_request
from radial.video.clip import Video

STEPS = 4


@contextlib.contextmanager
def counting(model: LoadedModel) -> Iterator[list[int]]:
    """Counts the calls of a model's transformers that compute something."""
    calls = [0]
    transformers = [getattr(model.pipe, name, None) for name in ("transformer", "transformer_2")]
    hooks = []
    for transformer in (t for t in transformers if t is not None):
        block = next(m for m in transformer.modules() if isinstance(m, torch.nn.ModuleList))[0]

        def count(*_: Any) -> None:
            calls[0] += 1

        hooks.append(block.register_forward_pre_hook(count))
    yield calls
    for hook in hooks:
        hook.remove()


def keep_all(request: GenerationRequest, model: LoadedModel, folder: Path) -> Video:
    """The unbroken clip, with a snapshot of every step in a file."""

    def on_step(step: Step) -> Any:
        step.snapshot().write(folder / f"{step.step}.safetensors")
        return "go on"

    (video,) = generate(request, model=model, on_step=on_step)
    return video


@pytest.mark.parametrize("name", list(DRIVEN))
def test_every_pipeline_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    from PIL import Image

    case = CASES[name]
    case.build().save_pretrained(tmp_path / name)
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "start.png")
    image = str(tmp_path / "start.png") if "image" in DRIVEN[name] else None
    request = make_request(
        prompt="a red circle", model=str(tmp_path / name), height=64, width=96, num_frames=17, seed=3, image=image,
        snap=True, num_inference_steps=STEPS, dense_steps=1, attention="radial", far_field="mean",
    ).resolve()  # fmt: skip
    model = load(request)
    with counting(model) as calls:
        whole = keep_all(request, model, tmp_path)
        of_whole = calls[0]
        assert (type(model.pipe).__name__ in RESUMABLE) == (name not in ANEW)
        if name in ANEW:
            assert not list(tmp_path.glob("*.safetensors"))
            return
        for done in (1, 2, STEPS):
            calls[0] = 0
            snapshot = read_snapshot(tmp_path / f"{done}.safetensors", describe_run(request, model))
            assert snapshot is not None
            assert (snapshot.step, snapshot.steps) == (done, STEPS)
            events: list[Event] = []
            (resumed,) = generate(request, model=model, snapshot=snapshot, on_event=events.append)
            assert np.array_equal(resumed.frames, whole.frames), done
            assert calls[0] == of_whole * (STEPS - done) // STEPS
            assert resumed.receipt["attention"] == whole.receipt["attention"]
            told = [e.step for e in events if e.stage == "denoise" and e.step]
            assert told in (list(range(done, STEPS + 1)), list(range(done, STEPS)))  # the last may go untold
    (again,) = generate(request, model=model)
    assert np.array_equal(again.frames, whole.frames)


@pytest.fixture(scope="module")
def wan_model(wan_folder: Path) -> LoadedModel:
    return load(make_request(prompt="a", model=str(wan_folder), **SMALL))


SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": STEPS, "seed": 3}


@pytest.mark.parametrize("sampler", ["euler", "lcm", "unipc"])
def test_samplers_keep_their_memory(sampler: Any, wan_model: LoadedModel, wan_folder: Path, tmp_path: Path) -> None:
    request = make_request(prompt="a", model=str(wan_folder), **SMALL, sampler=sampler, flow_shift=2.0).resolve()
    whole = keep_all(request, wan_model, tmp_path)
    snapshot = read_snapshot(tmp_path / "3.safetensors", describe_run(request, wan_model))
    (resumed,) = generate(request, model=wan_model, snapshot=snapshot)
    assert np.array_equal(resumed.frames, whole.frames)


@pytest.mark.parametrize("name", ["wan", "anyflow", "hunyuan-video", "mochi", "ltx", "cogvideox"])
def test_a_look_at_a_clip_on_its_way(name: str, tmp_path: Path) -> None:
    """A frame of the clip's size where the latents lie as the autoencoder made them, nothing elsewhere."""
    CASES[name].build().save_pretrained(tmp_path / name)
    request = make_request(
        prompt="a red circle", model=str(tmp_path / name), height=64, width=96, num_frames=17, seed=3, snap=True,
        num_inference_steps=2,
    ).resolve()  # fmt: skip
    model = load(request)
    looks: list[Any] = []

    def on_step(step: Step) -> Any:
        looks.append(preview_frame(model.pipe, step.clean_latents()))
        return "go on"

    (video,) = generate(request, model=model, on_step=on_step)
    if name in ("ltx", "cogvideox"):  # packed latents; frames before channels, and a scheduler of its own kind
        assert all(look is None for look in looks)
        return
    assert [look.shape for look in looks] == [video.frames.shape[1:]] * 2
    if name == "wan":  # its middle latent frame alone is close to that of the whole
        middle = video.frames[len(video.frames) // 2].astype(int)
        assert np.abs(looks[-1].astype(int) - middle).mean() < np.abs(looks[-1].astype(int) - 255 + middle).mean()


def test_a_run_that_broke_in_the_middle(wan_model: LoadedModel, wan_folder: Path) -> None:
    """The pipeline is as before after an exception, also while steps are skipped; seconds add up."""
    request = make_request(prompt="a", model=str(wan_folder), **SMALL).resolve()
    (whole,) = generate(request, model=wan_model)
    kept: list[Snapshot] = []

    def stop_after(steps: int) -> Callable[[Step], Any]:
        def on_step(step: Step) -> Any:
            kept.append(step.snapshot())
            if step.step >= steps:
                raise GenerationError("stop")
            return "go on"

        return on_step

    for steps in (1, 2, 3):
        with pytest.raises(GenerationError, match="stop"):
            list(generate(request, model=wan_model, on_step=stop_after(steps), snapshot=kept[-1] if kept else None))
    assert [snapshot.step for snapshot in kept] == [1, 2, 3]
    assert 0 < kept[0].seconds["denoise"] < kept[1].seconds["denoise"] < kept[2].seconds["denoise"]
    assert not hasattr(wan_model.pipe.transformer, "_radial_forward")
    assert "step" not in vars(wan_model.pipe.scheduler)
    (resumed,) = generate(request, model=wan_model, snapshot=kept[-1])
    assert np.array_equal(resumed.frames, whole.frames)


def test_another_runs_snapshot_is_not_taken_up(wan_model: LoadedModel, wan_folder: Path, tmp_path: Path) -> None:
    request = make_request(prompt="a", model=str(wan_folder), **SMALL).resolve()
    keep_all(request, wan_model, tmp_path)
    other = request.model_copy(update={"prompt": "b"})
    file = tmp_path / "2.safetensors"
    assert read_snapshot(file, describe_run(other, wan_model)) is None
    snapshot = read_snapshot(file, describe_run(request, wan_model))
    (straight,) = generate(other, model=wan_model)
    (given,) = generate(other, model=wan_model, snapshot=snapshot)
    assert np.array_equal(given.frames, straight.frames)


def test_a_clip_that_is_finished_early(wan_model: LoadedModel, wan_folder: Path) -> None:
    """It shows where the step's velocity points to: at the last step that is the clip itself."""
    request = make_request(prompt="a", model=str(wan_folder), **SMALL, sampler="euler").resolve()
    (whole,) = generate(request, model=wan_model)
    clips = {}
    for when in (1, 3, STEPS):
        with counting(wan_model) as calls:
            (clips[when],) = generate(
                request, model=wan_model, on_step=lambda step, when=when: "finish" if step.step == when else "go on"
            )
        assert calls[0] == 2 * when
    assert np.array_equal(clips[STEPS].frames, whole.frames)
    error = {when: np.abs(clip.frames.astype(int) - whole.frames).mean() for when, clip in clips.items()}
    assert 0 < error[3] < error[1] < 40


def test_snapshots_that_cannot_be_written(
    wan_model: LoadedModel, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(prompt="a", model=str(wan_folder), **SMALL).resolve()
    keep_all(request, wan_model, tmp_path)
    file = tmp_path / "2.safetensors"
    before = file.read_bytes()
    about = describe_run(request, wan_model)
    snapshot = read_snapshot(file, about)
    assert snapshot is not None
    import safetensors.torch

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        snapshot.write(file)
    assert file.read_bytes() == before
    assert [path for path in tmp_path.iterdir() if "partial" in path.name] == []


@given(content=st.binary(max_size=200), cut=st.integers(0, 400))
def test_torn_files_are_no_snapshots(content: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    (folder / "a.safetensors").write_bytes(content)
    assert read_snapshot(folder / "a.safetensors", "x") is None
    parts = {"scheduler": {"a": [None, torch.ones(2)]}, "generator": torch.zeros(4, dtype=torch.uint8)}
    Snapshot(1, 2, torch.zeros(3), parts, about="x").write(folder / "b.safetensors")
    whole = (folder / "b.safetensors").read_bytes()
    if cut < len(whole):
        (folder / "b.safetensors").write_bytes(whole[:cut])
        assert read_snapshot(folder / "b.safetensors", "x") is None


def test_a_snapshot_holds_parts_by_name(tmp_path: Path) -> None:
    """Whatever a part says of itself comes back, and what cannot be kept is said."""
    story = {"chunk": 3, "memory": [torch.arange(4), {"frames": torch.ones(2, 3), "prompt": "a fox", "more": None}]}
    Snapshot(2, 5, torch.zeros(3), {"story": story, "counter": [1.5, 2]}, about="x").write(tmp_path / "a.safetensors")
    assert read_snapshot(tmp_path / "a.safetensors", "y") is None
    found = read_snapshot(tmp_path / "a.safetensors", "x")
    assert found is not None
    assert (found.step, found.steps, found.parts["counter"]) == (2, 5, [1.5, 2])
    back = found.parts["story"]
    assert torch.equal(back["memory"][0], story["memory"][0])  # type: ignore[index]
    assert torch.equal(back["memory"][1].pop("frames"), torch.ones(2, 3))
    assert (back["chunk"], back["memory"][1]) == (3, {"prompt": "a fox", "more": None})
    with pytest.raises(OutputError, match=r"cannot keep parts\.story\.chunk: it is a object"):
        Snapshot(1, 2, torch.zeros(3), {"story": {"chunk": object()}}).write(tmp_path / "a.safetensors")
    assert read_snapshot(tmp_path / "a.safetensors", "x") is not None  # as it was


def test_a_planners_state_goes_into_snapshots(wan_folder: Path) -> None:
    """What a planner of one's own knows of a run is there when the run goes on."""
    from diffusers import WanPipeline

    import radial
    from radial.plans.planner import Site, StaticPlanner

    class Counting(StaticPlanner):
        calls = 0

        def lists(self, site: Site, *content: Any) -> Any:
            type(self).calls += 1
            return super().lists(site)

        def state(self) -> dict[str, int]:
            return {"calls": self.calls}

        def restore(self, state: dict[str, int], device: torch.device) -> None:
            type(self).calls = state["calls"]

    pipe = WanPipeline.from_pretrained(wan_folder)
    with radial.apply(pipe, planners=[StaticPlanner(block_size=16), Counting(block_size=16)]) as first:
        Counting.calls = 7
        state = first.state()
    assert state["planners"] == {"1": {"calls": 7}}
    with radial.apply(pipe, planners=[StaticPlanner(block_size=16), Counting(block_size=16)]) as second:
        Counting.calls = 0
        second.restore(state | {"counted": [2.0, 4.0]}, torch.device("cpu"))
        assert (Counting.calls, second.computed_share) == (7, 0.5)


# A pipeline of each class that goes on, and the driven ones that begin anew.
RESUMED = [
    "wan", "anyflow", "wan-i2v", "wan22", "wan-vace", "skyreels-v2", "skyreels-v2-i2v", "hunyuan-video",
    "hunyuan-video-i2v",
    "hunyuan-video15", "hunyuan-video15-i2v", "mochi", "ltx", "ltx-i2v", "easyanimate", "allegro", "kandinsky5",
    "kandinsky5-i2v", "wan-v2v", "ltx-condition", "wan-animate",
]  # fmt: skip
ANEW = {"skyreels-v2-df", "cogvideox", "cogvideox-i2v"}


@pytest.mark.parametrize("name", RESUMED)
def test_every_class_goes_on_bit_for_bit(name: str) -> None:
    """Also those that the app cannot drive at this size: with their own arguments, to their latents."""
    case = CASES[name]
    pipe = case.build()
    assert type(pipe).__name__ in RESUMABLE
    transformers = [t for t in (pipe.transformer, getattr(pipe, "transformer_2", None)) if t is not None]
    kept: dict[int, Snapshot] = {}

    def run(snapshot: Snapshot | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        parts = {"generator": GeneratorPart(generator)}

        def on_step(step: Step) -> Any:
            kept.setdefault(step.step, step.snapshot())
            return "go on"

        steps = 8 if name == "wan-v2v" else STEPS  # of which strength leaves out half
        arguments = case.call(pipe) | {"num_inference_steps": steps, "generator": generator}
        with torch.inference_mode(), resumable_steps(pipe, transformers, parts, on_step, snapshot, dict):
            return torch.as_tensor(case.latents(pipe(**arguments)))

    whole = run()
    assert set(kept) == set(range(1, STEPS + 1))
    for done in (1, STEPS - 1, STEPS):
        assert torch.equal(run(kept[done]), whole), done


def test_every_class_that_goes_on_is_tried() -> None:
    elsewhere = {"MiniMaxH3Pipeline", "HunyuanVideoFramepackPipeline"}  # test_minimax_h3.py, test_windows.py
    assert {type(CASES[name].build()).__name__ for name in RESUMED} == RESUMABLE - elsewhere


def test_a_look_throws_nothing_off_the_gpu(wan_folder: Path) -> None:
    """With offloading, an autoencoder's hook makes room for it where the transformer is at work."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class MakesRoom(ModelHook):
        fired = 0

        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.fired += 1
            return args, kwargs

    model = load(make_request(prompt="a", model=str(wan_folder), **SMALL))
    vae, hook = model.pipe.vae, MakesRoom()
    add_hook_to_module(vae, hook)
    latents = torch.randn(1, vae.config.z_dim, 3, 4, 4)
    assert preview_frame(model.pipe, latents) is not None
    assert hook.fired == 0
    assert vae._hf_hook is hook
    with torch.no_grad():
        vae.decode(latents)
    assert hook.fired == 1


@pytest.mark.gpu
def test_a_look_leaves_an_offloaded_transformer_on_the_gpu(wan_folder: Path) -> None:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(wan_folder)
    pipe.enable_model_cpu_offload()
    seen = []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        frame = preview_frame(pipe, tensors["latents"])
        seen.append((frame is not None, pipe.transformer.device.type, pipe.vae.device.type))
        return {}

    pipe("a red circle", height=32, width=32, num_frames=9, num_inference_steps=3, max_sequence_length=16,
         callback_on_step_end=look)  # fmt: skip
    assert seen == [(True, "cuda", "cpu")] * 3
