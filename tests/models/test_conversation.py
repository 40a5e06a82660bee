"""Conversations about pictures: what is learned of them, with transformers' own loss as the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.conversation import write_tokenizer
from torch import Tensor

from hypervla.contracts import UserError
from hypervla.models.backbones import ConvNet
from hypervla.models.conversation import Conversations, text_loss, write
from hypervla.models.instruction_encoders import load_tokenizer
from hypervla.models.vision_language import LLAMA_2_7B, QWEN2_05B, LanguageModel, VisionLanguage, VisionLanguageModel

SIDE = 16
TINY = {"width": 16, "layers": 2, "heads": 4, "mlp": 24, "vocabulary": 64, "context": 64}
LLAMA = replace(LLAMA_2_7B, **TINY, kv_heads=4)
QWEN2 = replace(QWEN2_05B, **TINY, kv_heads=2)


@pytest.fixture(params=[LLAMA, QWEN2], ids=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return build(request.param)


def build(language: LanguageModel) -> VisionLanguageModel:
    model = tiny.seeded(VisionLanguage(ConvNet(SIDE, (4, 8), 4), (12,), language).build, False).eval()
    return tiny.loud(model)


def conversations(shown: list[bool]) -> Conversations:
    """Of 9 tokens and of 5, with two answers and with one."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(64, (2, 9), generator=random)
    words = torch.tensor([[1] * 9, [1] * 5 + [0] * 4], dtype=torch.bool)
    answers = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    images = torch.randint(256, (2, SIDE, SIDE, 3), dtype=torch.uint8, generator=random)
    return Conversations(images, torch.tensor(shown), ids * words, words, answers)


def alone(batch: Conversations, i: int) -> Conversations:
    """One conversation without padding."""
    length = int(batch.words[i].sum())
    one = {name: value[i : i + 1] for name, value in vars(batch).items()}
    return Conversations(
        **{name: x[:, :length] if name in ("ids", "words", "answers") else x for name, x in one.items()}
    )


def theirs(model: VisionLanguageModel, batch: Conversations, i: int) -> Tensor:
    """transformers' loss of one conversation, the picture's tokens standing behind the first word."""
    one = alone(batch, i)
    embeddings, labels = model.embed(one.ids), one.ids.masked_fill(~one.answers, -100)
    if one.shown[0]:
        picture = model.look(one.images.unsqueeze(1))
        embeddings = torch.cat([embeddings[:, :1], picture, embeddings[:, 1:]], 1)
        labels = torch.cat([labels[:, :1], labels.new_full(picture.shape[:2], -100), labels[:, 1:]], 1)
    return model.language_model(inputs_embeds=embeddings, labels=labels).loss


@torch.no_grad()
@pytest.mark.parametrize("shown", [[True, True], [True, False], [False, False]])
def test_the_loss_is_transformers_own(model: VisionLanguageModel, shown: list[bool]) -> None:
    batch = conversations(shown)
    counts = batch.answers.sum(1)
    wanted = sum(theirs(model, batch, i) * counts[i] for i in range(2)) / counts.sum()
    torch.testing.assert_close(text_loss(model, batch), wanted)


@torch.no_grad()
def test_padding_and_company_change_nothing(model: VisionLanguageModel) -> None:
    batch = conversations([True, False])
    counts = batch.answers.sum(1)
    wanted = sum(text_loss(model, alone(batch, i)) * counts[i] for i in range(2)) / counts.sum()
    torch.testing.assert_close(text_loss(model, batch), wanted)
    other = replace(batch, ids=torch.where(batch.words, batch.ids, 63), images=255 - batch.images)
    other.images[0] = batch.images[0]  # the second has no picture
    torch.testing.assert_close(text_loss(model, other), text_loss(model, batch))


@torch.no_grad()
def test_a_picture_that_is_shown_counts(model: VisionLanguageModel) -> None:
    batch = conversations([True, True])
    assert text_loss(model, batch) != text_loss(model, replace(batch, images=255 - batch.images))


def test_answers_and_the_end_behind_each_are_learned(text_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_tokenizer(text_folder, tmp_path / "words")))
    ids, answered = write(tokenizer, [("go to", "the corner"), ("find", "goal")], 99)
    said = tokenizer.convert_ids_to_tokens([token for token, learned in zip(ids, answered, strict=True) if learned])
    assert said == ["the", "corner", "</s>", "goal", "</s>"]
    asked = ["In", ":", "go", "to", "Out", ":"]
    assert tokenizer.convert_ids_to_tokens(ids)[: len(asked)] == [
        "<unk>" if word in "In:Out" else word for word in asked
    ]
    assert write(tokenizer, [("go to", "the corner")], 7) == (ids[:7], answered[:7])


def test_a_tokenizer_without_an_end_is_refused(text_folder: Path) -> None:
    with pytest.raises(UserError, match="no token for the end of a text"):
        write(load_tokenizer(str(text_folder)), [("find", "once")], 99)
