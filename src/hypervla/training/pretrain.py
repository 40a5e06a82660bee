"""EVLA's phase 1: its language model learns to talk about pictures, before it learns to act (spec 5).

hypervla pretrain evla --data llava.json --images coco --init runs/evla-parts --out runs/evla-vlm
hypervla train evla --data data/bridge --init runs/evla-vlm --out runs/evla
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import default_rng

from hypervla.contracts import UserError
from hypervla.data.image_text import ImageText, Pair
from hypervla.models.conversation import ANSWER, QUESTION, Conversations, text_loss, write
from hypervla.models.evla import EvlaConfig
from hypervla.models.instruction_encoders import load_tokenizer
from hypervla.models.interface import family
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.recipe import Recipe, Settings
from hypervla.training.run import SAVE_EVERY, OnStep, begin, check_out, learn

HELD_BACK_EVERY = 100
"""Of so many pairs, one is kept for validation, if there are as many."""


@dataclass(frozen=True, kw_only=True)
class TextRecipe(Settings):
    """One complete configuration of learning to answer questions about pictures."""

    batch: int


def text_recipe(recipe: Recipe, pairs: int, *, epochs: int = 1, batch: int = 32, rate: float = 2e-5) -> TextRecipe:
    """The recipe's model with the published settings for learning from so many pairs of text and image: batch 32, once
    through the data, AdamW at 2e-5 with decay 0.1, a warm-up of 3 % and half a cosine.

    Raises UserError for a model that does not talk, for numbers that are not positive, and for too few pairs.
    """
    if not isinstance(recipe.model, EvlaConfig):
        raise UserError(
            f"Only a model with a language model of its own can be taught to talk about pictures, such as the recipe "
            f"evla, but {recipe.name} is the model {family(recipe.model)}."
        )
    for what, value in (("epochs", epochs), ("pairs in a batch", batch), ("rate", rate)):
        if not 0 < value < math.inf:
            raise UserError(f"The {what} should be a positive number, but {value} came.")
    learned = len(split(pairs)[0])
    if batch > learned:
        raise UserError(f"A batch of {batch} wants as many pairs to learn from, but there are {learned}: say --batch.")
    steps = epochs * learned // batch
    return TextRecipe(
        name=f"{recipe.name} on text",
        model=recipe.model,
        optimizer=OptimizerConfig(
            rate=rate, backbone_rate=rate, decay=0.1, warmup=round(0.03 * steps), schedule="cosine", ema_start=None
        ),
        steps=steps,
        seed=recipe.seed,
        precision=recipe.precision,
        trace=False,
        checkpoint_dtype=recipe.checkpoint_dtype,
        batch=batch,
    )


def pretrain(
    recipe: TextRecipe,
    pairs: ImageText,
    out: Path,
    *,
    resume: bool = False,
    initial: Path | None = None,
    device: str = "cpu",
    on_step: OnStep | None = None,
    save_every: int = SAVE_EVERY,
    workers: int = 0,
) -> None:
    """Train the recipe's model on image-text pairs; the checkpoint in `out` knows no robot and is there to start from.

    Arguments and errors are those of `training.loop.train`.
    """
    check_out(out, resume)
    model: Any = recipe.model
    training, validation = split(len(pairs))
    tokenizer, room = (
        load_tokenizer(model.model.language.tokenizer),
        model.model.language.context - model.model.image_tokens,
    )

    if cut := count_cut(pairs, tokenizer, room):
        print(f"{cut} of {len(pairs)} conversations are longer than {room} tokens; their ends are cut off.")

    def stream(indices: Sequence[int]) -> TextStream:
        return TextStream(pairs, indices, tokenizer, room, recipe.batch, recipe.seed)

    run = begin(
        recipe,
        out,
        loss_of=lambda model, batch: text_loss(model.model, batch),
        measures_of=lambda model, batch: {"validation_loss": text_loss(model.model, batch)},
        identity={"dataset": pairs.digest},
        resume=resume,
        initial=initial,
        device=device,
        training=stream(training),
        validation=stream(validation) if len(validation) else None,
        samples=recipe.batch,
        robots={},
        facts={"datasets": [{"path": str(pairs.path), "digest": pairs.digest, "pairs": len(pairs)}]},
    )
    learn(run, workers=workers, save_every=save_every, on_step=on_step)


def split(count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Which of so many pairs are learned from, and which are held back."""
    held_back = range(HELD_BACK_EVERY - 1, count, HELD_BACK_EVERY)
    return [i for i in range(count) if i not in held_back], held_back


def count_cut(pairs: ImageText, tokenizer: Any, room: int) -> int:
    """How many conversations have more tokens than `room`. Short ones are not looked at: no token is empty."""
    cut = 0
    for entry in pairs.entries:
        letters = sum(len(f"{QUESTION}{question}{ANSWER}{answer}".encode()) + 1 for question, answer in entry.turns)
        cut += letters >= room and len(write(tokenizer, entry.turns, room + 1)[0]) > room
    return cut


class TextStream:
    """Batches of conversations by step: each pair once in an order of its own, then all again in another."""

    def __init__(
        self, pairs: ImageText, indices: Sequence[int], tokenizer: Any, room: int, batch: int, seed: int
    ) -> None:
        """Conversations are cut to `room` tokens."""
        self.pairs, self.indices, self.tokenizer = pairs, np.asarray(indices), tokenizer
        self.room, self.size, self.seed = room, batch, seed
        self._last_order = -1, self.indices
        """The last epoch asked for, and its order."""

    def __call__(self, step: int) -> Conversations:
        """Raises UserError for a picture that cannot be read."""
        places = range(step * self.size, (step + 1) * self.size)
        return self.collate([self.pairs[self._index(place)] for place in places])

    def collate(self, pairs: Sequence[Pair]) -> Conversations:
        written = [write(self.tokenizer, pair.turns, self.room) for pair in pairs]
        length, side = max(len(ids) for ids, _ in written), self.pairs.size
        none = np.zeros((side, side, 3), np.uint8)

        def rows(values: Sequence[Sequence[Any]], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor([[*row, *[0] * (length - len(row))] for row in values], dtype=dtype)

        return Conversations(
            images=torch.from_numpy(np.stack([none if pair.image is None else pair.image for pair in pairs])),
            shown=torch.tensor([pair.image is not None for pair in pairs]),
            ids=rows([ids for ids, _ in written], torch.long),
            words=rows([[1] * len(ids) for ids, _ in written], torch.bool),
            answers=rows([answered for _, answered in written], torch.bool),
        )

    def _index(self, place: int) -> int:
        epoch, place = divmod(place, len(self.indices))
        return int(self._order(epoch)[place])

    def _order(self, epoch: int) -> np.ndarray:
        if self._last_order[0] != epoch:
            self._last_order = epoch, default_rng((self.seed, epoch)).permutation(self.indices)
        return self._last_order[1]
