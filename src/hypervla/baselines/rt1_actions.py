"""RT-1's eleven action tokens, and what they mean for a robot's action columns (spec 6)."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hypervla.contracts import UserError

DIMENSIONS = (
    "terminate_episode",
    *(f"world_vector_{axis}" for axis in "xyz"),
    *(f"rotation_delta_{axis}" for axis in "xyz"),
    "gripper_closedness",
    "base_rotation",
    *(f"base_displacement_{axis}" for axis in "xy"),
)
"""What the tokens say, in their order."""
GRIPPER = DIMENSIONS.index("gripper_closedness")
MOVING_ARM = 1
"""The token of `terminate_episode` while an episode goes on and the arm moves; 0 ends it, 2 moves the base."""
ARM_7 = DIMENSIONS[1:8]
"""Columns of an arm with x, y, z, roll, pitch, yaw, gripper."""
ARM_4 = (*DIMENSIONS[1:4], "gripper_closedness")
"""Columns of an arm with x, y, z, gripper, as in Metaworld."""

Range = tuple[float, float]


@dataclass(frozen=True)
class ActionTokens:
    """Actions ↔ tokens. A dimension no column maps to is neutral: 0, and for `terminate_episode` that the arm moves on.

    Source: the published Open X-Embodiment training fills what a dataset lacks with these values, and counts their
    tokens in the loss like all others.
    """

    columns: tuple[str, ...] = ARM_7
    """Which of DIMENSIONS each action column of the robot is."""
    bins: int = 256
    """V tokens."""
    world_vector: Range = (-1.0, 1.0)
    """Lowest and highest value of the bins, here and below; RT-1-X has ±2 here. For actions normalised to bounds ±1."""
    rotation_delta: Range = (-math.pi / 2, math.pi / 2)
    gripper_closedness: Range = (-1.0, 1.0)
    base_rotation: Range = (-math.pi, math.pi)
    base_displacement: Range = (-1.0, 1.0)

    def __post_init__(self) -> None:
        names = DIMENSIONS[1:]
        for column in self.columns:
            if column not in names:
                near = difflib.get_close_matches(column, names, n=3) or names
                raise UserError(f"RT-1 has no action dimension '{column}': name each column one of {', '.join(near)}.")
        if len(set(self.columns)) < len(self.columns) or not self.columns:
            raise UserError(f"Each action column needs a dimension of its own, but these came: {self.columns}.")
        if self.bins < 3:
            raise UserError(f"RT-1 needs at least 3 bins, because an episode has 3 modes, but {self.bins} came.")
        for low, high in self._ranges():
            if not low < high:
                raise UserError(
                    f"The lowest value of a range of bins must be below the highest, but {low}, {high} came."
                )

    def _ranges(self) -> list[Range]:
        """Of all dimensions but the first."""
        return [
            *[self.world_vector] * 3,
            *[self.rotation_delta] * 3,
            self.gripper_closedness,
            self.base_rotation,
            *[self.base_displacement] * 2,
        ]

    @property
    def slots(self) -> list[int]:
        """The token of each column."""
        return [DIMENSIONS.index(column) for column in self.columns]

    def encode(self, actions: Float[Tensor, "*B A"]) -> Int64[Tensor, "*B 11"]:
        """Actions with the gripper in 0 … 1, 1 = open → tokens. A bin holds what lies between its value and the next;
        only the highest value itself falls in the last."""
        values = actions.new_zeros(*actions.shape[:-1], len(DIMENSIONS))
        values[..., self.slots] = actions
        if GRIPPER in self.slots:
            values[..., GRIPPER] = 1 - 2 * values[..., GRIPPER]
        low, high = actions.new_tensor(self._ranges()).unbind(-1)
        share = (values[..., 1:].clamp(low, high) - low) / (high - low)
        tokens = (share * (self.bins - 1)).long()
        return torch.cat([torch.full_like(tokens[..., :1], MOVING_ARM), tokens], -1)

    def decode(self, tokens: Int64[Tensor, "*B 11"]) -> Float[Tensor, "*B A"]:
        """Tokens → their bins' lowest values, as published: up to a bin below what was encoded. What they say of
        dimensions without a column is dropped."""
        low, high = torch.tensor(self._ranges(), device=tokens.device).unbind(-1)
        values = low + tokens[..., 1:] / (self.bins - 1) * (high - low)
        opening = ((1 - values[..., GRIPPER - 1 : GRIPPER]) / 2).clamp(0, 1)
        values = torch.cat([values[..., : GRIPPER - 1], opening, values[..., GRIPPER:]], -1)
        return values[..., [slot - 1 for slot in self.slots]]

    def counts(self, mask: Bool[Tensor, "*B A"]) -> Bool[Tensor, "*B 11"]:
        """Which tokens count where these action columns do: a neutral one wherever any column does."""
        counts = mask.any(-1, keepdim=True).expand(*mask.shape[:-1], len(DIMENSIONS)).clone()
        counts[..., self.slots] = mask
        return counts
