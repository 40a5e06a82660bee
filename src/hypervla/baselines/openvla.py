"""OpenVLA: a language model that sees writes the next action, one token for each dimension (spec 4).

Published: openvla/openvla (PyTorch). Nothing of theirs is needed to run it: the weights are read by their names, and a
batch may hold instructions of any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.models import sequence
from hypervla.models.action_tokens import BINS, bins_of, values_of
from hypervla.models.fused_vision import FusedVision
from hypervla.models.instruction_encoders import load_tokenizer
from hypervla.models.interface import Batch, Inputs, Role
from hypervla.models.lora import LoRA, inject
from hypervla.models.prompt import Prompts
from hypervla.models.safetensors_folder import find_folder, load_published
from hypervla.models.vision_language import LLAMA_2_7B, VisionLanguage, VisionLanguageModel

PRISMATIC_7B = VisionLanguage(FusedVision(), (8704, 4096), LLAMA_2_7B)


@dataclass(frozen=True)
class OpenVLAConfig:
    """The defaults are those of openvla-7b."""

    model: VisionLanguage = PRISMATIC_7B
    action_size: int = 7
    above_actions: int = 32_000
    """The token id above those of the actions: bin d of 1 … 256 is this less d."""
    end: int = 2
    """Id that ends a sequence; learned behind the actions, never waited for."""
    before_answer: int | None = 29_871
    """Id that the prompt ends with: Llama's piece for a lone space."""
    source: str | None = "openvla/openvla-7b"
    """Folder or hub id of the published safetensors; None starts from random weights."""
    frozen: bool = False
    """The weights stay as they are in the source, and a checkpoint holds none."""
    lora: LoRA | None = None
    """Adapters that are trained, and saved, in place of the published weights."""

    def __post_init__(self) -> None:
        if self.source is None and (self.frozen or self.lora is not None):
            raise UserError(
                "A checkpoint holds what is trained, so frozen random weights would be lost: give the model a source."
            )
        last = self.model.language.vocabulary
        if not BINS <= self.above_actions <= last:
            raise UserError(
                f"The ids of the {BINS} action tokens lie right below {self.above_actions}, but the language model has "
                f"{last} rows: choose above_actions between {BINS} and {last}."
            )

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
    def horizon(self) -> int:
        return 1

    def build(self, pretrained: bool = True) -> OpenVLA:
        return OpenVLA(self, pretrained)


OPENVLA_7B = OpenVLAConfig()
"""7,541,237,184 parameters."""


class OpenVLA(nn.Module):
    """A Monolithic model."""

    def __init__(self, config: OpenVLAConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        tokenizer = load_tokenizer(config.model.language.tokenizer) if pretrained else None  # before much is allocated
        folder = find_folder(config.source) if pretrained and config.source is not None else None
        self.model = VisionLanguageModel(config.model, pretrained)
        if folder is not None:
            load_published(str(folder), self.model)
        if config.frozen:
            self.requires_grad_(False)
        if config.lora is not None:
            inject(self.model, config.lora)
        room = config.model.language.context - config.model.image_tokens - config.action_size - 1
        self.prompts = Prompts(tokenizer, room, config.before_answer)

    def trained_parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def role(self, name: str) -> Role:
        """Nothing decays."""
        return "backbone" if name.startswith("model.vision_backbone.") else "plain"

    def trace(self) -> None:
        self.loss_of_tensors = torch.compile(self.loss_of_tensors)

    def parts(self) -> Mapping[str, int]:
        return self.model.parts()

    def activated(self) -> int:
        """All that is computed with: not what lies behind the vision's second-to-last blocks."""
        return sum(count for part, count in self.parts().items() if part != "unused_vision")

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Images (B C h w 3); ids of the prompt (B L), the first token, padding, the others; which are real (B L).

        Raises UserError for an instruction that does not fit the language model's context.
        """
        ids, valid = self.prompts(inputs.instructions)
        device = inputs.images.device
        return inputs.images[:, -1], ids.to(device), valid.to(device)

    def infer(
        self, images: UInt8[Tensor, "B C h w 3"], ids: Int64[Tensor, "B L"], valid: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B 1 A"]:
        """Greedy: the most likely token of the whole vocabulary, A times, with a cache of keys and values."""
        tokens = self.generate(images, ids, valid)
        return values_of(self.config.above_actions - tokens).unsqueeze(1)

    def generate(
        self, images: UInt8[Tensor, "B C h w 3"], ids: Int64[Tensor, "B L"], valid: Bool[Tensor, "B L"]
    ) -> Int64[Tensor, "B A"]:
        """The ids that greedy decoding writes."""
        prompt, seen = self.model.prompt(images, ids, valid)
        return self.model.write(prompt, seen, self.config.action_size, self._likeliest, self.model.embed)

    def _likeliest(self, hidden: Float[Tensor, "B D"]) -> Int64[Tensor, " B"]:
        return self.model.logits(hidden).argmax(-1)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy of the action tokens and the end, over the language model's whole vocabulary: the mean over all
        that count in the batch."""
        return self.loss_of_tensors(*self._targets(batch), *self.prepare(batch.inputs()))

    def action_token_accuracy(self, batch: Batch) -> Float[Tensor, ""]:
        """Share of the action tokens that are the most likely ones, given those before."""
        wanted, counts = self._targets(batch)
        found = self._logits(wanted, *self.prepare(batch.inputs())).argmax(-1)
        right = (found == wanted) & counts
        return right[:, :-1].sum() / counts[:, :-1].sum().clamp(min=1)

    def loss_of_tensors(
        self, wanted: Int64[Tensor, "B T"], counts: Bool[Tensor, "B T"], *tensors: Tensor
    ) -> Float[Tensor, ""]:
        logits = self._logits(wanted, *tensors).float()
        entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(counts)
        return (entropy * counts).sum() / counts.sum().clamp(min=1)

    def _targets(self, batch: Batch) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Ids to be written, the end behind them, and which of them count: an end after an action that counts."""
        actions, mask = (x[:, -1, 0] for x in batch.targets())
        ids = self.config.above_actions - bins_of(actions)
        end = torch.full_like(ids[:, :1], self.config.end)
        return torch.cat([ids, end], 1), torch.cat([mask, mask.any(1, keepdim=True)], 1)

    def _logits(
        self,
        wanted: Int64[Tensor, "B T"],
        images: UInt8[Tensor, "B C h w 3"],
        ids: Int64[Tensor, "B L"],
        valid: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B T V"]:
        """What is said of each target, all targets before it being known."""
        prompt, seen = self.model.prompt(images, ids, valid)
        known = wanted[:, :-1]
        seen = F.pad(seen, (0, known.shape[1]), value=True)
        embeddings = torch.cat([prompt, self.model.embed(known)], 1)
        hidden = self.model.read(embeddings, sequence.causal_mask(seen), sequence.positions(seen))
        return self.model.logits(hidden[:, -wanted.shape[1] :])

    def example(self, samples: int) -> tuple[Tensor, ...]:
        """A prompt of 22 tokens behind the first."""
        config, device = self.config, next(self.model.projector.parameters()).device
        images = (samples, config.cameras, config.image_size, config.image_size, 3)
        ids = torch.zeros(samples, 23, dtype=torch.long, device=device)
        return torch.zeros(images, dtype=torch.uint8, device=device), ids, torch.ones_like(ids, dtype=torch.bool)
