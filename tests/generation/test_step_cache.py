"""Step caches: what they leave out in every pipeline that has one, what is counted, and runs that go on with one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import CASES, TinyCase
from torch import Tensor, nn

import radial
from radial import GenerationError, RadialPattern, RequestError
from radial.advice import advise
from radial.generation.acceleration.calls import BATCHED, BY_TWO_CALLS, Calls
from radial.generation.acceleration.guidance import guided_within
from radial.generation.acceleration.step_cache import InstalledCache, cached_steps
from radial.generation.pipeline import describe_run, generate
from radial.generation.ranks import Ranks
from radial.generation.resume import Step
from radial.generation.snapshot import read_snapshot
from radial.loading.load import LoadedModel, load
from radial.loading.needs import needs_of
from radial.models.architecture import named_weights
from radial.models.step_caches import LEAST_STEPS, PIPELINE_CACHES, StepCache, StepCaches
from radial.models.table import MODELS
from radial.request import make_request

STEPS = 4
EAGER = StepCache(method="first_block", threshold=9.0, source="this test")  # leaves out all that it may
EAGER_MAG = StepCache(
    method="mag", threshold=9.0, max_skip_steps=2, retention_ratio=0.25, mag_ratios=(1.0, 0.9), source="this test"
)
HAVE = [
    "wan", "wan-i2v", "wan22", "hunyuan-video", "hunyuan-video-i2v", "mochi", "ltx", "ltx-i2v", "ltx-condition",
    "cogvideox", "cogvideox-i2v",
]  # fmt: skip
HAVE_NOT = [
    "wan-vace", "skyreels-v2", "hunyuan-video15", "ltx2", "ltx2-condition", "allegro", "easyanimate", "cosmos",
    "kandinsky5", "wan-animate", "framepack",
]  # fmt: skip


def transformers_of(pipe: Any) -> list[nn.Module]:
    return [t for t in (getattr(pipe, name, None) for name in ("transformer", "transformer_2")) if t is not None]


def last_block(transformer: Any) -> nn.Module:
    lists = dict(transformer.named_children())
    blocks: Any = lists.get("single_transformer_blocks") or lists.get("transformer_blocks") or lists["blocks"]
    block: nn.Module = blocks[-1]
    return block


@contextlib.contextmanager
def counting(pipe: Any) -> Iterator[dict[str, int]]:
    """Calls of the transformers, and how many of them computed the last block."""
    calls = {"made": 0, "computed": 0}

    def count(what: str) -> Any:
        return lambda *_: calls.__setitem__(what, calls[what] + 1)

    hooks = []
    for transformer in transformers_of(pipe):
        hooks.append(transformer.register_forward_pre_hook(count("made")))
        norms = [module for module in last_block(transformer).modules() if isinstance(module, nn.Linear)]
        hooks.append(norms[-1].register_forward_pre_hook(count("computed")))
    yield calls
    for hook in hooks:
        hook.remove()


def run(case: TinyCase, pipe: Any, cache: StepCache | None, guided: range | None = None) -> tuple[Tensor, Any]:
    arguments = case.call(pipe) | {"num_inference_steps": STEPS}
    installed: InstalledCache | None = None
    with contextlib.ExitStack() as stack:
        if cache is not None:
            calls = Calls(pipe, STEPS, guided=True)
            transformers = transformers_of(pipe)
            stack.enter_context(calls.counted(transformers))
            installed = stack.enter_context(cached_steps(pipe, transformers, cache, calls, lambda computed: None))
            if guided is not None:
                stack.enter_context(guided_within(transformers, calls, guided))
        stack.enter_context(torch.inference_mode())
        made = pipe(**arguments, generator=torch.Generator().manual_seed(1))
    return torch.as_tensor(case.latents(made)), installed


@pytest.mark.parametrize("name", HAVE)
def test_a_cache_leaves_out_what_it_says(name: str) -> None:
    """In each branch of guidance the first step is computed and what follows is left out; with a threshold that
    nothing meets the clip is the pipeline's own, and so it is once the cache is gone."""
    case = CASES[name]
    pipe = case.build()
    assert type(pipe).__name__ in PIPELINE_CACHES
    plain, _ = run(case, pipe, None)
    same, never = run(case, pipe, replace(EAGER, threshold=0.0))
    assert torch.equal(same, plain)
    assert (never.skipped, never.calls) == (0, STEPS * (1 if type(pipe).__name__ in BATCHED else 2))
    for cache in (EAGER, EAGER_MAG):
        with counting(pipe) as calls:
            cached, installed = run(case, pipe, cache)
        assert cached.isfinite().all()
        assert not torch.equal(cached, plain)
        assert (installed.calls, installed.skipped) == (calls["made"], calls["made"] - calls["computed"])
        assert installed.skipped_share >= 0.5
    assert torch.equal(run(case, pipe, None)[0], plain)
    assert not any(transformer.is_cache_enabled for transformer in transformers_of(pipe))


@pytest.mark.parametrize("name", ["wan", "mochi"])
def test_a_cache_beside_an_interval_of_guidance(name: str) -> None:
    """What is kept of a batch of two is not taken for one, nor that of the pass with the prompt for the other's."""
    case = CASES[name]
    pipe = case.build()
    guided = range(1, 3)
    plain, _ = run(case, pipe, replace(EAGER, threshold=0.0), guided)
    for cache in (EAGER, EAGER_MAG):
        cached, installed = run(case, pipe, cache, guided)
        assert cached.isfinite().all()
        assert not torch.equal(cached, plain)
        assert installed.calls == (STEPS if name == "mochi" else STEPS + 2)
        assert 0 < installed.skipped < installed.calls


def test_hooks_know_no_others() -> None:
    """Pipelines without a cache are those whose blocks diffusers' hooks do not know, or for which they are wrong."""
    pipelines = {type(CASES[name].build()).__name__: name for name in HAVE_NOT}
    assert not pipelines.keys() & PIPELINE_CACHES.keys()
    families = {kind.replace("ImageToVideo", "").replace("DiffusionForcing", "") for kind in BATCHED | BY_TWO_CALLS}
    assert families - PIPELINE_CACHES.keys() - {"Kandinsky5I2VPipeline"} == pipelines.keys()
    from diffusers import FirstBlockCacheConfig

    for kind, name in pipelines.items():
        pipe = CASES[name].build()
        # Those are known and wrong, this to MagCache.
        if kind in ("WanVACEPipeline", "HunyuanVideoFramepackPipeline", "Kandinsky5T2VPipeline"):
            continue
        with pytest.raises((AttributeError, ValueError), match=r"enable_cache|not registered"):
            pipe.transformer.enable_cache(FirstBlockCacheConfig())


def test_two_transformers_share_the_steps() -> None:
    """MagCache's ratios are those of the steps that each of them makes."""
    from radial.generation.acceleration.step_cache import _config, _shared_steps

    pipe = CASES["wan22"].build()
    made = [0, 0]
    for index, transformer in enumerate(transformers_of(pipe)):
        transformer.register_forward_pre_hook(lambda *_, i=index: made.__setitem__(i, made[i] + 1))
    run(CASES["wan22"], pipe, None)
    high, low = _shared_steps(pipe, transformers_of(pipe), STEPS)
    assert [len(high), len(low)] == [calls // 2 for calls in made]
    assert min(made) > 0
    cache = replace(EAGER_MAG, mag_ratios=(1.0, 0.9, 0.8, 0.7))
    ratios = [_config(cache, steps, STEPS).mag_ratios.tolist() for steps in (high, low)]
    assert [*ratios[0], *ratios[1]] == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert [len(one) for one in ratios] == [len(high), len(low)]


SMALL: dict[str, Any] = {
    "prompt": "a red circle", "height": 64, "width": 96, "num_frames": 17, "seed": 3, "snap": True,
    "num_inference_steps": LEAST_STEPS, "dense_steps": 1,
}  # fmt: skip


def with_caches(model: LoadedModel, cache: StepCache) -> LoadedModel:
    """The model, for which both words mean this cache."""
    return replace(model, spec=replace(model.spec, step_caches=StepCaches(cache, cache)))


@pytest.mark.parametrize(("name", "cache"), [("wan22", EAGER_MAG), ("mochi", EAGER)])
def test_a_run_that_was_killed_goes_on_bit_for_bit(name: str, cache: StepCache, tmp_path: Path) -> None:
    """What the cache holds of each branch lies in the snapshot's file."""
    CASES[name].build().save_pretrained(tmp_path / name)
    request = make_request(model=str(tmp_path / name), cache="auto", guidance_end=0.8, **SMALL).resolve()
    model = with_caches(load(request), cache)
    (whole,) = generate(request, model=model)
    assert 0.4 < whole.receipt["cache"]["skipped"] < 1
    file = tmp_path / "snapshot.safetensors"

    def kill(step: Step) -> Any:
        if step.step == 6:
            step.snapshot().write(file)
            raise GenerationError("killed")
        return "go on"

    with pytest.raises(GenerationError, match="killed"):
        list(generate(request, model=model, on_step=kill))
    snapshot = read_snapshot(file, describe_run(request, model))
    assert snapshot is not None
    (resumed,) = generate(request, model=model, snapshot=snapshot)
    assert np.array_equal(resumed.frames, whole.frames)
    for what in ("cache", "attention"):
        assert resumed.receipt[what] == whole.receipt[what]
    # Without what the cache held it is another clip: the test would see it.
    (other,) = generate(request, model=model, snapshot=replace(snapshot, parts=dict(snapshot.parts) | {"cache": {
        "counted": [0, 0], "kept": [{}] * len(transformers_of(model.pipe))}}))  # fmt: skip
    assert not np.array_equal(other.frames, whole.frames)


@pytest.fixture(scope="module")
def wan_model(wan_folder: Path) -> LoadedModel:
    return load(make_request(model=str(wan_folder), **SMALL))


@pytest.mark.parametrize("cache", [EAGER, EAGER_MAG])
def test_attention_that_a_cache_left_out_is_not_counted(wan_model: LoadedModel, cache: StepCache) -> None:
    """The receipt's share is that of the layers that attended, each with what was chosen for it at that step."""
    request = make_request(model=str(wan_model.spec.source), cache="fast", dense_layers=0, decay=0.1, **SMALL).resolve()
    model = with_caches(wan_model, cache)
    attended: list[int] = []
    hooks = [
        block.attn1.register_forward_hook(lambda module, *_: attended.append(module.processor.radial_choice))
        for block in model.pipe.transformer.blocks
    ]
    (video,) = generate(request, model=model)
    for hook in hooks:
        hook.remove()
    used = video.receipt["attention"]
    layers = len(model.pipe.transformer.blocks)
    calls = 2 * LEAST_STEPS
    skipped = round(video.receipt["cache"]["skipped"] * calls)
    assert len(attended) == (calls - skipped) * layers + skipped * (1 if cache is EAGER else 0)
    computed = sum(used["density"] if choice else 1.0 for choice in attended)
    assert used["computed_share"] == pytest.approx(computed / (calls * layers), abs=1e-3)
    assert {0, 1} == set(attended)
    dense = make_request(model=str(wan_model.spec.source), cache="fast", attention="dense", **SMALL).resolve()
    (video,) = generate(dense, model=model)
    share = round(video.receipt["cache"]["skipped"] * calls) * (layers - 1 if cache is EAGER else layers)
    assert video.receipt["attention"]["computed_share"] == pytest.approx(1 - share / (calls * layers), abs=1e-3)


def test_a_request_without_one_is_as_before(wan_model: LoadedModel) -> None:
    """A cache is another run with another digest, and gone with it."""
    fields = SMALL | {"model": str(wan_model.spec.source)}
    plain = make_request(**fields).resolve()
    (before,) = generate(plain, model=wan_model)
    cached = make_request(**fields, cache="fast").resolve()
    (other,) = generate(cached, model=wan_model)
    assert other.receipt["cache"]["method"] == "First Block Cache"
    assert other.receipt["cache"]["threshold"] == 0.2
    assert "cache" not in before.receipt
    assert not np.array_equal(other.frames, before.frames)
    (after,) = generate(plain, model=wan_model)
    assert np.array_equal(after.frames, before.frames)
    assert describe_run(plain, wan_model) != describe_run(cached, wan_model)
    assert "cache" not in plain.model_dump_json(exclude=plain.later_fields())


def test_words_and_what_is_refused() -> None:
    for spec in MODELS.values():
        if spec.step_caches is not None:
            auto, fast = spec.step_caches.auto, spec.step_caches.fast
            assert auto.source
            assert (auto.threshold, auto.max_skip_steps) < (fast.threshold, fast.max_skip_steps) or auto == fast
            assert auto.method != "mag" or len(auto.mag_ratios) == spec.num_inference_steps
    with pytest.raises(RequestError, match="cache auto is for 10 steps or more, not 4"):
        make_request(prompt="a", cache="auto", num_inference_steps=4).resolve()
    with pytest.raises(RequestError, match="cache fast is not for skyreels-v2-14b: no cache of diffusers knows"):
        make_request(prompt="a", model="skyreels-v2-14b", cache="fast").resolve()
    with pytest.raises(RequestError, match=r"not for wan2\.1-vace-1\.3b: its control is added between blocks"):
        make_request(prompt="a", model="wan2.1-vace-1.3b", cache="fast").resolve()
    with pytest.raises(RequestError, match="cache must be 'off', 'auto' or 'fast', not 'on'"):
        make_request(prompt="a", cache="on")
    request = make_request(prompt="a", model="skyreels-v2-14b", cache="auto").resolve()
    assert any("cache auto does without for skyreels" in note for note in advise(request, MODELS["skyreels-v2-14b"]))


def test_processes_that_share_a_clip_have_none() -> None:
    ranks: Any = SimpleNamespace(size=2)
    Ranks.check(ranks, make_request(prompt="a", cache="off"))
    with pytest.raises(RequestError, match="where 2 processes share one each has a part of it: take cache off"):
        Ranks.check(ranks, make_request(prompt="a", cache="auto"))


def test_what_a_cache_keeps_is_among_what_a_clip_needs() -> None:
    weights = named_weights(MODELS["wan2.1-14b"])
    assert weights is not None
    clips = {}
    for word in ("off", "auto"):
        request = make_request(prompt="a", model="wan2.1-14b", cache=word, seed=1).resolve()
        clips[word] = needs_of(request, MODELS["wan2.1-14b"], weights, 2)
    tokens = request.grid(MODELS["wan2.1-14b"]).tokens
    assert clips["auto"].clip - clips["off"].clip == 2 * 2 * 2 * tokens * 5120
    assert clips["auto"].vram("lowest") > clips["off"].vram("lowest")


def test_hooks_that_offloading_takes_away_take_no_other_with_them(wan_model: LoadedModel) -> None:
    """As group offloading on a stream does it: hooks that are there from loading on go after the first call."""
    from diffusers.hooks import HookRegistry, ModelHook

    model = with_caches(wan_model, EAGER)
    fields = SMALL | {"model": str(wan_model.spec.source), "attention": "dense", "guidance_end": 0.5}
    request = make_request(cache="auto", **fields).resolve()
    kept: list[Any] = []
    (want,) = generate(request, model=model, on_step=lambda step: kept.append(step.snapshot()) or "go on")
    assert want.receipt["cache"]["calls"] == LEAST_STEPS + 5
    transformer = model.pipe.transformer
    modules = [transformer, *transformer.blocks]
    plain = [module.forward for module in modules]

    class Tracker(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            if module is transformer:
                for one in modules:
                    HookRegistry.check_if_exists_or_initialize(one).remove_hook("tracker", recurse=False)
            return output

    for snapshot in (None, kept[3]):
        for module in modules:
            HookRegistry.check_if_exists_or_initialize(module).register_hook(Tracker(), "tracker")
        (video,) = generate(request, model=model, snapshot=snapshot)
        assert np.array_equal(video.frames, want.frames)
        assert video.receipt["cache"] == want.receipt["cache"]
        assert [module.forward for module in modules] == plain


@pytest.mark.parametrize("beside", ["compile", "offload", "adapter"])
def test_a_cache_beside_other_things(wan: Any, beside: str) -> None:
    """Compiled blocks, blocks that come when they are called, and an adapter, with radial attention within."""
    case = replace(CASES["wan"], call=lambda pipe: CASES["wan"].call(pipe) | {"max_sequence_length": 16})
    sparse = radial.apply(wan, pattern=RadialPattern(decay=0.1, sink_frames=0, skip_width=16), block_size=16)
    caches: tuple[StepCache, ...] = (EAGER, EAGER_MAG)
    if beside == "compile":  # which takes long, and is tried with radial attention in tests/attention
        sparse.remove()
        caches = (EAGER,)
    with sparse:
        if beside == "adapter":
            from peft import LoraConfig

            wan.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        want = [run(case, wan, cache)[0] for cache in caches]
        if beside == "compile":
            torch._dynamo.reset()
            wan.transformer.compile_repeated_blocks(backend="eager")
        elif beside == "offload":
            cpu = torch.device("cpu")
            wan.transformer.enable_group_offload(
                onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
            )
        for cache, expected in zip(caches, want, strict=True):
            got, installed = run(case, wan, cache)
            assert torch.allclose(got, expected, atol=1e-4)
            assert installed.skipped > 0
