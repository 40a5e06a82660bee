"""An expert for LIBERO's tasks of picking a thing up and putting it somewhere. It reads the simulator's state, which no
policy ever sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from hypervla.contracts import UserError
from hypervla.simulation.demonstrators.aim import Aim, Vector
from hypervla.simulation.demonstrators.libero_scene import Scene
from hypervla.simulation.libero import LiberoEnvironment

STEP, TURN = 0.05, 0.5
"""Metres and radians that an action of 1 asks for."""
GAIN = 0.6
"""Share of what is left that one action goes."""
NEAR = 0.01
"""Metres: there."""
OPENING = 0.074
"""Metres that the fingers can reach around."""
FINGER = 0.05
"""Metres from the middle of the hand to a finger of the open gripper."""
PALM, PALM_HEIGHT = 0.1, 0.07
"""Metres from the middle of the hand to its broad sides, and from where fingers close up to them."""
HOVER, CLEARANCE = 0.1, 0.04
"""Metres above a grasp before it, and above everything on the way."""
SLIPPED = 0.06
"""Metres from the hand at which a thing is not in it any more."""
CLOSING, LETTING_GO = 10, 15
"""Steps that fingers take at least."""
STILL = 0.0005
"""Metres that a finger moves in a step when it has met something."""
RIM = {"akita_black_bowl": 0.045}
"""Metres from the middle of a bowl to where its rim is grasped, by kind."""


@dataclass(frozen=True)
class Grasp:
    """Where the hand closes: an offset from the thing's place, and whether it is turned by a quarter."""

    offset: Vector
    turned: bool


class LiberoExpert:
    """Approaches, grasps, lifts, carries and lets go; a Demonstrator. Where it is in that follows from the state."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        """Raises UserError for a task that asks for something else."""
        self.environment, self.scene = environment, Scene(environment)
        goals = self.scene.goals
        if not all(len(goal) == 3 and goal[0] in ("in", "on") for goal in goals):
            raise UserError(f"There is no expert for LIBERO's task '{environment.task}': it asks for {goals}.")
        _, self.thing, self.target = goals[0]
        self._grasp: Grasp | None = None
        self._phase: Callable[[], Aim] = self._approach
        self._steps = 0
        self._fingers: Float32[np.ndarray, "2"] | None = None
        self._episode = -1

    def action(self) -> Float32[np.ndarray, "7"]:
        """The next action for the present state."""
        if self.environment.episode != self._episode:
            self._begin()
        if self._holding() and self._lost():
            self._begin()
        aim = self._phase()
        self._steps += 1
        if aim.over:
            self._next()
        assert self._grasp is not None
        hand, rotation = self.scene.hand()
        move = np.clip((aim.place - hand) * GAIN / STEP, -1, 1)
        turn = np.clip(_towards(rotation, self._grasp.turned) * GAIN / TURN, -1, 1)
        return np.array([*move, *turn, 1.0 if aim.closed else -1.0], np.float32)

    def _begin(self) -> None:
        """With the first goal that is not reached yet."""
        self._episode, self.scene = self.environment.episode, Scene(self.environment)
        left = [goal for goal in self.scene.goals if not self.scene.holds(goal)] or self.scene.goals[-1:]
        _, self.thing, self.target = left[0]
        self._grasp, self._phase, self._steps = self._choose(), self._approach, 0

    def _next(self) -> None:
        order = [self._approach, self._descend, self._close, self._lift, self._carry, self._lower, self._release]
        after = order.index(self._phase) + 1
        if after == len(order):
            self._begin()
        else:
            self._phase, self._steps = order[after], 0

    def _holding(self) -> bool:
        return self._phase in (self._lift, self._carry, self._lower)

    def _lost(self) -> bool:
        """Whether the thing is no longer where it was grasped."""
        return float(np.linalg.norm(self._grasping() - self.scene.hand()[0])) > SLIPPED

    # Phases

    def _approach(self) -> Aim:
        place = self._grasping() + np.array([0, 0, HOVER])
        return Aim(place, False, (self._there(place, 2 * NEAR) and self._aligned()) or self._steps > 50)

    def _descend(self) -> Aim:
        place = self._grasping()
        return Aim(place, False, self._there(place, NEAR / 2) or self._steps > 25)

    def _close(self) -> Aim:
        before, self._fingers = self._fingers, self.environment.proprio()[-2:]
        still = before is not None and float(np.abs(self._fingers - before).max()) < STILL
        return Aim(self._grasping(), True, (still and self._steps >= CLOSING) or self._steps > 25)

    def _lift(self) -> Aim:
        hand, _ = self.scene.hand()
        place = np.array([hand[0], hand[1], self._carrying_height()])
        return Aim(place, True, self._there(place, 2 * NEAR) or self._steps > 40)

    def _carry(self) -> Aim:
        place = self._over_target()
        hand, _ = self.scene.hand()
        above = float(np.linalg.norm((place - hand)[:2])) < NEAR
        place[2] = self._carrying_height()
        return Aim(place, True, above)

    def _lower(self) -> Aim:
        place = self._over_target()
        return Aim(place, True, self._there(place, NEAR) or self._steps > 25)

    def _release(self) -> Aim:
        hand, _ = self.scene.hand()
        rise = np.array([0, 0, 0.02 if self._steps > LETTING_GO else 0])
        return Aim(hand + rise, False, self._steps > 2 * LETTING_GO)

    # Geometry

    def _choose(self) -> Grasp:
        return max(self._around_the_rim() or self._across(), key=self._worth)

    def _around_the_rim(self) -> list[Grasp]:
        """Four places on a bowl's rim."""
        reach = RIM.get(self.thing.rsplit("_", 1)[0])
        if reach is None:
            return []
        depth = self._depth(0.03)
        sides = [(np.array([0, side * reach, depth]), False) for side in (1, -1)]
        sides += [(np.array([side * reach, 0, depth]), True) for side in (1, -1)]
        return [Grasp(offset, turned) for offset, turned in sides]

    def _across(self) -> list[Grasp]:
        """From above, across whichever side fits between the fingers, in the middle and beside it."""
        box, at = self.scene.box(self.thing), self.scene.at(self.thing)
        size, centre = box.high - box.low, np.array([*(box.middle - at)[:2], self._depth(0.05)])
        fitting = [turned for turned in (False, True) if size[0 if turned else 1] < OPENING] or [size[0] < size[1]]
        grasps = []
        for turned in fitting:
            across = np.array([0, 1.0, 0]) if turned else np.array([1.0, 0, 0])
            reach = max(0.0, float(size @ across) / 2 - 0.02)
            grasps += [Grasp(centre + share * reach * across, turned) for share in (0.0, 0.5, -0.5, 1.0, -1.0)]
        return grasps

    def _depth(self, below: float) -> float:
        """How high above a thing's origin the fingers close: so far below its top, and not on what it stands on."""
        box = self.scene.box(self.thing)
        return float(max(box.low[2] + 0.012, box.high[2] - below) - self.scene.at(self.thing)[2])

    def _worth(self, grasp: Grasp) -> tuple[float, bool, float]:
        """Larger is better: touching nothing, then not turned, since the arm reaches less far with that, then room."""
        room = self._room(grasp)
        return min(room, 0.0), not grasp.turned, room

    def _room(self, grasp: Grasp) -> float:
        """Metres between the open hand above this grasp and the nearest other thing, up to what is enough."""
        place = self.scene.at(self.thing) + grasp.offset
        along = np.array([1.0, 0, 0]) if grasp.turned else np.array([0, 1.0, 0])
        points = [(place + side * FINGER * along, 0.01) for side in (1, -1)]
        points += [(place + side * PALM * along + np.array([0, 0, PALM_HEIGHT]), 0.03) for side in (1, 0.5, -0.5, -1)]
        others = [name for name in self.scene.things if name != self.thing]
        return min([0.02, *(self.scene.distance(name, point) - size for name in others for point, size in points)])

    def _grasping(self) -> Vector:
        assert self._grasp is not None
        return self.scene.at(self.thing) + self._grasp.offset

    def _over_target(self) -> Vector:
        """Where the hand is when the thing stands where it should."""
        hand, _ = self.scene.hand()
        box, goal = self.scene.box(self.thing), self.scene.place(self.target)
        at = self.scene.at(self.thing)
        return hand + np.array([*(goal - at)[:2], goal[2] + 0.01 - box.low[2]])

    def _carrying_height(self) -> float:
        """High enough for the thing to pass over all others."""
        hand, _ = self.scene.hand()
        hanging = hand[2] - self.scene.box(self.thing).low[2]
        tops = [self.scene.box(name).high[2] for name in self.scene.things if name != self.thing]
        top = min(max(tops), self.scene.place(self.target)[2] + 0.25)
        return float(max(top, self.scene.place(self.target)[2]) + hanging + CLEARANCE)

    def _there(self, place: Vector, distance: float) -> bool:
        hand, _ = self.scene.hand()
        return bool(np.linalg.norm(place - hand) < distance)

    def _aligned(self) -> bool:
        assert self._grasp is not None
        _, rotation = self.scene.hand()
        return bool(np.linalg.norm(_towards(rotation, self._grasp.turned)) < 0.05)


def _towards(rotation: Float64[np.ndarray, "3 3"], turned: bool) -> Vector:
    """Axis times angle that is left to a hand that points straight down, with its fingers apart along y, or x."""
    wanted = np.diag([-1.0, 1.0, -1.0]) if turned else np.array([[0, 1.0, 0], [1.0, 0, 0], [0, 0, -1.0]])
    left = wanted @ rotation.T
    sine = np.array([left[2, 1] - left[1, 2], left[0, 2] - left[2, 0], left[1, 0] - left[0, 1]]) / 2
    length, cosine = float(np.linalg.norm(sine)), (np.trace(left) - 1) / 2
    return np.zeros(3) if length < 1e-9 else sine / length * np.arctan2(length, cosine)
