"""Encoders of images see what their published originals see, and say so when they are not to be had."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.models.damaged_folders import DAMAGES
from torch import Tensor

from hypervla.contracts import UserError
from hypervla.models.backbones import Clip, ConvNet, DinoV2, Siglip, flax_resampling

DINO = DinoV2(image_size=24, width=16, layers=2, heads=2, patch=8, grid=5)
CLIP = Clip(image_size=24, width=16, layers=2, heads=2, patch=8)
SIGLIP = Siglip(image_size=24, width=16, layers=2, heads=2, patch=8)
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION |= {"image_size": 24, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP of both halves, as it is published."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    tiny.seeded(CLIPModel, CLIPConfig(vision_config=VISION, text_config=TEXT)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP of both halves, as it is published."""
    from transformers import SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    tiny.seeded(SiglipModel, SiglipConfig(vision_config=VISION, text_config=TEXT)).save_pretrained(folder)
    return folder


def images(size: int, count: int = 2) -> Tensor:
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# DINOv2


@pytest.mark.parametrize("size", [24, 40], ids=["smaller than the table", "of the table's size"])
def test_dinov2_is_the_published_model_on_imagenet_normalised_pixels(vision_folder: Path, size: int) -> None:
    from transformers import Dinov2Model

    reference, seen = Dinov2Model.from_pretrained(vision_folder).eval(), images(size)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = reference(pixel_values=((seen / 255 - mean) / std).permute(0, 3, 1, 2)).last_hidden_state
    config = replace(DINO, image_size=size, source=str(vision_folder))
    tokens, cls = config.build(pretrained=True).eval()(seen)
    torch.testing.assert_close(tokens, wanted[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cls, wanted[:, 0], rtol=1e-4, atol=1e-5)
    assert tokens.shape[1] == config.tokens


def test_dinov2_from_scratch_has_the_shape_of_the_pretrained_one(vision_folder: Path) -> None:
    pretrained = replace(DINO, source=str(vision_folder)).build(pretrained=True).state_dict()
    scratch = replace(DINO, source=None).build(pretrained=True).state_dict()
    assert {name: x.shape for name, x in scratch.items()} == {name: x.shape for name, x in pretrained.items()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backbone_folder_is_one_sentence(vision_folder: Path, tmp_path: Path, damage) -> None:
    folder = tmp_path / "dino"
    shutil.copytree(vision_folder, folder)
    damage(folder)
    with pytest.raises(UserError, match=f"'{folder}'") as error:
        replace(DINO, source=str(folder)).build(pretrained=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"width": 32}, {"layers": 3}, {"heads": 4}, {"patch": 4}, {"grid": 6}])
def test_a_backbone_of_another_shape_than_the_recipes_is_refused(vision_folder: Path, change: dict[str, int]) -> None:
    config = replace(DINO, source=str(vision_folder), **change)
    with pytest.raises(UserError, match="but the recipe is made for"):
        config.build(pretrained=True)


@pytest.mark.parametrize("config", [DinoV2, Clip, Siglip])
def test_a_hub_id_without_a_network_names_both_ways_out(config) -> None:
    wanted = "nobody/no-such.*neither as a local folder nor from the Hugging Face hub.*connect to the network once, or"
    with pytest.raises(UserError, match=wanted) as error:
        config(source="nobody/no-such-encoder").build(pretrained=True)
    assert "\n" not in str(error.value)


# The position rule of the released code


def test_the_flax_rule_gives_the_numbers_that_jax_gives() -> None:
    """From jax.image.scale_and_translate(table, scale=(new + 0.1) / old, method="bicubic", antialias=False)."""
    rows, small = flax_resampling(37, 16), flax_resampling(5, 4)
    np.testing.assert_allclose(rows[0, :3], [0.3432266, 0.7278546, -0.0710812], atol=3e-6)
    np.testing.assert_allclose(rows[7, 15:19], [-0.0256443, 0.2437616, 0.8533849, -0.0715022], atol=3e-6)
    np.testing.assert_allclose(rows[15, -3:], [-0.0464791, 0.9598026, 0.0866765], atol=3e-6)
    np.testing.assert_allclose(small[0], [0.9313602, 0.0737788, -0.005139, 0, 0], atol=1e-6)
    np.testing.assert_allclose(small[2], [0, -0.0558655, 0.495006, 0.6288039, -0.0679445], atol=1e-6)


def keys_cubic(x: float) -> float:
    """Keys' kernel, convolved piece by piece from its published table of coefficients for a = -1/2."""
    x = abs(x)
    if x < 1:
        return 3 / 2 * x**3 - 5 / 2 * x**2 + 1
    return -1 / 2 * x**3 + 5 / 2 * x**2 - 4 * x + 2 if x < 2 else 0.0


@pytest.mark.parametrize(("old", "new"), [(37, 16), (5, 3), (3, 5)])
def test_the_flax_rule_interpolates_each_row_by_itself(old: int, new: int) -> None:
    for i, row in enumerate(flax_resampling(old, new)):
        centre = (i + 0.5) / ((new + 0.1) / old) - 0.5
        taps = [keys_cubic(centre - j) for j in range(old)]
        np.testing.assert_allclose(row, np.array(taps) / sum(taps), atol=1e-6)


def test_a_table_of_the_right_size_is_left_alone() -> None:
    assert np.array_equal(flax_resampling(4, 4), np.eye(4))


def test_the_flax_rule_resamples_the_patch_positions_and_leaves_the_cls_tokens(vision_folder: Path) -> None:
    backbone = replace(DINO, source=str(vision_folder), position_rule="flax").build(pretrained=True).eval()
    embeddings, rows = backbone.model.embeddings, torch.tensor(flax_resampling(5, 3))
    got = embeddings(torch.zeros(1, 3, 24, 24)) - embeddings.patch_embeddings(torch.zeros(1, 3, 24, 24))[:, :1]
    table = embeddings.position_embeddings[0]
    wanted = [
        sum(rows[y, v] * rows[x, h] * table[1 + 5 * v + h] for v in range(5) for h in range(5))
        for y in range(3)
        for x in range(3)
    ]
    torch.testing.assert_close(got[0, 1:], torch.stack(wanted), atol=1e-5, rtol=1e-5)
    cls = embeddings.cls_token[0, 0] + table[0]
    torch.testing.assert_close(embeddings(torch.zeros(1, 3, 24, 24))[0, 0], cls)


def test_the_two_position_rules_differ_only_where_there_is_something_to_interpolate(vision_folder: Path) -> None:
    for size, same in ((24, False), (40, True)):
        one, other = (
            replace(DINO, image_size=size, source=str(vision_folder), position_rule=rule).build(True).eval()
            for rule in ("transformers", "flax")
        )
        assert one.state_dict().keys() == other.state_dict().keys()
        difference = (one(images(size))[0] - other(images(size))[0]).abs().max()
        assert (difference < 1e-5) == same


def test_a_copy_of_a_backbone_resamples_its_own_table(vision_folder: Path) -> None:
    backbone = replace(DINO, source=str(vision_folder), position_rule="flax").build(pretrained=True).eval()
    before, twin = backbone(images(24))[0], copy.deepcopy(backbone)
    torch.nn.init.zeros_(twin.model.embeddings.position_embeddings)
    assert torch.equal(backbone(images(24))[0], before)
    assert not torch.equal(twin(images(24))[0], before)


# CLIP and SigLIP


def test_clip_gives_its_patch_tokens_as_they_are_and_its_normalised_cls_token(clip_folder: Path) -> None:
    from transformers import CLIPModel

    reference, seen = CLIPModel.from_pretrained(clip_folder).vision_model.eval(), images(24)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = ((seen / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    wanted = reference(pixel_values=pixels)
    config = replace(CLIP, source=str(clip_folder))
    tokens, vector = config.build(pretrained=True).eval()(seen)
    torch.testing.assert_close(tokens, wanted.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vector, reference.post_layernorm(wanted.last_hidden_state[:, 0]), rtol=1e-4, atol=1e-5)
    assert tokens.shape == (2, config.tokens, config.width)


def test_siglip_gives_its_normalised_tokens_and_what_its_head_pools_from_them(siglip_folder: Path) -> None:
    from transformers import SiglipModel

    reference, seen = SiglipModel.from_pretrained(siglip_folder).vision_model.eval(), images(24)
    wanted = reference(pixel_values=(seen / 127.5 - 1).permute(0, 3, 1, 2))
    config = replace(SIGLIP, source=str(siglip_folder))
    tokens, vector = config.build(pretrained=True).eval()(seen)
    torch.testing.assert_close(tokens, wanted.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vector, reference.head(tokens), rtol=1e-4, atol=1e-5)
    assert tokens.shape == (2, config.tokens, config.width)


@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
@pytest.mark.parametrize("change", [{"width": 32}, {"layers": 3}, {"heads": 4}, {"patch": 4}, {"image_size": 32}])
def test_a_half_of_another_shape_is_refused(
    config: Clip | Siglip, change: dict[str, int], clip_folder: Path, siglip_folder: Path
) -> None:
    folder = clip_folder if isinstance(config, Clip) else siglip_folder
    with pytest.raises(UserError, match="but the recipe is made for"):
        replace(config, source=str(folder), **change).build(pretrained=True)


def test_another_kind_of_encoder_is_refused(vision_folder: Path, clip_folder: Path, siglip_folder: Path) -> None:
    for config, folder in ((CLIP, siglip_folder), (SIGLIP, clip_folder), (CLIP, vision_folder), (DINO, clip_folder)):
        with pytest.raises(UserError, match=str(folder)):
            replace(config, source=str(folder)).build(pretrained=True)


@pytest.mark.parametrize("config", [DINO, CLIP, SIGLIP], ids=["dinov2", "clip", "siglip"])
def test_a_scratch_encoder_learns_from_its_tokens(config: DinoV2 | Clip | Siglip) -> None:
    backbone = tiny.seeded(replace(config, source=None).build, True)
    backbone(images(24))[0].square().sum().backward()
    kernels = [parameter.grad for parameter in backbone.parameters() if parameter.dim() == 4]
    assert len(kernels) == 1
    assert kernels[0].any()


@pytest.mark.parametrize(
    ("config", "size"), [(DinoV2(), 86_580_480), (Clip(), 85_799_424), (Siglip(), 92_884_224)], ids=lambda x: str(x)[:6]
)
def test_the_published_encoders_have_their_published_sizes(config: DinoV2 | Clip | Siglip, size: int) -> None:
    with torch.device("meta"):
        backbone = config.build(pretrained=False)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == size


# Frozen


def test_a_frozen_backbone_is_not_trained_and_stays_in_evaluation_mode(vision_folder: Path) -> None:
    backbone = replace(DINO, source=str(vision_folder), frozen=True).build(pretrained=True)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())
    assert not backbone(images(24))[0].requires_grad


def test_a_trained_backbone_can_be_switched_between_training_and_evaluation(vision_folder: Path) -> None:
    backbone = replace(DINO, source=str(vision_folder)).build(pretrained=True)
    assert backbone.train().model.training
    assert not backbone.eval().model.training
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("config", [DINO, CLIP, SIGLIP], ids=["dinov2", "clip", "siglip"])
def test_a_frozen_backbone_without_a_source_is_refused(config: DinoV2 | Clip | Siglip) -> None:
    with pytest.raises(UserError, match="would stay random.*give it a source"):
        replace(config, source=None, frozen=True)


# The small convolutional encoder


@pytest.mark.parametrize("size", [16, 24, 40, 56, 64, 128])
@pytest.mark.parametrize("widths", [(4,), (4, 6), (4, 6, 8)])
def test_a_convolutional_encoder_gives_as_many_tokens_as_it_says(size: int, widths: tuple[int, ...]) -> None:
    config = ConvNet(image_size=size, widths=widths, stride=4)
    tokens, mean = config.build(pretrained=False)(images(size))
    assert tokens.shape == (2, config.tokens, config.width)
    torch.testing.assert_close(mean, tokens.mean(1))


def test_a_convolutional_encoders_cells_keep_the_images_order() -> None:
    config = ConvNet(image_size=32, widths=(4,), stride=4)
    torch.manual_seed(0)
    backbone, dark = config.build(pretrained=False), torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    bright = dark.clone()
    bright[:, 28:, :4] = 255  # the bottom left corner: the first cell of the last row of 8
    changed = (backbone(bright)[0] - backbone(dark)[0]).abs().sum(-1)[0]
    assert int(changed.argmax()) == 7 * 8
    assert not changed[:32].any()
