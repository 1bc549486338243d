"""Radial attention beside what else diffusers does to a transformer: compiling, caching, offloading, casting,
quantising, adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import radial
from radial import RadialPattern, Schedule

SPARSE = RadialPattern(decay=0.1, sink_frames=0, skip_width=16)
KEEP_ALL = RadialPattern(decay=16.0, sink_frames=16)
STEPS = 3


def run(pipe: Any) -> torch.Tensor:
    with torch.inference_mode():
        latents = pipe(
            "a red circle", height=64, width=64, num_frames=17, num_inference_steps=STEPS, max_sequence_length=16,
            generator=torch.Generator().manual_seed(1), output_type="latent",
        ).frames  # fmt: skip
    return torch.as_tensor(latents)


@pytest.fixture
def sparse(wan: Any) -> torch.Tensor:
    """What the pipeline makes with radial attention alone."""
    with radial.apply(wan, pattern=SPARSE, block_size=16):
        return run(wan)


@pytest.mark.parametrize("first", ["apply", "compile"])
def test_compiled_blocks_have_no_graph_break(wan: Any, sparse: torch.Tensor, first: str) -> None:
    schedule = Schedule(dense_layers=1, dense_steps=1)
    torch._dynamo.reset()
    with radial.apply(wan, pattern=SPARSE, block_size=16, schedule=schedule):
        eager = run(wan)
    if first == "compile":
        wan.transformer.compile_repeated_blocks(fullgraph=True)
    with radial.apply(wan, pattern=SPARSE, block_size=16, schedule=schedule):
        if first == "apply":
            wan.transformer.compile_repeated_blocks(fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=2):
            assert torch.allclose(run(wan), eager, atol=1e-4)  # once dense, once radial, whatever the layer and step


def test_compiled_blocks_with_a_graph_break(wan: Any) -> None:
    """Dense and radial layers that something else breaks up, such as a hook, go on each with its own attention."""
    schedule = Schedule(dense_layers=1)
    with radial.apply(wan, pattern=SPARSE, block_size=16, schedule=schedule):
        eager = run(wan)
    torch._dynamo.reset()
    for block in wan.transformer.blocks:
        block.attn1.to_q.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    wan.transformer.compile_repeated_blocks()
    with radial.apply(wan, pattern=SPARSE, block_size=16, schedule=schedule):
        assert torch.allclose(run(wan), eager, atol=1e-4)


CACHES: dict[str, Callable[[Any], Any]] = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=0.2),
    "mag": lambda pipe: MagCacheConfig(num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS)),
    "taylor seer": lambda pipe: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, cache_identifiers=[r"blocks\.\d+\.attn1"]
    ),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
}  # fmt: skip


@pytest.mark.parametrize("cache", list(CACHES))
def test_caches_do_as_with_stock_attention(wan: Any, wan_folder: Path, cache: str) -> None:
    """With all blocks kept, a cached run is the stock pipeline's cached run; with few, it differs and is finite."""
    stock = diffusers.WanPipeline.from_pretrained(wan_folder)
    stock.set_progress_bar_config(disable=True)
    plain = run(stock)
    stock.transformer.enable_cache(CACHES[cache](stock))
    want = run(stock)
    assert not torch.equal(want, plain), "the cache does nothing here"

    wan.transformer.enable_cache(CACHES[cache](wan))
    with radial.apply(wan, pattern=KEEP_ALL, block_size=16):
        assert torch.allclose(run(wan), want, atol=2e-4)
    with radial.apply(wan, pattern=SPARSE, block_size=16):
        got = run(wan)
    assert got.isfinite().all()
    assert not torch.allclose(got, want, atol=1e-3)
    wan.transformer.disable_cache()
    assert torch.equal(run(wan), plain)


def test_group_offload(wan: Any, sparse: torch.Tensor) -> None:
    cpu = torch.device("cpu")
    wan.transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    with radial.apply(wan, pattern=SPARSE, block_size=16):
        assert torch.equal(run(wan), sparse)


def test_layerwise_casting(wan: Any, sparse: torch.Tensor) -> None:
    wan.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stock = run(wan)
    with radial.apply(wan, pattern=KEEP_ALL, block_size=16):
        assert torch.allclose(run(wan), stock, atol=2e-4)
    with radial.apply(wan, pattern=SPARSE, block_size=16):
        assert not torch.equal(run(wan), sparse)  # the weights are coarser


def test_quantised_weights(wan: Any, wan_folder: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    mapping = {"transformer": diffusers.TorchAoConfig(Int8WeightOnlyConfig())}
    config = diffusers.PipelineQuantizationConfig(quant_mapping=mapping)
    pipe = diffusers.WanPipeline.from_pretrained(wan_folder, quantization_config=config)
    pipe.set_progress_bar_config(disable=True)
    stock = run(pipe)
    assert not torch.allclose(stock, run(wan), atol=1e-6)
    with radial.apply(pipe, pattern=KEEP_ALL, block_size=16):
        assert torch.allclose(run(pipe), stock, atol=2e-4)
    with radial.apply(pipe, pattern=SPARSE, block_size=16):
        assert not torch.allclose(run(pipe), stock, atol=1e-4)


def test_fused_projections(wan: Any, sparse: torch.Tensor) -> None:
    for block in wan.transformer.blocks:
        block.attn1.fuse_projections()
    with radial.apply(wan, pattern=SPARSE, block_size=16):
        assert torch.allclose(run(wan), sparse, atol=1e-5)


@pytest.mark.parametrize("first", ["apply", "load"])
def test_adapters(wan: Any, wan_folder: Path, tmp_path: Path, first: str) -> None:
    """Loaded before or after, an adapter acts in both kinds of attention."""
    maker = diffusers.WanPipeline.from_pretrained(wan_folder)
    maker.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    layers = get_peft_model_state_dict(maker.transformer)
    diffusers.WanPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    plain = run(wan)
    if first == "load":
        wan.load_lora_weights(tmp_path)
    with radial.apply(wan, pattern=KEEP_ALL, block_size=16):
        if first == "apply":
            wan.load_lora_weights(tmp_path)
        adapted = run(wan)
    assert torch.allclose(run(wan), adapted, atol=2e-4)
    assert not torch.allclose(adapted, plain, atol=1e-3)


def test_another_attention_backend_of_diffusers(wan: Any, sparse: torch.Tensor) -> None:
    """Dense layers take the backend that diffusers was told to use; radial layers take ours."""
    wan.transformer.set_attention_backend("_native_math")
    try:
        with radial.apply(wan, pattern=SPARSE, block_size=16):
            assert torch.allclose(run(wan), sparse, atol=1e-5)
        with radial.apply(wan, pattern=SPARSE, block_size=16, schedule=Schedule(dense_layers=1)) as mixed:
            assert run(wan).isfinite().all()
            assert mixed.plan is not None
    finally:
        from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

        wan.transformer.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
