"""Actions in 256 bins between −1 and 1, as OpenVLA counts them (spec 4). A bin is a number, never text."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BINS = 256
"""Edges, and so bins 1 … 256; the last holds 1.0 alone, and what lies between two edges has 255 centres."""
WIDTH = 2 / (BINS - 1)


def bins_of(actions: Float[Tensor, "*B"]) -> Int64[Tensor, "*B"]:
    """Bin 1 … 256 of each action: how many edges are at or below it, after clipping to ±1."""
    edges = torch.arange(BINS, dtype=torch.float64, device=actions.device) * WIDTH - 1  # to the bit those of NumPy
    edges[-1] = 1
    return torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)


def values_of(bins: Int64[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The centre of each bin; what is no bin counts as the nearest, and bin 256 as 255."""
    return (((bins - 1).clamp(0, BINS - 2).double() + 0.5) * WIDTH - 1).float()
