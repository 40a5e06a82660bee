"""Robot units ↔ the numbers a network sees. One object with its inverse, stored beside every set of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import UserError
from hypervla.embodiment import Embodiment, Gripper

SMALLEST_STD = 1e-6
"""A number that never moved in the data is shifted but not scaled."""

Normalisation = Literal["normal", "bounds"]
"""How a recipe brings numbers to the network's range: mean and standard deviation (Octo, HyperVLA), or the 1st and 99th
percentile to ±1 with clipping (OpenVLA)."""


@dataclass(frozen=True)
class Normalizer:
    """Actions and proprio to zero mean and unit variance (or to ±1); the gripper's command to 1 = open, 0 = closed.

    Source: Octo's data pipeline; the gripper is left alone but for its convention. With "bounds" the mean is the middle
    between the 1st and 99th percentile and the deviation half their distance.
    """

    action_mean: Float32[np.ndarray, " A"]
    action_std: Float32[np.ndarray, " A"]
    proprio_mean: Float32[np.ndarray, " P"]
    proprio_std: Float32[np.ndarray, " P"]
    gripper: Gripper | None
    clip: float | None = None
    """Normalised numbers are kept within ± this."""

    @staticmethod
    def from_statistics(
        statistics: Mapping[str, Mapping[str, Any]], embodiment: Embodiment, kind: Normalisation = "normal"
    ) -> Normalizer:
        """From a dataset's statistics of `action` and `observation.state`. Raises UserError when they are unfit."""
        if kind == "bounds":
            centred = _centre(statistics, embodiment)
            return replace(Normalizer.from_statistics(centred, embodiment), clip=1.0)

        def read(feature: str, stat: str, size: int) -> np.ndarray:
            if size == 0:
                return np.zeros(0, np.float32)
            given = statistics.get(feature, {}).get(stat, [])
            try:
                with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
                    values = np.asarray(given, np.float32).reshape(-1)
            except (ValueError, TypeError):
                values = np.zeros(0, np.float32)
            if values.shape != (size,) or not np.isfinite(values).all():
                raise UserError(
                    f"The statistics need {size} finite numbers for the {stat} of '{feature}', but "
                    f"{'none' if str(given) == '[]' else str(given)[:80]} came: make them with `hypervla data stats "
                    f"DIR`, or copy the published ones again."
                )
            if stat == "std" and (values < 0).any():
                raise UserError(f"The statistics of '{feature}' have a negative std: make or copy them again.")
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
        out = self._clipped((actions - self.action_mean) / self.action_std)
        if self.gripper is not None:
            command = actions[..., self.gripper.index]
            opening = (command - self.gripper.closed) / (self.gripper.open - self.gripper.closed)
            out[..., self.gripper.index] = np.clip(opening, 0.0, 1.0)
        return out

    def inverse_actions(self, actions: Float32[np.ndarray, "*T A"]) -> Float32[np.ndarray, "*T A"]:
        """Normalised → robot units. Undoes `forward_actions`, but for what it clipped: gripper commands beyond open and
        closed, and with "bounds" numbers beyond the percentiles."""
        out = actions * self.action_std + self.action_mean
        if self.gripper is not None:
            opening = actions[..., self.gripper.index]
            command = self.gripper.closed + opening * (self.gripper.open - self.gripper.closed)
            out[..., self.gripper.index] = command
        return out

    def forward_proprio(self, proprio: Float32[np.ndarray, "*T P"]) -> Float32[np.ndarray, "*T P"]:
        """Robot units → normalised."""
        return self._clipped((proprio - self.proprio_mean) / self.proprio_std)

    def inverse_proprio(self, proprio: Float32[np.ndarray, "*T P"]) -> Float32[np.ndarray, "*T P"]:
        """Normalised → robot units."""
        return proprio * self.proprio_std + self.proprio_mean

    def _clipped(self, values: Float32[np.ndarray, "*T D"]) -> Float32[np.ndarray, "*T D"]:
        return values if self.clip is None else np.clip(values, -self.clip, self.clip)

    def to_json(self) -> dict[str, Any]:
        arrays = {name: value.tolist() for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        clip = {} if self.clip is None else {"clip": self.clip}
        return arrays | {"gripper": None if self.gripper is None else vars(self.gripper)} | clip

    @staticmethod
    def from_json(data: Mapping[str, Any], embodiment: Embodiment) -> Normalizer:
        """The inverse of `to_json`. Raises UserError when the statistics do not fit the embodiment."""
        statistics = {
            "action": {"mean": data.get("action_mean"), "std": data.get("action_std")},
            "observation.state": {"mean": data.get("proprio_mean"), "std": data.get("proprio_std")},
        }
        return replace(Normalizer.from_statistics(statistics, embodiment), clip=data.get("clip"))

    @property
    def digest(self) -> str:
        """sha256 of the statistics."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Robot:
    """An embodiment with the statistics of its data: all that actions need on their way to it and back."""

    embodiment: Embodiment
    normalizer: Normalizer

    def to_json(self) -> dict[str, Any]:
        return {
            "embodiment": self.embodiment.to_json(),
            "normalisation": self.normalizer.to_json(),
            "normalisation_sha256": self.normalizer.digest,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Robot:
        """The inverse of `to_json`. Raises UserError for statistics that are not those their digest names."""
        embodiment = Embodiment.from_json(data["embodiment"])
        normalizer = Normalizer.from_json(data["normalisation"], embodiment)
        if data.get("normalisation_sha256", normalizer.digest) != normalizer.digest:
            raise UserError(
                f"The action statistics of {embodiment.name} are not those the weights were trained with: their sha256 "
                f"differs; copy the checkpoint again."
            )
        return Robot(embodiment, normalizer)


def _floor(std: Float32[np.ndarray, " D"]) -> Float32[np.ndarray, " D"]:
    return np.where(std < SMALLEST_STD, np.float32(1.0), std)


def _centre(statistics: Mapping[str, Mapping[str, Any]], embodiment: Embodiment) -> dict[str, dict[str, Any]]:
    """The statistics with the middle and half distance of the percentiles in place of mean and deviation."""
    centred: dict[str, dict[str, Any]] = {}
    for feature, size in (("action", embodiment.action_size), ("observation.state", embodiment.proprio_size)):
        low, high = (np.asarray(statistics.get(feature, {}).get(q, []), np.float32).reshape(-1) for q in ("q01", "q99"))
        if size and (low.shape != (size,) or high.shape != (size,)):
            raise UserError(
                f"Normalising to bounds needs {size} numbers for q01 and q99 of '{feature}', but {low.size} and "
                f"{high.size} came: make them with `hypervla data stats DIR`."
            )
        centred[feature] = {"mean": (low + high) / 2, "std": (high - low) / 2}
    return centred
