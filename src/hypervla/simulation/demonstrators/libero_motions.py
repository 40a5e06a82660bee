"""What every primitive is made of: the hand goes somewhere, its fingers close, its fingers open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hypervla.simulation.demonstrators.aim import Aim, Pose, Rotation, Vector, about, go
from hypervla.simulation.demonstrators.libero_scene import Scene

NEAR, ALIGNED = 0.01, 0.05
"""Metres and radians: there."""
CLEARANCE = 0.04
"""Metres above everything on the way."""
BREADTH = 0.08
"""Metres from the middle of the open hand to what it can touch on its way."""
CLOSING, OPENING = 11, 15
"""Steps that fingers take at least."""
PATIENCE = 3
"""Steps in which a hand comes no nearer, after which it is where it can be."""
STILL = 0.0005
"""Metres that a finger moves in a step when it has met something."""

UP: Vector = np.array([0, 0, 1.0])
DOWN: Rotation = np.array([[0, 1.0, 0], [1.0, 0, 0], [0, 0, -1.0]])
"""A hand that points down with its fingers apart along y."""


def pointing(direction: Vector, tilt: float, turn: float = 0.0) -> Rotation:
    """A hand that points down, turned, and then tilted towards a horizontal direction: by a right angle, it points
    there."""
    axis = np.cross(np.array([0, 0, -1.0]), direction)
    return about(axis, tilt) @ about(UP, turn) @ DOWN


class Hand:
    """Moves the hand of a scene: each of these yields aims until the state says that it is over."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def go(
        self,
        pose: Callable[[], Pose],
        closed: bool,
        *,
        near: float = NEAR,
        limit: int = 25,
        over: Callable[[], bool] = lambda: False,
    ) -> Iterator[Aim]:
        """To a pose that may move, until it is there, or something else is over, or for so many steps."""
        return go(self.scene.hand, pose, closed, near=near, aligned=ALIGNED, limit=limit, over=over)

    def reach(self, pose: Callable[[], Pose], near: float, closed: bool = False, limit: int = 25) -> Iterator[Aim]:
        """To a pose, as near as the arm brings it: it does not overcome its own weight and friction for less than a
        centimetre, and a demonstration of waiting teaches to wait."""
        return go(self.scene.hand, pose, closed, near=near, aligned=ALIGNED, limit=limit, patience=PATIENCE)

    def travel(self, pose: Pose, closed: bool = False) -> Iterator[Aim]:
        """Above everything on the way to a pose, and down to it."""

        def on_the_way() -> Pose:
            hand = self.scene.hand().place
            top = self.scene.top_between(hand, pose.place, BREADTH) + CLEARANCE
            height = max(top, pose.place[2])
            if hand[2] < height - CLEARANCE / 2:
                return Pose(np.array([*hand[:2], height]), pose.rotation)
            return Pose(np.array([*pose.place[:2], height]), pose.rotation)

        def above() -> bool:
            return bool(np.linalg.norm((self.scene.hand().place - pose.place)[:2]) < 2 * NEAR)

        yield from self.go(on_the_way, closed, limit=50, over=above)
        yield from self.reach(lambda: pose, 2 * NEAR, closed)

    def grip(self, pose: Callable[[], Pose]) -> Iterator[Aim]:
        """Closes the fingers until they stand still."""
        before = None
        for step in range(25):
            fingers = self.scene.fingers()
            still = before is not None and float(np.abs(fingers - before).max()) < STILL
            if still and step >= CLOSING:
                return
            before = fingers
            yield Aim(pose(), True)

    def let_go(self, retreat: Vector) -> Iterator[Aim]:
        """Opens the fingers, and then moves away slowly."""
        rotation = self.scene.hand().rotation
        for step in range(2 * OPENING):
            yield Aim(Pose(self.scene.hand().place + (retreat if step > OPENING else 0.0), rotation), False)
