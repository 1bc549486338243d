"""A whole clip at full size, from the prompt to the file, one switch after the other: ``python benchmarks/clip.py``.

Random weights, all of them on the GPU: text encoder, transformer, autoencoder. The baseline is stock diffusers with
cuDNN's attention forced. Each row keeps the switches of the rows before it. Steps of one kind take the same time, so of
rows without a cache some steps of each kind are measured, the first of them apart, which compiles, and the clip's time
is put together from them; rows with a cache are made whole, as which steps it leaves out is a matter of the run, and
``--whole`` makes every row so. Random weights say nothing of fidelity.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from full_size import CONFIGURATIONS, Case, build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import radial
from radial.attention.families.find import find_family
from radial.generation.resume import Step
from radial.loading.load import LoadedModel
from radial.loading.quantize import narrow_linears
from radial.models.table import MODELS
from radial.request import GenerationRequest, make_request
from radial.video.clip import Video

CASES = {
    "wan-69": Case("wan2.1-14b", 768, 1280, 69),
    "wan-161": Case("wan2.1-14b", 768, 1280, 161),
    "wan-small-81": Case("wan2.1-1.3b", 480, 832, 81),
    "cpu": Case("wan, small", 48, 80, 9),  # tries the script out, without a GPU
}
CONFIGURATIONS["wan, small"] = CONFIGURATIONS["wan2.1-1.3b"] | {
    "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 3, "text_dim": 32,
}  # fmt: skip
ROWS = ("stock, default attention", "stock, cuDNN", "radial", "fused blocks", "cache auto", "8 bit")


@dataclass
class Taken:
    """What a row took: seconds by stage, and of the steps of each kind but their first."""

    stages: dict[str, float] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)
    whole: bool = False
    peak: float = 0.0
    watts: float | None = None

    def seconds(self, counts: dict[str, int]) -> float:
        """Of a clip with so many steps of each kind."""
        if self.whole:
            return sum(self.stages.values())
        steps = sum(statistics.median(self.steps[kind]) * count for kind, count in counts.items() if count)
        return sum(self.stages.values()) + steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), default="wan-69")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, help="of a clip; the model's own where left out")
    parser.add_argument("--sampled", type=int, default=3, help="steps of a kind that are measured, the first one apart")
    parser.add_argument("--whole", action="store_true", help="make every row's clip whole")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if gpu else "CPU", "torch", torch.__version__, flush=True)
    case = CASES[options.case]
    bench = Bench(case, gpu, options.steps, options.sampled, options.whole)
    print(f"{case}: {case.tokens:,} tokens, {bench.counts['dense']} dense steps and {bench.counts['radial']} radial\n\n"
          "| switches, each beside those above | clip, s | over stock, cuDNN | dense step | radial step | encode "
          "| decode | file | peak GB | kJ |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for row in ROWS:
        bench.switch(row)
        if row in options.rows:
            print(bench.line(row, bench.measure(row)), flush=True)


class Bench:
    """A model with random weights, the switches that are on, and what the baseline took."""

    def __init__(self, case: Case, gpu: bool, steps: int | None, sampled: int, whole: bool) -> None:
        self.case, self.gpu, self.sampled, self.whole = case, gpu, sampled, whole
        self.model = build_model(case, "cuda" if gpu else "cpu", torch.bfloat16 if gpu else torch.float32)
        self.fields: dict[str, Any] = {}
        plain = self.ask()
        self.steps = steps or plain.num_inference_steps or 1
        dense = min(self.steps, plain.dense_steps or 0)
        self.counts = {"dense": dense, "radial": self.steps - dense}
        self.baseline: float | None = None

    def ask(self, **fields: Any) -> GenerationRequest:
        case = self.case
        return make_request(
            prompt="a fox", model=self.model.spec.name, height=case.height, width=case.width, num_frames=case.frames,
            seed=1, **self.fields | fields,
        ).resolve()  # fmt: skip

    def switch(self, row: str) -> None:
        """Turn a row's switch on, beside those before."""
        transformer = self.model.pipe.transformer
        if row == "fused blocks" and self.gpu:
            find_family(transformer).fuse(transformer)
        elif row == "cache auto" and self.steps >= 10:
            self.fields["cache"] = "auto"
        elif row == "8 bit" and self.gpu:
            narrow_linears(transformer)
            self.fields["precision"] = "eight_bit"

    def measure(self, row: str) -> Taken:
        """One clip of a row, whole or from its parts."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        taken = Taken(whole=self.whole or "cache" in self.fields)
        with power() as watts:
            if row.startswith("stock"):
                with (
                    sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if self.gpu and "cuDNN" in row else contextlib.nullcontext()
                ):
                    self._make_stock(taken)
            elif taken.whole:
                self._make(taken, self.ask(num_inference_steps=self.steps), "radial")
            else:
                dense_layers = self.ask().dense_layers
                self._make(taken, self.ask(num_inference_steps=self.steps, attention="dense"), "dense")
                self._make(
                    taken, self.ask(num_inference_steps=self.steps, dense_steps=0, dense_layers=dense_layers), "radial"
                )
        if self.gpu:
            taken.peak = torch.cuda.max_memory_allocated() / 1e9
        taken.watts = statistics.mean(watts) if watts else None
        return taken

    def _make_stock(self, taken: Taken) -> None:
        """diffusers' own call, interrupted after the steps that are measured."""
        request, pipe = self.ask(num_inference_steps=self.steps), self.model.pipe
        clock = Clock(self.gpu)

        def after(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            clock.mark()
            if not taken.whole and step + 1 == self.sampled:
                pipe._interrupt = True
            if step + 1 == self.steps or pipe._interrupt:
                clock.stage("decode")
            return tensors

        handle = pipe.transformer.register_forward_pre_hook(lambda *_: clock.stage("steps"))
        try:
            frames = pipe(
                prompt=request.prompt, negative_prompt=request.negative_prompt, height=request.height,
                width=request.width, num_frames=request.num_frames, num_inference_steps=self.steps,
                guidance_scale=request.guidance_scale, callback_on_step_end=after, output_type="np",
            ).frames[0]  # fmt: skip
        finally:
            handle.remove()
        clock.stage("file")
        write(Video((frames * 255).round().astype("uint8"), request.fps or 16, {}, None))
        clock.into(taken, "dense")
        taken.steps.setdefault("radial", taken.steps["dense"])

    def _make(self, taken: Taken, request: GenerationRequest, kind: str) -> None:
        clock = Clock(self.gpu)

        def follow(event: Any) -> None:
            if event.stage == "denoise" and event.step:
                clock.mark()
            elif event.stage in ("denoise", "decode"):
                clock.stage("steps" if event.stage == "denoise" else "decode")

        def finish_early(step: Step) -> Any:
            return "finish" if not taken.whole and step.step == self.sampled else "go on"

        on_step = None if taken.whole else finish_early
        (video,) = radial.generate(request, model=self.model, on_event=follow, on_step=on_step)
        clock.stage("file")
        write(video)
        clock.into(taken, kind)

    def line(self, row: str, taken: Taken) -> str:
        """A row of the table."""
        seconds = taken.seconds(self.counts)
        if row == "stock, cuDNN":
            self.baseline = seconds
        ratio = f"{self.baseline / seconds:.2f}" if self.baseline else "-"
        known = {} if taken.whole else taken.steps
        steps = [f"{statistics.median(known[kind]):.3f}" if kind in known else "-" for kind in ("dense", "radial")]
        stages = [f"{taken.stages.get(stage, 0.0):.2f}" for stage in ("encode", "decode", "file")]
        energy = "-" if taken.watts is None else f"{taken.watts * seconds / 1e3:.0f}"
        told = f"{seconds:.1f}{'' if taken.whole else ', put together'}"
        return f"| {row} | {told} | {ratio} | {' | '.join([*steps, *stages])} | {taken.peak:.1f} | {energy} |"


class Clock:
    """Seconds of stages and steps, with the GPU's work done."""

    def __init__(self, gpu: bool) -> None:
        self._gpu, self._stage = gpu, "encode"
        self._begun = self._step = self._now()
        self.stages: dict[str, float] = {}
        self.steps: list[float] = []

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def stage(self, name: str) -> None:
        """A stage begins, where it has not yet."""
        if name == self._stage or name in self.stages:
            return
        now = self._now()
        self.stages[self._stage] = now - self._begun
        self._stage, self._begun, self._step = name, now, now

    def mark(self) -> None:
        """A step ends."""
        now = self._now()
        self.steps.append(now - self._step)
        self._step = now

    def into(self, taken: Taken, kind: str) -> None:
        """Hand over what was measured: of a clip that was not made whole all but its steps' stage."""
        now = self._now()
        self.stages[self._stage] = now - self._begun
        steps = self.stages.pop("steps", 0.0)
        taken.stages = self.stages | ({"steps": steps} if taken.whole else {})
        taken.steps[kind] = self.steps[1:] or self.steps


def write(video: Video) -> None:
    """Make the clip's file, as the product does."""
    with tempfile.TemporaryDirectory() as folder:
        video.write(Path(folder) / "clip.mp4")


@contextlib.contextmanager
def power() -> Iterator[list[float]]:
    """Watts of the first GPU twice a second while the context lasts; none where there is nothing that tells."""
    watts: list[float] = []
    command = ["nvidia-smi", "--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", "500"]
    process = None
    if torch.cuda.is_available() and shutil.which("nvidia-smi"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield watts
    if process is not None:
        process.terminate()
        out, _ = process.communicate()
        watts += [float(line) for line in out.splitlines() if line.replace(".", "", 1).strip().isdigit()]


@torch.no_grad()
def build_model(case: Case, device: str, dtype: torch.dtype) -> LoadedModel:
    """Wan 2.1 with random weights, all of it on the device."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    small = case.model == "wan, small"
    encoder: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 8}
    if not small:
        encoder = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "fox": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()

    def filled(make: Any, dtype: torch.dtype) -> nn.Module:
        with torch.device("meta"):
            module: nn.Module = make()
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
        module = module.to_empty(device=device)
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.data.normal_(0, 0.02)
        return module.eval().requires_grad_(False)

    pipe = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"),
        text_encoder=filled(lambda: UMT5EncoderModel(UMT5Config(is_encoder_decoder=False, **encoder)), dtype),
        vae=filled(lambda: AutoencoderKLWan(base_dim=8) if small else AutoencoderKLWan(), torch.float32),
        transformer=build(case, device, dtype),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    spec = MODELS["wan2.1-14b" if case.model == "wan2.1-14b" else "wan2.1-1.3b"]
    return LoadedModel(spec, pipe, torch.device(device), dtype, "random weights")


if __name__ == "__main__":
    main()
