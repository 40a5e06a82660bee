"""What experts are made of: aims for the hand, one after another, until the state says that it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Vector = Float64[np.ndarray, "3"]
Rotation = Float64[np.ndarray, "3 3"]


@dataclass(frozen=True)
class Pose:
    """Where a hand is, or should be."""

    place: Vector
    rotation: Rotation
    """Columns: the line the fingers are apart along, the one across it, and where the hand points."""


@dataclass(frozen=True)
class Aim:
    """Where the hand should go now, and whether the fingers close."""

    pose: Pose
    closed: bool


CLOSER = 0.1
"""Of what is near or aligned: a hand has come nearer."""


def go(
    hand: Callable[[], Pose],
    wanted: Callable[[], Pose],
    closed: bool,
    *,
    near: float,
    aligned: float,
    limit: int,
    over: Callable[[], bool] = lambda: False,
    patience: int | None = None,
) -> Iterator[Aim]:
    """To a pose that may move, until the hand is there (in metres and radians), or something else is over, or for so
    many steps, or until it has come no nearer for as many as `patience`; and one step more, in which it comes to
    rest."""
    nearest, waited = np.inf, 0
    for _ in range(limit):
        pose, now = wanted(), hand()
        away = float(np.linalg.norm(pose.place - now.place)) / near if near else np.inf
        turned = float(np.linalg.norm(rotation_left(now.rotation, pose.rotation))) / aligned
        waited = 0 if max(away, turned) < nearest - CLOSER else waited + 1
        nearest = min(nearest, max(away, turned))
        if over() or nearest < 1 or waited == patience:
            break
        yield Aim(pose, closed)
    yield Aim(wanted(), closed)


def held(aims: Iterator[Aim], slipped: Callable[[], bool]) -> Iterator[Aim]:
    """These aims, until what is held is in the hand no more."""
    for aim in aims:
        if slipped():
            return
        yield aim


def rotation_left(now: Rotation, wanted: Rotation) -> Vector:
    """Axis times angle in radians from one rotation to another, in the world."""
    left = wanted @ now.T
    sine = np.array([left[2, 1] - left[1, 2], left[0, 2] - left[2, 0], left[1, 0] - left[0, 1]]) / 2
    length, cosine = float(np.linalg.norm(sine)), (np.trace(left) - 1) / 2
    return np.zeros(3) if length < 1e-9 else sine / length * np.arctan2(length, cosine)


def about(axis: Vector, angle: float) -> Rotation:
    """The rotation by an angle in radians about an axis of length 1."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
