"""Fewer tensors and fewer operations say what the base policy says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hypervla.models.action_head import LinearHead
from hypervla.models.backbones import Clip, ConvNet, DinoV2, Pixels, Siglip
from hypervla.models.base_policy import BasePolicy
from hypervla.models.folded_backbone import folded as folded_backbone
from hypervla.models.folded_policy import FoldedPolicy
from hypervla.runtime.folding import folded, folded_shapes

POLICY = BasePolicy(
    width=16, layers=3, heads=4, mlp=24, token_width=12, tokens=9, proprio_size=3, head=LinearHead(2, 3)
)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("proprio", [0, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_the_folded_policy_is_the_policy(layers: int, proprio: int, heads: int) -> None:
    policy = replace(POLICY, layers=layers, proprio_size=proprio, heads=heads)
    random = np.random.default_rng(0)
    weights = policy.layout.split(random.normal(size=(5, policy.layout.size)).astype(np.float32) * 0.3)
    tokens = torch.from_numpy(random.normal(size=(5, 9, 12)).astype(np.float32))
    state = torch.from_numpy(random.normal(size=(5, proprio)).astype(np.float32)) if proprio else None
    named = {name: torch.from_numpy(rows.copy()) for name, rows in weights.items()}
    wanted = policy.features(named, tokens.unsqueeze(1), None if state is None else state.unsqueeze(1))
    fewer = {name: torch.from_numpy(rows) for name, rows in folded(weights, heads).items()}
    found = FoldedPolicy(policy).features(fewer, tokens, state)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    assert len(fewer) < len(named)
    assert {name: rows.shape[1:] for name, rows in fewer.items()} == folded_shapes(policy.layout, heads)


def test_every_weight_counts() -> None:
    """But the bias of the keys, which adds the same to all that is looked at."""
    weights = POLICY.layout.split(np.random.default_rng(0).normal(size=(1, POLICY.layout.size)).astype(np.float32))
    before = folded(weights, POLICY.heads)
    for name, rows in weights.items():
        after = folded(weights | {name: rows + 1}, POLICY.heads)
        changed = [other for other in before if not np.array_equal(before[other], after[other])]
        assert bool(changed) != name.endswith("key.bias"), name


@pytest.mark.parametrize(
    "config",
    [
        ConvNet(image_size=24, widths=(8, 12), stride=4),
        DinoV2(image_size=28, width=24, layers=2, heads=2, source=None),
        Clip(image_size=32, width=24, layers=2, heads=2, source=None),
        Siglip(image_size=32, width=24, layers=2, heads=2, source=None),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_folded_backbone_is_the_backbone(config: ConvNet | DinoV2 | Clip | Siglip) -> None:
    torch.manual_seed(0)
    backbone = config.build(pretrained=False).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("lambda1") or "second" in name:
            nn.init.normal_(parameter)
    before = {name: rows.clone() for name, rows in backbone.state_dict().items()}
    images = torch.randint(0, 256, (2, config.image_size, config.image_size, 3), dtype=torch.uint8)
    own = folded_backbone(backbone)
    with torch.inference_mode():
        for found, wanted in zip(own(images), backbone(images), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    (pixels,) = (part for part in own.modules() if isinstance(part, Pixels))
    assert pixels.std is None
    assert (pixels.mean is None) != isinstance(config, ConvNet), "zeros that are padded stand for the mean"
    assert not [name for name, _ in own.named_modules() if "layer_scale" in name and hasattr(_, "lambda1")]
    assert all(torch.equal(rows, before[name]) for name, rows in backbone.state_dict().items())
