"""EVLA (EdgeVLA): a small language model that sees and gives all action dimensions in one pass (spec 5).

The paper says that the causal mask is removed and the whole action predicted at once; its released code does neither.
Here the mode decides: `joint` is the paper's claim, `ar_causal` is OpenVLA's way with the same parts, and the two
`evla_released` modes are what the code computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.models import sequence
from hypervla.models.action_tokens import BINS, bins_of, values_of
from hypervla.models.fused_vision import FusedVision
from hypervla.models.instruction_encoders import load_tokenizer
from hypervla.models.interface import Batch, Inputs, Role
from hypervla.models.layers import size
from hypervla.models.lora import LoRA, inject
from hypervla.models.prompt import Prompts
from hypervla.models.vision_language import QWEN2_05B, VisionLanguage, VisionLanguageModel

END = BINS
"""Row of the action tokens that stands for the end of the text, behind the bins."""
Mode = Literal["joint", "ar_causal", "evla_released", "evla_released_literal"]
PRISMATIC_1B = VisionLanguage(FusedVision(), (896,), QWEN2_05B)


@dataclass(frozen=True)
class EvlaConfig:
    """The defaults are those of the paper's model."""

    model: VisionLanguage = PRISMATIC_1B
    action_size: int = 7
    horizon: int = 1
    mode: Mode = "joint"
    frozen_vision: bool = False
    """Whether actions are learned without training the vision. Its weights are saved all the same."""
    lora: LoRA | None = None
    """Adapters in the language model, which is then not trained otherwise."""

    @property
    def image_size(self) -> int:
        return self.model.vision.image_size

    @property
    def cameras(self) -> int:
        return self.model.cameras

    @property
    def proprio_size(self) -> int:
        return 0

    @property
    def window(self) -> int:
        return 1

    @property
    def actions(self) -> int:
        """J numbers of one chunk."""
        return self.horizon * self.action_size

    def build(self, pretrained: bool = True) -> Evla:
        return Evla(self, pretrained)


EVLA_1B = EvlaConfig(frozen_vision=True)


class Evla(nn.Module):
    """A Monolithic model. Actions are 256 tokens of their own (and an end), beside the language model's vocabulary."""

    def __init__(self, config: EvlaConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        tokenizer = load_tokenizer(config.model.language.tokenizer) if pretrained else None  # before much is allocated
        self.model = VisionLanguageModel(config.model, pretrained)
        width = config.model.language.width
        self.tokens = nn.Embedding(BINS + 1, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.queries = nn.Parameter(torch.randn(config.actions, width) * 0.02) if config.mode == "joint" else None
        if config.frozen_vision:
            self.model.vision_backbone.requires_grad_(False)
        if config.lora is not None:
            inject(self.model.language_model, config.lora)
        room = config.model.language.context - config.model.image_tokens - config.actions - 1
        self.prompts = Prompts(tokenizer, room)

    def trained_parameters(self) -> dict[str, Tensor]:
        """Everything: what is frozen comes from no source of its own."""
        return dict(self.named_parameters())

    def role(self, name: str) -> Role:
        if name.startswith("model.vision_backbone."):
            return "backbone"
        return "decayed" if name.endswith("weight") and "norm" not in name else "plain"

    def trace(self) -> None:
        self.loss_of_tensors = torch.compile(self.loss_of_tensors)

    def parts(self) -> Mapping[str, int]:
        queries = 0 if self.queries is None else self.queries.numel()
        return self.model.parts() | {"action_tokens": size(self.tokens) + queries}

    def activated(self) -> int:
        return sum(count for part, count in self.parts().items() if part != "unused_vision")

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Images (B C h w 3); ids of the prompt (B L), the first token, padding, the others; which are real (B L).

        Raises UserError for an instruction that does not fit the language model's context.
        """
        ids, words = self.prompts(inputs.instructions)
        device = inputs.images.device
        return inputs.images[:, -1], ids.to(device), words.to(device)

    def infer(
        self, images: UInt8[Tensor, "B C h w 3"], ids: Int64[Tensor, "B L"], words: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B H A"]:
        """The most likely bins. Jointly, they come out of one pass. The released code has no such pass to offer, since
        each action is predicted from the one before it: like its predict_action, its modes write one after another."""
        bins = self.generate(images, ids, words)
        return values_of(bins + 1).unflatten(1, (self.config.horizon, self.config.action_size))

    def generate(
        self,
        images: UInt8[Tensor, "B C h w 3"],
        ids: Int64[Tensor, "B L"],
        words: Bool[Tensor, "B L"],
        cached: bool = True,
    ) -> Int64[Tensor, "B J"]:
        """Bins 0 … 255 of the most likely action. `cached` keeps keys and values where a mode writes one after another
        (`ar_causal`; the others read everything again for each token, since they hide what a cache would hold)."""
        prompt, valid = self.model.prompt(images, ids, words)
        if self.config.mode == "joint":
            return self._joint(prompt, valid).argmax(-1)
        if self.config.mode == "ar_causal" and cached:
            return self.model.write(prompt, valid, self.config.actions, self._likeliest, self.tokens)
        written = torch.empty(len(ids), 0, dtype=torch.long, device=ids.device)
        for _ in range(self.config.actions):
            logits = self._next(prompt, valid, written)
            written = torch.cat([written, logits[:, -1:, :BINS].argmax(-1)], 1)
        return written

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy of the bins, and but for `joint` of the end behind them: the mean over all that count."""
        return self.loss_of_tensors(*self._targets(batch), *self.prepare(batch.inputs()))

    def action_token_accuracy(self, batch: Batch) -> Float[Tensor, ""]:
        """Share of the bins that are the most likely; but for `joint`, given the true ones before."""
        bins, counts = self._targets(batch)
        logits = self._logits(bins, *self.prepare(batch.inputs()))[:, : self.config.actions]
        return ((logits.argmax(-1) == bins) & counts).sum() / counts.sum().clamp(min=1)

    def loss_of_tensors(
        self, bins: Int64[Tensor, "B J"], counts: Bool[Tensor, "B J"], *tensors: Tensor
    ) -> Float[Tensor, ""]:
        logits = self._logits(bins, *tensors).float()
        if self.config.mode != "joint":
            bins = F.pad(bins, (0, 1), value=END)
            counts = torch.cat([counts, counts.any(1, keepdim=True)], 1)
        entropy = F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none").view_as(counts)
        return (entropy * counts).sum() / counts.sum().clamp(min=1)

    def example(self, samples: int) -> tuple[Tensor, ...]:
        """A prompt of 25 tokens."""
        config, device = self.config, self.tokens.weight.device
        images = (samples, config.cameras, config.image_size, config.image_size, 3)
        ids = torch.zeros(samples, 25, dtype=torch.long, device=device)
        return torch.zeros(images, dtype=torch.uint8, device=device), ids, torch.ones_like(ids, dtype=torch.bool)

    def _targets(self, batch: Batch) -> tuple[Int64[Tensor, "B J"], Bool[Tensor, "B J"]]:
        actions, mask = (x[:, -1].flatten(1) for x in batch.targets())
        return bins_of(actions) - 1, mask

    def _logits(
        self,
        bins: Int64[Tensor, "B J"],
        images: UInt8[Tensor, "B C h w 3"],
        ids: Int64[Tensor, "B L"],
        words: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B J1 V"]:
        """What is said of each bin, and but for `joint` of the end; V = 256 bins jointly, else 256 and the end."""
        prompt, valid = self.model.prompt(images, ids, words)
        return self._joint(prompt, valid) if self.config.mode == "joint" else self._next(prompt, valid, bins)

    def _likeliest(self, hidden: Float[Tensor, "B D"]) -> Int64[Tensor, " B"]:
        return self._say(hidden)[..., :BINS].argmax(-1)

    def _say(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Logits of the bins and the end."""
        return hidden @ self.tokens.weight.T.to(hidden.dtype)

    def _joint(self, prompt: Float[Tensor, "B S D"], valid: Bool[Tensor, "B S"]) -> Float[Tensor, "B J V"]:
        """Query slots that look at everything and are looked at, and what each says of the bins."""
        assert self.queries is not None
        slots = self.queries.to(prompt.dtype).expand(len(prompt), -1, -1)
        embeddings, valid = torch.cat([prompt, slots], 1), F.pad(valid, (0, self.config.actions), value=True)
        hidden = self.model.read(embeddings, sequence.joint_mask(valid), sequence.positions(valid))
        return self._say(hidden[:, -self.config.actions :])[..., :BINS]

    def _next(
        self, prompt: Float[Tensor, "B S D"], valid: Bool[Tensor, "B S"], bins: Int64[Tensor, "B T"]
    ) -> Float[Tensor, "B T1 V"]:
        """What is said of each of the bins and of what follows them, those before being known.

        In the released modes the bins are no keys for anybody: what follows an action is read from its own embedding
        and the prompt. The literal one hides the last 8 columns of the padded batch instead, whatever they hold, so
        that a sample depends on its company. The end stands behind a complete action there, as in its training data.
        """
        literal, complete = self.config.mode == "evla_released_literal", bins.shape[1] == self.config.actions
        known = F.pad(bins, (0, 1), value=END) if literal and complete else bins
        embeddings = torch.cat([prompt, self.tokens(known).to(prompt.dtype)], 1)
        valid = F.pad(valid, (0, known.shape[1]), value=True)
        positions = sequence.positions(valid)
        if literal:
            embeddings, packed = sequence.pack(embeddings, valid)
            mask = sequence.released_mask(packed, sequence.last_columns(packed, sequence.END_AND_ACTIONS))
            hidden = self.model.read(embeddings, mask, sequence.positions(packed))
            hidden = sequence.take(hidden, positions)  # every column back where it was
        else:
            hides = known.shape[1] if self.config.mode == "evla_released" else 0
            mask = sequence.released_mask(valid, sequence.last_columns(valid, hides))
            hidden = self.model.read(embeddings, mask, positions)
        first = prompt.shape[1] - 1  # the last word says what the first action is
        return self._say(hidden[:, first : first + bins.shape[1] + 1])
