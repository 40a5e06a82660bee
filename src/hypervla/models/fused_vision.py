"""The vision backbone of OpenVLA and EVLA: a DINOv2 and a SigLIP side by side, in the names of the published weights
(spec 4).

Each vision transformer gives the patches of its second-to-last block, without final norm. What lies behind that block
is in the published files and is kept, but never computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class VitShape:
    """One vision transformer."""

    width: int
    layers: int
    heads: int
    mlp: int
    mean: tuple[float, float, float]
    """Of pixels in 0 … 1, and their deviation below."""
    std: tuple[float, float, float]
    patch: int = 14
    prefix: int = 0
    """Tokens before the patches: a class token and registers. 0 has none, and a pooling head behind it instead."""
    layer_scale: bool = False
    gelu: Literal["none", "tanh"] = "none"
    """PyTorch's word for the approximation of GELU. The published files were made with none."""


# Constants as the published preprocessor holds them, rounded to bfloat16.
DINO_L = VitShape(
    1024,
    24,
    16,
    4096,
    mean=(0.484375, 0.455078125, 0.40625),
    std=(0.228515625, 0.2236328125, 0.224609375),
    prefix=5,
    layer_scale=True,
)
"""DINOv2-large with four registers."""
SIGLIP_SO400M = VitShape(1152, 27, 16, 4304, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class FusedVision:
    """Both transformers on the same image; their patches are joined channel by channel, DINOv2's first."""

    image_size: int = 224
    dino: VitShape = field(default=DINO_L)
    siglip: VitShape = field(default=SIGLIP_SO400M)

    @property
    def width(self) -> int:
        return self.dino.width + self.siglip.width

    @property
    def tokens(self) -> int:
        return (self.image_size // self.dino.patch) ** 2

    def build(self, pretrained: bool) -> FusedVisionBackbone:
        """Its weights come with those of the model it is part of, never by themselves."""
        return FusedVisionBackbone(self)


class FusedVisionBackbone(nn.Module):
    """uint8 images → (patches, their mean). The names of its parameters are those of the published safetensors."""

    def __init__(self, config: FusedVision) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(config.dino, config.image_size)
        self.fused_featurizer = VisionTransformer(config.siglip, config.image_size)

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        pixels = images.permute(0, 3, 1, 2)
        patches = torch.cat([self.featurizer(pixels), self.fused_featurizer(pixels)], -1)
        return patches, patches.mean(1)

    def unused(self) -> int:
        """Parameters behind the second-to-last blocks."""
        return self.featurizer.unused() + self.fused_featurizer.unused()


class VisionTransformer(nn.Module):
    """Pre-LayerNorm transformer over the patches of an image and, before them, its prefix tokens."""

    def __init__(self, shape: VitShape, image_size: int) -> None:
        super().__init__()
        self.shape = shape
        width, patches = shape.width, (image_size // shape.patch) ** 2
        if shape.prefix:
            self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 1e-6)
            self.reg_token = nn.Parameter(torch.randn(1, shape.prefix - 1, width) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        if not shape.prefix:
            self.attn_pool = AttentionPool(shape)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(shape.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(shape.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B K D"]:
        """Patches after the second-to-last block."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        x = self.patch_embed(pixels) + self.pos_embed
        if self.shape.prefix:
            prefix = torch.cat([self.cls_token, self.reg_token], 1)
            x = torch.cat([prefix.expand(len(x), -1, -1), x], 1)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return x[:, self.shape.prefix :]

    def unused(self) -> int:
        """Parameters of the last block and all behind it."""
        behind = [self.blocks[-1], self.norm, *([] if self.shape.prefix else [self.attn_pool])]
        return sum(parameter.numel() for module in behind for parameter in module.parameters())


class PatchEmbed(nn.Module):
    """Each patch of pixels through one linear map."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, shape.patch)

    def forward(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B K D"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and, in DINOv2, in front of a scale."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width = shape.width
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, shape.heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(shape)
        if shape.layer_scale:
            self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.scaled = shape.layer_scale

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        y = self.attn(self.norm1(x))
        x = x + (self.ls1(y) if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.ls2(y) if self.scaled else y)


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.gelu = shape.gelu
        self.fc1, self.fc2 = nn.Linear(shape.width, shape.mlp), nn.Linear(shape.mlp, shape.width)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return x * self.scale_factor


class AttentionPool(nn.Module):
    """SigLIP's pooling head, which no robot policy reads: parameters only, so that published files are whole."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        width = shape.width
        self.latent = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(shape)
