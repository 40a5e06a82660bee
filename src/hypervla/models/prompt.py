"""The question that an action answers, as token ids (spec 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from hypervla.contracts import UserError
from hypervla.remembered import Remembered

SENTENCES = 100_000
"""Prompts that are kept."""
PROMPT = "In: What action should the robot take to {}?\nOut:"


class Prompts:
    """Instructions as a padded batch of ids; each is tokenized once and remembered."""

    def __init__(self, tokenizer: Any, room: int, last: int | None = None) -> None:
        """`room` is how many tokens a prompt may have; `last` is an id that each ends with.

        Without a tokenizer no instruction can be read: for models that are only counted or timed.
        """
        self.tokenizer, self.room, self.last = tokenizer, room, last
        self._remembered: Remembered[str, list[int]] = Remembered(SENTENCES)

    def __call__(self, sentences: Sequence[str]) -> tuple[Int64[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The first token, padding, the other tokens; and which are real. So all prompts end in the last column.

        Raises UserError for an instruction whose prompt has no room.
        """
        rows = [self._remembered.one(sentence, partial(self._ids, sentence)) for sentence in sentences]
        length = max(map(len, rows))
        padded = [[row[0], *[0] * (length - len(row)), *row[1:]] for row in rows]
        real = [[True, *[False] * (length - len(row)), *[True] * (len(row) - 1)] for row in rows]
        return torch.tensor(padded), torch.tensor(real)

    def _ids(self, sentence: str) -> list[int]:
        if self.tokenizer is None:
            raise UserError("This model has no tokenizer: build it with pretrained=True.")
        ids = list(self.tokenizer(PROMPT.format(sentence.lower()))["input_ids"])
        if self.last is not None and ids[-1] != self.last:
            ids.append(self.last)
        if len(ids) > self.room:
            raise UserError(
                f"The instruction makes a prompt of {len(ids)} tokens, but the language model has room for "
                f"{self.room}: shorten '{sentence[:40]}…'."
            )
        return ids
