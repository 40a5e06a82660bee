"""What a seeing language model starts from before anybody has taught it to see: a published DINOv2, SigLIP and language
model (spec 5), under the names they are published by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import UserError
from hypervla.models.fused_vision import FusedVision, VisionTransformer
from hypervla.models.safetensors_folder import fill, read_folder
from hypervla.models.vision_language import VisionLanguage, VisionLanguageModel

PARTS = ("dino", "siglip", "language")
"""Folders inside one: timm's vit_large_patch14_reg4_dinov2.lvd142m, timm's vit_so400m_patch14_siglip_224.webli, and
Qwen/Qwen2-0.5B (or the language model that the configuration names), each with its safetensors."""


def load_parts(source: str, model: VisionLanguageModel) -> None:
    """Fill vision and language model from the three folders in `source`; the projector keeps its random start.

    Raises UserError for a missing folder, another model's weights, and a configuration with other vision.
    """
    if not isinstance(model.config.vision, FusedVision):
        raise UserError(
            "Published parts are there for DINOv2 and SigLIP side by side, but this recipe's vision is "
            f"{type(model.config.vision).__name__}: choose a recipe such as evla."
        )
    for part in PARTS:
        if not (Path(source) / part).is_dir():
            raise UserError(
                f"{source} should hold the folders {', '.join(PARTS)} with the published weights of each, but {part} "
                f"is missing."
            )
    backbone: Any = model.vision_backbone
    for part, tower in (("dino", backbone.featurizer), ("siglip", backbone.fused_featurizer)):
        folder = str(Path(source) / part)
        fill(dict(tower.named_parameters()), _from_timm(folder, tower), folder)
    folder = str(Path(source) / "language")
    fill(dict(model.language_model.named_parameters()), _language(folder, model.config), folder)


def _from_timm(folder: str, tower: VisionTransformer) -> Iterator[tuple[str, Tensor]]:
    """timm calls a LayerScale's factor gamma; its position table may be of another image size."""
    for name, value in read_folder(folder):
        if name == "pos_embed" and value.ndim == 3:
            value = resize_positions(value, tower.pos_embed.shape[1])
        yield (f"{name.removesuffix('gamma')}scale_factor" if name.endswith(".gamma") else name), value


def resize_positions(table: Float[Tensor, "1 K D"], count: int) -> Float[Tensor, "1 N D"]:
    """A square position table for another number of patches: bicubic with antialiasing in float32, as timm does it."""
    if table.shape[1] == count:
        return table
    side, wanted = round(table.shape[1] ** 0.5), round(count**0.5)
    if side * side != table.shape[1] or not side or not table.is_floating_point():
        return table  # refused by its shape or type
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def _language(folder: str, config: VisionLanguage) -> Iterator[tuple[str, Tensor]]:
    """The embedding has as many rows as the configuration: published padding rows are cut off (Qwen2's 151,936 to
    151,680), added tokens start from the mean of the published rows."""
    for name, value in read_folder(folder):
        if name == "lm_head.weight" and config.language.tied:
            continue
        if name in ("model.embed_tokens.weight", "lm_head.weight") and value.ndim == 2 and len(value):
            more = config.language.vocabulary - value.shape[0]
            if more > 0:
                value = torch.cat([value, value.float().mean(0, keepdim=True).to(value.dtype).expand(more, -1)])
            value = value[: config.language.vocabulary]
        yield name, value
