"""RT-1's eyes: an EfficientNet that a sentence modulates after every block, and TokenLearner (spec 6).

Published: google-research/robotics_transformer (TensorFlow) and google-deepmind/open_x_embodiment (JAX). Both train the
batch normalisations in training mode, so their running statistics belong to the trained weights; both start FiLM at
the identity, so that ImageNet's features pass through unharmed at first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.models.backbones import IMAGENET_MEAN, IMAGENET_STD, load_model
from hypervla.models.layers import LAYER_NORM_EPS, lecun_normal_

BOTTLENECK = 64
"""Width of TokenLearner's hidden layer."""


@dataclass(frozen=True)
class FilmEfficientNet:
    """An EfficientNet with FiLM and TokenLearner; the defaults are B3 as RT-1 uses it."""

    image_size: int = 300
    width: float = 1.2
    """How many times the channels of EfficientNet-B0."""
    depth: float = 1.4
    """How many times its blocks, rounded up stage by stage."""
    features: int = 512
    """D of the tokens."""
    tokens: int = 8
    """K tokens that TokenLearner makes of the map's cells."""
    padding: Literal["asymmetric", "same"] = "asymmetric"
    """Of convolutions of stride 2: always one pixel more after than before, as TensorFlow builds it without knowing the
    image's size (300² → 9×9 cells); or by the map's size, as JAX does (300² → 10×10 cells)."""
    drop_connect: float = 0.2
    """How often the last block's residual branch is dropped in training; earlier ones in proportion."""
    momentum: float = 0.99
    """Share of the old value in the running statistics of batch normalisation (Keras's and Flax's sense)."""
    source: str | None = "google/efficientnet-b3"
    """Hub id or local folder of ImageNet weights; None starts at random."""

    def build(self, sentence_width: int, pretrained: bool) -> VisionTokens:
        return VisionTokens(self, sentence_width, pretrained)


class VisionTokens(nn.Module):
    """uint8 images and a sentence → image tokens in which the sentence is heard."""

    def __init__(self, config: FilmEfficientNet, sentence_width: int, pretrained: bool) -> None:
        super().__init__()
        self.efficientnet = efficientnet(config, pretrained)
        blocks = self.efficientnet.encoder.blocks
        self.films = nn.ModuleList(Film(sentence_width, block.projection.project_bn.num_features) for block in blocks)
        self.projection = nn.Conv2d(self.efficientnet.config.hidden_dim, config.features, 1, bias=False)
        lecun_normal_(self.projection.weight, self.projection.in_channels)
        self.film = Film(sentence_width, config.features)
        self.learner = TokenLearner(config.features, config.tokens)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: UInt8[Tensor, "B h w 3"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B K D"]:
        cells = self.film(self.projection(self.map(images, sentence)), sentence)
        return self.learner(cells.flatten(2).transpose(1, 2))

    def map(self, images: UInt8[Tensor, "B h w 3"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B C y x"]:
        """The EfficientNet's last map."""
        network = self.efficientnet
        x = network.embeddings((images.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std)
        for block, film in zip(network.encoder.blocks, self.films, strict=True):
            x = film(block(x), sentence)
        return network.encoder.top_activation(network.encoder.top_bn(network.encoder.top_conv(x)))


class Film(nn.Module):
    """(1 + multiply(sentence)) · x + add(sentence) by channel, the identity at first."""

    def __init__(self, sentence_width: int, channels: int) -> None:
        super().__init__()
        self.add, self.multiply = nn.Linear(sentence_width, channels), nn.Linear(sentence_width, channels)
        for linear in (self.add, self.multiply):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B C y x"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B C y x"]:
        return (1 + self.multiply(sentence)[..., None, None]) * x + self.add(sentence)[..., None, None]


class TokenLearner(nn.Module):
    """K weighted means of a map's cells, each with weights that an MLP reads off the cells (version 1.1)."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.up, self.down = nn.Linear(width, BOTTLENECK), nn.Linear(BOTTLENECK, tokens)
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, cells: Float[Tensor, "B cells D"]) -> Float[Tensor, "B K D"]:
        choice = self.down(F.gelu(self.up(self.norm(cells)), approximate="tanh"))
        return choice.transpose(1, 2).softmax(-1).to(cells.dtype) @ cells


class DropConnect(nn.Module):
    """In training, the residual branch of a sample is dropped whole with this rate, and scaled up otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B C y x"]) -> Float[Tensor, "B C y x"]:
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1, 1), self.rate)


def efficientnet(config: FilmEfficientNet, pretrained: bool) -> Any:
    """transformers' EfficientNetModel with the published padding, drop-connect, statistics and initialisation.

    transformers reads Keras's momentum 0.99 as PyTorch's, which would make the running statistics those of the last
    batch, drops single numbers instead of branches, and starts batch normalisation's scales near 0.
    Raises UserError for a source that is to be had nowhere or of another size.
    """
    from transformers import EfficientNetConfig, EfficientNetModel
    from transformers.models.efficientnet.modeling_efficientnet import round_filters

    shape = EfficientNetConfig(width_coefficient=config.width, depth_coefficient=config.depth)
    shape.hidden_dim = round_filters(shape, 1280)
    if pretrained and config.source is not None:
        model: Any = load_model(EfficientNetModel, config.source, {})
        came = (float(model.config.width_coefficient), float(model.config.depth_coefficient))
        if came != (config.width, config.depth):
            raise UserError(
                f"'{config.source}' holds an EfficientNet of width {came[0]} and depth {came[1]}, but the recipe is "
                f"made for {config.width} and {config.depth}: choose another source."
            )
    else:
        model = EfficientNetModel(shape)
        _initialise(model)
    for number, block in enumerate(model.encoder.blocks):
        block.projection.dropout = DropConnect(config.drop_connect * number / len(model.encoder.blocks))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1 - config.momentum
            module.num_batches_tracked = None  # counts for a plain mean of all batches only
    _pad(model, config)
    return model


def _pad(model: Any, config: FilmEfficientNet) -> None:
    """Set the padding before every convolution of stride 2."""
    side = config.image_size
    depthwise = [block.depthwise_conv for block in model.encoder.blocks if block.depthwise_conv.stride == 2]
    kernels = [3, *(layer.depthwise_conv.kernel_size[0] for layer in depthwise)]
    pads = []
    for kernel in kernels:
        odd = config.padding == "same" and side % 2
        before, after = kernel // 2 - (0 if odd else 1), kernel // 2
        pads.append(nn.ZeroPad2d((before, after, before, after)))
        side = (side + 1) // 2
    model.embeddings.padding = pads[0]
    for layer, pad in zip(depthwise, pads[1:], strict=True):
        layer.depthwise_conv_pad = pad


@torch.no_grad()
def _initialise(model: Any) -> None:
    """Published: kernels of variance 2/fan-out (a depthwise kernel's fan-out is its window), scales 1, biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            window = module.kernel_size[0] * module.kernel_size[1]
            fan_out = window * module.out_channels // module.groups
            module.weight.normal_(std=(2 / fan_out) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
