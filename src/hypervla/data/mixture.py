"""Datasets with sampling weights, and the robots that recorded them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64

from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.normalize import Normalisation, Normalizer, Robot
from hypervla.data.statistics import column_statistics
from hypervla.embodiment import Embodiment

LIMITS = ("action_low", "action_high")


class Mixture:
    """Datasets with weights. A context comes from a dataset in proportion to its weight × its number of frames."""

    def __init__(self, readers: Sequence[EpisodeReader], weights: Sequence[float] | None = None) -> None:
        """Raises UserError for weights that are no positive numbers, or robots of one name that differ."""
        self.readers = list(readers)
        self.weights = [1.0] * len(self.readers) if weights is None else list(weights)
        if not self.readers or len(self.weights) != len(self.readers):
            raise UserError(
                f"A mixture needs a weight for each dataset: {len(self.readers)}, {len(self.weights)} came."
            )
        for reader, weight in zip(self.readers, self.weights, strict=True):
            if not 0 < weight < float("inf"):
                raise UserError(f"The weight of {reader.name} must be a number above 0, but {weight} came.")

    @cached_property
    def shares(self) -> Float64[np.ndarray, " D"]:
        """The part of all contexts that comes from each dataset."""
        sizes = np.array([len(reader.actions) for reader in self.readers], np.float64) * self.weights
        return sizes / sizes.sum()

    @cached_property
    def embodiments(self) -> dict[str, Embodiment]:
        """The robots by name; datasets of one robot may differ in the limits they reach, which are joined."""
        found: dict[str, Embodiment] = {}
        for reader in self.readers:
            robot = reader.embodiment
            known = found.setdefault(robot.name, robot)
            if other := _differences(known, robot, LIMITS):
                raise UserError(
                    f"{reader.name} comes from the robot '{robot.name}', like another dataset of the mixture, but they "
                    f"differ in {', '.join(other)}: describe the robot in a TOML file and pass --robot."
                )
            found[robot.name] = _joined(known, robot)
        return found

    def features(self, robot: str) -> dict[str, str]:
        """What a user called the features of that robot's data: our name → the data's."""
        return next((dict(getattr(r, "renamed", {})) for r in self.readers if r.embodiment.name == robot), {})

    def robots(self, kind: Normalisation, known: Mapping[str, Robot] | None = None) -> dict[str, Robot]:
        """Every robot with its statistics: those of `known` where it is there, else of its data.

        Raises UserError when the data was seen, or is to be normalised, in another way than what is known.
        """
        return {
            name: _same(known[name], robot, kind)
            if known and name in known
            else Robot(robot, Normalizer.from_statistics(self._statistics(name), robot, kind))
            for name, robot in self.embodiments.items()
        }

    def _statistics(self, robot: str) -> Mapping[str, Mapping[str, Any]]:
        """A robot's statistics: its dataset's own, or those of all its datasets' numbers together."""
        readers = [reader for reader in self.readers if reader.embodiment.name == robot]
        own = [reader.statistics() for reader in readers]  # each refuses what is missing or foreign
        if len(readers) == 1:
            return own[0]
        pooled = {"action": column_statistics(np.concatenate([reader.actions for reader in readers]))}
        states = [reader.proprio for reader in readers if reader.proprio is not None]
        if states:
            pooled["observation.state"] = column_statistics(np.concatenate(states))
        return pooled

    def to_json(self) -> list[dict[str, Any]]:
        """Name, digest, weight, episodes and frames of each dataset, for a checkpoint's provenance."""
        return [
            {
                "name": reader.name,
                "digest": reader.digest,
                "robot": reader.embodiment.name,
                "weight": weight,
                "share": round(float(share), 6),
                "episodes": len(reader),
                "frames": len(reader.actions),
            }
            for reader, weight, share in zip(self.readers, self.weights, self.shares, strict=True)
        ]


def _same(known: Robot, robot: Embodiment, kind: Normalisation) -> Robot:
    """The robot of the data with the statistics that are known of it."""
    other = _differences(known.embodiment, robot, (*LIMITS, "action_kind"))
    if (known.normalizer.clip is None) != (kind == "normal"):
        other.append("normalisation")
    if other:
        raise UserError(
            f"The checkpoint to start from knows the robot '{robot.name}' with other {', '.join(other)} than the data: "
            f"describe the data's robot as the checkpoint has it with --robot, or start without --init."
        )
    return Robot(_joined(known.embodiment, robot), known.normalizer)


def _differences(one: Embodiment, other: Embodiment, leaving_out: Sequence[str]) -> list[str]:
    """The names of what differs between two robots."""
    return [name for name, value in vars(other).items() if name not in leaving_out and value != getattr(one, name)]


def _joined(one: Embodiment, other: Embodiment) -> Embodiment:
    """The second robot with the limits of both."""
    low, high = np.minimum(one.action_low, other.action_low), np.maximum(one.action_high, other.action_high)
    return replace(other, action_low=tuple(low.tolist()), action_high=tuple(high.tolist()))
