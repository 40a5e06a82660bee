"""The base policy on folded weights (runtime/folding.py): what exported engines compute, one frame for each weight set.

It is BasePolicy's forward pass in fewer operations, equal up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hypervla.models.base_policy import BasePolicy, action_token_mask
from hypervla.models.generated import Weights, layer_norm
from hypervla.models.layers import LAYER_NORM_EPS, attention


@dataclass(frozen=True)
class FoldedPolicy:
    """A base policy's shapes, and its forward pass on folded weights."""

    policy: BasePolicy

    def features(
        self, weights: Weights, tokens: Float[Tensor, "N K Dv"], proprio: Float[Tensor, "N P"] | None
    ) -> Float[Tensor, "N 1 D"]:
        """What the action token holds at the end; one frame for each of N weight sets."""
        x = tokens @ weights["image.kernel"]
        rows = [x]
        if proprio is not None:
            rows.append(proprio.unsqueeze(1) @ weights["proprio.kernel"])
        x = torch.cat([*rows, torch.zeros_like(x[:, :1])], 1) + weights["position"]
        mask = action_token_mask(x.shape[1], x.device)
        for i in range(self.policy.layers):
            layer = {
                name.removeprefix(f"layers.{i}."): rows for name, rows in weights.items() if f"layers.{i}." in name
            }
            x = self._middle(layer, x, mask) if i < self.policy.layers - 1 else self._last(layer, x)
        return layer_norm(weights, "norm", x)

    def _middle(self, layer: Weights, x: Float[Tensor, "N S D"], mask: Bool[Tensor, "S S"]) -> Float[Tensor, "N S D"]:
        y = _normalised(x)
        maps = _linear(layer, "query", y), y @ layer["key.kernel"], y @ layer["value.kernel"]
        query, key, value = (z.unflatten(-1, (self.policy.heads, -1)).transpose(1, 2) for z in maps)
        seen = attention(query, key, value, mask, scaled=True)
        return self._mlp(layer, x + _linear(layer, "out", seen.transpose(1, 2).flatten(2)))

    def _last(self, layer: Weights, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N 1 D"]:
        y = _normalised(x)
        query = _linear(layer, "query", y[:, -1:]).unflatten(-1, (self.policy.heads, 1, -1)).squeeze(1)
        asked = (query @ layer["key.kernel"]).squeeze(2)
        looked = (asked @ y.transpose(1, 2)).softmax(-1) @ y
        seen = (looked.unsqueeze(2) @ layer["value.kernel"]).flatten(1).unsqueeze(1)
        return self._mlp(layer, x[:, -1:] + _linear(layer, "out", seen))

    def _mlp(self, layer: Weights, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        hidden = F.gelu(_linear(layer, "up", _normalised(x)), approximate="tanh")
        return x + _linear(layer, "down", hidden)


def _linear(layer: Weights, name: str, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N S O"]:
    return torch.baddbmm(layer[f"{name}.bias"].unsqueeze(1), x, layer[f"{name}.kernel"])


def _normalised(x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
    """LayerNorm without scale and bias, which are in the map behind it."""
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
