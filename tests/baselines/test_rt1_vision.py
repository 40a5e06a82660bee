"""RT-1's FiLM-EfficientNet and TokenLearner (spec 6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny

from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.contracts import UserError

SIDE = 32
CONFIG = FilmEfficientNet(SIDE, width=0.2, depth=0.1, features=16, tokens=3, momentum=0.5, source=None)


@pytest.mark.parametrize(("padding", "side"), [("asymmetric", 9), ("same", 10)])
def test_b3_makes_81_or_100_cells_of_300_pixels(padding: str, side: int) -> None:
    with torch.device("meta"):
        vision = FilmEfficientNet(padding=padding).build(512, pretrained=False).eval()
        shape = vision.map(torch.zeros(1, 300, 300, 3, dtype=torch.uint8), torch.zeros(1, 512)).shape
    assert shape == (1, 1536, side, side)


@pytest.mark.parametrize(("padding", "odd"), [("asymmetric", []), ("same", [2, 3, 5])])
def test_without_film_the_map_is_that_of_transformers(padding: str, odd: list[int]) -> None:
    from transformers import EfficientNetConfig, EfficientNetModel

    vision = FilmEfficientNet(36, 0.2, 0.1, features=16, padding=padding, source=None).build(8, True).eval()
    shape = EfficientNetConfig(width_coefficient=0.2, depth_coefficient=0.1, hidden_dim=256, depthwise_padding=odd)
    theirs = EfficientNetModel(shape).eval()
    theirs.load_state_dict(vision.efficientnet.state_dict(), strict=False)
    images = torch.randint(256, (2, 36, 36, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(vision.map(images, torch.randn(2, 8)), expected, rtol=1e-4, atol=1e-5)


def test_imagenets_weights_come_from_a_folder_of_the_same_size(tmp_path: Path) -> None:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    shape = EfficientNetConfig(width_coefficient=0.2, depth_coefficient=0.1, hidden_dim=256, num_labels=3)
    theirs = tiny.seeded(EfficientNetForImageClassification, shape)
    theirs.save_pretrained(tmp_path)
    vision = replace(CONFIG, source=str(tmp_path))
    ours = vision.build(8, pretrained=True).efficientnet
    assert ours.encoder.top_conv.weight.equal(theirs.efficientnet.encoder.top_conv.weight)
    assert ours.encoder.blocks[3].projection.project_bn.momentum == 0.5
    with pytest.raises(UserError, match="an EfficientNet of width 0.2 and depth 0.1, but the recipe is made for 0.4"):
        replace(vision, width=0.4).build(8, pretrained=True)
    with pytest.raises(UserError, match="Could not load EfficientNetModel"):
        replace(vision, source=str(tmp_path / "nowhere")).build(8, pretrained=True)


def test_film_scales_and_shifts_after_every_block() -> None:
    vision = CONFIG.build(8, pretrained=False).eval()
    with torch.no_grad():
        vision.films[-1].multiply.bias.fill_(1.0)
        vision.films[-1].add.weight[:, 0] = 3.0
    seen: list[torch.Tensor] = []
    vision.efficientnet.encoder.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    vision.films[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    sentence = torch.eye(8)[:2]
    vision(torch.randint(256, (2, SIDE, SIDE, 3), dtype=torch.uint8), sentence)
    torch.testing.assert_close(seen[1], 2 * seen[0] + 3 * sentence[:, :1, None, None])


def test_token_learner_is_a_softmax_over_cells() -> None:
    learner = CONFIG.build(8, pretrained=False).learner
    cells = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    weights = {name: value.detach().numpy() for name, value in learner.state_dict().items()}
    x = (cells - cells.mean(-1, keepdims=True)) / np.sqrt(cells.var(-1, keepdims=True) + 1e-6)
    x = x @ weights["up.weight"].T + weights["up.bias"]
    x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    choice = np.exp(x @ weights["down.weight"].T + weights["down.bias"])
    choice /= choice.sum(1, keepdims=True)
    expected = np.einsum("bck,bcd->bkd", choice, cells)
    np.testing.assert_allclose(learner(torch.from_numpy(cells)).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
