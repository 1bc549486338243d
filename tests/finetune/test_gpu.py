"""What only a GPU shows of a run: checkpoints that wait in the host's memory, 8 bit, compiled blocks, NCCL."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import radial
from radial import RadialPattern, Schedule
from radial_finetune.adapter.form import AdapterForm
from radial_finetune.adapter.place import add_adapter
from radial_finetune.objective import WanObjective
from radial_finetune.training.config import make_config
from radial_finetune.training.offloading import OffloadedBlocks, offloaded_checkpoint
from radial_finetune.training.train import finetune

pytestmark = pytest.mark.gpu


def test_checkpoints_that_wait_in_host_memory() -> None:
    """Gradients equal to those of checkpoints on the device, with less memory, in steps one after the other: a copy
    that is read too early, or whose tensor is given away too early, shows in them."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device("cuda"):
        transformer = WanTransformer3DModel(
            num_attention_heads=4, attention_head_dim=64, text_dim=64, ffn_dim=512, num_layers=16
        ).to(torch.bfloat16)
    add_adapter(transformer, WanObjective, AdapterForm(8, 8))
    transformer.train()
    inputs = [
        (torch.randn(1, 16, 9, 64, 64, device="cuda", dtype=torch.bfloat16),
         torch.randn(1, 8, 64, device="cuda", dtype=torch.bfloat16)) for _ in range(3)
    ]  # fmt: skip
    gradients: dict[str, list[torch.Tensor]] = {}
    peaks: dict[str, int] = {}
    for kind, function in (("kept", None), ("offloaded", offloaded_checkpoint), ("blocks too", offloaded_checkpoint)):
        if kind == "blocks too":
            blocks = OffloadedBlocks(transformer, torch.device("cuda"))
            function = functools.partial(blocks.checkpoint, offloaded_checkpoint)
        transformer.enable_gradient_checkpointing(*([function] if function else []))
        gradients[kind] = []
        torch.cuda.reset_peak_memory_stats()
        for hidden_states, text in inputs:
            with radial.apply(transformer, pattern=RadialPattern(), schedule=Schedule(dense_layers=0)):
                transformer(
                    hidden_states=hidden_states, timestep=torch.tensor([500.0], device="cuda"),
                    encoder_hidden_states=text, return_dict=False,
                )[0].float().square().mean().backward()  # fmt: skip
            gradients[kind] += [p.grad.clone() for p in transformer.parameters() if p.grad is not None]
            transformer.zero_grad(set_to_none=True)
        peaks[kind] = torch.cuda.max_memory_allocated()
    assert any(bool(gradient.any()) for gradient in gradients["kept"])
    for kind in ("offloaded", "blocks too"):
        for kept, offloaded in zip(gradients["kept"], gradients[kind], strict=True):
            torch.testing.assert_close(offloaded, kept, rtol=2e-2, atol=1e-6)
    weights = sum(p.numel() for p in transformer.blocks[0].parameters() if not p.requires_grad) * 2
    assert peaks["blocks too"] < peaks["offloaded"] - 10 * weights
    states = 9 * 32 * 32 * 256 * 2  # bytes of what enters a block
    assert peaks["offloaded"] < peaks["kept"] - 8 * states


OPTIONS: dict[str, dict[str, Any]] = {
    "offloaded": {"offload_checkpoints": True},
    "blocks offloaded": {"offload_blocks": True, "offload_checkpoints": True},
    "float8 blocks offloaded": {"offload_blocks": True, "base_precision": "float8"},
    "float8": {"base_precision": "float8"},
    "adamw8bit": {"optimizer": "adamw8bit", "rank": 64},
    "compiled": {"compile": True},
    "compiled, the rest": {
        "compile": True, "offload_checkpoints": True, "optimizer": "adamw8bit", "rank": 64, "norms": True,
    },
    "float8, the rest": {
        "base_precision": "float8", "offload_checkpoints": True, "optimizer": "adamw8bit", "rank": 64, "norms": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_train_as_on_the_cpu(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """The losses of a few steps in bfloat16 lie near those of the plain run on the CPU in float32."""
    plain = config | {"steps": 4, "validate_every": 0, "rank": OPTIONS[name].get("rank", 4)}
    losses: dict[str, list[float]] = {"cpu": [], "gpu": []}
    finetune(make_config(**plain, device="cpu", dtype="float32"), on_step=lambda p: losses["cpu"].append(p.loss))
    settings = plain | OPTIONS[name] | {"device": "cuda", "dtype": "bfloat16", "output": str(tmp_path / "gpu")}
    finetune(make_config(**settings), on_step=lambda p: losses["gpu"].append(p.loss))
    torch.compiler.reset()
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=0.08)


def test_a_process_of_a_group_over_nccl(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    settings = config | {"steps": 2, "validate_every": 0, "device": "cuda"}
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    launch = ["torch.distributed.run", "--nproc-per-node", "1", "--standalone"]
    command = [sys.executable, "-m", *launch, "-m", "radial_app", "finetune", "run", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (Path(config["output"]) / "adapter.safetensors").exists()
