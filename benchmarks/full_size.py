"""Transformers at their real size with random weights, and the inputs of a clip, for benchmarks of whole forwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from radial import RadialPattern, Schedule
from radial.models.table import MODELS

_WAN: dict[str, Any] = {"class": "WanTransformer3DModel", "attention_head_dim": 128}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "wan2.1-1.3b": _WAN | {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan2.1-14b": _WAN | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    # 13 heads, which no two processes share evenly.
    "wan, 13 heads": _WAN | {"num_attention_heads": 13, "ffn_dim": 8960, "num_layers": 30},
    "hunyuan-video": {
        "class": "HunyuanVideoTransformer3DModel",
        "num_layers": 20,
        "num_single_layers": 40,
        "guidance_embeds": True,
    },
}


@dataclass(frozen=True)
class Case:
    """A clip of a model, and of its layers one in ``part``, where a whole forward would take too long."""

    model: str
    height: int
    width: int
    frames: int
    part: int = 1

    @property
    def latents(self) -> tuple[int, int, int]:
        return (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8

    @property
    def tokens(self) -> int:
        return self.latents[0] * (self.latents[1] // 2) * (self.latents[2] // 2)

    def attention(self) -> tuple[RadialPattern, Schedule]:
        """The preset of this length, at a step past the dense ones. Where not all layers run, none of them is dense."""
        spec = MODELS[self.model if self.model in MODELS else "wan2.1-1.3b"]
        pattern, schedule = spec.preset(self.frames, spec.num_inference_steps)
        layers = schedule.dense_layers if self.part == 1 else 0
        return pattern, replace(schedule, dense_layers=layers, dense_steps=0, dense_last_steps=0)

    def __str__(self) -> str:
        part = f", 1 layer in {self.part}" if self.part > 1 else ""
        return f"{self.model} {self.height}x{self.width}, {self.frames} frames{part}"


@torch.no_grad()
def build(case: Case, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The transformer of a case, its parameters in the dtypes that loading a checkpoint gives them."""
    import diffusers

    sizes = dict(CONFIGURATIONS[case.model])
    kind = getattr(diffusers, sizes.pop("class"))
    sizes |= {name: sizes[name] // case.part for name in ("num_layers", "num_single_layers") if name in sizes}
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer: nn.Module = kind(**sizes)
    finally:
        torch.set_default_dtype(before)
    kept = kind._keep_in_fp32_modules or []
    for name, tensor in [*transformer.named_parameters(), *transformer.named_buffers()]:
        if any(part in name.split(".") for part in kept):
            tensor.data = tensor.data.float()
    return transformer.eval().requires_grad_(False)


def make_inputs(case: Case, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """What a pipeline hands the transformer at one step, the same on every process."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    inputs: dict[str, Any] = {
        "hidden_states": normal(1, 16, *case.latents),
        "timestep": torch.tensor([500], device=device),
        "return_dict": False,
    }
    if CONFIGURATIONS[case.model]["class"].startswith("Wan"):
        return inputs | {"encoder_hidden_states": normal(1, 512, 4096)}
    return inputs | {
        "encoder_hidden_states": normal(1, 256, 4096),
        "encoder_attention_mask": torch.ones(1, 256, device=device, dtype=torch.bool),
        "pooled_projections": normal(1, 768),
        "guidance": torch.tensor([6000.0], device=device, dtype=dtype),
    }


@contextlib.contextmanager
def without_masks() -> Iterator[None]:
    """HunyuanVideo's dense attention without its mask, which keeps nothing out of these inputs and keeps cuDNN away."""
    from diffusers.models.transformers import transformer_hunyuan_video as stock_module

    from radial.attention.fused import hunyuan_video as fused_module

    modules: tuple[Any, ...] = (stock_module, fused_module)
    attend = stock_module.dispatch_attention_fn
    for module in modules:
        module.dispatch_attention_fn = lambda *args, attn_mask=None, **options: attend(*args, **options)
    try:
        yield
    finally:
        for module in modules:
            module.dispatch_attention_fn = attend


@torch.no_grad()
def timed_forward(
    transformer: nn.Module, inputs: dict[str, Any], backend: SDPBackend | None = SDPBackend.CUDNN_ATTENTION
) -> tuple[float, float, Tensor]:
    """Seconds and peak gigabytes of one forward, and what it gives: with this dense attention without masks, or, where
    it is None, with what torch chooses for the model as it stands."""
    gpu = inputs["hidden_states"].is_cuda
    with contextlib.ExitStack() as stack:
        if gpu and backend is not None:
            stack.enter_context(sdpa_kernel(backend))
            stack.enter_context(without_masks())
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.perf_counter()
        out: Tensor = transformer(**inputs)[0]
        if gpu:
            torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0, out


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Of an output against another, in the norm."""
    return ((got - wanted).norm() / wanted.norm()).item()
