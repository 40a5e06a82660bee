"""Linear maps whose products are computed in eight-bit floating point (e4m3), for GPUs that have it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
MOST = torch.finfo(FLOAT8).max
MULTIPLE = 16
"""Both sizes of a kernel have to be a multiple of this."""


class Float8Linear(nn.Module):
    """A linear map with a scale for each of its weights' rows and one for each token, so that the largest number of a
    row is the largest of the format."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = _scale(linear.weight, 1)
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", (linear.weight / scale).to(FLOAT8))
        self.register_buffer("scale", scale.float().T.contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Float[Tensor, "*rest I"]) -> Float[Tensor, "*rest O"]:
        rows = x.flatten(0, -2)
        scale = _scale(rows, 1)
        given = (rows / scale).to(FLOAT8)
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        y = torch.ops.aten._scaled_mm(
            given, self.weight.T, scale_a=scale.float(), scale_b=self.scale, bias=bias, out_dtype=torch.bfloat16
        )
        return y.to(x.dtype).unflatten(0, x.shape[:-1])

    def _apply(self, fn, recurse: bool = True) -> Float8Linear:
        """Moves with the model, but keeps its own types."""
        weight, scale = self.weight, self.scale
        super()._apply(fn, recurse)
        self.weight, self.scale = weight.to(self.weight.device), scale.to(self.scale.device)
        return self


def _scale(rows: Tensor, dimension: int) -> Tensor:
    return rows.abs().amax(dimension, keepdim=True).clamp_min(1e-12) / MOST


@torch.no_grad()
def put_into_float8(module: nn.Module) -> int:
    """Replace the module's linear maps whose sizes allow it; returns how many."""
    found = [
        (parent, name, part)
        for parent in module.modules()
        for name, part in parent.named_children()
        if isinstance(part, nn.Linear) and part.in_features % MULTIPLE == 0 and part.out_features % MULTIPLE == 0
    ]
    for parent, name, part in found:
        setattr(parent, name, Float8Linear(part))
    return len(found)
