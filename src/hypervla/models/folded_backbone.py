"""A backbone's normalisation of colours and its LayerScale worked into its weights: what fast engines run.

Equal to the backbone up to rounding.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer, Dinov2LayerScale

from hypervla.models.backbones import Pixels


@torch.no_grad()
def folded(backbone: nn.Module) -> nn.Module:
    """A copy that does the same in fewer operations."""
    own = deepcopy(backbone)
    first = next(part for part in own.modules() if isinstance(part, nn.Conv2d))
    for part in own.modules():
        if isinstance(part, Pixels):
            _fold_pixels(part, first)
        elif isinstance(part, Dinov2Layer):
            _fold_scales(part)
    return own


def _fold_pixels(pixels: Pixels, first: nn.Conv2d) -> None:
    """The division always; the subtraction only where no zeros are padded, which stand for the mean colour."""
    assert pixels.mean is not None
    assert pixels.std is not None
    first.weight.div_(pixels.std)
    pixels.std = None
    if first.padding in ((0, 0), "valid"):
        shift = torch.einsum("ocij,c->o", first.weight, pixels.mean.flatten())
        first.bias = nn.Parameter(-shift if first.bias is None else first.bias - shift)
        pixels.mean = None


def _fold_scales(layer: Dinov2Layer) -> None:
    """Each LayerScale into the linear map before it, the last one of the attention or of the MLP."""
    linear: nn.Linear | None = None
    for name, part in list(layer.named_modules()):
        if isinstance(part, nn.Linear):
            linear = part
        elif isinstance(part, Dinov2LayerScale):
            assert linear is not None
            linear.weight.mul_(part.lambda1[:, None])
            linear.bias.mul_(part.lambda1)
            setattr(layer, name, nn.Identity())
