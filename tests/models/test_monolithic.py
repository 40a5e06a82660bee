"""The base policy with weights of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny

from hypervla.models.action_head import ReleasedHead
from hypervla.models.backbones import ConvNet
from hypervla.models.generated import StaticWeights
from hypervla.models.hypervla import PolicyConfig
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.monolithic import MonolithicConfig, MonolithicPolicy


def config(text: Path | None, **changes) -> MonolithicConfig:
    shape = MonolithicConfig(
        backbone=ConvNet(image_size=24, widths=(4, 8), stride=4),
        policy=PolicyConfig(width=8, layers=2, heads=2, mlp=16, proprio_size=2),
        head=ReleasedHead(horizon=2, action_size=3, gripper_index=2),
        instruction_encoder=None if text is None else InstructionEncoder("t5", str(text), tiny.LENGTH, 16),
    )
    return replace(shape, **changes)


@pytest.fixture(params=["alone", "told"])
def model(request: pytest.FixtureRequest, text_folder: Path) -> MonolithicPolicy:
    return tiny.seeded(MonolithicPolicy, config(text_folder if request.param == "told" else None))


def test_only_a_policy_that_is_told_follows_the_sentence(model: MonolithicPolicy) -> None:
    batch = tiny.random_batch(model.config)
    other = replace(batch, instructions=[*batch.instructions[1:], batch.instructions[0]])
    same = torch.equal(model.infer(*model.prepare(batch.inputs())), model.infer(*model.prepare(other.inputs())))
    assert same == (model.config.instruction_encoder is None)


def test_its_weights_are_the_base_policys_layout(model: MonolithicPolicy) -> None:
    assert isinstance(model.weights, StaticWeights)
    assert {name: tuple(value.shape[1:]) for name, value in model.weights().items()} == {
        spec.name: spec.shape for spec in model.policy.layout.specs
    }


def test_a_sample_does_not_depend_on_its_company(model: MonolithicPolicy) -> None:
    inputs = tiny.random_batch(model.config).inputs()
    together, tensors = model.infer(*model.prepare(inputs)), model.prepare(inputs)
    alone = torch.cat([model.infer(*(tensor[i : i + 1] for tensor in tensors)) for i in range(len(inputs))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_example_is_shaped_like_what_is_prepared(model: MonolithicPolicy) -> None:
    tensors = model.prepare(tiny.random_batch(model.config, contexts=2, frames=2).inputs())
    assert [(x.shape, x.dtype) for x in model.example(4)] == [(x.shape, x.dtype) for x in tensors]


def test_the_parts_are_all_parameters(model: MonolithicPolicy) -> None:
    assert sum(model.parts().values()) == sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.trained_parameters().values())
    assert model.activated() == trained


def test_it_overfits_32_samples(text_folder: Path) -> None:
    shape = config(text_folder, policy=PolicyConfig(width=32, layers=2, heads=4, mlp=64, proprio_size=2))
    torch.manual_seed(0)
    model, batch = MonolithicPolicy(shape), tiny.random_batch(shape, contexts=16, frames=2)
    optimizer = torch.optim.Adam(model.trained_parameters().values(), lr=5e-3)
    losses = []
    for _ in range(200):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0], losses[::20]
