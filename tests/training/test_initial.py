"""Fine-tuning: what of a checkpoint a new run starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.training.test_systems import evla

from hypervla import checkpoint
from hypervla.contracts import UserError
from hypervla.models.action_head import ReleasedHead
from hypervla.models.backbones import ConvNet
from hypervla.models.hypervla import HyperVLA, HyperVLAConfig, PolicyConfig
from hypervla.models.lora import LoRA
from hypervla.models.monolithic import MonolithicConfig, MonolithicPolicy
from hypervla.training.initial import start_from


@pytest.fixture
def config(text_folder: Path) -> HyperVLAConfig:
    return tiny.convolutional(text_folder)


def generated(model: HyperVLA, name: str) -> torch.Tensor:
    """What one generated tensor's head holds: matrix and bias."""
    heads = model.hypernetwork
    matrix, bias = (
        torch.cat([getattr(heads.kernel_heads, part), getattr(heads.other_heads, part)]) for part in ("weight", "bias")
    )
    rows = model.policy.layout.split(torch.arange(model.policy.layout.size))[name].flatten()
    return torch.cat([matrix[rows].flatten(), bias[rows]])


def test_the_same_model_starts_as_the_checkpoint(config: HyperVLAConfig, tmp_path: Path) -> None:
    saved, model = tiny.save_checkpoint(tmp_path, config), tiny.seeded(HyperVLA, config, seed=1)
    start = start_from(tmp_path, model)
    assert (start.fresh, start.dropped) == ((), ())
    assert all(torch.equal(p, saved.get_parameter(name)) for name, p in model.trained_parameters().items())


def test_another_horizon_renews_the_action_heads_alone(config: HyperVLAConfig, tmp_path: Path) -> None:
    saved = tiny.save_checkpoint(tmp_path, config)
    longer = replace(config, head=ReleasedHead(horizon=3, action_size=3, gripper_index=2))
    model = tiny.seeded(HyperVLA, longer, seed=1)
    before = generated(model, "head.arm.kernel").clone()
    start = start_from(tmp_path, model)
    assert {name.split(" ")[0].rpartition(".")[0] for name in start.fresh} == {
        f"hypernetwork.heads.head.{part}" for part in ("arm.kernel", "arm.bias", "gripper.kernel", "gripper.bias")
    }
    assert "(8, 6, 8), (8, 4, 8) in the checkpoint" in str(start)
    for spec in saved.policy.layout.specs:
        if not spec.name.startswith("head."):
            assert torch.equal(generated(model, spec.name), generated(saved, spec.name)), spec.name
    assert torch.equal(generated(model, "head.arm.kernel"), before)


def test_without_proprio_its_tensors_are_named_as_unused(config: HyperVLAConfig, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, config)
    blind = tiny.seeded(HyperVLA, replace(config, policy=replace(config.policy, proprio_size=0)))
    start = start_from(tmp_path, blind)
    assert {name for name in start.dropped if "proprio" in name} == set(start.dropped)
    assert "not used: hypernetwork.heads.proprio.kernel.weight" in str(start)


def test_vision_alone_starts_another_model(config: HyperVLAConfig, tmp_path: Path) -> None:
    saved = tiny.save_checkpoint(tmp_path, config)
    model = tiny.seeded(MonolithicPolicy, MonolithicConfig(config.backbone, config.policy, config.head), seed=1)
    before = {name: p.clone() for name, p in model.trained_parameters().items()}
    start = start_from(tmp_path, model, vision_only=True)
    seen = {name for name in before if name.startswith("backbone.")}
    assert (start.kept, start.fresh, start.dropped) == (len(seen), (), ())
    for name, parameter in model.trained_parameters().items():
        assert torch.equal(parameter, saved.get_parameter(name) if name in seen else before[name]), name


def test_a_checkpoint_of_another_model_is_refused(config: HyperVLAConfig, tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, config)
    other = MonolithicConfig(ConvNet(24, (6, 10), 4), PolicyConfig(12, 1, 2, 20), config.head)
    with pytest.raises(UserError, match="holds another model \\(HyperVLA\\)"):
        start_from(tmp_path, tiny.seeded(MonolithicPolicy, other))


def test_maps_beside_an_adapter_start_from_the_plain_ones(text_folder: Path, tmp_path: Path) -> None:
    shape = evla(text_folder)
    saved = tiny.seeded(shape.build)
    checkpoint.save(tmp_path, saved.trained_parameters(), config=shape, robots={}, provenance={}, dtype=torch.float32)
    model = tiny.seeded(replace(shape, lora=LoRA(rank=2, alpha=1)).build, seed=1)
    start = start_from(tmp_path, model)
    assert all("lora_" in name for name in start.fresh)
    assert start.kept == len(saved.trained_parameters())
