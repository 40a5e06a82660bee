"""The base policy: a small transformer whose weights are an argument (spec 1.2 and 1.4).

It is a pure function (weights, image tokens, proprio) → action chunk. Every weight carries a leading axis N, so one
call runs N task policies, each on F frames of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import WeightLayout, WeightSpec
from hypervla.models.action_head import ActionHead
from hypervla.models.generated import Weights, dense, layer_norm, linear, norm
from hypervla.models.layers import attention


@dataclass(frozen=True)
class BasePolicy:
    """Shapes of the base policy and its forward pass; the weights come from outside."""

    width: int
    layers: int
    heads: int
    mlp: int
    token_width: int
    """Width Dv of the backbone's tokens."""
    tokens: int
    """K tokens, all cameras together."""
    proprio_size: int
    """P numbers of proprio, read through a token of their own; 0 reads none."""
    head: ActionHead

    @cached_property
    def layout(self) -> WeightLayout:
        """Kernels first, so that the heads which generate them are one matrix (weight decay is theirs alone)."""
        specs = [*dense("image", self.token_width, self.width)]
        if self.proprio_size:
            specs += dense("proprio", self.proprio_size, self.width)
        specs.append(WeightSpec("position", (self.tokens + bool(self.proprio_size) + 1, self.width), "position"))
        for i in range(self.layers):
            specs += norm(f"layers.{i}.norm1", self.width)
            for name in ("query", "key", "value", "out"):
                specs += dense(f"layers.{i}.{name}", self.width, self.width, xavier=True)
            specs += norm(f"layers.{i}.norm2", self.width)
            specs += dense(f"layers.{i}.up", self.width, self.mlp, xavier=True)
            specs += dense(f"layers.{i}.down", self.mlp, self.width, xavier=True)
        specs += norm("norm", self.width)
        specs += self.head.layout(self.width)
        return WeightLayout(tuple(sorted(specs, key=lambda spec: spec.kind != "kernel")))

    def features(
        self, weights: Weights, tokens: Float[Tensor, "N F K Dv"], proprio: Float[Tensor, "N F P"] | None
    ) -> Float[Tensor, "N F D"]:
        """What the action token holds at the end, for F frames under each of N weight sets."""
        x = linear(weights, "image", tokens)
        if self.proprio_size:
            assert proprio is not None
            x = torch.cat([x, linear(weights, "proprio", proprio).unsqueeze(2)], 2)
        x = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) + weights["position"].unsqueeze(1)
        for i in range(self.layers):
            x = self._layer(weights, i, x)
        return layer_norm(weights, "norm", x[:, :, 0])

    def loss(
        self,
        weights: Weights,
        tokens: Float[Tensor, "N F K Dv"],
        proprio: Float[Tensor, "N F P"] | None,
        actions: Float[Tensor, "N F H A"],
        mask: Bool[Tensor, "N F H A"],
    ) -> Float[Tensor, "N F"]:
        """The head's loss of each frame."""
        return self.head.loss(weights, self.features(weights, tokens, proprio), actions, mask)

    def act(
        self,
        weights: Weights,
        tokens: Float[Tensor, "N F K Dv"],
        proprio: Float[Tensor, "N F P"] | None,
        random: torch.Generator | None = None,
    ) -> Float[Tensor, "N F H A"]:
        """The normalised chunk of each frame; `random` is where a head that samples takes its noise from."""
        return self.head.decode(weights, self.features(weights, tokens, proprio), random)

    def _layer(self, weights: Weights, i: int, x: Float[Tensor, "N F S D"]) -> Float[Tensor, "N F Q D"]:
        """One encoder layer; the last one computes the action token's row only, since nothing else is read."""
        name, last = f"layers.{i}", i == self.layers - 1
        y = layer_norm(weights, f"{name}.norm1", x)
        mask = None if last else action_token_mask(x.shape[2], x.device)
        rows = x[:, :, -1:] if last else x
        query = self._split(linear(weights, f"{name}.query", y[:, :, -1:] if last else y))
        key, value = (self._split(linear(weights, f"{name}.{part}", y)) for part in ("key", "value"))
        attended = attention(query, key, value, mask)
        attended = attended.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2])
        rows = rows + linear(weights, f"{name}.out", attended)
        y = layer_norm(weights, f"{name}.norm2", rows)
        hidden = F.gelu(linear(weights, f"{name}.up", y), approximate="tanh")
        return rows + linear(weights, f"{name}.down", hidden)

    def _split(self, x: Float[Tensor, "N F S D"]) -> Float[Tensor, "NF heads S d"]:
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)


def action_token_mask(length: int, device: torch.device) -> Tensor:
    """(S, S) booleans: the action token, last, sees everything; no other token sees it."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    mask[:-1, -1] = False
    return mask
