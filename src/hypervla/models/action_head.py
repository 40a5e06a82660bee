"""Action heads: what the base policy's last numbers mean, their loss and their decoding (spec 1.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hypervla.contracts import WeightSpec

SQUASH = 5.0
"""Arm outputs live in ±5 standard deviations, and so do their targets."""


def masked_mean(x: Float[Tensor, "*B H A"], mask: Bool[Tensor, "*B H A"]) -> Float[Tensor, "*B"]:
    """Mean over the entries that count, one number per sample; a sample with none contributes 0."""
    kept = mask.to(x.dtype)
    return (x * kept).mean((-2, -1)) / kept.mean((-2, -1)).clamp_min(1e-5)


def _kernel(name: str, inputs: int, outputs: int) -> tuple[WeightSpec, WeightSpec]:
    return (
        WeightSpec(f"{name}.kernel", (inputs, outputs), "kernel", fan=(inputs, outputs)),
        WeightSpec(f"{name}.bias", (outputs,), "bias"),
    )


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
            *_kernel("head.arm", width, self.horizon * (self.action_size - 1)),
            *_kernel("head.gripper", width, self.horizon),
        )

    def _outputs(self, raw: Float[Tensor, "*B O"]) -> tuple[Float[Tensor, "*B H arm"], Float[Tensor, "*B H"]]:
        cut = self.horizon * (self.action_size - 1)
        arm = raw[..., :cut].unflatten(-1, (self.horizon, self.action_size - 1))
        return SQUASH * torch.tanh(arm / SQUASH), raw[..., cut:]

    def loss(
        self, raw: Float[Tensor, "*B O"], target: Float[Tensor, "*B H A"], mask: Bool[Tensor, "*B H A"]
    ) -> Float[Tensor, "*B"]:
        """Arm: masked mean squared error × arm dimensions. Gripper: masked mean cross-entropy, soft labels allowed."""
        arm, gripper = self._outputs(raw)
        error = (arm - target[..., self.arm].clamp(-SQUASH, SQUASH)).square()
        label = target[..., self.gripper_index]
        entropy = F.binary_cross_entropy_with_logits(gripper, label, reduction="none")
        gripper_mask = mask[..., self.gripper_index].unsqueeze(-1)
        return len(self.arm) * masked_mean(error, mask[..., self.arm]) + masked_mean(
            entropy.unsqueeze(-1), gripper_mask
        )

    def decode(self, raw: Float[Tensor, "*B O"]) -> Float[Tensor, "*B H A"]:
        """The normalised chunk; the gripper is decided here: 1 where its logit is at least 0."""
        arm, gripper = self._outputs(raw)
        columns = list(arm.unbind(-1))
        columns.insert(self.gripper_index, (gripper >= 0).to(arm.dtype))
        return torch.stack(columns, -1)


@dataclass(frozen=True)
class LinearHead:
    """The head of the paper's text: one linear map, squared error on every action dimension."""

    horizon: int
    action_size: int

    def layout(self, width: int) -> tuple[WeightSpec, ...]:
        return _kernel("head", width, self.horizon * self.action_size)

    def loss(
        self, raw: Float[Tensor, "*B O"], target: Float[Tensor, "*B H A"], mask: Bool[Tensor, "*B H A"]
    ) -> Float[Tensor, "*B"]:
        """Masked mean squared error × action dimensions."""
        return self.action_size * masked_mean((self.decode(raw) - target).square(), mask)

    def decode(self, raw: Float[Tensor, "*B O"]) -> Float[Tensor, "*B H A"]:
        return raw.unflatten(-1, (self.horizon, self.action_size))


ActionHead = ReleasedHead | LinearHead
