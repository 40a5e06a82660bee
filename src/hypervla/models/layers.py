"""The pre-LayerNorm transformer of the papers, as a module with its own weights."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from hypervla.contracts import UserError

LAYER_NORM_EPS = 1e-6


def check_heads(width: int, heads: int) -> None:
    """Raises UserError where the heads of an attention do not divide its width."""
    if heads < 1 or width % heads:
        raise UserError(f"{heads} heads cannot share a width of {width}: choose a number that divides it.")


def size(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each behind a LayerNorm; GELU in its tanh form as in Flax (spec 1.3)."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Float[Tensor, "B S D"], mask: Bool[Tensor, "B 1 S S"]) -> Float[Tensor, "B S D"]:
        y = self.norm1(x)
        query, key, value = (
            projection(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Encoder(nn.Module):
    """A stack of encoder layers and a final LayerNorm."""

    def __init__(self, width: int, layers: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, mlp) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "B S D"], mask: Bool[Tensor, "B 1 S S"]) -> Float[Tensor, "B S D"]:
        """`mask[b, 0, i, j]` is True where position i may look at position j."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


def attention(
    query: Float[Tensor, "B heads Q d"],
    key: Float[Tensor, "B heads S d"],
    value: Float[Tensor, "B heads S d"],
    mask: Bool[Tensor, "Q S"] | None,
    scaled: bool = False,
) -> Float[Tensor, "B heads Q d"]:
    """Scaled dot-product attention. It is written out while training on a CPU, where the fused kernel's backward pass
    takes four times as long as two batched products and a softmax (docs/log.md), and while exporting, where the fused
    one becomes a graph that looks for rows in which nothing is seen. `scaled` queries come divided by √d."""
    exporting = torch.compiler.is_exporting()
    if not exporting and (query.device.type != "cpu" or not torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0 if scaled else None)
    scores = (query if scaled else query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None and exporting:  # a constant of the graph
        scores = scores + torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(value.dtype) @ value


def lecun_normal_(tensor: Tensor, fan_in: int, generator: torch.Generator | None = None) -> Tensor:
    """Flax's default for Dense kernels: truncated normal of variance 1/fan_in, corrected for the truncation."""
    std = fan_in**-0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)
