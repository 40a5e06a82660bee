"""Context → weights: the hypernetwork reads instruction and initial image and writes the base policy (spec 1.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hypervla.contracts import WeightLayout
from hypervla.models.generated import POSITION_STD, initial_weight
from hypervla.models.layers import Encoder, check_heads, lecun_normal_

Initialisation = Literal["bias", "variance"]


@dataclass(frozen=True)
class HypernetworkConfig:
    """Sizes of the context encoder, and how the output heads start."""

    width: int = 128
    layers: int = 6
    heads: int = 4
    mlp: int = 512
    initialisation: Initialisation = "bias"
    normalise_embedding: bool = True
    """Divide the context embedding by sqrt(width), so that the squares of its entries sum to 1 on average."""

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)


class Hypernetwork(nn.Module):
    """Transformer over the task context, and one linear head per generated tensor.

    The heads are stored as two matrices: those that generate kernels (the only ones with weight decay) and the rest.
    """

    def __init__(
        self,
        config: HypernetworkConfig,
        layout: WeightLayout,
        instruction_tokens: int,
        instruction_width: int,
        images: int,
        image_width: int,
    ) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        width = config.width
        self.instruction = nn.Linear(instruction_width, width)
        self.image = nn.Linear(image_width, width)
        for projection, fan_in in ((self.instruction, instruction_width), (self.image, image_width)):
            lecun_normal_(projection.weight, fan_in)
            nn.init.zeros_(projection.bias)
        self.instruction_position = nn.Parameter(torch.randn(instruction_tokens, width) * POSITION_STD)
        self.image_position = nn.Parameter(torch.randn(images, width) * POSITION_STD)
        self.context_token = nn.Parameter(torch.randn(1, width) * POSITION_STD)
        self.encoder = Encoder(width, config.layers, config.heads, config.mlp)
        kernels = sum(spec.size for spec in layout.specs if spec.kind == "kernel")
        assert all(spec.kind == "kernel" for spec, at in zip(layout.specs, layout.offsets, strict=True) if at < kernels)
        self.kernel_heads = nn.Linear(width, kernels)
        self.other_heads = nn.Linear(width, layout.size - kernels)
        self._initialise_heads(kernels)

    @torch.no_grad()
    def _initialise_heads(self, kernels: int) -> None:
        """Bias-HyperInit: the heads' bias is an ordinary initialisation and their matrix zero, so that all tasks start
        from one well-initialised policy. Variance: the matrix is scaled by each generated tensor's fan-in instead."""
        variance = self.config.initialisation == "variance"
        bias = torch.cat([initial_weight(spec, bias_only=variance).flatten() for spec in self.layout.specs])
        self.kernel_heads.bias.copy_(bias[:kernels])
        self.other_heads.bias.copy_(bias[kernels:])
        nn.init.zeros_(self.kernel_heads.weight)
        nn.init.zeros_(self.other_heads.weight)
        if not variance:
            return
        scale = 1.0 if self.config.normalise_embedding else self.config.width**-0.5
        rows = self.layout.split(torch.arange(self.layout.size))
        for spec in self.layout.specs:
            if spec.kind in ("kernel", "position"):
                std = scale * (spec.fan[0] ** -0.5 if spec.fan else POSITION_STD)
                drawn = nn.init.trunc_normal_(torch.empty(spec.size, self.config.width), std=std, a=-2 * std, b=2 * std)
                head, first = (self.kernel_heads, 0) if spec.kind == "kernel" else (self.other_heads, kernels)
                head.weight[rows[spec.name].flatten() - first] = drawn

    def embed(
        self,
        instruction: Float[Tensor, "N L Dt"],
        instruction_mask: Bool[Tensor, "N L"],
        image: Float[Tensor, "N C Dv"],
        image_mask: Bool[Tensor, "N C"],
    ) -> Float[Tensor, "N D"]:
        """The context embedding. Masked instruction tokens and images are seen by nobody, the context token only by
        itself."""
        text = self.instruction(instruction) + self.instruction_position
        picture = self.image(image) + self.image_position
        context = self.context_token.expand(len(text), 1, -1)
        visible = torch.cat([instruction_mask, image_mask], 1)
        length = visible.shape[1] + 1
        mask = torch.cat([visible, visible.new_zeros(len(visible), 1)], 1)[:, None, None].repeat(1, 1, length, 1)
        mask[:, :, -1, -1] = True
        embedding = self.encoder(torch.cat([text, picture, context], 1), mask)[:, -1]
        return embedding / self.config.width**0.5 if self.config.normalise_embedding else embedding

    def generate(self, embedding: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """Context embedding → the flat weights of N task policies, in the order of the weight layout."""
        return torch.cat([self.kernel_heads(embedding), self.other_heads(embedding)], -1)
