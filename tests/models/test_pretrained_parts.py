"""Published DINOv2, SigLIP and language model into one model that sees: names, position tables, vocabularies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.models.test_fused_vision import DINO, SIDE, SIGLIP
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.models.backbones import ConvNet
from hypervla.models.fused_vision import FusedVision, VisionTransformer
from hypervla.models.pretrained_parts import PARTS, load_parts, resize_positions
from hypervla.models.vision_language import QWEN2_05B, LanguageModel, VisionLanguage, VisionLanguageModel

QWEN2 = replace(QWEN2_05B, width=16, layers=2, heads=4, kv_heads=2, mlp=24, vocabulary=40, context=64)
CONFIG = VisionLanguage(FusedVision(SIDE, DINO, SIGLIP), (16,), QWEN2)
WIDE = 56
"""Image size that the published DINOv2 was made for."""


def timms(model: VisionTransformer) -> dict[str, Tensor]:
    """As timm saves it."""
    return {n.replace("scale_factor", "gamma"): p.detach().clone() for n, p in model.named_parameters()}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    for part in PARTS[:2]:
        (tmp_path / part).mkdir()
    save_file(timms(tiny.seeded(VisionTransformer, DINO, WIDE, seed=1)), tmp_path / "dino/model.safetensors")
    save_file(timms(tiny.seeded(VisionTransformer, SIGLIP, SIDE, seed=2)), tmp_path / "siglip/model.safetensors")
    tiny.seeded(replace(QWEN2, vocabulary=48).build, seed=3).save_pretrained(tmp_path / "language")
    return tmp_path


def built(language: LanguageModel = QWEN2) -> VisionLanguageModel:
    return tiny.seeded(replace(CONFIG, language=language).build, False, seed=9)


def test_every_part_arrives_and_the_projector_stays(parts: Path) -> None:
    model = built()
    before = {name: value.clone() for name, value in model.projector.named_parameters()}
    load_parts(str(parts), model)
    dino, siglip = (
        timms(tower) for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer)
    )
    published = load_file(parts / "dino/model.safetensors")
    assert dino.keys() == published.keys()
    assert all(torch.equal(dino[name], value) for name, value in published.items() if name != "pos_embed")
    assert all(torch.equal(siglip[n], value) for n, value in load_file(parts / "siglip/model.safetensors").items())
    language = load_file(parts / "language/model.safetensors")
    ours = dict(model.language_model.named_parameters())
    assert all(torch.equal(value, language[name]) for name, value in ours.items() if "embed" not in name)
    assert torch.equal(ours["model.embed_tokens.weight"], language["model.embed_tokens.weight"][:40])
    assert all(torch.equal(value, before[name]) for name, value in model.projector.named_parameters())


def test_a_position_table_is_resized_as_timm_does_it(parts: Path) -> None:
    model = built()
    load_parts(str(parts), model)
    table = load_file(parts / "dino/model.safetensors")["pos_embed"]
    side, wanted = WIDE // DINO.patch, SIDE // DINO.patch
    grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, (wanted, wanted), mode="bicubic", antialias=True)
    expected = resized.permute(0, 2, 3, 1).reshape(1, wanted * wanted, -1)
    torch.testing.assert_close(model.vision_backbone.featurizer.pos_embed.detach(), expected)
    assert resize_positions(table, side * side) is table
    flat = torch.ones(1, side * side, 3)
    torch.testing.assert_close(resize_positions(flat, wanted * wanted), torch.ones(1, wanted * wanted, 3))


def test_added_tokens_start_from_the_mean(parts: Path) -> None:
    model = built(replace(QWEN2, vocabulary=64))
    load_parts(str(parts), model)
    published = load_file(parts / "language/model.safetensors")["model.embed_tokens.weight"]
    rows = model.language_model.get_input_embeddings().weight.detach()
    assert torch.equal(rows[:48], published)
    torch.testing.assert_close(rows[48:], published.mean(0, keepdim=True).expand(16, -1))


@pytest.mark.parametrize("table", [torch.zeros(1, 7, 16), torch.zeros(1, 0, 16), torch.full((1, 49, 16), torch.nan)])
def test_a_table_that_is_none_is_refused(parts: Path, table: Tensor) -> None:
    tensors = load_file(parts / "dino/model.safetensors") | {"pos_embed": table}
    save_file(tensors, parts / "dino/model.safetensors")
    with pytest.raises(UserError, match="'pos_embed'"):
        load_parts(str(parts), built())


def test_what_does_not_fit_is_refused(parts: Path) -> None:
    with pytest.raises(UserError, match="holds another model"):
        load_parts(str(parts), built(replace(QWEN2, layers=1)))
    (parts / "siglip/model.safetensors").rename(parts / "siglip/pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        load_parts(str(parts), built())
    (parts / "language").rename(parts / "qwen")
    with pytest.raises(UserError, match="language is missing"):
        load_parts(str(parts), built())
    convolutional = replace(CONFIG, vision=ConvNet(16, (4, 8), 4)).build(False)
    with pytest.raises(UserError, match="this recipe's vision is ConvNet"):
        load_parts(str(parts), convolutional)
