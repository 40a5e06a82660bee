"""Encoders of images: pretrained ones through transformers, and a small one trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError

Colours = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class DinoV2:
    """A DINOv2 vision transformer: pretrained from `source` (hub id or local folder), or of any size from scratch.

    With `source=None` it is the encoder of the same shape that the ablation "no vision backbone" trains from scratch.
    """

    image_size: int = 224
    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 14
    grid: int = 37
    """Side of the pretrained position table, interpolated to the image's own grid (bicubic)."""
    source: str | None = "facebook/dinov2-base"
    position_rule: Literal["transformers", "flax"] = "transformers"
    """Who interpolates the table: PyTorch's model, or the Flax one that the released code trains with (spec 1.10)."""
    frozen: bool = False
    """Not trained: in no checkpoint, but read from `source` again."""

    def __post_init__(self) -> None:
        refuse_random_and_frozen(self.source, self.frozen)

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    def build(self, pretrained: bool) -> DinoV2Backbone:
        return DinoV2Backbone(self, pretrained)


@dataclass(frozen=True)
class Clip:
    """The vision half of a CLIP, without its projection (the ablation "CLIP-B/16"). Sizes as for DinoV2; its position
    table fits one image size."""

    image_size: int = 224
    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 16
    source: str | None = "openai/clip-vit-base-patch16"
    frozen: bool = False

    def __post_init__(self) -> None:
        refuse_random_and_frozen(self.source, self.frozen)

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    def build(self, pretrained: bool) -> ClipBackbone:
        return ClipBackbone(self, pretrained)


@dataclass(frozen=True)
class Siglip:
    """The vision half of a SigLIP (the ablation "SigLIP-B/16-224"). Sizes as for DinoV2; its position table fits one
    image size."""

    image_size: int = 224
    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 16
    source: str | None = "google/siglip-base-patch16-224"
    frozen: bool = False

    def __post_init__(self) -> None:
        refuse_random_and_frozen(self.source, self.frozen)

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch) ** 2

    def build(self, pretrained: bool) -> SiglipBackbone:
        return SiglipBackbone(self, pretrained)


def refuse_random_and_frozen(source: str | None, frozen: bool) -> None:
    if frozen and source is None:
        raise UserError(
            "A frozen backbone without pretrained weights would stay random and be in no checkpoint: give it a source, "
            "or set frozen=False."
        )


class Pixels(nn.Module):
    """Normalises colours; `models/folded_backbone.py` takes over what it can of that into the first convolution."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 h w"]:
        x = x if self.mean is None else x - self.mean
        return x if self.std is None else x / self.std


class PretrainedBackbone(nn.Module):
    """A model of transformers on uint8 images, whose pixels it normalises as its published weights want them."""

    def __init__(self, model: Any, mean: Colours, std: Colours, frozen: bool) -> None:
        super().__init__()
        self.model, self.frozen = model, frozen
        self.pixels = Pixels([255 * x for x in mean], [255 * x for x in std])
        if frozen:
            self.requires_grad_(False).eval()

    def run(self, images: UInt8[Tensor, "B h w 3"]) -> Any:
        """What the model makes of normalised pixels."""
        return self.model(pixel_values=self.pixels(images.permute(0, 3, 1, 2).float()))

    def train(self, mode: bool = True) -> PretrainedBackbone:
        return super().train(mode and not self.frozen)


class DinoV2Backbone(PretrainedBackbone):
    """uint8 images → (patch tokens, CLS token), both after the final LayerNorm."""

    def __init__(self, config: DinoV2, pretrained: bool) -> None:
        from transformers import Dinov2Config, Dinov2Model

        shape = shape_of(config, config.grid * config.patch)
        model = load_or_make(Dinov2Model, Dinov2Config, shape, config.source if pretrained else None)
        super().__init__(model, IMAGENET_MEAN, IMAGENET_STD, config.frozen)
        if config.position_rule == "flax":
            self.resampling: Tensor
            rows = torch.tensor(flax_resampling(config.grid, config.image_size // config.patch))
            self.register_buffer("resampling", rows, persistent=False)
            model.embeddings.interpolate_pos_encoding = self._positions

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        hidden = self.run(images).last_hidden_state
        return hidden[:, 1:], hidden[:, 0]

    def _positions(self, embeddings: Tensor, height: int, width: int) -> Float[Tensor, "1 S Dv"]:
        """The position table for the image's own grid, in place of the method of transformers' embeddings."""
        old = self.resampling.shape[1]
        table = self.model.embeddings.position_embeddings
        grid = table[0, 1:].unflatten(0, (old, old))
        resampled = torch.einsum("ij,jkd,lk->ild", self.resampling, grid, self.resampling)
        return torch.cat([table[:, :1], resampled.flatten(0, 1).unsqueeze(0)], 1)


class ClipBackbone(PretrainedBackbone):
    """uint8 images → (patch tokens before the final LayerNorm, CLS token after it).

    CLIP normalises its CLS token alone, and so does the released code, which reads the patch tokens as they are.
    """

    def __init__(self, config: Clip, pretrained: bool) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        shape = shape_of(config, config.image_size) | {"intermediate_size": 4 * config.width}
        model = load_or_make(CLIPVisionModel, CLIPVisionConfig, shape, config.source if pretrained else None)
        super().__init__(model, CLIP_MEAN, CLIP_STD, config.frozen)

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        output = self.run(images)
        return output.last_hidden_state[:, 1:], output.pooler_output


class SiglipBackbone(PretrainedBackbone):
    """uint8 images → (patch tokens after the final LayerNorm, what its pooling head makes of them).

    The pooling head is never trained here: only the frozen or detached feature of the initial image reads it.
    """

    def __init__(self, config: Siglip, pretrained: bool) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        shape = shape_of(config, config.image_size) | {"intermediate_size": 4 * config.width}
        model = load_or_make(SiglipVisionModel, SiglipVisionConfig, shape, config.source if pretrained else None)
        super().__init__(model, SIGLIP_MEAN, SIGLIP_STD, config.frozen)

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        output = self.run(images)
        return output.last_hidden_state, output.pooler_output


def flax_resampling(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Rows that turn a table of side `old` into one of side `new` along one axis, as Flax's DINOv2 does.

    It scales by (new + 0.1) / old instead of new / old, weighs by Keys' cubic with a = −0.5, leaves out what lies
    beyond the table and renormalises (spec 1.10). A table of the right size is left alone.
    """
    if old == new:
        return np.eye(new, dtype=np.float32)
    position = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
    x = np.abs(position[:, None] - np.arange(old))
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class ConvNet:
    """A small residual convolutional encoder, trained from scratch; the cells of its last map are the tokens."""

    image_size: int = 128
    widths: tuple[int, ...] = (48, 96, 192)
    stride: int = 4
    """Of the first convolution; each further width halves the map again."""

    @property
    def width(self) -> int:
        return self.widths[-1]

    @property
    def tokens(self) -> int:
        side = self.image_size // self.stride
        for _ in self.widths[1:]:
            side = (side + 1) // 2
        return side**2

    def build(self, pretrained: bool) -> ConvBackbone:
        return ConvBackbone(self)


class ConvBackbone(nn.Module):
    """uint8 images → (map cells, their mean)."""

    def __init__(self, config: ConvNet) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, config.widths[0], config.stride + 2, config.stride, padding=1)]
        for i, width in enumerate(config.widths):
            if i:
                stages.append(nn.Conv2d(config.widths[i - 1], width, 3, 2, padding=1))
            stages.append(ResidualBlock(width))
        self.pixels = Pixels([127.5] * 3, [127.5] * 3)
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, images: UInt8[Tensor, "B h w 3"]) -> tuple[Float[Tensor, "B K Dv"], Float[Tensor, "B Dv"]]:
        pixels = self.pixels(images.permute(0, 3, 1, 2).to(self.norm.weight.dtype))
        cells = self.stages(pixels).flatten(2).transpose(1, 2)
        cells = self.norm(cells.to(self.norm.weight.dtype))
        return cells, cells.mean(1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), the identity at first because the second convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.second(F.relu(self.first(F.relu(x))))


VisionBackbone = DinoV2 | Clip | Siglip | ConvNet


def shape_of(config: DinoV2 | Clip | Siglip, image_size: int) -> dict[str, int]:
    """The sizes of a vision transformer by transformers' names."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": image_size,
    }


def load_or_make(cls: Any, config: Any, shape: Mapping[str, int], source: str | None) -> Any:
    """The model from `source`, or with random weights."""
    return cls(config(**shape)) if source is None else load_model(cls, source, shape)


def load_model(cls: Any, source: str, shape: Mapping[str, int]) -> Any:
    """`load_pretrained`, refusing a model of another shape, or with weights missing (which would stay random)."""
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = load_pretrained(cls, source, use_safetensors=True, **options)  # never a pickle
    came = {name: getattr(model.config, name, None) for name in shape}
    if came != dict(shape):
        raise UserError(f"'{source}' holds a {cls.__name__} of {came}, but the recipe is made for {dict(shape)}.")
    missing = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if missing:
        raise UserError(
            f"'{source}' lacks {len(missing)} weights of {cls.__name__} {missing[:2]}: it is another model."
        )
    return model


def load_pretrained(cls: Any, source: str, **options: Any) -> Any:
    """`cls.from_pretrained` on a local folder or hub id. Raises UserError when neither is to be had."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # local files load in a blink; a bar for each would be all a user sees
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # not a table of the half that a vision or text encoder leaves unread
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Could not load {cls.__name__} from '{source}', neither as a local folder nor from the Hugging Face hub "
            f"({reason}): connect to the network once, or pass the path of a folder that holds it."
        ) from error
    finally:
        logging.set_verbosity(level)
