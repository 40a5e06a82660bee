"""A language model that sees, against transformers' own causal decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests import tiny
from torch import Tensor
from transformers import DynamicCache

from hypervla.models import sequence
from hypervla.models.backbones import ConvNet
from hypervla.models.fused_vision import FusedVision
from hypervla.models.vision_language import (
    LLAMA_2_7B,
    QWEN2_05B,
    LanguageModel,
    VisionLanguage,
    VisionLanguageModel,
)

TINY = {"width": 16, "layers": 2, "heads": 4, "mlp": 24, "vocabulary": 40, "context": 64}
LLAMA = replace(LLAMA_2_7B, **TINY, kv_heads=4)
QWEN2 = replace(QWEN2_05B, **TINY, kv_heads=2)


@pytest.fixture(params=[LLAMA, QWEN2], ids=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    config = VisionLanguage(ConvNet(16, (4, 8), 4), (12,), request.param, cameras=2)
    return tiny.seeded(config.build, False).eval()


def ids(*lead: int) -> Tensor:
    return torch.randint(40, lead, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_causal_mask_gives_transformers_own_answer(model: VisionLanguageModel) -> None:
    words, valid = ids(2, 7), torch.ones(2, 7, dtype=torch.bool)
    ours = model.logits(model.read(model.embed(words), sequence.causal_mask(valid), sequence.positions(valid)))
    torch.testing.assert_close(ours, model.language_model(input_ids=words).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_real_token(model: VisionLanguageModel, side: str) -> None:
    words = ids(1, 5)
    alone = torch.ones(1, 5, dtype=torch.bool)
    wanted = model.read(model.embed(words), sequence.causal_mask(alone), sequence.positions(alone))
    pad = (3, 0) if side == "left" else (0, 3)
    padded, valid = (torch.nn.functional.pad(x, pad) for x in (words, alone))
    found = model.read(model.embed(padded), sequence.causal_mask(valid), sequence.positions(valid))
    torch.testing.assert_close(found[valid], wanted[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_cache_gives_what_reading_all_at_once_gives(model: VisionLanguageModel) -> None:
    words, valid = ids(2, 6), torch.tensor([[False, True, True, True, True, True], [True] * 6])
    mask, positions, cache = sequence.causal_mask(valid), sequence.positions(valid), DynamicCache()
    whole = model.read(model.embed(words), mask, positions)
    first = model.read(model.embed(words[:, :4]), mask[:, :, :4, :4], positions[:, :4], cache)
    fifth = model.read(model.embed(words[:, 4:5]), mask[:, :, 4:5, :5], positions[:, 4:5], cache)
    last = model.read(model.embed(words[:, 5:]), mask[:, :, 5:, :], positions[:, 5:], cache)
    torch.testing.assert_close(torch.cat([first, fifth, last], 1)[valid], whole[valid], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_open_mask_lets_the_first_token_see_the_last(model: VisionLanguageModel) -> None:
    words, other = ids(1, 4), ids(1, 4)
    other[0, -1] = (other[0, -1] + 1) % 40
    everywhere, positions = torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.arange(4)[None]
    both = [model.read(model.embed(x), everywhere, positions)[:, 0] for x in (words, other)]
    assert not torch.allclose(*both)


@torch.no_grad()
def test_each_cameras_tokens_stand_side_by_side(model: VisionLanguageModel) -> None:
    images = torch.randint(256, (3, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = model.look(images)
    assert tokens.shape == (3, model.config.image_tokens, 16)
    half = model.config.vision.tokens
    torch.testing.assert_close(tokens[:, half:], model.look(images.flip(1))[:, :half])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("language", "size"), [(LLAMA_2_7B, 6_738_939_904), (QWEN2_05B, 493_803_392)])
def test_the_published_language_models_have_their_size(language: LanguageModel, size: int) -> None:
    with torch.device("meta"):
        assert count(language.build()) == size


def test_openvlas_projector_has_its_published_size_and_names() -> None:
    with torch.device("meta"):
        small = replace(LLAMA_2_7B, layers=1, vocabulary=64)
        projector = VisionLanguage(FusedVision(), (8704, 4096), small).build(pretrained=False).projector
    assert count(projector) == 71_385_600
    assert {name for name, _ in projector.named_parameters()} == {
        f"fc{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")
    }
