"""What RT-1 hears: one vector for a sentence, from a table of precomputed ones or from another text encoder.

Published: the 512 numbers of the Universal Sentence Encoder (large, version 5), computed once for each sentence. That
encoder exists for TensorFlow only, so its vectors come as a file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.layers import lecun_normal_

SENTENCE_WIDTH = 512
"""Numbers of a Universal Sentence Encoder's vector."""
TENSOR, SENTENCES = "embeddings", "sentences"


@dataclass(frozen=True)
class EmbeddingTable:
    """Precomputed vectors by sentence, in a safetensors file that `write_embeddings` wrote."""

    path: str
    width: int = SENTENCE_WIDTH

    @property
    def source_width(self) -> int:
        return self.width

    @property
    def encoder(self) -> None:
        return None

    def build(self, pretrained: bool) -> EmbeddedSentences:
        return EmbeddedSentences(self, pretrained)


@dataclass(frozen=True)
class SentenceEncoder:
    """Another text encoder, frozen: the mean of its real tokens at length 1, as the published vectors have it, through
    a trained linear map."""

    encoder: InstructionEncoder
    width: int = SENTENCE_WIDTH

    @property
    def source_width(self) -> int:
        return self.encoder.width

    def build(self, pretrained: bool) -> EncodedSentences:
        return EncodedSentences(self, pretrained)


class EmbeddedSentences(nn.Module):
    """Sentences → their rows of the table, which need no map."""

    def __init__(self, config: EmbeddingTable, pretrained: bool) -> None:
        super().__init__()
        self.path, self.rows = Path(config.path), dict[str, int]()
        self.encoder, self.projection = None, nn.Identity()
        table = torch.zeros(0, config.width)
        if pretrained:
            self.rows, vectors = read_embeddings(self.path, config.width)
            table = torch.from_numpy(vectors)
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)

    def forward(self, sentences: list[str]) -> Float[Tensor, "B S"]:
        """Raises UserError for a sentence that the table lacks."""
        if unknown := [sentence for sentence in sentences if sentence not in self.rows]:
            near = difflib.get_close_matches(unknown[0], self.rows, n=3) or list(self.rows)[:3]
            raise UserError(
                f"'{unknown[0]}' is none of the {len(self.rows)} sentences in {self.path} (near: "
                f"{', '.join(map(repr, near)) or 'none'}): add its vector, or use a recipe with a text encoder."
            )
        return self.table[torch.tensor([self.rows[sentence] for sentence in sentences], device=self.table.device)]


class EncodedSentences(nn.Module):
    """Sentences → mean tokens of a frozen text encoder; `projection` is the trained map to RT-1's width."""

    def __init__(self, config: SentenceEncoder, pretrained: bool) -> None:
        super().__init__()
        self.encoder = config.encoder.build(pretrained)
        self.projection = nn.Linear(config.encoder.width, config.width)
        lecun_normal_(self.projection.weight, config.encoder.width)
        nn.init.zeros_(self.projection.bias)

    def forward(self, sentences: list[str]) -> Float[Tensor, "B S"]:
        tokens, real = self.encoder(sentences)
        return F.normalize((tokens * real.unsqueeze(-1)).sum(1), dim=-1)


def read_embeddings(path: Path, width: int) -> tuple[dict[str, int], Float32[np.ndarray, "sentences S"]]:
    """The row of each sentence, and the table. Raises UserError for a file that is none or holds other vectors."""
    from safetensors import SafetensorError, safe_open

    wanted = f"a safetensors file of sentence embeddings ('{TENSOR}', one row of {width} numbers for each sentence)"
    if not path.is_file():
        raise UserError(f"There is no file {path}: RT-1 needs {wanted}; write one with write_embeddings.")
    try:
        with safe_open(path, "np") as file:
            sentences = json.loads((file.metadata() or {}).get(SENTENCES, "null"))
            table = file.get_tensor(TENSOR)
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} is not {wanted} ({error}): write one with write_embeddings.") from error
    named = isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)
    if not named or table.shape != (len(sentences), width) or table.dtype not in (np.float32, np.float16):
        raise UserError(
            f"{path} is not {wanted}: it holds {table.dtype} of shape {table.shape} for "
            f"{len(sentences) if named else 'no'} sentences; write it anew with write_embeddings."
        )
    if not np.isfinite(table).all():
        raise UserError(f"{path} holds NaN or infinite numbers: compute the sentence embeddings again.")
    return {sentence: row for row, sentence in enumerate(sentences)}, table.astype(np.float32)


def write_embeddings(path: Path, vectors: Mapping[str, Float32[np.ndarray, " S"]]) -> None:
    """Write the file that an EmbeddingTable reads. Raises UserError for vectors of different lengths."""
    from safetensors.numpy import save

    if not vectors or len({vector.shape for vector in vectors.values()}) > 1:
        raise UserError(f"{path} needs vectors of one length, at least one: {len(vectors)} came, of several lengths.")
    table = np.stack([np.asarray(vector, np.float32) for vector in vectors.values()])
    write_atomically(path, save({TENSOR: table}, {SENTENCES: json.dumps(list(vectors))}))
