"""What task contexts a model has been trained with, kept in its checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hypervla import checkpoint
from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.mixture import Mixture
from hypervla.models.familiarity import KnownContexts
from hypervla.models.hypervla import HyperVLA
from hypervla.runtime.task_policy import preprocess

FITTED, JUDGED = 2_000, 500
"""Contexts that are looked at: of episodes that were trained on, and of held-back ones."""
LEAST = 20
"""Different contexts that say something of how contexts differ."""
TOGETHER = 64
"""Contexts that are embedded in one call."""


class Context(NamedTuple):
    """What a task policy was generated from in training."""

    sentence: str
    images: UInt8[np.ndarray, "C h w 3"]
    task: str
    """The instruction as the dataset has it, which `sentence` is a way to say."""


def keep_contexts(folder: Path, mixture: Mixture, device: str = "cpu", seed: int = 0) -> KnownContexts | None:
    """Fit the contexts that a finished checkpoint was trained with and keep them beside its weights; the limit is set
    with held-back episodes, where there are any. None where fewer than LEAST differ, as in data that never says what is
    to be done.

    Raises UserError for a model that reads no task contexts, and for other data than that of its training.
    """
    model, about, _ = checkpoint.load(folder, device)
    if not isinstance(model, HyperVLA):
        raise UserError(f"{folder} holds a model without a hypernetwork, which reads no task contexts.")
    check_data(about, mixture)
    random, size, left_out = np.random.default_rng(seed), model.config.image_size, _left_out(about)
    fitted = draw(mixture, FITTED, size, random, held_back=False, left_out=left_out)
    judged = draw(mixture, JUDGED, size, random, held_back=True, left_out=left_out)
    if len({(context.sentence, context.images.tobytes()) for context in fitted}) < LEAST:
        return None
    tasks = [context.task for context in fitted]
    known = KnownContexts.fit(embed(model, fitted, device), tasks, embed(model, judged, device) if judged else None)
    checkpoint.add_contexts(folder, known)
    return known


def check_data(about: checkpoint.Checkpoint, mixture: Mixture) -> None:
    """Raises UserError for data that the checkpoint was not trained on, where it says what that was."""
    known = {row["digest"]: row["name"] for row in about.provenance.get("datasets", ())}
    for reader in mixture.readers:
        if known and reader.digest not in known:
            raise UserError(
                f"{reader.name} is not what the checkpoint was trained on ({', '.join(known.values())}): its contexts "
                "are those of its own data."
            )


def _left_out(about: checkpoint.Checkpoint) -> Collection[str]:
    """Instructions that were in the data and not trained on."""
    return about.provenance.get("recipe", {}).get("sampling", {}).get("leave_out", ())


def draw(
    mixture: Mixture,
    count: int,
    size: int,
    random: np.random.Generator,
    *,
    held_back: bool,
    left_out: Collection[str] = (),
) -> list[Context]:
    """Sentences, in any way they are said, with the first images of their episodes; every dataset has its share. An
    episode without a sentence is passed over."""
    drawn: list[Context] = []
    for reader, share in zip(mixture.readers, mixture.shares, strict=True):
        chosen = np.isin(np.arange(len(reader)), reader.validation_episodes) == held_back
        if left_out:
            chosen &= [reader.instruction(int(row)) not in left_out for row in reader.starts[:-1]]
        episodes = random.permutation(np.flatnonzero(chosen))
        wanted = round(share * count)
        for episode in np.resize(episodes, wanted) if len(episodes) else []:
            drawn += _context(reader, int(reader.starts[episode]), size, random)
    return drawn


def _context(reader: EpisodeReader, row: int, size: int, random: np.random.Generator) -> list[Context]:
    sentence = reader.instruction(row)
    if not sentence.strip():
        return []
    ways = list(dict.fromkeys([sentence, *reader.paraphrases.get(sentence, ())]))
    images = {camera.name: reader.images(camera.name, [row])[0] for camera in reader.embodiment.cameras}
    return [Context(ways[random.integers(len(ways))], preprocess(images, reader.embodiment, size), sentence)]


@torch.inference_mode()
def embed(model: HyperVLA, contexts: list[Context], device: str) -> Float[Tensor, "N D"]:
    """Context embeddings, with every initial image seen."""
    found = []
    for first in range(0, len(contexts), TOGETHER):
        some = contexts[first : first + TOGETHER]
        images = torch.from_numpy(np.stack([context.images for context in some])).to(device)
        found.append(model.embed([context.sentence for context in some], images).float().cpu())
    return torch.cat(found)
