"""Conversations about a picture: tokens, sequence, and the loss of what is answered in them (EVLA's phase 1, spec 5).

A conversation is `In: question`, `Out: answer` and an end, turn after turn; its picture stands behind the first token.
Every token sees what comes before it, whatever the mode that actions are decoded in later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.models import sequence
from hypervla.models.vision_language import VisionLanguageModel

QUESTION, ANSWER = "In: {}\nOut:", " {}"


@dataclass(frozen=True)
class Conversations:
    """B conversations, padded on the right."""

    images: UInt8[Tensor, "B h w 3"]
    """Black where there is none."""
    shown: Bool[Tensor, " B"]
    """Which have a picture."""
    ids: Int64[Tensor, "B L"]
    words: Bool[Tensor, "B L"]
    """Which tokens are real."""
    answers: Bool[Tensor, "B L"]
    """Which tokens are learned to be said: the answers' and the end behind each."""

    def to(self, device: torch.device) -> Conversations:
        return Conversations(**{name: value.to(device) for name, value in vars(self).items()})


def write(tokenizer: Any, turns: Sequence[tuple[str, str]], room: int) -> tuple[list[int], list[bool]]:
    """Ids of questions and answers in turn, and which of them are answers. What exceeds `room` is cut off.

    Raises UserError for a tokenizer without a token for the end.
    """
    start, end = (tokenizer.bos_token_id, tokenizer.cls_token_id), (tokenizer.eos_token_id, tokenizer.sep_token_id)
    if end == (None, None):
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} has no token for the end of a text, which answers close with: "
            f"choose a language model whose tokenizer has one."
        )
    ids = _first(start)
    answered = [False] * len(ids)
    for question, answer in turns:
        asked = tokenizer(QUESTION.format(question), add_special_tokens=False)["input_ids"]
        said = [*tokenizer(ANSWER.format(answer), add_special_tokens=False)["input_ids"], *_first(end)]
        ids += [*asked, *said]
        answered += [False] * len(asked) + [True] * len(said)
    return ids[:room], answered[:room]


def _first(tokens: Sequence[int | None]) -> list[int]:
    """The first of them that there is."""
    return [token for token in tokens if token is not None][:1]


def text_loss(model: VisionLanguageModel, batch: Conversations) -> Float[Tensor, ""]:
    """Cross-entropy of the answers' tokens, each given all before it: the mean over all in the batch."""
    embeddings, valid = model.prompt(batch.images.unsqueeze(1), batch.ids, batch.words, batch.shown)
    hidden = model.read(embeddings, sequence.causal_mask(valid), sequence.positions(valid))
    of_words = torch.cat([hidden[:, :1], hidden[:, 1 + model.config.image_tokens :]], 1)
    learned = batch.answers[:, 1:]  # the token behind a word is learned from the word's column
    logits = model.logits(of_words[:, :-1][learned]).float()
    return F.cross_entropy(logits, batch.ids[:, 1:][learned], reduction="sum") / learned.sum().clamp(min=1)
