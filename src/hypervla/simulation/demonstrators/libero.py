"""An expert for LIBERO's tasks. It reads the simulator's state, which no policy ever sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from hypervla.simulation.demonstrators.aim import Aim, rotation_left
from hypervla.simulation.demonstrators.libero_motions import Hand
from hypervla.simulation.demonstrators.libero_primitives import (
    Insert,
    PickAndPlace,
    Primitive,
    Pull,
    Push,
    Rest,
    Shut,
    TurnKnob,
)
from hypervla.simulation.demonstrators.libero_scene import Scene
from hypervla.simulation.libero import LiberoEnvironment

STEP, TURN = 0.05, 0.5
"""Metres and radians that an action of 1 asks for."""
GAIN = 0.6
"""Share of what is left that one action goes."""
ORDER = ("open", "turnon", "in", "on", "close")
"""What is done first: a door that things go behind is closed after them."""


class LiberoExpert:
    """Does what the task's goal asks for, one primitive after another; a Demonstrator."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        self.environment, self.scene = environment, Scene(environment)
        self._aims: Iterator[Aim] = iter(())
        self._episode = -1

    def action(self) -> Float32[np.ndarray, "7"]:
        """The next action for the present state."""
        if self.environment.episode != self._episode:
            self._episode, self._aims = self.environment.episode, iter(())
        aim = next(self._aims, None)
        while aim is None:
            self._aims = next_primitive(self.scene).aims(Hand(self.scene))
            aim = next(self._aims, None)
        hand = self.scene.hand()
        move = np.clip((aim.pose.place - hand.place) * GAIN / STEP, -1, 1)
        turn = np.clip(rotation_left(hand.rotation, aim.pose.rotation) * GAIN / TURN, -1, 1)
        return np.array([*move, *turn, 1.0 if aim.closed else -1.0], np.float32)


def next_primitive(scene: Scene) -> Primitive:
    """What to do now towards the goals that are not reached yet."""
    left = sorted((goal for goal in scene.goals if not scene.holds(goal)), key=lambda goal: ORDER.index(goal[0]))
    if not left:
        return Rest()
    kind, *names = left[0]
    if kind in ("in", "on"):
        thing, target = names
        if scene.task.startswith("push"):
            return Push(thing, target)
        if scene.is_shut(target):
            return Pull(target)
        return Insert(thing, target) if scene.is_enclosed(target) else PickAndPlace(thing, target)
    return {"open": Pull, "close": Shut, "turnon": TurnKnob}[kind](names[0])
