"""Action heads: how the base policy's last feature becomes a chunk, and its loss (spec 1.5). A head's weights are an
argument, like all of the base policy's; `models/diffusion.py` holds the one that samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import WeightSpec
from hypervla.models.generated import Weights, dense, linear

SQUASH = 5.0
"""Arm outputs live in ±5 standard deviations, and so do their targets."""


@runtime_checkable
class ActionHead(Protocol):
    """Features of F frames under each of N weight sets → normalised chunks; the gripper is 1 = open, 0 = closed."""

    @property
    def horizon(self) -> int: ...
    @property
    def action_size(self) -> int: ...
    def layout(self, width: int) -> tuple[WeightSpec, ...]:
        """The head's own weights, for features of this width."""
        ...

    def loss(
        self,
        weights: Weights,
        features: Float[Tensor, "N F D"],
        target: Float[Tensor, "N F H A"],
        mask: Bool[Tensor, "N F H A"],
    ) -> Float[Tensor, "N F"]: ...

    def decode(
        self, weights: Weights, features: Float[Tensor, "N F D"], random: torch.Generator | None = None
    ) -> Float[Tensor, "N F H A"]:
        """The chunk. A head that samples draws one noise for all rows from `random`, or fresh noise for each row."""
        ...


def masked_mean(x: Float[Tensor, "*B H A"], mask: Bool[Tensor, "*B H A"]) -> Float[Tensor, "*B"]:
    """Mean over the entries that count, one number per sample; a sample with none contributes 0."""
    kept = mask.to(x.dtype)
    return (x * kept).mean((-2, -1)) / kept.mean((-2, -1)).clamp_min(1e-5)


@dataclass(frozen=True)
class ReleasedHead:
    """The released code's head: tanh-squashed arm with squared error, sigmoid gripper with cross-entropy.

    Chunks hold normalised arm actions and, at `gripper_index`, the gripper as 1 = open, 0 = closed.
    """

    horizon: int
    action_size: int
    gripper_index: int

    @property
    def arm(self) -> list[int]:
        return [i for i in range(self.action_size) if i != self.gripper_index]

    def layout(self, width: int) -> tuple[WeightSpec, ...]:
        return (
            *dense("head.arm", width, self.horizon * (self.action_size - 1)),
            *dense("head.gripper", width, self.horizon),
        )

    def outputs(
        self, weights: Weights, features: Float[Tensor, "N F D"]
    ) -> tuple[Float[Tensor, "N F H arm"], Float[Tensor, "N F H"]]:
        """The squashed arm, step by step, and the gripper's logits."""
        arm = linear(weights, "head.arm", features).float().unflatten(-1, (self.horizon, self.action_size - 1))
        return SQUASH * torch.tanh(arm / SQUASH), linear(weights, "head.gripper", features).float()

    def loss(
        self,
        weights: Weights,
        features: Float[Tensor, "N F D"],
        target: Float[Tensor, "N F H A"],
        mask: Bool[Tensor, "N F H A"],
    ) -> Float[Tensor, "N F"]:
        """Arm: masked mean squared error × arm dimensions. Gripper: masked mean cross-entropy, soft labels allowed."""
        arm, gripper = self.outputs(weights, features)
        error = (arm - target[..., self.arm].clamp(-SQUASH, SQUASH)).square()
        label = target[..., self.gripper_index]
        entropy = F.binary_cross_entropy_with_logits(gripper, label, reduction="none")
        gripper_mask = mask[..., self.gripper_index].unsqueeze(-1)
        return len(self.arm) * masked_mean(error, mask[..., self.arm]) + masked_mean(
            entropy.unsqueeze(-1), gripper_mask
        )

    def decode(
        self, weights: Weights, features: Float[Tensor, "N F D"], random: torch.Generator | None = None
    ) -> Float[Tensor, "N F H A"]:
        """The normalised chunk; the gripper is decided here: 1 where its logit is at least 0."""
        arm, gripper = self.outputs(weights, features)
        columns = list(arm.unbind(-1))
        columns.insert(self.gripper_index, (gripper >= 0).to(arm.dtype))
        return torch.stack(columns, -1)


@dataclass(frozen=True)
class LinearHead:
    """The head of the paper's text: one linear map, squared error on every action dimension."""

    horizon: int
    action_size: int

    def layout(self, width: int) -> tuple[WeightSpec, ...]:
        return dense("head", width, self.horizon * self.action_size)

    def loss(
        self,
        weights: Weights,
        features: Float[Tensor, "N F D"],
        target: Float[Tensor, "N F H A"],
        mask: Bool[Tensor, "N F H A"],
    ) -> Float[Tensor, "N F"]:
        """Masked mean squared error × action dimensions."""
        return self.action_size * masked_mean((self.decode(weights, features) - target).square(), mask)

    def decode(
        self, weights: Weights, features: Float[Tensor, "N F D"], random: torch.Generator | None = None
    ) -> Float[Tensor, "N F H A"]:
        return linear(weights, "head", features).float().unflatten(-1, (self.horizon, self.action_size))
