"""Every transformer that can be radial: as the stock one where all is kept, nearer to it than a window of frames where
not, and itself again afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, FamilyCase
from torch import Tensor

import radial
from radial import BlockPlan, ModelError, RadialPattern, TokenGrid
from radial.attention.families.find import FAMILIES, find_family
from radial.models.table import MODELS
from radial.plans.planner import Site
from radial_kernels.block_sparse import BlockLists

KEEP_ALL = RadialPattern(decay=16.0, sink_frames=64)
SPARSE = RadialPattern(decay=0.5, skip_width=8)
IN_COLUMNS = {
    "WanTransformer3DModel", "WanVACETransformer3DModel", "SkyReelsV2Transformer3DModel",
    "ChronoEditTransformer3DModel", "HunyuanVideoTransformer3DModel", "HunyuanVideo15Transformer3DModel",
    "LTXVideoTransformer3DModel",
}  # fmt: skip


def call(transformer: Any, inputs: dict[str, Any]) -> Tensor:
    """One call on copies: some transformers write into what they are given."""
    copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    with torch.inference_mode():
        result: Tensor = transformer(**copies, return_dict=False)[0]
    return result


def drifting(kind: str, latents: Tensor, frames: int) -> Tensor:
    """Latents of which each frame is the last plus a little, as in a clip."""
    if kind == "MiniMaxH3Transformer3DModel":  # packed behind a keyframe of the same size
        walk = latents.unflatten(1, (1 + frames, -1)).cumsum(1).flatten(1, 2)
    elif latents.ndim == 3:  # packed
        walk = latents.unflatten(1, (frames, -1)).cumsum(1).flatten(1, 2)
    else:
        walk = latents.cumsum(1 if latents.shape[1] == frames else 2)
    return walk / walk.std()


@pytest.fixture(scope="module", params=list(CASES), ids=lambda kind: kind.removesuffix("Transformer3DModel"))
def case(request: pytest.FixtureRequest) -> FamilyCase:
    return CASES[request.param]


@pytest.fixture(scope="module")
def transformer(case: FamilyCase, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saved and loaded as a real checkpoint is."""
    import diffusers

    folder = tmp_path_factory.mktemp(case.kind)
    case.build().save_pretrained(folder)
    return getattr(diffusers, case.kind).from_pretrained(folder).eval()


def test_all_kept_equals_stock_and_removal_restores(case: FamilyCase, transformer: Any) -> None:
    inputs = case.inputs(transformer, case.latents, 2)
    layers = find_family(transformer).self_attentions(transformer)
    stock, processors = call(transformer, inputs), [module.processor for _, module in layers]
    with radial.apply(transformer, pattern=KEEP_ALL, block_size=16, far_field="pyramid") as installed:
        ours = call(transformer, inputs)
        assert installed.plan is not None
        assert installed.plan.density == installed.computed_share == 1.0
        assert {type(m.processor).__name__ for _, m in layers} == {f"Radial{type(p).__name__}" for p in processors}
    assert stock.std() > 0.1
    assert torch.allclose(ours, stock, atol=2e-5)
    if case.kind in IN_COLUMNS:
        schedule = radial.Schedule(dense_layers=1)
        columns: dict[str, Any] = {"token_order": "columns", "far_field": "mean", "schedule": schedule}
        with radial.apply(transformer, pattern=KEEP_ALL, block_size=16, **columns) as installed:
            assert torch.allclose(call(transformer, inputs), stock, atol=2e-5)
            assert installed.context.layouts[0].tile == (8, 1, 2)
    else:
        with pytest.raises(ModelError, match=f"tokens of {case.kind} cannot be put in columns"):
            radial.apply(transformer, token_order="columns")
    assert all(module.processor is stock for (_, module), stock in zip(layers, processors, strict=True))
    assert torch.equal(call(transformer, inputs), stock)


def test_grid_is_the_clips(case: FamilyCase, transformer: Any) -> None:
    inputs = case.inputs(transformer, case.latents, 2)
    with radial.apply(transformer, pattern=SPARSE, block_size=16) as installed:
        call(transformer, inputs)
    for layout in installed.context.layouts:
        assert layout.grid == TokenGrid(6, 6, 4)
        assert (layout.before + layout.after > 0) == case.other_tokens
    with radial.apply(transformer, pattern=SPARSE, block_size=16, schedule=radial.Schedule(dense_layers=99)) as dense:
        assert torch.equal(call(transformer, inputs), call(transformer, inputs))
        assert dense.computed_share == 1.0


def test_nearer_to_dense_than_a_window_of_frames(case: FamilyCase, transformer: Any) -> None:
    """On a clip that drifts, whose far frames matter, at the same density."""
    frames = 17
    inputs = case.inputs(transformer, (frames, *case.latents[1:]), 2)
    inputs["hidden_states"] = drifting(case.kind, inputs["hidden_states"], frames)
    dense = call(transformer, inputs)
    with radial.apply(transformer, pattern=SPARSE, block_size=16) as ours:
        radial_error = (call(transformer, inputs) - dense).norm()
    assert ours.plan is not None
    naive = []
    for reach in (0, -1):  # the first window that keeps as much as ours, and the one before it
        with radial.apply(transformer, planners=[WindowPlanner(reach)]) as window:
            error = (call(transformer, inputs) - dense).norm()
        naive.append((window.computed_share, error))
    (more, error_of_more), (less, error_of_less) = naive
    assert less < ours.plan.density <= more < 1
    share = (ours.plan.density - less) / (more - less)
    assert 0 < radial_error < share * error_of_more + (1 - share) * error_of_less


class WindowPlanner:
    """Keeps the nearest frames only, as many as the radial plan's density asks for, or one less."""

    reads_content = False

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def lists(self, site: Site, q: Tensor | None, k: Tensor | None) -> BlockLists:
        layout, block = site.layout, 16
        plan = BlockPlan.build(layout, SPARSE, block)
        frame = torch.full((plan.rows * block,), -1)  # -1: other tokens, and nothing
        frame[layout.before : layout.before + layout.grid.tokens] = (
            torch.arange(layout.grid.tokens) // layout.grid.tokens_per_frame
        )
        valid = torch.arange(plan.rows * block) < layout.tokens

        def mask_of(window: int) -> Tensor:
            near = (frame[:, None] - frame).abs() <= window
            kept = (near | (frame[:, None] < 0) | (frame < 0)) & valid[:, None] & valid
            return kept.reshape(plan.rows, block, plan.rows, block).any(3).any(1)

        enough = next(w for w in range(layout.grid.frames) if mask_of(w).float().mean() >= plan.density)
        return BlockLists.of_mask(mask_of(enough + self.reach), block)


def test_every_family_is_tried_and_every_model_has_one() -> None:
    import diffusers

    untried = set(FAMILIES) - set(CASES)
    assert untried == {"ConsisIDTransformer3DModel"}  # CogVideoX's blocks, behind an encoder of faces
    for spec in MODELS.values():
        for name in filter(None, (spec.text_pipeline, spec.image_pipeline)):
            kinds = getattr(diffusers, name).__init__.__annotations__
            wanted = str(kinds.get("transformer", kinds.get("transformer_2", "")))
            if name.endswith("ModularPipeline"):
                parts = getattr(diffusers, name)().get_component_spec("transformer")
                wanted = parts.type_hint.__name__
            assert any(kind in wanted for kind in FAMILIES), f"{name} has {wanted}"


def test_what_cannot_be_radial_says_why(tmp_path: Path) -> None:
    import diffusers

    sana = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8,
        mlp_ratio=2.5, sample_size=8,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"SanaVideo.* cannot be radial: its self-attention is linear"):
        radial.apply(sana)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("WanAnimate2Transformer3DModel", "reads a cache of reference tokens outside the clip's grid"),
        ("Cosmos3OmniTransformer", "its clip looks at words that do not look back"),
        ("HeliosTransformer3DModel", "history tokens of several scales"),
        ("AnyFlowFARTransformer3DModel", "causal from chunk to chunk"),
        ("LatteTransformer3DModel", "no layer sees the whole clip"),
    ],
)
def test_classes_that_cannot_be_radial_say_why(kind: str, message: str) -> None:
    import diffusers

    made = getattr(diffusers, kind)  # a class is told by its name, before anything of it is looked at
    with pytest.raises(ModelError, match=rf"{kind} cannot be radial: .*{message}"):
        find_family(made.__new__(made))


def test_text_padded_in_front_is_refused() -> None:
    case = CASES["MotifVideoTransformer3DModel"]
    transformer = case.build()
    inputs = case.inputs(transformer, case.latents, 2)
    inputs["encoder_attention_mask"] = inputs["encoder_attention_mask"].flip(1)
    with radial.apply(transformer, block_size=16), pytest.raises(ModelError, match="padded in front of the words"):
        call(transformer, inputs)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("LTXVideoTransformer3DModel", {"num_frames": 5}, r"conditioning tokens are packed with the clip \(144 tokens"),
        ("LTXVideoTransformer3DModel", {"height": None}, "names no num_frames, height and width"),
        ("AllegroTransformer3DModel", {"attention_mask": torch.zeros(2, 6, 12, 8)}, "masks parts of the clip"),
        ("Kandinsky5Transformer3DModel", {"sparse_params": {}}, "attends by NABLA already"),
    ],
)
def test_calls_that_cannot_be_radial_say_why(kind: str, changes: dict[str, Any], message: str) -> None:
    case = CASES[kind]
    transformer = case.build()
    inputs = case.inputs(transformer, case.latents, 2) | changes
    with radial.apply(transformer, block_size=16), pytest.raises(ModelError, match=message):
        call(transformer, inputs)


def test_causal_blocks_of_frames_are_refused() -> None:
    import diffusers

    case = CASES["SkyReelsV2Transformer3DModel"]
    transformer = diffusers.SkyReelsV2Transformer3DModel(**case.layers, **case.tiny, num_frame_per_block=2)
    with radial.apply(transformer, block_size=16), pytest.raises(ModelError, match="causal from block to block"):
        call(transformer, case.inputs(transformer, case.latents, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(CASES))
def test_real_widths_run_on_the_kernels(kind: str) -> None:
    """Real head dims, texts and grids, few layers, bf16: as stock where all is kept, and the kernels serve them."""
    from radial_kernels.block_sparse import choose_backend

    case = CASES[kind]
    with torch.device("cuda"):
        transformer = in_bf16(case.build(tiny=False))
    inputs = _to_gpu(case.inputs(transformer, case.real_latents, 1))
    stock = call(transformer, inputs)
    with radial.apply(transformer, pattern=KEEP_ALL) as installed:
        ours = call(transformer, inputs)
    assert installed.plan is not None
    assert ((ours - stock).float().norm() / stock.float().norm()) < 0.03
    with radial.apply(transformer) as sparse:
        assert call(transformer, inputs).isfinite().all()
    assert sparse.plan is not None
    assert sparse.plan.density < 1
    probe = torch.empty(1, 1, 1, installed.head_dim, device="cuda", dtype=torch.bfloat16)
    assert choose_backend(probe) in ("hopper", "triton")
    print(f"{kind}: {installed.plan.grid}, head dim {installed.head_dim}, density {sparse.plan.density:.3f}")


def in_bf16(transformer: Any) -> Any:
    """As ``from_pretrained`` casts: some modules stay in float32."""
    exact = set(transformer._keep_in_fp32_modules or ())
    for name, tensor in (*transformer.named_parameters(), *transformer.named_buffers()):
        if tensor.is_floating_point() and not exact & set(name.split(".")):
            tensor.data = tensor.data.to(torch.bfloat16)
    return transformer


def _to_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda().to(torch.bfloat16) if value.is_floating_point() else value.cuda()
    if isinstance(value, dict):
        return {name: _to_gpu(inner) for name, inner in value.items()}
    return type(value)(_to_gpu(inner) for inner in value) if isinstance(value, (tuple, list)) else value
