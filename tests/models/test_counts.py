"""The sizes of the published model, counted on tensors without storage (spec 1.4 and 1.10)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch

from hypervla.models.action_head import LinearHead
from hypervla.models.hypervla import HyperVLA
from hypervla.training.recipes import metaworld_small, paper

LAYER = {
    **{f"LayerNorm_{i}/{name}": (64,) for i in (0, 1) for name in ("scale", "bias")},
    **{f"MultiHeadDotProductAttention_0/{name}/kernel": (64, 4, 16) for name in ("query", "key", "value")},
    **{f"MultiHeadDotProductAttention_0/{name}/bias": (4, 16) for name in ("query", "key", "value")},
    "MultiHeadDotProductAttention_0/out/kernel": (4, 16, 64),
    "MultiHeadDotProductAttention_0/out/bias": (64,),
    "MlpBlock_0/Dense_0/kernel": (64, 128),
    "MlpBlock_0/Dense_0/bias": (128,),
    "MlpBlock_0/Dense_1/kernel": (128, 64),
    "MlpBlock_0/Dense_1/bias": (64,),
}
RELEASED = {
    "encoder/image_embedding_projection/kernel": (768, 64),
    "encoder/image_embedding_projection/bias": (64,),
    "encoder/pos_embedding": (1, 257, 64),
    **{f"encoder/encoderblock_{i}/{name}": shape for i in range(4) for name, shape in LAYER.items()},
    "encoder/encoder_norm/scale": (64,),
    "encoder/encoder_norm/bias": (64,),
    "action_head/continuous_head/kernel": (64, 24),
    "action_head/continuous_head/bias": (24,),
    "action_head/discrete_head/kernel": (64, 4),
    "action_head/discrete_head/bias": (4,),
}
"""The generated tensors of the released code, by their names and shapes there."""


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def model() -> HyperVLA:
    with torch.device("meta"):
        return HyperVLA(paper().model, pretrained=False)


def test_the_released_codes_73_tensors_are_generated(model: HyperVLA) -> None:
    specs = model.policy.layout.specs
    assert len(specs) == len(RELEASED) == 73
    assert Counter(spec.size for spec in specs) == Counter(prod(shape) for shape in RELEASED.values())


def test_the_policy_has_201500_weights_of_which_182016_are_kernels(model: HyperVLA) -> None:
    assert model.policy.layout.size == 201_500
    assert sum(spec.size for spec in model.policy.layout.specs if spec.kind == "kernel") == 182_016
    assert model.hypernetwork.kernel_heads.out_features == 182_016


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("image.", 49_216),
        ("position", 16_448),
        *((f"layers.{i}.", 33_472) for i in range(4)),
        ("norm.", 128),
        ("head.arm.", 1_560),
        ("head.gripper.", 260),
    ],
)
def test_each_part_of_the_policy_has_its_published_size(model: HyperVLA, part: str, size: int) -> None:
    assert sum(spec.size for spec in model.policy.layout.specs if spec.name.startswith(part)) == size


def test_the_linear_head_leaves_the_total_as_it_is() -> None:
    config = replace(paper().model, head=LinearHead(horizon=4, action_size=7))
    assert config.base_policy().layout.size == 201_500


def test_the_hypernetwork_has_its_published_size(model: HyperVLA) -> None:
    network = model.hypernetwork
    assert count(network) == 27_384_604
    assert count(network.encoder) == 1_189_888
    assert count(network.instruction) + count(network.image) == 196_864
    tables = (network.instruction_position, network.image_position, network.context_token)
    assert sum(table.numel() for table in tables) == 4_352
    assert count(network.kernel_heads) + count(network.other_heads) == 129 * 201_500


def test_the_encoders_have_their_published_sizes(model: HyperVLA) -> None:
    assert count(model.backbone) == 86_580_480
    assert count(model.context_backbone) == 86_580_480
    assert count(model.instruction_encoder) == 109_628_544
    assert count(model.backbone) + model.policy.layout.size == 86_781_980


def test_everything_but_the_frozen_encoders_is_trained(model: HyperVLA) -> None:
    trained = sum(parameter.numel() for parameter in model.trained_parameters().values())
    assert trained == 27_384_604 + 86_580_480


def test_the_small_recipe_fits_sixteen_megabytes_in_half_precision() -> None:
    with torch.device("meta"):
        model = HyperVLA(metaworld_small().model, pretrained=False)
    assert 2 * sum(parameter.numel() for parameter in model.trained_parameters().values()) < 16e6
