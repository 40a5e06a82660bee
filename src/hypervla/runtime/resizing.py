"""A camera's view brought to the network's size on the device, as `data.augment.resize` does on the host."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

LOBES = 3.0


def lanczos(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Rows that resample `old` numbers to `new`: Lanczos with three lobes, widened where it shrinks, as Pillow does."""
    scale = old / new
    width = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centre - LOBES * width + 0.5).astype(int))
    end = np.minimum(old, (centre + LOBES * width + 0.5).astype(int))
    place = np.arange(old)
    x = (place + 0.5 - centre[:, None]) / width
    seen = (place >= first[:, None]) & (place < end[:, None]) & (np.abs(x) < LOBES)
    rows = np.where(seen, np.sinc(x) * np.sinc(x / LOBES), 0.0)
    return (rows / rows.sum(1, keepdims=True)).astype(np.float32)


class Resize(nn.Module):
    """uint8 images of one size → square ones of another, in float32 and rounded once."""

    def __init__(self, height: int, width: int, size: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", torch.from_numpy(lanczos(height, size)))
        self.register_buffer("columns", torch.from_numpy(lanczos(width, size)).T.contiguous())

    def forward(self, images: UInt8[Tensor, "*B height width 3"]) -> UInt8[Tensor, "*B size size 3"]:
        planes = images.flatten(0, -4).permute(0, 3, 1, 2).float()
        smaller = (self.rows @ (planes @ self.columns)).round().clamp(0, 255).to(torch.uint8)
        return smaller.permute(0, 2, 3, 1).unflatten(0, images.shape[:-3])
