"""A language model that sees: images → tokens → projector → the embeddings of a Llama or Qwen2 (spec 4 and 5).

The module's parameters carry the published names. Masks are booleans over the whole sequence, so that decoding may look
in both directions; sequences of different lengths are padded and say so through mask and positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.models import sequence
from hypervla.models.backbones import ConvNet
from hypervla.models.fused_vision import FusedVision, FusedVisionBackbone
from hypervla.models.layers import size


@dataclass(frozen=True)
class LanguageModel:
    """A decoder of transformers, by its sizes."""

    family: Literal["llama", "qwen2"]
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    """Rows of the embedding, padding rows and added tokens among them."""
    tied: bool
    """Whether the output layer is the embedding."""
    context: int
    """Tokens of the longest sequence, those of the images among them."""
    tokenizer: str
    """Folder or hub id of the tokenizer."""
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0

    def build(self) -> Any:
        """transformers' model with random weights."""
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

        shape: dict[str, Any] = {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }
        if self.family == "llama":
            return LlamaForCausalLM(LlamaConfig(**shape))
        return Qwen2ForCausalLM(Qwen2Config(**shape))


LLAMA_2_7B = LanguageModel(
    family="llama",
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    mlp=11_008,
    vocabulary=32_064,
    tied=False,
    context=2048,
    tokenizer="openvla/openvla-7b",
)
"""OpenVLA's: the vocabulary of 32,000, a padding token, and rows up to a multiple of 64."""
QWEN2_05B = LanguageModel(
    family="qwen2",
    width=896,
    layers=24,
    heads=14,
    kv_heads=2,
    mlp=4864,
    vocabulary=151_680,
    tied=True,
    context=2048,
    tokenizer="Qwen/Qwen2-0.5B",
    rope_theta=1_000_000.0,
)
"""EVLA's: with one padding token, and rows up to a multiple of 64 (fewer than the published model's 151,936)."""


@dataclass(frozen=True)
class VisionLanguage:
    """Vision, projector and language model."""

    vision: FusedVision | ConvNet
    projector: tuple[int, ...]
    """Widths between the vision's and the language model's: one linear map for each, and one more, GELU between."""
    language: LanguageModel
    cameras: int = 1

    @property
    def image_tokens(self) -> int:
        return self.cameras * self.vision.tokens

    def with_context(self, tokens: int) -> VisionLanguage:
        return replace(self, language=replace(self.language, context=tokens))

    def build(self, pretrained: bool) -> VisionLanguageModel:
        return VisionLanguageModel(self, pretrained)


class Projector(nn.Module):
    """Linear maps fc1, fc2, … with an exact GELU between."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        for i in range(self.depth):
            self.add_module(f"fc{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x: Float[Tensor, "B K I"]) -> Float[Tensor, "B K O"]:
        for i in range(self.depth):
            x = self.get_submodule(f"fc{i + 1}")(F.gelu(x) if i else x)
        return x


class VisionLanguageModel(nn.Module):
    """The parts under their published names, and the steps from pixels and token ids to logits."""

    def __init__(self, config: VisionLanguage, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = config.vision.build(pretrained)
        self.projector = Projector((config.vision.width, *config.projector, config.language.width))
        self.language_model = config.language.build()

    def parts(self) -> dict[str, int]:
        """Parameters by part; `unused_vision` is what lies behind the blocks that are read."""
        vision = self.vision_backbone
        idle = vision.unused() if isinstance(vision, FusedVisionBackbone) else 0
        parts = {"backbone": size(vision) - idle, "projector": size(self.projector)}
        return parts | {"language_model": size(self.language_model)} | ({"unused_vision": idle} if idle else {})

    def look(self, images: UInt8[Tensor, "B C h w 3"]) -> Float[Tensor, "B CK D"]:
        """The cameras' tokens, side by side, as the language model reads them."""
        tokens = self.vision_backbone(images.flatten(0, 1))[0].to(next(self.projector.parameters()).dtype)
        return self.projector(tokens).unflatten(0, images.shape[:2]).flatten(1, 2)

    def prompt(
        self,
        images: UInt8[Tensor, "B C h w 3"],
        ids: Int64[Tensor, "B L"],
        words: Bool[Tensor, "B L"],
        pictured: Bool[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
        """Images and words in one sequence, and which of its columns are real. `words` says which words are, `pictured`
        which samples have images (None: all)."""
        tokens = self.look(images)
        shown = words.new_ones(tokens.shape[:2]) if pictured is None else pictured[:, None].expand(tokens.shape[:2])
        return sequence.lay_out(self.embed(ids), tokens), sequence.valid_columns(words, shown)

    def embed(self, ids: Int64[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        return self.language_model.get_input_embeddings()(ids)

    def read(
        self,
        embeddings: Float[Tensor, "B Q D"],
        mask: Bool[Tensor, "B 1 Q S"],
        positions: Int64[Tensor, "B Q"],
        cache: Any = None,
    ) -> Float[Tensor, "B Q D"]:
        """Q new tokens, each looking where its row of the mask is True among all S so far; `cache` is transformers' own
        and holds the S − Q before. A row that sees nothing gives something, which is to be ignored."""
        answer = self.language_model.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return answer.last_hidden_state

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        return self.language_model.lm_head(hidden)

    def write(
        self,
        prompt: Float[Tensor, "B S D"],
        valid: Bool[Tensor, "B S"],
        count: int,
        choose: Callable[[Float[Tensor, "B D"]], Int64[Tensor, " B"]],
        embed: Callable[[Int64[Tensor, "B 1"]], Float[Tensor, "B 1 D"]],
    ) -> Int64[Tensor, "B T"]:
        """`count` tokens, one after another with a cache of keys and values: each is what `choose` makes of the column
        before it. Prompts end in the last column."""
        from transformers import DynamicCache

        cache, positions = DynamicCache(), sequence.positions(valid)
        last, written = self.read(prompt, sequence.causal_mask(valid), positions, cache)[:, -1], []
        while True:
            written.append(choose(last))
            if len(written) == count:
                return torch.stack(written, 1)
            valid, positions = F.pad(valid, (0, 1), value=True), positions[:, -1:] + 1
            last = self.read(embed(written[-1].unsqueeze(1)), valid[:, None, None, :], positions, cache)[:, -1]
