"""Adapters: they start as nothing, they alone are trained, and they add B · A · alpha / rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.baselines.test_openvla import LONG, SHORT, config, make_batch, published  # noqa: F401
from torch import nn

from hypervla.baselines.openvla import OpenVLA, OpenVLAConfig
from hypervla.contracts import UserError
from hypervla.models.lora import LoRA, inject

LORA = LoRA(rank=2, alpha=6)


def test_an_adapter_adds_its_product_in_proportion() -> None:
    model = tiny.seeded(nn.Linear, 4, 5)
    whole = nn.ModuleDict({"map": model})
    weight, bias, x = model.weight.detach().clone(), model.bias.detach().clone(), torch.randn(3, 4)
    inject(whole, LORA)
    torch.testing.assert_close(whole["map"](x), x @ weight.T + bias)
    adapter = whole["map"]
    with torch.no_grad():
        adapter.lora_B["default"].weight.normal_()
    product = adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
    torch.testing.assert_close(adapter(x), x @ (weight + 3.0 * product).T + bias)


@pytest.fixture
def adapted(published) -> tuple[OpenVLAConfig, OpenVLA, OpenVLA]:  # noqa: F811
    """The configuration with adapters, the model as published, and the one with adapters."""
    shape, plain, _ = published
    shape = replace(shape, lora=LORA)
    return shape, plain, tiny.seeded(shape.build, True, seed=5)


def test_a_new_adapter_changes_nothing(adapted) -> None:
    _, plain, model = adapted
    plain.prompts = model.prompts
    batch = make_batch([SHORT, LONG])
    torch.testing.assert_close(model.loss(batch), plain.loss(batch), rtol=1e-5, atol=1e-6)


def test_adapters_alone_are_trained_and_saved(adapted) -> None:
    _, plain, model = adapted
    trained = model.trained_parameters()
    assert trained
    assert all("lora_" in name for name in trained)
    linear = [n for n, part in plain.model.named_modules() if isinstance(part, nn.Linear) and "lm_head" not in n]
    assert len(trained) == 2 * len(linear)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(make_batch([SHORT, LONG])).backward()
        optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= trained.keys()


def test_adapters_beside_random_weights_are_refused(adapted) -> None:
    with pytest.raises(UserError, match="give the model a source"):
        replace(adapted[0], source=None)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"dropout": 1.0}])
def test_an_impossible_adapter_is_refused(changes: dict) -> None:
    with pytest.raises(UserError, match="LoRA wants a rank of 1 or more"):
        replace(LORA, **changes)


def test_a_model_without_linear_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no linear map"):
        inject(nn.Sequential(nn.LayerNorm(3)), LORA)
