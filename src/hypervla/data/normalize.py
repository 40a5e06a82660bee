"""Robot units ↔ the numbers a network sees. One object with its inverse, stored beside every set of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import UserError
from hypervla.embodiment import Embodiment, Gripper

SMALLEST_STD = 1e-6
"""A number that never moved in the data is shifted but not scaled."""


@dataclass(frozen=True)
class Normalizer:
    """Actions and proprio to zero mean and unit variance; the gripper's command to 1 = open, 0 = closed.

    Source: spec 2.3 ("normal" statistics, gripper untouched but for its convention).
    """

    action_mean: Float32[np.ndarray, " A"]
    action_std: Float32[np.ndarray, " A"]
    proprio_mean: Float32[np.ndarray, " P"]
    proprio_std: Float32[np.ndarray, " P"]
    gripper: Gripper | None

    @staticmethod
    def from_statistics(statistics: Mapping[str, Mapping[str, Any]], embodiment: Embodiment) -> Normalizer:
        """From a dataset's statistics of `action` and `observation.state`. Raises UserError when they are unfit."""

        def read(feature: str, stat: str, size: int) -> np.ndarray:
            if size == 0:
                return np.zeros(0, np.float32)
            values = np.asarray(statistics.get(feature, {}).get(stat, []), np.float32).reshape(-1)
            if values.shape != (size,) or not np.isfinite(values).all():
                raise UserError(
                    f"The statistics need {size} finite numbers for the {stat} of '{feature}', but "
                    f"{values.tolist() or 'none'} came: record the dataset again with `hypervla record`."
                )
            return values

        action, proprio = ("action", embodiment.action_size), ("observation.state", embodiment.proprio_size)
        return Normalizer(
            action_mean=read(action[0], "mean", action[1]),
            action_std=_floor(read(action[0], "std", action[1])),
            proprio_mean=read(proprio[0], "mean", proprio[1]),
            proprio_std=_floor(read(proprio[0], "std", proprio[1])),
            gripper=embodiment.gripper,
        )

    def forward_actions(self, actions: Float32[np.ndarray, "*T A"]) -> Float32[np.ndarray, "*T A"]:
        """Robot units → normalised."""
        out = (actions - self.action_mean) / self.action_std
        if self.gripper is not None:
            command = actions[..., self.gripper.index]
            opening = (command - self.gripper.closed) / (self.gripper.open - self.gripper.closed)
            out[..., self.gripper.index] = np.clip(opening, 0.0, 1.0)
        return out

    def inverse_actions(self, actions: Float32[np.ndarray, "*T A"]) -> Float32[np.ndarray, "*T A"]:
        """Normalised → robot units. Undoes `forward_actions`, but for gripper commands beyond open and closed."""
        out = actions * self.action_std + self.action_mean
        if self.gripper is not None:
            opening = actions[..., self.gripper.index]
            command = self.gripper.closed + opening * (self.gripper.open - self.gripper.closed)
            out[..., self.gripper.index] = command
        return out

    def forward_proprio(self, proprio: Float32[np.ndarray, "*T P"]) -> Float32[np.ndarray, "*T P"]:
        """Robot units → normalised."""
        return (proprio - self.proprio_mean) / self.proprio_std

    def inverse_proprio(self, proprio: Float32[np.ndarray, "*T P"]) -> Float32[np.ndarray, "*T P"]:
        """Normalised → robot units."""
        return proprio * self.proprio_std + self.proprio_mean

    def to_json(self) -> dict[str, Any]:
        gripper = None if self.gripper is None else vars(self.gripper)
        return {name: value.tolist() for name, value in vars(self).items() if name != "gripper"} | {"gripper": gripper}

    @staticmethod
    def from_json(data: Mapping[str, Any], embodiment: Embodiment) -> Normalizer:
        """The inverse of `to_json`. Raises UserError when the statistics do not fit the embodiment."""
        statistics = {
            "action": {"mean": data.get("action_mean"), "std": data.get("action_std")},
            "observation.state": {"mean": data.get("proprio_mean"), "std": data.get("proprio_std")},
        }
        return Normalizer.from_statistics(statistics, embodiment)

    @property
    def digest(self) -> str:
        """sha256 of the statistics."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _floor(std: Float32[np.ndarray, " D"]) -> Float32[np.ndarray, " D"]:
    return np.where(std < SMALLEST_STD, np.float32(1.0), std)
