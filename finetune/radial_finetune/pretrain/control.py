"""The bundled model's control: blocks of VACE beside its own, which stay as they are.

``python -m radial_finetune.pretrain.control --out FOLDER --device cuda --minutes 14`` writes
``FOLDER/tiny-control.safetensors``, the blocks alone. A later call with the same folder goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel, WanVACETransformer3DModel
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from radial.models.checkpoint import CONTROL_CHANNELS, bundled_folder, transformer_digest
from radial_finetune.pretrain.control_data import ControlPool, Encoder, Examples, load_examples
from radial_finetune.pretrain.denoiser import SelfAttention, flow_loss
from radial_finetune.pretrain.graph import capture
from radial_finetune.pretrain.muon import Muon

VACE_LAYERS = (0, 2, 4, 6, 8, 10)
FILE = "tiny-control.safetensors"
_SHARD = "15MB"


@dataclass(frozen=True, kw_only=True)
class ControlTraining:
    """How the control is trained.

    Attributes:
        seconds: of all calls together, what they take to start and to save included; the learning rate falls to zero
            over the last ``cooldown`` share.
        steps: an end before that.
        layers: beside which blocks of VACE stand.
        referenced: share of steps whose clips have a picture of their figure.
        pool_size: encoded examples kept at hand, of which ``referenced`` have a picture.
        refresh_every: steps between two batches of new examples; while the pool fills, a quarter of that.
        processes: that draw examples.
    """

    seconds: float
    steps: int | None = None
    layers: tuple[int, ...] = VACE_LAYERS
    batch_size: int = 64
    muon_lr: float = 2e-3
    adam_lr: float = 6e-4
    warm_up: int = 200
    cooldown: float = 0.6
    ema: float = 0.999
    referenced: float = 0.25
    pool_size: int = 12_288
    refresh_every: int = 60
    flow_shift: float = 3.0
    caption_dropout: float = 0.1
    num_frames: int = 33
    side: int = 128
    processes: int = 12
    seed: int = 0
    compile: bool = True
    save_every: float = 120.0  # seconds


def add_control(base: WanTransformer3DModel, layers: tuple[int, ...]) -> WanVACETransformer3DModel:
    """A model with blocks of VACE beside some layers of another one, copies of these; what they say counts for nothing
    until it is learned. Only they are to be trained."""
    names = (
        "patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim",
        "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "qk_norm", "eps", "rope_max_seq_len",
    )  # fmt: skip
    config = {name: base.config[name] for name in names}
    made = WanVACETransformer3DModel(**config, vace_layers=list(layers), vace_in_channels=CONTROL_CHANNELS)
    found = made.load_state_dict(base.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("vace_") for name in found.missing_keys)
    with torch.no_grad():
        for block, layer in zip(made.vace_blocks, layers, strict=True):
            block.load_state_dict(base.blocks[layer].state_dict(), strict=False)
            block.proj_out.weight.zero_()
            block.proj_out.bias.zero_()
        # What is kept and what is made anew are latents as the model's own, and enter as these do.
        channels, own = config["in_channels"], base.patch_embedding
        entry = made.vace_patch_embedding
        entry.weight.zero_()
        entry.weight[:, : 2 * channels] = own.weight.repeat(1, 2, 1, 1, 1)
        entry.bias.copy_(own.bias)
        first = made.vace_blocks[0].proj_in
        first.weight.copy_(torch.eye(len(first.weight)))
        first.bias.zero_()
    made.requires_grad_(False)
    for _, parameter in control_of(made):
        parameter.requires_grad_(True)
    return made


def control_of(transformer: WanVACETransformer3DModel) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters of a model's control, by name."""
    return [(name, one) for name, one in transformer.named_parameters() if name.startswith("vace_")]


def train_control(
    training: ControlTraining, base: WanTransformer3DModel, encoder: Encoder, out: Path, digest: str,
    pause_after: float = float("inf"), log: Callable[[str], None] = print,
) -> bool:  # fmt: skip
    """Train, saving to ``out`` as it goes; a later call goes on there.

    Args:
        digest: of the model whose blocks stay as they are.
        pause_after: seconds of this call after which it stops early.

    Returns:
        Whether it came to its end.
    """
    begun = time.monotonic()
    device = encoder.device
    torch.manual_seed(training.seed)
    transformer = add_control(base, training.layers).to(device)
    run = _Run(transformer, training, device)
    step, spent = _resume(out, run, device)
    begun -= spent

    def done() -> float:
        by_steps = step / training.steps if training.steps else 0.0
        return max((time.monotonic() - begun) / training.seconds, by_steps)

    if done() >= 1:
        return True
    torch.manual_seed(training.seed + step)
    pools = [
        _open_pool(training, encoder, referenced, step)
        for referenced in (False, True)
        if not referenced or training.referenced
    ]
    log(f"control: {sum(len(one.view(-1)) for one in run.weights) / 1e6:.1f} M weights to train, from step {step}")
    for block in (*transformer.blocks, *transformer.vace_blocks):
        block.attn1.set_processor(SelfAttention())
    if training.compile:
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    steps = [run.step_on(pool) for pool in pools]
    log(f"control: start-up took {time.monotonic() - begun - spent:.0f} s")

    first_step, trained_from = step, time.monotonic()
    last_log = last_save = trained_from
    whole = False
    while not (whole := done() >= 1) and time.monotonic() - begun - spent < pause_after:
        rate = min(1.0, (step + 1) / training.warm_up) * min(1.0, (1 - done()) / training.cooldown)
        run.set_rate(rate, min(training.ema, (step + 1) / (step + 10)))
        chosen = len(pools) - 1 if _is_referenced(step, training.referenced) else 0
        steps[chosen]()
        step += 1
        every = training.refresh_every if all(pool.is_full for pool in pools) else max(1, training.refresh_every // 4)
        if step % every == 0:
            pools[len(pools) - 1 if _is_referenced(step // every, training.referenced) else 0].refill()
        if time.monotonic() - last_log > 15:
            last_log = time.monotonic()
            pace = 1000 * (last_log - trained_from) / (step - first_step)
            log(f"control {done():4.0%} step {step} loss {run.mean_loss():.4f} {pace:.1f} ms a step")
        if time.monotonic() - last_save > training.save_every:
            _save(out, run, step, time.monotonic() - begun, digest)
            last_save = time.monotonic()
    loss = run.mean_loss()
    _save(out, run, step, time.monotonic() - begun, digest)
    log(f"control {'done' if whole else 'paused'}: {step} steps, loss {loss:.4f}")
    return whole


class _Run:
    """What changes as training goes: the control's weights, their average, and the optimizers."""

    def __init__(self, transformer: WanVACETransformer3DModel, training: ControlTraining, device: torch.device) -> None:
        self.transformer, self.training = transformer, training
        self.names, self.weights = map(list, zip(*control_of(transformer), strict=True))
        matrices = [one for name, one in control_of(transformer) if name.startswith("vace_blocks.") and one.ndim == 2]
        chosen, on_gpu = {id(one) for one in matrices}, device.type == "cuda"
        self.muon = Muon(matrices, lr=0.0)
        self.adam = torch.optim.AdamW(
            [one for one in self.weights if id(one) not in chosen], lr=torch.tensor(0.0, device=device),
            betas=(0.9, 0.98), weight_decay=0.0, capturable=on_gpu, fused=on_gpu,
        )  # fmt: skip
        self.average = [one.detach().clone() for one in self.weights]
        self.decay = torch.tensor(1.0, device=device)  # until set: warming up must not touch the average
        self.losses = torch.zeros(2, device=device)  # sum since the last log, and count

    def step_on(self, pool: ControlPool) -> Callable[[], None]:
        """A training step on examples of a pool."""
        training, empty_LD = self.training, pool.encoder.empty_LD

        def train_step() -> None:
            latents, conditions, text = pool.sample(training.batch_size)
            dropped = torch.rand(len(text), 1, 1, device=text.device) < training.caption_dropout
            text = torch.where(dropped, empty_LD, text)
            # Gradients are made anew, not zeroed and added to: within a captured graph they keep their place.
            self.transformer.zero_grad(set_to_none=True)
            loss = flow_loss(self.transformer, latents, text, training.flow_shift, control_hidden_states=conditions)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
            self.muon.step()
            self.adam.step()
            self.losses.add_(torch.stack([loss.detach(), torch.ones_like(loss.detach())]))
            torch._foreach_mul_(self.average, self.decay)
            torch._foreach_add_(
                self.average, torch._foreach_mul([one.detach() for one in self.weights], 1 - self.decay)
            )

        return capture(train_step) if self.losses.is_cuda else train_step

    def set_rate(self, rate: float, decay: float) -> None:
        self.muon.lr.fill_(self.training.muon_lr * rate)
        self.adam.param_groups[0]["lr"].fill_(self.training.adam_lr * rate)
        self.decay.fill_(decay)

    def mean_loss(self) -> float:
        """Over the steps since it was last asked for."""
        total, count = self.losses.tolist()
        self.losses.zero_()
        return total / max(count, 1)

    def state(self) -> dict[str, Tensor]:
        """All that a later call needs; momentum and average in half precision, which is as exact as they are used."""
        state = {f"weight.{name}": one.detach() for name, one in zip(self.names, self.weights, strict=True)}
        state |= {f"average.{name}": one.half() for name, one in zip(self.names, self.average, strict=True)}
        state |= {name: buffer.bfloat16() for name, buffer in self.muon.state_dict().items()}
        for index, moments in self.adam.state_dict()["state"].items():
            state |= {f"adam.{index}.{name}": value for name, value in moments.items()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight, mean in zip(self.names, self.weights, self.average, strict=True):
                weight.copy_(state[f"weight.{name}"])
                mean.copy_(state[f"average.{name}"])
        self.muon.load_state_dict(state)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})


def _is_referenced(number: int, share: float) -> bool:
    """Of every so many steps evenly spread ones."""
    return int((number + 1) * share) > int(number * share)


def _open_pool(training: ControlTraining, encoder: Encoder, referenced: bool, step: int) -> ControlPool:
    """A pool with some first examples."""
    share = training.referenced if referenced else 1 - training.referenced
    processes = max(1, round(training.processes * share)) if training.processes else 0
    examples = Examples(training.num_frames, training.side, referenced, f"{training.seed} {step}")
    size = max(training.batch_size, round(training.pool_size * share))
    pool = ControlPool(encoder, load_examples(examples, training.batch_size, processes), size)
    for _ in itertools.takewhile(lambda _: not pool.is_full, range(round(16 * share))):
        pool.refill()
    return pool


def _save(out: Path, run: _Run, step: int, seconds: float, digest: str) -> None:
    """The state in a folder of its own that has its name once it is whole, then the control as it is used."""
    partial, whole = out / "state.partial", out / f"state-{step:07d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    told = {"step": str(step), "seconds": str(seconds), "digest": digest}
    save_torch_state_dict(run.state(), partial, max_shard_size=_SHARD, metadata=told)
    (partial / "progress.json").write_text(json.dumps(told), encoding="utf-8")
    shutil.rmtree(whole, ignore_errors=True)
    partial.rename(whole)
    for other in out.glob("state-*"):
        if other != whole:
            shutil.rmtree(other)
    write_control(out / FILE, dict(zip(run.names, run.average, strict=True)), digest, run.training.layers)


def write_control(path: Path, weights: dict[str, Tensor], digest: str, layers: tuple[int, ...]) -> None:
    """Write a control as ``--model tiny-control`` puts it together with the bundled model of that digest."""
    partial = path.with_suffix(".partial")
    tensors = {name: one.detach().half().cpu().contiguous() for name, one in weights.items()}
    save_file(tensors, partial, metadata={"format": "pt", "vace_layers": json.dumps(layers), "base": digest})
    partial.replace(path)


def _resume(out: Path, run: _Run, device: torch.device) -> tuple[int, float]:
    """Restore the last state that is whole, if there is one: its step, and the seconds that all calls took."""
    found = sorted(out.glob("state-*"))
    if not found:
        return 0, 0.0
    state: dict[str, Tensor] = {}
    for file in sorted(found[-1].glob("*.safetensors")):
        state |= load_file(file, device=str(device))
    run.restore(state)
    told: dict[str, Any] = json.loads((found[-1] / "progress.json").read_text(encoding="utf-8"))
    return int(told["step"]), float(told["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m radial_finetune.pretrain.control", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the control and the training state")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=14.0, help="of all calls together, starting up included")
    parser.add_argument("--pause-after", type=float, default=float("inf"), help="seconds after which this call stops")
    parser.add_argument("--steps", type=int, help="stop after so many steps, if they come before the minutes")
    for name in ("batch_size", "pool_size", "num_frames", "side", "processes", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(ControlTraining, name))
    for name in ("muon_lr", "adam_lr", "referenced"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(ControlTraining, name))
    parser.add_argument("--layers", type=int, nargs="+", default=VACE_LAYERS, help="beside which blocks of VACE stand")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    device, folder = torch.device(options.device), bundled_folder("tiny")
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        part.to(device).eval().requires_grad_(False)
    training = ControlTraining(
        seconds=60 * options.minutes, steps=options.steps,
        layers=tuple(options.layers), batch_size=options.batch_size, muon_lr=options.muon_lr,
        adam_lr=options.adam_lr, referenced=options.referenced, pool_size=options.pool_size,
        num_frames=options.num_frames, side=options.side, processes=options.processes, seed=options.seed,
        compile=not options.no_compile and device.type == "cuda",
    )  # fmt: skip
    encoder = Encoder(pipe.vae, pipe.tokenizer, pipe.text_encoder, device)
    log = lambda line: print(line, flush=True)  # noqa: E731
    train_control(
        training, pipe.transformer, encoder, options.out, transformer_digest(folder), options.pause_after, log
    )
    print(options.out / FILE)


if __name__ == "__main__":
    main()
