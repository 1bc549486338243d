"""One forward of a transformer at full size, stock and ours: ``python benchmarks/step.py``.

Random weights, bf16, batch 1. The baseline is stock diffusers with cuDNN's attention forced. All variants run in one
process, in turn, round after round, each after a call for a few frames that compiles its kernels; the median of the
rounds after the first, where there are several.
Compiled blocks come last, with the baseline again before them. A clip's time is that of its schedule: so many forwards
dense, the rest radial, twice with guidance; guidance leaves the ratios as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from full_size import Case, build, make_inputs, relative_error, timed_forward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

import radial
from radial import Schedule
from radial.attention.families.find import find_family
from radial.loading.quantize import narrow_linears
from radial.models.table import MODELS
from radial_kernels.fused import EightBitLinear

CASES = {
    "wan-69": (Case("wan2.1-14b", 768, 1280, 69), 2),
    "wan-161": (Case("wan2.1-14b", 768, 1280, 161), 1),
    "wan-small-81": (Case("wan2.1-1.3b", 480, 832, 81), 4),
    "wan-small-321": (Case("wan2.1-1.3b", 480, 832, 321), 2),
    "hunyuan-117": (Case("hunyuan-video", 720, 1280, 117), 1),
    "hunyuan-509": (Case("hunyuan-video", 720, 1280, 509, part=5), 1),
    "hunyuan-509-whole": (Case("hunyuan-video", 720, 1280, 509), 1),  # stock takes more than five minutes
    # These try the script out, without a GPU.
    "cpu": (Case("wan, 13 heads", 48, 80, 9, part=15), 2),
    "cpu-hunyuan": (Case("hunyuan-video", 48, 80, 9, part=20), 1),
}
USUAL = [name for name in CASES if not name.startswith("cpu") and not name.endswith("whole")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=USUAL)
    parser.add_argument("--variants", nargs="+", help="of the table's rows only these, and the baseline")
    parser.add_argument("--compile", action="store_true", help="compiled blocks, too")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if gpu else "CPU", "torch", torch.__version__, flush=True)
    for name in options.cases:
        Bench(*CASES[name], gpu, options.variants).run(compiled=options.compile)
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()


class Bench:
    """The variants of one case, and what they took."""

    def __init__(self, case: Case, rounds: int, gpu: bool, variants: list[str] | None = None) -> None:
        self.case, self.rounds, self.variants = case, rounds, variants
        device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
        self.transformer, self.inputs = build(case, device, dtype), make_inputs(case, device, dtype)
        self.few_frames = make_inputs(replace(case, frames=5), device, dtype)
        self.pattern, self.schedule = case.attention()
        self.times: dict[str, list[float]] = {}
        self.peaks: dict[str, float] = {}
        self.outputs: dict[str, Tensor] = {}
        self.density = 1.0

    def run(self, *, compiled: bool) -> None:
        """Measure all variants, and print their table."""
        case = self.case
        print(f"\n{case}: {case.tokens:,} tokens", flush=True)
        if case.tokens < 120_000:
            self.measure("stock, default attention", None)
        for _ in range(self.rounds):
            self.measure("stock, cuDNN")
            with self.attention(dense=False):
                self.measure("radial")
        fused, undo = self.fuse()
        for _ in range(self.rounds if fused else 0):
            self.measure("fused, dense")
            with self.attention(dense=False):
                self.measure("fused, radial")
        undo_linears = self.narrow()
        for _ in range(self.rounds):
            self.measure("all 8-bit products, dense")
            with self.attention(dense=False):
                self.measure("8-bit products, radial")
            with self.attention(dense=False, eight_bit=True):
                self.measure("8-bit products and attention, radial")
        undo_linears()
        undo()
        if compiled:
            self.measure("stock, cuDNN")
            self.compile()
        self.report()

    @contextlib.contextmanager
    def attention(self, *, dense: bool, eight_bit: bool = False) -> Iterator[Any]:
        schedule = Schedule.dense() if dense else self.schedule
        with radial.apply(self.transformer, pattern=self.pattern, schedule=schedule, eight_bit=eight_bit) as installed:
            yield installed
            self.density = installed.plan.density if installed.plan else 1.0

    def fuse(self) -> tuple[int, Callable[[], None]]:
        """Fused blocks, and how to take them out again."""
        modules: list[Any] = list(self.transformer.modules())
        processors = [(m, m.processor) for m in modules if getattr(m, "processor", None) is not None]
        count = find_family(self.transformer).fuse(self.transformer)

        def undo() -> None:
            for attention, processor in processors:
                attention.processor = processor
            for module in modules:
                module.__dict__.pop("forward", None)

        return count, undo

    def narrow(self) -> Callable[[], None]:
        """8-bit linear layers, and how to take them out again."""
        before = [(m, n, c) for m in self.transformer.modules() for n, c in m.named_children() if type(c) is nn.Linear]
        narrow_linears(self.transformer)

        def undo() -> None:
            for parent, name, child in before:
                if isinstance(getattr(parent, name), EightBitLinear):
                    setattr(parent, name, child)

        return undo

    def compile(self) -> None:
        """Radial blocks compiled, and what the first call costs."""
        transformer: Any = self.transformer
        torch._dynamo.config.recompile_limit = 64
        transformer.compile_repeated_blocks(dynamic=False)
        try:
            with self.attention(dense=False) as installed:
                self.measure("compiled, radial, first call")
                for _ in range(self.rounds):
                    self.measure("compiled, radial")
                installed.context.policy = Schedule.dense()
                self.measure("compiled, dense, first call")
                self.measure("compiled, dense")
        finally:
            for block in transformer.modules():
                block._compiled_call_impl = None

    def measure(self, kind: str, backend: SDPBackend | None = SDPBackend.CUDNN_ATTENTION) -> None:
        """One forward."""
        if self.variants is not None and kind not in (*self.variants, "stock, cuDNN"):
            return
        try:
            if kind not in self.times and "first call" not in kind:
                timed_forward(self.transformer, self.few_frames, backend)
            seconds, self.peaks[kind], out = timed_forward(self.transformer, self.inputs, backend)
            self.times.setdefault(kind, []).append(seconds)
            self.outputs[kind] = out.float().cpu()
            print(f"  {kind}: {seconds:.3f} s", flush=True)
        except (RuntimeError, ValueError, torch.OutOfMemoryError) as error:
            print(f"  {kind}: {str(error).splitlines()[0]}", flush=True)

    def report(self) -> None:
        medians = {kind: statistics.median(t[1:] if len(t) > 1 else t) for kind, t in self.times.items()}
        base = medians["stock, cuDNN"]
        print(f"\n  density {self.density:.3f}; the error is against stock with cuDNN in the same kind of attention\n"
              f"  {'':38} {'s':>7} {'times':>6} {'peak GB':>8} {'error':>8} {'clip s':>8} {'times':>6}")  # fmt: skip
        spec = MODELS[self.case.model if self.case.model in MODELS else "wan2.1-1.3b"]
        steps = spec.num_inference_steps
        dense_steps = spec.preset(self.case.frames, steps)[1].dense_steps
        # What the dense steps of a radial variant run with.
        dense_of = {"radial": "stock, cuDNN", "fused, radial": "fused, dense", "compiled, radial": "compiled, dense",
                    "8-bit products, radial": "all 8-bit products, dense",
                    "8-bit products and attention, radial": "all 8-bit products, dense"}  # fmt: skip
        for kind, seconds in medians.items():
            reference = self.outputs.get("radial" if "radial" in kind else "stock, cuDNN", self.outputs[kind])
            error = relative_error(self.outputs[kind], reference)
            clip = ""
            if (dense := medians.get(dense_of.get(kind, ""))) is not None:
                whole = dense_steps * dense + (steps - dense_steps) * seconds
                clip = f"{whole:8.1f} {base * steps / whole:6.2f}"
            print(f"  {kind:38} {seconds:7.3f} {base / seconds:6.2f} {self.peaks[kind]:8.1f} {error:8.1e} {clip}")
        print(f"  ({dense_steps} of {steps} steps dense)", flush=True)


if __name__ == "__main__":
    main()
