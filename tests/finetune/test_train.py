"""A run: what it trains, that it goes on bit for bit however it stopped, what it says, and what it refuses."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from clip_files import CUT
from safetensors.torch import load_file

from radial import GenerationError, ModelError, OutputError, RequestError
from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel
from radial.models.lora_settings import read_adapter_settings
from radial.request import make_request
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter
from radial_finetune.data.cache import read_index
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import find_sources
from radial_finetune.objective import WanObjective, find_objective
from radial_finetune.training import assemble as setup
from radial_finetune.training import checkpoints, train
from radial_finetune.training.batches import Batches
from radial_finetune.training.config import FinetuneConfig, make_config, read_config
from radial_finetune.training.exports import read_made
from radial_finetune.training.processes import Processes
from radial_finetune.training.train import finetune, learning_rate

# The settings


def test_settings_are_checked_whole(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('data = "cache"\noutput = "run"\nlerning_rate = 1e-4\nrank = 0\n')
    with pytest.raises(
        RequestError, match="rank greater than or equal to 1, not 0; unknown key 'lerning_rate', did you"
    ):
        read_config(file)
    file.write_text('data = "cache"\noutput = "run"\n')
    config = read_config(file, ["rank=8", "model=wan2.1-1.3b", "riflex=true", "shift = 5"])
    assert (config.rank, config.model, config.riflex, config.shift) == (8, "wan2.1-1.3b", True, 5.0)
    with pytest.raises(RequestError, match="--set takes key=value, not 'rank'"):
        read_config(file, ["rank"])
    file.write_text("rank = ")
    with pytest.raises(RequestError, match="is not TOML"):
        read_config(file)
    with pytest.raises(RequestError, match="data is missing; output is missing"):
        make_config()
    file.write_text('data = "c"\noutput = "r"\nreplay = 0.1\n[[curriculum]]\nnum_frames = 33\nstep = 5\n')
    with pytest.raises(RequestError, match=r"curriculum\.0\.steps is missing; unknown key 'curriculum\.0\.step', did"):
        read_config(file)
    with pytest.raises(RequestError, match=r"^replay needs a curriculum of two stages"):
        make_config(data="", output="", replay=0.1)
    with pytest.raises(RequestError, match="ulysses_degree 2 does not divide the 1 processes of this run"):
        Processes("cpu", 2)
    with pytest.raises(RequestError, match=r"^offload_checkpoints needs gradient_checkpointing"):
        make_config(data="", output="", offload_checkpoints=True, gradient_checkpointing=False)
    with pytest.raises(RequestError, match=r"^compile does not go with base_precision"):
        make_config(data="", output="", compile=True, base_precision="float8")


def test_learning_rates() -> None:
    config = FinetuneConfig(data="", output="", steps=12, lr_warmup_steps=2, lr_scheduler="cosine", learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(13)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0.0)


# The batches


def test_a_curriculum_goes_from_short_to_long_and_back_at_times(two_lengths: Path, model: LoadedModel) -> None:
    stages = [{"num_frames": 5, "steps": 10}, {"num_frames": 13, "steps": 30}]
    config = make_config(data=str(two_lengths), output="", steps=60, curriculum=stages, replay=0.25, batch_size=3)
    index, objective = read_index(two_lengths), find_objective(model.pipe, model.spec)
    batches = Batches(config, index, objective)
    lengths = [batch.bucket.num_frames for batch in batches.iterate(0)]
    assert set(lengths[:10]) == {5}
    assert 5 <= lengths[10:].count(5) <= 20  # a quarter of 50
    # A longer run begins the same, and any batch can be had alone.
    longer = Batches(config.model_copy(update={"steps": 90}), index, objective)
    for number in (0, 17, 59):
        one, two = batches.read(number), longer.read(number)
        assert torch.equal(one.latents, two.latents)
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(one.sigma, two.sigma)
        assert len(one.latents) == 3
    with pytest.raises(RequestError, match="asks for clips of 9 frames; the cache has 5, 13"):
        Batches(
            make_config(data=str(two_lengths), output="", curriculum=[{"num_frames": 9, "steps": 1}]), index, objective
        )


def test_every_clip_comes_once_an_epoch(cache: Path, model: LoadedModel) -> None:
    config = make_config(data=str(cache), output="", steps=7, batch_size=1, held_out=1, caption_dropout=0)
    batches = Batches(config, read_index(cache), find_objective(model.pipe, model.spec))
    seen = {batch.latents.numpy().tobytes() for batch in batches.iterate(0)}
    assert len(seen) == 7
    assert len(batches.held_out) == 1
    held = {batch.latents.numpy().tobytes() for batch in batches.validation((0.5,))}
    assert not held & seen


def test_processes_share_a_batch(cache: Path, model: LoadedModel) -> None:
    """Two processes with a batch of one each see, together, what one with a batch of two sees."""
    index, objective = read_index(cache), find_objective(model.pipe, model.spec)
    whole = Batches(make_config(data=str(cache), output="", batch_size=2), index, objective)
    single = make_config(data=str(cache), output="", batch_size=1)
    parts = [Batches(single, index, objective, rank, 2) for rank in range(2)]
    for number in (0, 3):
        together = [part.read(number) for part in parts]
        for name in ("latents", "noise", "sigma"):
            assert torch.equal(torch.cat([getattr(b, name) for b in together]), getattr(whole.read(number), name))


# The run


def test_an_untrained_adapter_changes_nothing(wan: Any) -> None:
    inputs = {
        "hidden_states": torch.randn(1, 16, 3, 4, 4), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 4, 32),
    }  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        wan.transformer.to(dtype)
        cast = {name: value.to(dtype) if name != "timestep" else value for name, value in inputs.items()}
        with torch.no_grad():
            before = wan.transformer(**cast, return_dict=False)[0]
            parameters = add_adapter(wan.transformer, WanObjective, AdapterForm(8, 8, norms=True))
            assert torch.equal(wan.transformer(**cast, return_dict=False)[0], before)
        assert len(parameters) == 2 * 3 * 2 * 4 + 2 * 3 * 2
        assert all(p.dtype == torch.float32 for p in parameters.values())
        wan.transformer.delete_adapters("radial")
    assert len(add_adapter(wan.transformer, WanObjective, AdapterForm(8, 8, "self"))) == 2 * 3 * 4


def adapter_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(config["output"]) / "adapter.safetensors")


def assert_same_run(one: Path, two: Path, name: str = "step-000006") -> None:
    """Weights, average and the optimizer's moments, bit for bit."""
    for part in ("adapter", "weights", "average", "moments"):
        a, b = (load_file(folder / name / f"{part}.safetensors") for folder in (one, two))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def stop_after(step: int) -> Any:
    def stop(progress: train.Progress) -> None:
        if progress.step == step:
            raise RuntimeError("power cut")

    return stop


def test_a_stopped_run_goes_on_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after step 3, past the checkpoint of step 2: the rest repeats as if nothing had been."""
    finetune(make_config(**config))
    whole = adapter_of(config)
    log = [json.loads(line) for line in (Path(config["output"]) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if "validation" in line] == [0, 3, 6]
    assert "loss" not in log[0]  # before the first step

    halved = config | {"output": str(tmp_path / "halved")}
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**halved), on_step=stop_after(3))
    with pytest.raises(RequestError, match="has checkpoints of a run; pass --resume"):
        finetune(make_config(**halved))
    seen: list[int] = []
    finetune(make_config(**halved), resume=True, on_step=lambda progress: seen.append(progress.step))
    assert seen == [3, 4, 5, 6]
    log = [json.loads(line) for line in (Path(halved["output"]) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5, 6]  # the third once, though it was done twice
    resumed = adapter_of(halved)
    assert set(resumed) == set(whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert_same_run(Path(config["output"]), Path(halved["output"]))
    assert len(checkpoints.list_checkpoints(Path(config["output"]))) == 2
    with pytest.raises(RequestError, match=r"is of another run: max_grad_norm was 1\.0 and is 0\.5"):
        finetune(make_config(**halved).model_copy(update={"max_grad_norm": 0.5}), resume=True)


EVERYTHING = {
    "rank": 64, "layers": "self", "norms": True, "gradient_accumulation_steps": 2, "offload_checkpoints": True,
    "optimizer": "adamw8bit", "shift_by_length": True, "riflex": True, "replay": 0.3, "validate_every": 0,
    "curriculum": [{"num_frames": 5, "steps": 2}, {"num_frames": 13, "steps": 2}],
}  # fmt: skip


def test_every_option_at_once_goes_on_bit_for_bit(
    config: dict[str, Any], two_lengths: Path, tmp_path: Path, wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A curriculum over two lengths with replay, RIFLEx, norms, an optimizer of 8 bit, checkpoints in host memory."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # that optimizer compiles its steps, which takes a minute
    both = [config | EVERYTHING | {"data": str(two_lengths), "output": str(tmp_path / name)} for name in ("a", "b")]
    adapter = finetune(make_config(**both[0]))
    with pytest.raises(RuntimeError, match="power cut"):
        finetune(make_config(**both[1]), on_step=stop_after(5))
    finetune(make_config(**both[1]), resume=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    moments = load_file(tmp_path / "a" / "step-000006" / "moments.safetensors")
    assert any(key.endswith("exp_avg/codes") for key in moments)
    settings = read_adapter_settings(adapter)
    assert settings is not None
    assert settings.target_frames == 13
    assert (settings.riflex, settings.flow_shift) == (True, pytest.approx(3.0))  # 13 frames are within the native 33

    # What was learned in norms acts: without it, the clip is another.
    request = make_request(prompt="a", model=str(wan_folder), height=32, width=32, seed=1, num_inference_steps=2,
                           loras=[{"path": str(adapter)}])  # fmt: skip
    (tuned,) = generate(request)
    state = load_file(adapter)
    norms = [key for key in state if key.endswith(".diff")]
    assert len(norms) == 6
    assert any(bool(state[key].any()) for key in norms)
    from radial_finetune.adapter.file import write_adapter

    metadata = json.loads(json.dumps(settings.__dict__))
    other = write_adapter(tmp_path / "x.safetensors", {k: v for k, v in state.items() if k not in norms}, metadata)
    (without,) = generate(request.model_copy(update={"loras": make_request(
        prompt="a", loras=[{"path": str(other)}]).loras}))  # fmt: skip
    assert not np.array_equal(tuned.frames, without.frames)


def test_checkpoints_in_host_memory_change_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    kinds = {"kept": {}, "offloaded": {"offload_checkpoints": True}, "none": {"gradient_checkpointing": False}}
    states = {}
    for name, changes in kinds.items():
        settings = config | {"output": str(tmp_path / name), "steps": 2, "validate_every": 0} | changes
        finetune(make_config(**settings))
        states[name] = adapter_of(settings)
    for name, state in states.items():
        assert all(torch.allclose(state[key], states["none"][key], atol=1e-6) for key in state), name
    assert all(torch.equal(states["kept"][key], states["offloaded"][key]) for key in states["kept"])


def test_offloaded_checkpoints_leave_the_device(wan: Any) -> None:
    """Of what enters the blocks, only copies are kept: the tensors themselves are gone before the backward pass."""
    import gc
    import weakref

    from radial_finetune.training.offloading import offloaded_checkpoint

    transformer = wan.transformer
    add_adapter(transformer, WanObjective, AdapterForm(4, 4))
    alive: dict[str, int] = {}
    for kind, function in (("kept", None), ("offloaded", offloaded_checkpoint)):
        transformer.enable_gradient_checkpointing(*([function] if function else []))
        transformer.train()
        entered: list[Any] = []
        hooks = [
            block.register_forward_pre_hook(lambda module, args, seen=entered: seen.append(weakref.ref(args[0])))
            for block in transformer.blocks
        ]
        loss = transformer(
            hidden_states=torch.randn(1, 16, 3, 4, 4), timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 4, 32), return_dict=False,
        )[0].sum()  # fmt: skip
        gc.collect()
        alive[kind] = sum(reference() is not None for reference in entered)
        loss.backward()
        for hook in hooks:
            hook.remove()
    assert alive == {"kept": 3, "offloaded": 0}


@pytest.mark.parametrize("ahead", [False, True])
def test_blocks_that_wait_in_the_host_s_memory_have_the_same_gradients(
    wan: Any, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Weights that wait are made no numbers here: were one used meanwhile, forward or backward, gradients would be
    none. With a stream, a block is fetched ahead, in the backward pass the one before."""
    from types import SimpleNamespace

    from diffusers.hooks.group_offloading import ModuleGroup

    from radial_finetune.training.offloading import OffloadedBlocks, offloaded_checkpoint

    transformer, device = wan.transformer.train(), torch.device("cpu")
    parameters = add_adapter(transformer, WanObjective, AdapterForm(4, 4))
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))

    def gradients() -> dict[str, torch.Tensor]:
        with torch.no_grad():  # as a teacher or a validation passes through before
            forward()
        forward().square().mean().backward()
        found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        for parameter in parameters.values():
            parameter.grad = None
        return found

    def forward() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return transformer(
            hidden_states=torch.randn(1, 16, 3, 4, 4, generator=generator), timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 4, 32, generator=generator), return_dict=False,
        )[0]  # fmt: skip

    transformer.enable_gradient_checkpointing()
    expected = gradients()
    waiting: dict[int, torch.Tensor] = {}
    moves: list[tuple[str, int]] = []

    def offload(group: Any) -> None:
        moves.append(("out", names[id(group)]))
        for tensor in group.parameters:
            waiting[id(tensor)] = tensor.data
            tensor.data = torch.full_like(tensor.data, torch.nan)

    def onload(group: Any) -> None:
        moves.append(("in", names[id(group)]))
        for tensor in group.parameters:
            tensor.data = waiting.pop(id(tensor))

    blocks = OffloadedBlocks(transformer, device)
    names = {id(group): number for number, group in enumerate(blocks._groups)}
    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    for group in blocks._groups:
        offload(group)
    if ahead:
        monkeypatch.setattr(blocks, "_stream", SimpleNamespace(synchronize=lambda: None))
    moves.clear()
    transformer.enable_gradient_checkpointing(functools.partial(blocks.checkpoint, offloaded_checkpoint))
    found = gradients()
    assert found.keys() == expected.keys() == parameters.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    there: set[int] = set()
    for move, number in moves:  # never more than the one that is computed and the one beside it
        there = there | {number} if move == "in" else there - {number}
        assert len(there) <= 2
    assert [number for move, number in moves if move == "in"][-2:] == [1, 0]  # the backward pass goes back
    assert not any(id(p) in waiting for p in parameters.values())


def test_a_run_with_blocks_in_the_host_s_memory_is_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for name, more in (("device", {}), ("host", {"offload_blocks": True, "offload_checkpoints": True})):
        settings = config | {"output": str(tmp_path / name), "steps": 2, "validate_every": 0} | more
        finetune(make_config(**settings))
        states.append(adapter_of(settings))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(RequestError, match="offload_blocks needs gradient_checkpointing"):
        make_config(data="", output="", offload_blocks=True, gradient_checkpointing=False)
    with pytest.raises(RequestError, match="compile does not go with offload_blocks"):
        make_config(data="", output="", offload_blocks=True, compile=True)


def test_a_torn_checkpoint_is_passed_over(config: dict[str, Any]) -> None:
    """A disk that lost what it had promised: the run goes on from the checkpoint before."""
    config["lr_scheduler"] = "constant"
    finetune(make_config(**config))
    output = Path(config["output"])
    whole = adapter_of(config)
    (output / "step-000006" / "run.json").write_text("")
    (output / ".000004-00-9.ab12cd34.partial.mp4").write_text("")
    seen: list[int] = []
    finetune(make_config(**config), resume=True, on_step=lambda p: seen.append(p.step))
    assert seen == [5, 6]
    assert all(torch.equal(adapter_of(config)[key], whole[key]) for key in whole)
    for checkpoint in checkpoints.list_checkpoints(output):
        (checkpoint / "moments.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"none of the checkpoints in .* can be read, such as step-000006"):
        finetune(make_config(**config), resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_its_log_anew(config: dict[str, Any]) -> None:
    output = Path(config["output"])
    output.mkdir()
    (output / "log.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    finetune(make_config(**config), resume=True)
    log = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert log == [0, 1, 2, 3, 4, 5, 6]


def test_what_decides_a_run_cannot_change(config: dict[str, Any], data: Path, model: LoadedModel) -> None:
    finetune(make_config(**config | {"steps": 2}))
    with pytest.raises(RequestError, match="seed was 0 and is 1"):
        finetune(make_config(**config | {"steps": 2, "seed": 1}), resume=True)
    index = json.loads((Path(config["data"]) / "index.json").read_text())
    changed = json.dumps(index | {"clips": index["clips"][::-1]})
    whole = (Path(config["data"]) / "index.json").read_text()
    try:
        (Path(config["data"]) / "index.json").write_text(changed)
        with pytest.raises(RequestError, match="is of another run: cache was"):
            finetune(make_config(**config | {"steps": 2}), resume=True)
    finally:
        (Path(config["data"]) / "index.json").write_text(whole)


def test_a_base_of_8_bit_trains(config: dict[str, Any]) -> None:
    """Frozen weights in float8: the loss stays near that of the whole base, and the adapter learns."""
    losses: dict[str, list[Any]] = {}
    for precision in ("full", "float8"):
        output = f"{config['output']}-{precision}"
        settings = config | {"base_precision": precision, "dtype": "bfloat16", "output": output, "steps": 4}
        losses[precision] = []
        finetune(make_config(**settings), on_step=lambda p, kept=losses[precision]: p.step and kept.append(p.loss))
        assert any(bool(v.any()) for k, v in load_file(f"{output}/adapter.safetensors").items() if "lora_B" in k)
    assert losses["float8"][0] == pytest.approx(losses["full"][0], rel=0.05)


def test_compiled_blocks_train_alike(config: dict[str, Any]) -> None:
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):
        settings = config | {"compile": compiled, "output": f"{config['output']}-{compiled}", "steps": 2,
                             "validate_every": 0}  # fmt: skip
        losses[compiled] = []
        finetune(make_config(**settings), on_step=lambda p, kept=losses[compiled]: kept.append(p.loss))
    torch.compiler.reset()
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def start(file: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "radial_app", "finetune", "run", str(file), *more]
    process: subprocess.Popen[str] = warm.start(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return process


def write_settings(file: Path, settings: dict[str, Any]) -> Path:
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return file


def wait_for(process: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + 1800
    while not (found := checkpoints.list_checkpoints(output)) or int(found[-1].name[5:]) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_killed_or_interrupted_goes_on(
    config: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    file = write_settings(tmp_path / "run.toml", config | {"steps": 400, "validate_every": 0})
    output = Path(config["output"])
    killed = start(file)
    wait_for(killed, output, 4)
    killed.kill()
    killed.communicate()
    reached = int(checkpoints.list_checkpoints(output)[-1].name[5:])
    stopped = start(file, "--resume")
    wait_for(stopped, output, reached + 4)
    stopped.send_signal(number)
    _, err = stopped.communicate(timeout=1800)
    assert stopped.returncode == 130, err
    log = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert int(checkpoints.list_checkpoints(output)[-1].name[5:]) == log[-1]  # no step is lost
    assert not [p for p in output.iterdir() if p.name.endswith(".partial")]
    assert read_made(checkpoints.list_checkpoints(output)[-1] / "adapter.safetensors")["step"] == log[-1]
    assert not (output / "adapter.safetensors").exists()  # which says that a run is done
    assert "is its adapter, --resume goes on" in " ".join(err.split())


# Runs one after the other in each process: to start anew takes many times as long as to train.
RUNS = """
import json, os, sys
from accelerate.state import AcceleratorState
from radial_app.cli.main import main
for port, arguments in json.loads(sys.argv[1]).items():
    os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}  # where they meet is not met at twice
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
    AcceleratorState._reset_state(reset_partial_state=True)
"""


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


@pytest.mark.parametrize("how", ["copies", "shards"])
def test_two_processes_train_as_one(config: dict[str, Any], tmp_path: Path, how: str) -> None:
    """Data parallel under torchrun (as ``accelerate launch`` starts it on GPUs; on CPUs it wants MPI) and FSDP2 under
    ``accelerate launch``, over gloo, a clip a process or each clip on both: the adapter that one process trains on
    whole batches, within rounding; with a clip a process also over a checkpoint, with the other run in between. Packs
    are shared likewise."""
    alone = config | {"batch_size": 2, "steps": 3, "validate_every": 0, "device": "cpu", "caption_dropout": 0.3,
                      "lr_scheduler": "constant"}  # fmt: skip
    clips = alone | {"batch_size": 1, "output": str(tmp_path / "two")}
    shared = alone | {"ulysses_degree": 2, "output": str(tmp_path / "shared")}
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    if how == "shards":
        launch = [
            "accelerate.commands.launch", "--num_processes", "2", "--use_fsdp", "--fsdp_version", "2",
            "--mixed_precision", "no",
            "--dynamo_backend", "no", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
            "--fsdp_transformer_layer_cls_to_wrap", "WanTransformerBlock", "--fsdp_reshard_after_forward", "true",
        ]  # fmt: skip
    files = [
        write_settings(tmp_path / f"{name}.toml", settings)
        for name, settings in (("clips-2", clips | {"steps": 2}), ("shared", shared), ("clips-3", clips))
    ]
    first, second, third = (["finetune", "run", str(file)] for file in files)
    calls = [first, second, [*third, "--resume"]]
    packs = shared | {"packed": True, "batch_size": 1, "batch_tokens": 40, "output": str(tmp_path / "packs")}
    if how == "copies":
        calls.append(["finetune", "run", str(write_settings(tmp_path / "packs.toml", packs))])
    runs = dict(zip(free_ports(len(calls)), calls, strict=True))
    (tmp_path / "runs.py").write_text(RUNS)
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(tmp_path / "runs.py"), json.dumps(runs)], capture_output=True, text=True,
        timeout=1800, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    compared = {"plain": (alone, (clips, shared))}
    if how == "copies":
        compared["packed"] = (packs | {"ulysses_degree": 1}, (packs,))
    for output, (settings, others) in compared.items():
        finetune(make_config(**settings | {"output": str(tmp_path / output)}))
        one = adapter_of({"output": str(tmp_path / output)})
        for together in others:
            two = adapter_of(together)
            assert set(one) == set(two)
            for name in one:
                assert torch.allclose(one[name], two[name], atol=2e-5), (together["output"], name)


def test_training_lowers_the_loss_and_acts(config: dict[str, Any], wan_folder: Path) -> None:
    losses: list[Any] = []
    longer = config | {"steps": 40, "checkpoint_every": 40, "validate_every": 20, "trigger": "shapes"}
    adapter = finetune(make_config(**longer), on_step=lambda p: p.step and losses.append(p.loss))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])

    settings = read_adapter_settings(adapter)
    assert settings is not None
    assert (settings.target_frames, settings.rank, settings.alpha, settings.trigger) == (9, 4, 4.0, "shapes")
    lora = [{"path": str(adapter)}]
    request = make_request(prompt="a", model=str(wan_folder), height=32, width=32, loras=lora, seed=1,
                           num_inference_steps=2)  # fmt: skip
    resolved = request.resolve()
    assert (resolved.num_frames, resolved.decay) == (9, settings.decay)
    notes: list[str] = []
    (tuned,) = generate(request, on_event=lambda event: notes.append(event.note) if event.note else None)
    assert notes == ["as the adapter was tuned: 9 frames, decay 1, 1 dense layers"]
    (plain,) = generate(request.model_copy(update={"loras": (), "num_frames": 9}))
    assert not np.array_equal(tuned.frames, plain.frames)


def test_dense_and_radial_runs_differ(config: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for attention in ("radial", "dense"):
        settings = config | {"output": str(tmp_path / attention), "attention": attention, "decay": 0.1, "steps": 2}
        finetune(make_config(**settings, dense_layers=0))
        states.append(adapter_of(settings))
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    tuned = make_request(prompt="a", loras=[{"path": str(tmp_path / "dense" / "adapter.safetensors")}], num_frames=33)
    assert tuned.resolve().attention == "dense"  # as it was tuned, unless the request says otherwise
    assert tuned.model_copy(update={"attention": "radial"}).resolve().attention == "radial"


def test_held_out_losses_tell_what_lies_beyond(
    config: dict[str, Any], wan_folder: Path, two_lengths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 13 frames, with 9 native ones: four latent frames, three of them within."""
    from dataclasses import replace

    load = setup.load
    monkeypatch.setattr(setup, "load", lambda r: replace(m := load(r), spec=replace(m.spec, native_frames=9)))
    seen = []
    settings = config | {"data": str(two_lengths), "held_out": 4, "steps": 1, "validate_every": 1}
    finetune(make_config(**settings), on_step=lambda p: seen.append(p.validation))
    untuned, held_out = seen
    assert untuned is not None
    assert held_out is not None
    assert held_out.beyond is not None
    low, high = sorted((held_out.within, held_out.beyond))
    assert low < held_out.all < high


def test_losses_that_are_no_numbers_stop_the_run(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = setup.velocity_loss
    bad = {2}

    def broken(*args: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*args) * (float("nan") if len(calls) in bad else 1.0)

    calls: list[int] = []
    monkeypatch.setattr(setup, "velocity_loss", broken)
    settings = config | {"max_bad_steps": 3, "held_out": 0, "output": config["output"] + "-once"}
    finetune(make_config(**settings))  # one bad step is skipped
    assert all(torch.isfinite(value).all() for value in adapter_of(settings).values())
    calls.clear()
    bad |= set(range(20))
    with pytest.raises(GenerationError, match="3 steps in a row had no finite loss, up to step 3"):
        finetune(make_config(**config | {"max_bad_steps": 3, "held_out": 0}))
    assert checkpoints.list_checkpoints(Path(config["output"])) == []


def test_a_run_shows_clips_and_numbers_as_it_goes(config: dict[str, Any]) -> None:
    prompts = ["a red circle", "<script>alert(1)</script>"]
    settings = config | {"sample_every": 3, "sample_prompts": prompts, "sample_frames": [5, 9], "sample_steps": 1}
    del settings["trackers"]  # TensorBoard, since it is installed
    finetune(make_config(**settings))
    samples = Path(config["output"]) / "samples"
    assert len(list(samples.glob("*.mp4"))) == 3 * 2 * 2  # before the first step too
    page = (samples / "index.html").read_text()
    assert page.count("<video src=") == 12
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "step 3: " in page
    events = list((Path(config["output"]) / "radial").glob("events.out.tfevents.*"))
    assert events
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events[0].parent))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in read.Scalars("validation")] == [0, 3, 6]


def test_sampling_on_the_way_changes_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for name, more in (("without", {}), ("with", {"sample_every": 2, "sample_prompts": ["a"], "sample_steps": 2})):
        settings = config | {"output": str(tmp_path / name), "steps": 4, "sample_frames": [9]} | more
        finetune(make_config(**settings))
        states.append(adapter_of(settings))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("expert", ["high", "low"])
def test_an_expert_is_tuned_and_used_alone(expert: str, wan22: Any, data: Path, tmp_path: Path) -> None:
    from radial.loading.load import load

    folder = tmp_path / "wan22"
    wan22.save_pretrained(folder)
    common = {"prompt": "a", "model": str(folder), "height": 32, "width": 32, "num_frames": 9, "seed": 0}
    prepare(find_sources(data)[:3], tmp_path / "cache", load(make_request(**common)), CUT)
    settings = {"data": str(tmp_path / "cache"), "model": str(folder), "rank": 4, "steps": 2, "trackers": [],
                "output": str(tmp_path / "run"), "learning_rate": 1e-2}  # fmt: skip
    with pytest.raises(RequestError, match="tune one at a time"):
        finetune(make_config(**settings))
    adapter = finetune(make_config(**settings, expert=expert))
    loaded = load(make_request(**common, loras=[{"path": str(adapter)}]))
    holds = [hasattr(loaded.pipe.transformer, "peft_config"), hasattr(loaded.pipe.transformer_2, "peft_config")]
    assert holds == ([True, False] if expert == "high" else [False, True])


# What is refused before the first step


def test_what_does_not_fit_together_is_refused_first(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no cache"):
        finetune(make_config(**config | {"data": str(tmp_path)}))
    with pytest.raises(RequestError, match="held_out is 8, and the cache has 8 clips"):
        finetune(make_config(**config | {"held_out": 8}))
    with pytest.raises(RequestError, match="other weights than tiny"):
        finetune(make_config(**config | {"model": "tiny"}))
    with pytest.raises(RequestError, match="tracker wandb is not installed: pip install wandb"):
        finetune(make_config(**config | {"trackers": ["wandb"]}))


def test_a_run_that_cannot_fit_is_told_what_would(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice is tried: with it, the estimate is below what there is."""
    from types import SimpleNamespace

    from diffusers import WanTransformer3DModel

    from radial import TokenGrid
    from radial_finetune.training import preflight

    with torch.device("meta"):
        transformer = WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30)
        transformer.to(torch.bfloat16)
        add_adapter(transformer, WanObjective, AdapterForm(128, 128))
    settings = make_config(**config)
    grids = [TokenGrid(81, 30, 52)]
    monkeypatch.setattr(preflight, "_matmul_rate", lambda device, dtype: 1e15)
    device = torch.device("cuda", 0)
    needed = preflight.estimate(settings, transformer, grids, radial_pattern(), device, 2, 128)
    assert needed.tokens == 126_360
    outside = settings.model_copy(update={"offload_blocks": True})
    less = preflight.estimate(outside, transformer, grids, radial_pattern(), device, 2, 128)
    block = sum(p.numel() for p in transformer.blocks[0].parameters() if not p.requires_grad) * 2
    assert needed.device - less.device == pytest.approx(28 * block)
    assert less.host - needed.host == pytest.approx(30 * block)
    for memory, told in (
        (70e9, None), (24e9, "offload_checkpoints = true"), (2e9, "the model's weights alone do not fit"),
        (12e9, "tokens are the longest"),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d, m=memory: SimpleNamespace(total_memory=m))
        if told is None:
            preflight.check(needed, settings, transformer, grids, device)
            continue
        with pytest.raises(RequestError, match=told):
            preflight.check(needed, settings, transformer, grids, device)
    usage = preflight.shutil.disk_usage("/")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RequestError, match=r"checkpoints need .* take another output, or a lower keep_checkpoints"):
        preflight.check(needed, settings, transformer, grids, device)


def radial_pattern() -> Any:
    from radial.plans.pattern import RadialPattern

    return RadialPattern(decay=1.0)


def test_a_full_disk_harms_no_checkpoint(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config["lr_scheduler"] = "constant"
    finetune(make_config(**config | {"steps": 2}))
    output = Path(config["output"])
    (before,) = checkpoints.list_checkpoints(output)
    usage = checkpoints.shutil.disk_usage(output)
    monkeypatch.setattr(train, "check", lambda *arguments: None)  # the disk fills up later on
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="a checkpoint needs"):
        finetune(make_config(**config | {"steps": 4}), resume=True)
    assert checkpoints.list_checkpoints(output) == [before]


@pytest.mark.parametrize("family", ["wan22-ti2v", "hunyuan-video", "mochi"])
def test_every_family_from_clips_to_a_clip(family: str, data: Path, tmp_path: Path) -> None:
    """A real pipeline's checkpoint: its clips cached, an adapter trained with clips made on the way, a clip with it."""
    from tiny_pipelines import CASES

    from radial.loading.load import load
    from radial_finetune.data.buckets import Bucket
    from radial_finetune.data.clips import Cut

    folder = tmp_path / family
    CASES[family].build().save_pretrained(folder)
    size = {"height": 64, "width": 64, "num_frames": 13}
    common = size | {"prompt": "a red circle", "model": str(folder), "seed": 0, "num_inference_steps": 2}
    loaded = load(make_request(**common))
    prepare(find_sources(data)[:3], tmp_path / "cache", loaded, Cut((Bucket(13, 64, 64),), 16, static_threshold=0))
    settings = {
        "data": str(tmp_path / "cache"), "model": str(folder), "rank": 4, "steps": 2, "output": str(tmp_path / "r"),
        "trackers": [], "held_out": 1, "validate_every": 2, "sample_every": 2, "sample_prompts": ["a circle"],
        "sample_frames": [13], "sample_steps": 2, "learning_rate": 1e-2, "norms": True,
    }  # fmt: skip
    losses: list[Any] = []
    adapter = finetune(make_config(**settings), on_step=lambda p: losses.append(p.loss))
    assert losses[0] is None  # before the first step
    assert len(losses[1:]) == 2
    assert all(np.isfinite(losses[1:]))
    assert (tmp_path / "r" / "samples" / "000002-00-13.mp4").exists()
    (plain,) = generate(make_request(**common))
    notes: list[str] = []
    (clip,) = generate(
        make_request(**common, loras=[{"path": str(adapter), "weight": 5}]),
        on_event=lambda event: notes.append(event.note) if event.note else None,
    )
    assert not [note for note in notes if "layers are in this model" in note]
    assert not np.array_equal(clip.frames, plain.frames)
