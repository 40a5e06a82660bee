"""HyperVLA: backbone, hypernetwork and base policy put together, with the training loss (spec section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from hypervla.contracts import UserError
from hypervla.models.action_head import ActionHead
from hypervla.models.backbones import VisionBackbone
from hypervla.models.base_policy import BasePolicy
from hypervla.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch, Role
from hypervla.models.layers import check_heads, size


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of the base policy."""

    width: int = 64
    layers: int = 4
    heads: int = 4
    mlp: int = 128
    proprio_size: int = 0

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)


@dataclass(frozen=True)
class HyperVLAConfig:
    """One complete HyperVLA model."""

    backbone: VisionBackbone
    instruction_encoder: InstructionEncoder
    hypernetwork: HypernetworkConfig
    policy: PolicyConfig
    head: ActionHead
    cameras: int = 1
    context_image: Literal["frozen copy", "shared", "none"] = "frozen copy"
    """Where the initial image's feature comes from: a frozen copy of the backbone, the backbone itself with the
    gradient stopped, or nowhere (the instruction alone is read)."""
    context_feature: Literal["class", "patches"] = "class"
    """What of the initial image is read: one vector, or all patch tokens."""
    context_image_dropout: float = 0.0
    """Share of training contexts whose initial image is hidden, so that the instruction has to be read."""

    def __post_init__(self) -> None:
        pretrained = getattr(self.backbone, "source", None) is not None
        if self.context_image == "frozen copy" and not pretrained:
            raise UserError(
                "A frozen copy of a backbone without pretrained weights would be random and in no checkpoint: give the "
                "backbone a source, or set context_image='shared'."
            )

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

    @property
    def context_images(self) -> int:
        """Tokens that the initial images bring to the context encoder."""
        if self.context_image == "none":
            return 0
        return self.cameras * (self.backbone.tokens if self.context_feature == "patches" else 1)

    def build(self, pretrained: bool = True) -> HyperVLA:
        return HyperVLA(self, pretrained)

    def base_policy(self) -> BasePolicy:
        return BasePolicy(
            width=self.policy.width,
            layers=self.policy.layers,
            heads=self.policy.heads,
            mlp=self.policy.mlp,
            token_width=self.backbone.width,
            tokens=self.cameras * self.backbone.tokens,
            proprio_size=self.policy.proprio_size,
            head=self.head,
        )


class HyperVLA(nn.Module):
    """The trainable whole. Acting needs `backbone` and generated weights only; everything else can be deleted."""

    def __init__(self, config: HyperVLAConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build(pretrained)
        self.context_backbone: nn.Module | None = None
        if config.context_image == "frozen copy":
            self.context_backbone = config.backbone.build(pretrained)
            self.context_backbone.load_state_dict(self.backbone.state_dict())
            self.context_backbone.requires_grad_(False).eval()
        self.instruction_encoder = config.instruction_encoder.build(pretrained)
        self.policy = config.base_policy()
        self.hypernetwork = Hypernetwork(
            config.hypernetwork,
            self.policy.layout,
            instruction_tokens=config.instruction_encoder.length,
            instruction_width=config.instruction_encoder.width,
            images=config.context_images,
            image_width=config.backbone.width,
        )

    def trained_parameters(self) -> dict[str, Tensor]:
        """All but the frozen encoders."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def role(self, name: str) -> Role:
        """Only the heads that generate kernels decay."""
        if name.startswith("backbone."):
            return "backbone"
        return "decayed" if name.startswith("hypernetwork.kernel_heads.") else "plain"

    def trace(self) -> None:
        self.loss_of_tensors = torch.compile(self.loss_of_tensors)

    def parts(self) -> Mapping[str, int]:
        """Generated weights are no parameters of the module and are left out."""
        parts = {
            "backbone": self.backbone,
            "context_backbone": self.context_backbone,
            "hypernetwork": self.hypernetwork,
            "instruction_encoder": self.instruction_encoder,
        }
        return {name: size(part) for name, part in parts.items() if part is not None}

    def activated(self) -> int:
        return size(self.backbone) + self.policy.layout.size

    def generate(self, instructions: list[str], initial_images: UInt8[Tensor, "N C h w 3"]) -> Float[Tensor, "N W"]:
        """Task contexts → generated weights: the only use of the large networks."""
        return self.hypernetwork.generate(self.embed(instructions, initial_images))

    def embed(self, instructions: list[str], initial_images: UInt8[Tensor, "N C h w 3"]) -> Float[Tensor, "N D"]:
        """The context embeddings, which the weights are linear in."""
        text, text_mask = self.instruction_encoder(instructions)
        feature = self.image_feature(initial_images)
        image_mask = torch.ones(feature.shape[:2], dtype=torch.bool, device=feature.device)
        return self.hypernetwork.embed(text, text_mask, feature, image_mask)

    @torch.no_grad()
    def image_feature(self, initial_images: UInt8[Tensor, "N C h w 3"]) -> Float[Tensor, "N I Dv"]:
        """What is read of the initial images: the class vector of each (DINOv2's CLS token, a convolutional encoder's
        mean cell), its patch tokens, or nothing."""
        if self.config.context_image == "none":
            return torch.zeros(len(initial_images), 0, self.config.backbone.width, device=initial_images.device)
        encoder = self.backbone if self.context_backbone is None else self.context_backbone
        patches, vector = encoder(initial_images.flatten(0, 1))
        tokens = patches if self.config.context_feature == "patches" else vector.unsqueeze(1)
        return tokens.unflatten(0, initial_images.shape[:2]).flatten(1, 2)

    def tokens(self, images: UInt8[Tensor, "N F C h w 3"]) -> Float[Tensor, "N F CK Dv"]:
        """Backbone tokens of the current frames, all cameras side by side."""
        cells = self.backbone(images.flatten(0, 2))[0]
        return cells.unflatten(0, images.shape[:3]).flatten(2, 3)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean over frames of the head's loss. Frames of one context share one generated weight set."""
        assert batch.images.shape[2] == 1, "HyperVLA reads a window of one observation"
        text, text_mask = self.instruction_encoder(batch.instructions)
        # Drawn on the CPU, so that a run resumes bit for bit on any device.
        kept = torch.rand(batch.initial_images.shape[:2]) >= self.config.context_image_dropout
        return self.loss_of_tensors(text, text_mask, kept.to(text.device), batch)

    def loss_of_tensors(
        self,
        text: Float[Tensor, "N L Dt"],
        text_mask: Bool[Tensor, "N L"],
        image_mask: Bool[Tensor, "N C"],
        batch: Batch,
    ) -> Float[Tensor, ""]:
        """The part of the loss that can be traced: everything after the frozen text encoder."""
        feature = self.image_feature(batch.initial_images)
        visible = image_mask.repeat_interleave(self.config.context_images // self.config.cameras, 1)
        flat = self.hypernetwork.generate(self.hypernetwork.embed(text, text_mask, feature, visible))
        proprio = None if batch.proprio is None else batch.proprio[:, :, 0]
        tokens, weights = self.tokens(batch.images[:, :, 0]), self.policy.layout.split(flat)
        return self.policy.loss(weights, tokens, proprio, batch.actions[:, :, 0], batch.mask[:, :, 0]).mean()


def heads_by_weight(config: HyperVLAConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained parameters with the two stacked head matrices cut into views: one per generated tensor."""
    layout, stacked = config.base_policy().layout, "hypernetwork.{}_heads.{}"
    named = {name: value for name, value in parameters.items() if "_heads." not in name}
    for part in ("weight", "bias"):
        rows = [parameters[stacked.format(kind, part)] for kind in ("kernel", "other")]
        kernels = len(rows[0])
        for spec, first in zip(layout.specs, layout.offsets, strict=True):
            stack, begin = (rows[0], first) if first < kernels else (rows[1], first - kernels)
            cut = stack[begin : begin + spec.size]
            named[f"hypernetwork.heads.{spec.name}.{part}"] = cut.view(*spec.shape, *cut.shape[1:])
    return named
