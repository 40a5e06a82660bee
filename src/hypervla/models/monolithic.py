"""The base policy with weights of its own: alone, as in the paper's ablation "no hypernetwork", or reading the
instruction at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from hypervla.models.action_head import ActionHead
from hypervla.models.backbones import VisionBackbone
from hypervla.models.base_policy import BasePolicy
from hypervla.models.generated import StaticWeights, fixed_noise
from hypervla.models.hypervla import PolicyConfig
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch, Inputs, Role
from hypervla.models.layers import lecun_normal_, size


@dataclass(frozen=True)
class MonolithicConfig:
    """One base policy for all tasks."""

    backbone: VisionBackbone
    policy: PolicyConfig
    head: ActionHead
    instruction_encoder: InstructionEncoder | None = None
    """Its tokens stand beside those of the images; None makes a policy that knows no instruction."""
    cameras: int = 1

    @property
    def image_size(self) -> int:
        return self.backbone.image_size

    @property
    def proprio_size(self) -> int:
        return self.policy.proprio_size

    @property
    def window(self) -> int:
        return 1

    @property
    def horizon(self) -> int:
        return self.head.horizon

    @property
    def action_size(self) -> int:
        return self.head.action_size

    def build(self, pretrained: bool = True) -> MonolithicPolicy:
        return MonolithicPolicy(self, pretrained)


class MonolithicPolicy(nn.Module):
    """Backbone and base policy, both trained, the same weights for every task; a Monolithic model."""

    def __init__(self, config: MonolithicConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build(pretrained)
        words = config.instruction_encoder
        self.instruction_encoder = None if words is None else words.build(pretrained)
        self.instruction = None
        if words is not None:
            self.instruction = nn.Linear(words.width, config.backbone.width)
            lecun_normal_(self.instruction.weight, words.width)
            nn.init.zeros_(self.instruction.bias)
        self.weights = StaticWeights(self.policy.layout)

    @cached_property
    def policy(self) -> BasePolicy:
        config, words = self.config, self.config.instruction_encoder
        return BasePolicy(
            width=config.policy.width,
            layers=config.policy.layers,
            heads=config.policy.heads,
            mlp=config.policy.mlp,
            token_width=config.backbone.width,
            tokens=config.cameras * config.backbone.tokens + (words.length if words else 0),
            proprio_size=config.policy.proprio_size,
            head=config.head,
        )

    def trained_parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def role(self, name: str) -> Role:
        """Nothing decays: the published run decays the heads that generate kernels, and there are none."""
        return "backbone" if name.startswith("backbone.") else "plain"

    def trace(self) -> None:
        self.loss_of_tensors = torch.compile(self.loss_of_tensors)

    def parts(self) -> Mapping[str, int]:
        parts = {
            "backbone": self.backbone,
            "base_policy": self.weights,
            "instruction": self.instruction,
            "instruction_encoder": self.instruction_encoder,
        }
        return {name: size(part) for name, part in parts.items() if part is not None}

    def activated(self) -> int:
        """All but the frozen text encoder, whose tokens are the same for a whole episode."""
        return sum(count for part, count in self.parts().items() if part != "instruction_encoder")

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean over samples of the head's loss."""
        tensors, (actions, mask) = self.prepare(batch.inputs()), batch.targets()
        return self.loss_of_tensors(actions[:, -1], mask[:, -1], *tensors)

    def loss_of_tensors(
        self, actions: Float[Tensor, "B H A"], mask: Bool[Tensor, "B H A"], *tensors: Tensor
    ) -> Float[Tensor, ""]:
        tokens, proprio = self._read(*tensors)
        return self.policy.loss(self.weights(), tokens, proprio, actions.unsqueeze(0), mask.unsqueeze(0)).mean()

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Images (B C h w 3), then proprio (B P) if it is read, then the text encoder's tokens (B L Dt), 0 where there
        is no word, if there is one."""
        tensors = [inputs.images[:, -1]]
        if self.config.proprio_size:
            assert inputs.proprio is not None
            tensors.append(inputs.proprio[:, -1])
        if self.instruction_encoder is not None:
            text, mask = self.instruction_encoder(inputs.instructions)
            tensors.append(text * mask.unsqueeze(-1))
        return tuple(tensors)

    def infer(self, *tensors: Tensor) -> Float[Tensor, "B H A"]:
        return self.policy.act(self.weights(), *self._read(*tensors), fixed_noise(tensors[0].device))[0]

    def example(self, samples: int) -> tuple[Tensor, ...]:
        config, device = self.config, self.weights.tensors["position"].device
        side, words = config.image_size, config.instruction_encoder
        tensors = [torch.zeros(samples, config.cameras, side, side, 3, dtype=torch.uint8, device=device)]
        if config.proprio_size:
            tensors.append(torch.zeros(samples, config.proprio_size, device=device))
        if words is not None:
            tensors.append(torch.zeros(samples, words.length, words.width, device=device))
        return tuple(tensors)

    def _read(
        self, images: UInt8[Tensor, "B C h w 3"], *others: Tensor
    ) -> tuple[Float[Tensor, "1 B K Dv"], Float[Tensor, "1 B P"] | None]:
        """Tokens of images and instruction, and proprio, as the base policy reads them under one weight set."""
        rest = list(others)
        proprio = rest.pop(0).unsqueeze(0) if self.config.proprio_size else None
        tokens = self.backbone(images.flatten(0, 1))[0].unflatten(0, images.shape[:2]).flatten(1, 2)
        if self.instruction is not None:
            tokens = torch.cat([tokens, self.instruction(rest.pop(0)).to(tokens.dtype)], 1)
        return tokens.unsqueeze(0), proprio
