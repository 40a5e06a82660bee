"""Who learns how fast, what decays, and what the moving average remembers (spec 1.6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny

from hypervla.models.hypervla import HyperVLA
from hypervla.training.optimizer import OptimizerConfig, make_optimizer, rate_factor, set_rates, update_average
from hypervla.training.recipes import paper

PAPER = paper().optimizer
TAIL = replace(PAPER, schedule="linear tail", warmup=100)


@pytest.fixture
def model(text_folder: Path, vision_folder: Path) -> HyperVLA:
    return tiny.seeded(HyperVLA, tiny.paper_shaped(text_folder, vision_folder))


def test_every_trained_weight_is_in_one_group_and_no_frozen_one(model: HyperVLA) -> None:
    grouped = [id(p) for group in make_optimizer(model, PAPER).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.trained_parameters().values())


def test_backbone_and_hypernetwork_learn_at_their_own_rates(model: HyperVLA) -> None:
    optimizer = make_optimizer(model, PAPER)
    set_rates(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.trained_parameters().items():
        assert rates[id(parameter)] == (1.5e-4 if name.startswith("hypernetwork.") else 1.5e-5), name


def test_only_the_heads_that_generate_kernels_decay(model: HyperVLA) -> None:
    optimizer = make_optimizer(model, replace(PAPER, rate=0.1, backbone_rate=0.1))
    set_rates(optimizer, 1.0)
    before = {name: p.detach().clone() for name, p in model.trained_parameters().items()}
    for parameter in model.trained_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.trained_parameters().items():
        kept = 1 - 0.1 * 0.05 if name.startswith("hypernetwork.kernel_heads.") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-6, atol=0, msg=name)


def test_the_moments_are_adams() -> None:
    with torch.device("meta"):
        model = HyperVLA(paper().model, pretrained=False)
    for group in make_optimizer(model, PAPER).param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (1, 1.5e-7), (1_000, 1.5e-4), (2_000, 3e-4), (12_000, 3e-4 / 2**0.5), (100_000, 9.13e-5)],
)
def test_the_published_schedule(step: int, rate: float) -> None:
    assert PAPER.rate * rate_factor(PAPER, step, 100_000) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("step", "factor"), [(0, 0), (50, 0.5), (100, 1), (700, 1), (850, 0.5), (1000, 0)])
def test_the_linear_tail_holds_the_peak_until_seven_tenths_and_ends_at_zero(step: int, factor: float) -> None:
    assert rate_factor(TAIL, step, 1000) == pytest.approx(factor)


@given(st.sampled_from([PAPER, TAIL]), st.integers(0, 99_999))
def test_rates_rise_through_the_warm_up_and_never_after(config: OptimizerConfig, step: int) -> None:
    now, later = (rate_factor(config, s, 100_000) for s in (step, step + 1))
    assert 0 <= now <= 1
    assert now < later if step < config.warmup else now >= later


def test_the_average_is_made_when_it_starts_and_forgets_exponentially_after() -> None:
    config, average = replace(PAPER, ema_decay=0.9, ema_start=5), {}
    values = [torch.full((3,), float(step**2)) for step in range(1, 21)]
    for step, value in enumerate(values, start=1):
        update_average(average, {"w": value}, config, step)
        assert bool(average) == (step >= 4)
        if step == 4:
            assert torch.equal(average["w"], value)
    wanted = 0.9**16 * 16 + sum(0.1 * 0.9 ** (20 - step) * step**2 for step in range(5, 21))
    torch.testing.assert_close(average["w"], torch.full((3,), wanted))


def test_the_average_is_no_view_of_the_weights() -> None:
    weight, average = torch.ones(2), {}
    update_average(average, {"w": weight}, PAPER, step=PAPER.ema_start - 1)
    weight += 1
    assert average["w"].tolist() == [1, 1]


def test_a_recipe_may_never_average() -> None:
    weight, average = torch.ones(2), {}
    update_average(average, {"w": weight}, replace(PAPER, ema_start=None), step=9_999_999)
    assert not average
