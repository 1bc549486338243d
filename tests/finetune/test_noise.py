"""Noise levels: how they are drawn, shifted, bounded and weighed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from radial import RequestError
from radial.models.table import MODELS
from radial_finetune import objective
from radial_finetune.noise import NoiseLevels, loss_weights, noise_shift, shift_sigmas
from radial_finetune.training.config import make_config

NINE = torch.linspace(0.1, 0.9, 9)


def draw(levels: NoiseLevels, count: int = 40_000, seed: int = 0) -> torch.Tensor:
    return levels.draw(count, torch.Generator().manual_seed(seed))


def test_noise_levels_are_shifted_once() -> None:
    plain, shifted = (diffusers.FlowMatchEulerDiscreteScheduler(shift=s) for s in (1.0, 5.0))
    assert torch.allclose(shift_sigmas(plain.sigmas, 5.0), shifted.sigmas, atol=1e-6)
    assert float((draw(NoiseLevels("uniform", 5.0)) > 0.9).float().mean()) == pytest.approx(0.36, abs=0.015)
    assert float((draw(NoiseLevels("logit_normal", 5.0)) > 0.9).float().mean()) == pytest.approx(0.28, abs=0.015)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_an_experts_share_is_cut_out_of_the_same_distribution(sampling: Any) -> None:
    levels = NoiseLevels(sampling, 5.0, logit_mean=0.4, logit_std=1.3)
    whole = draw(levels)
    high, low = (draw(replace(levels, span=span), 20_000, 1) for span in ((0.875, 1.0), (0.0, 0.875)))
    assert float(high.min()) >= 0.875 >= float(low.max())
    for part, own in ((whole[whole > 0.875], high), (whole[whole < 0.875], low)):
        assert torch.allclose(part.quantile(NINE), own.quantile(NINE), atol=0.01)


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_quantiles_are_those_of_the_draws(sampling: Any) -> None:
    for span in ((0.0, 1.0), (0.875, 1.0), (0.1, 0.6)):
        levels = NoiseLevels(sampling, 5.0, span, logit_mean=-0.5, logit_std=0.8)
        assert torch.allclose(levels.quantiles(NINE), draw(levels).quantile(NINE), atol=0.01)


def test_mean_and_deviation_are_those_of_the_normal_number() -> None:
    normal = draw(NoiseLevels("logit_normal", 1.0, logit_mean=0.7, logit_std=1.5)).double().logit()
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((0.7, 1.5), abs=0.02)


def test_levels_may_be_bounded_within_an_experts() -> None:
    own = {"data": "d", "output": "o"}
    assert make_config(**own).sigmas_within((0.875, 1.0)) == (0.875, 1.0)
    assert make_config(**own, min_sigma=0.2, max_sigma=0.9).sigmas_within((0.875, 1.0)) == (0.875, 0.9)
    with pytest.raises(RequestError, match=r"min_sigma 0.9 must be below max_sigma 0.2"):
        make_config(**own, min_sigma=0.9, max_sigma=0.2)
    with pytest.raises(RequestError, match=r"between 0.2 and 0.5, and this expert is for 0.875 to 1"):
        make_config(**own, min_sigma=0.2, max_sigma=0.5).sigmas_within((0.875, 1.0))
    with pytest.raises(RequestError, match="logit_mean and logit_std are of logit_normal"):
        make_config(**own, timestep_sampling="uniform", logit_mean=1.0)


def test_losses_are_weighed_as_diffusers_trainers_do() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0])
    assert torch.equal(loss_weights("none", sigma), torch.ones(3))
    assert torch.allclose(loss_weights("sigma_sqrt", sigma), torch.tensor([100.0, 4.0, 1.0]))
    assert torch.allclose(loss_weights("cosmap", sigma), torch.tensor([0.7764, 1.2732, 0.6366]), atol=1e-3)


def test_the_shift_grows_with_the_length() -> None:
    spec, scheduler = replace(MODELS["wan2.1-1.3b"], flow_shift=None), {"flow_shift": 3.0}
    assert noise_shift(scheduler, spec, None, 321, by_length=False) == 3.0
    assert noise_shift(scheduler, spec, None, 81, by_length=True) == 3.0
    assert noise_shift(scheduler, spec, 5.0, 321, by_length=True) == pytest.approx(5 * (81 / 21) ** 0.5)


def test_the_authors_shift_goes_before_the_schedulers() -> None:
    """Wan 2.2 A14B has a shift of 12, Wan 2.1 1.3B 8, HunyuanVideo the checkpoint's; the scheduler here says 3."""
    for name, size, shift in (
        ("wan2.2-a14b", (720, 1280), 12.0), ("wan2.1-1.3b", (480, 832), 8.0), ("hunyuan-video", (720, 1280), 3.0),
    ):  # fmt: skip
        scheduler, spec = {"flow_shift": 3.0}, MODELS[name]
        assert noise_shift(scheduler, spec, None, 33, by_length=False, size=size) == shift
        assert noise_shift(scheduler, spec, 2.0, 33, by_length=False, size=size) == 2.0
    assert float((draw(NoiseLevels("logit_normal", 12.0)) > 0.95).float().mean()) == pytest.approx(0.32, abs=0.02)
    assert objective.MochiObjective.sampling == "uniform"
    assert objective.HunyuanVideoObjective.sampling == objective.WanObjective.sampling == "logit_normal"
