"""Radial attention in real Wan pipelines: the same as stock where everything is kept, and gone after removal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

import radial
from radial import ModelError, RadialPattern, Schedule

KEEP_ALL = RadialPattern(decay=16.0, sink_frames=16)  # every frame a sink: nothing is left out
SPARSE = RadialPattern(decay=0.1, sink_frames=0, skip_width=16)


def run(pipe: Any, frames: int = 17, steps: int = 3) -> torch.Tensor:
    with torch.inference_mode():
        return torch.from_numpy(
            pipe(
                "a red circle",
                height=64,
                width=64,
                num_frames=frames,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(1),
                max_sequence_length=16,
                output_type="latent",
            ).frames.numpy()
        )


@pytest.mark.parametrize("backend", ["auto", "gather", "reference"])
def test_all_kept_equals_stock(wan: Any, backend: str) -> None:
    stock = run(wan)
    with radial.apply(wan, pattern=KEEP_ALL, block_size=16, backend=backend) as installed:
        ours = run(wan)
    assert installed.plan is not None
    assert installed.computed_share == installed.plan.density == 1.0
    assert torch.allclose(ours, stock, atol=2e-4)


def test_two_transformers_all_kept_equals_stock(wan22: Any) -> None:
    stock = run(wan22, steps=4)
    with radial.apply(wan22, pattern=KEEP_ALL, block_size=16):
        assert type(wan22.transformer.blocks[0].attn1.processor) is not WanAttnProcessor
        assert type(wan22.transformer_2.blocks[2].attn1.processor) is not WanAttnProcessor
        assert torch.allclose(run(wan22, steps=4), stock, atol=2e-4)


def test_sparse_differs_and_removal_restores(wan: Any) -> None:
    stock = run(wan)
    before = [block.attn1.processor for block in wan.transformer.blocks]
    with radial.apply(wan, pattern=SPARSE, block_size=16) as installed:
        sparse = run(wan)
        assert installed.plan is not None
        assert installed.plan.density < 0.9
        assert installed.computed_share == pytest.approx(installed.plan.density)
    assert not torch.allclose(sparse, stock, atol=1e-4)
    assert [block.attn1.processor for block in wan.transformer.blocks] == before
    assert torch.equal(run(wan), stock)


def test_removed_after_an_error(wan: Any) -> None:
    stock = run(wan)
    with pytest.raises(KeyError), radial.apply(wan, pattern=SPARSE, block_size=16):
        raise KeyError
    assert torch.equal(run(wan), stock)


class OwnProcessor:
    """Attention by hand: there is no call to redirect."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def test_what_is_refused_leaves_everything_as_it_was(wan22: Any) -> None:
    stock = run(wan22, steps=4)
    last = wan22.transformer_2.blocks[2].attn1  # all before it are replaced by then
    own = last.processor
    last.processor = OwnProcessor()
    with pytest.raises(ModelError, match="cannot replace"):
        radial.apply(wan22, pattern=SPARSE, block_size=16)
    last.processor = own
    assert torch.equal(run(wan22, steps=4), stock)
    with radial.apply(wan22, pattern=SPARSE, block_size=16):  # nothing is installed
        assert not torch.equal(run(wan22, steps=4), stock)


def test_cross_attention_keeps_its_processor(wan: Any) -> None:
    with radial.apply(wan):
        assert all(type(block.attn2.processor) is WanAttnProcessor for block in wan.transformer.blocks)


@pytest.mark.parametrize(
    "schedule", [Schedule(dense_layers=3), Schedule(dense_steps=3), Schedule(dense_last_steps=3)], ids=repr
)
def test_all_dense_schedule_is_stock_bit_for_bit(wan: Any, schedule: Schedule) -> None:
    stock = run(wan)
    with radial.apply(wan, pattern=SPARSE, schedule=schedule, block_size=16) as installed:
        assert torch.equal(run(wan), stock)
        assert installed.computed_share == 1.0


def test_schedule_counts_layers_and_steps(wan: Any) -> None:
    """One dense layer of three; of four steps the first and the last dense."""
    calls: list[tuple[int, int, bool]] = []
    schedule = Schedule(dense_layers=1, dense_steps=1, dense_last_steps=1)
    with radial.apply(wan, pattern=SPARSE, schedule=schedule, block_size=16) as installed:
        for layer, block in enumerate(wan.transformer.blocks):
            block.attn1.register_forward_pre_hook(
                lambda module, args, layer=layer: calls.append(
                    (installed.context.step, layer, module.processor.radial_choice == 0)
                )
            )
        run(wan, steps=4)
    expected = [
        (step, layer, layer == 0 or step in (0, 3)) for step in range(4) for _guidance in range(2) for layer in range(3)
    ]
    assert calls == expected
    assert installed.plan is not None
    dense = (4 + 2 * 2) / 12  # of a layer all steps, of the others two
    assert installed.computed_share == pytest.approx(dense + (1 - dense) * installed.plan.density)


def test_grid_follows_the_clip(wan: Any) -> None:
    with radial.apply(wan, pattern=SPARSE, block_size=16) as installed:
        for frames, latent_frames in ((17, 5), (9, 3), (17, 5)):
            run(wan, frames=frames, steps=1)
            assert installed.plan is not None
            assert installed.plan.grid.frames == latent_frames


def test_a_scheduler_put_in_later_counts(wan: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    with radial.apply(wan, pattern=SPARSE, schedule=Schedule(dense_steps=2), block_size=16) as installed:
        wan.scheduler = FlowMatchEulerDiscreteScheduler()
        run(wan, steps=4)
    assert installed.plan is not None
    assert installed.computed_share == pytest.approx(0.5 + 0.5 * installed.plan.density)


def test_lone_transformer_counts_its_steps(wan: Any) -> None:
    transformer = wan.transformer
    context_steps = []
    with radial.apply(transformer, pattern=SPARSE, block_size=16, schedule=Schedule(dense_steps=1)) as installed:
        for timestep in (999.0, 999.0, 500.0, 100.0, 999.0, 700.0):
            with torch.inference_mode():
                transformer(
                    hidden_states=torch.zeros(1, 16, 3, 8, 8),
                    timestep=torch.tensor([timestep]),
                    encoder_hidden_states=torch.zeros(1, 4, 32),
                )
            context_steps.append(installed.context.step)
    assert context_steps == [0, 0, 1, 2, 0, 1]
    with pytest.raises(ModelError, match="dense_last_steps needs a pipeline"):
        radial.apply(transformer, schedule=Schedule(dense_last_steps=1))


def test_training_is_radial_at_every_noise_level(wan: Any) -> None:
    """A lone transformer that is trained sees timesteps fall and rise: all of its calls are radial."""
    inputs = {"hidden_states": torch.randn(1, 16, 5, 8, 8), "encoder_hidden_states": torch.randn(1, 4, 32)}
    with radial.apply(wan.transformer, pattern=SPARSE, block_size=16) as installed, torch.no_grad():
        for timestep in (900.0, 700.0, 200.0, 800.0, 100.0):
            wan.transformer(**inputs, timestep=torch.tensor([timestep]), return_dict=False)
        assert installed.plan is not None
        assert installed.computed_share == pytest.approx(installed.plan.density)
        assert installed.plan.density < 1


def test_gradients_reach_the_weights(wan: Any) -> None:
    """Fine-tuning runs through the same attention, also on a plan that sampling made."""
    with radial.apply(wan, pattern=SPARSE, block_size=16):
        run(wan, frames=9)
    transformer = wan.transformer.train()
    transformer.enable_gradient_checkpointing()
    with radial.apply(transformer, pattern=SPARSE, block_size=16):
        out = transformer(
            hidden_states=torch.randn(1, 16, 3, 8, 8),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 4, 32),
            return_dict=False,
        )[0]
        out.square().mean().backward()
    grad = transformer.blocks[1].attn1.to_k.weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_twice_is_refused(wan: Any) -> None:
    with radial.apply(wan):
        with pytest.raises(ModelError, match="installed on this model already"):
            radial.apply(wan)
        assert type(wan.transformer.blocks[0].attn1.processor) is not WanAttnProcessor
    with radial.apply(wan):
        pass


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not know Linear; it knows Allegro.*, WanTransformer3DModel"):
        radial.apply(torch.nn.Linear(2, 2))
