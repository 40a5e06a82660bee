"""What LIBERO's tasks are made of: one thing picked up and put down, a drawer pulled, a door shut, a knob turned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hypervla.simulation.demonstrators.aim import Aim, Pose, Rotation, Vector, about
from hypervla.simulation.demonstrators.libero_grasps import choose
from hypervla.simulation.demonstrators.libero_motions import CLEARANCE, DOWN, DOWN_TURNED, NEAR, Hand
from hypervla.simulation.demonstrators.libero_scene import Scene

HOVER = 0.1
"""Metres before a grasp."""
SLIPPED = 0.06
"""Metres from the hand at which a thing is not in it any more."""
INSIDE = -0.004
"""Metres above a plate's origin to where fingers push it along by its rim."""
UP = np.array([0, 0, 1.0])
RISE = np.array([0, 0, 0.02])
"""Metres a step: slowly away from what was let go."""


class Primitive(Protocol):
    """Yields what the hand should do until it is over, or has failed: then the state says what is next."""

    def aims(self, hand: Hand) -> Iterator[Aim]: ...


@dataclass(frozen=True)
class Rest:
    """Stays where it is."""

    def aims(self, hand: Hand) -> Iterator[Aim]:
        while True:
            yield Aim(hand.scene.hand(), False)


@dataclass(frozen=True)
class PickAndPlace:
    """Picks a thing up from above and puts it down on another, or into a region."""

    thing: str
    target: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene, thing = hand.scene, self.thing
        grasp = choose(scene, thing, self.target)

        def grasping(above: float = 0.0) -> Pose:
            return Pose(scene.at(thing) + grasp.offset + above * UP, grasp.rotation)

        def over(height: float | None = None) -> Pose:
            """Where the hand is when the thing stands where it should, or so high above."""
            place = scene.hand().place + scene.place(self.target) - scene.at(thing)
            place[2] += 0.01 + scene.at(thing)[2] - scene.box(thing).low[2]
            return Pose(place if height is None else np.array([*place[:2], height]), grasp.rotation)

        yield from hand.travel(grasping(HOVER))
        yield from hand.go(grasping, False, near=NEAR / 2)
        yield from hand.grip(grasping)
        height = self._carrying_height(scene)
        here = Pose(np.array([*scene.hand().place[:2], height]), grasp.rotation)
        carrying = [
            hand.go(lambda: here, True, near=2 * NEAR, limit=40),
            hand.go(lambda: over(height), True, limit=200),
            hand.go(over, True),
        ]
        for motion in carrying:
            for aim in motion:
                if np.linalg.norm(grasping().place - scene.hand().place) > SLIPPED:
                    return
                yield aim
        yield from hand.let_go(RISE)

    def _carrying_height(self, scene: Scene) -> float:
        """High enough for the thing to pass over all others on its way."""
        box, goal = scene.box(self.thing), scene.place(self.target)
        breadth = float(np.linalg.norm((box.high - box.low)[:2])) / 2
        top = max(scene.top_between(scene.at(self.thing), goal, breadth, self.thing), goal[2])
        return float(top + scene.hand().place[2] - box.low[2] + CLEARANCE)


@dataclass(frozen=True)
class Insert:
    """Takes a thing by its handle from the side and slides it into a region that is open to that side only."""

    thing: str
    target: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        raise NotImplementedError


@dataclass(frozen=True)
class Pull:
    """Opens a drawer by its handle."""

    drawer: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene
        out = scene.joint(self.drawer).opening
        rotation = _pointing(-out)

        def handle(before: float = 0.0) -> Pose:
            return Pose(scene.handle(self.drawer).middle + before * out, rotation)

        yield from hand.travel(handle(HOVER))
        yield from hand.go(handle, False, near=NEAR / 2, limit=40)
        yield from hand.grip(handle)
        yield from hand.go(lambda: handle(0.05), True, limit=60, over=lambda: scene.joint(self.drawer).is_at_end)
        yield from hand.let_go(0.02 * out)


@dataclass(frozen=True)
class Shut:
    """Pushes a drawer or a door shut."""

    name: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene
        joint = scene.joint(self.name)
        if joint.hinge:
            raise NotImplementedError
        out = joint.opening
        rotation = _pointing(-out)

        def front(before: float) -> Pose:
            return Pose(scene.handle(self.name).middle + before * out, rotation)

        yield from hand.travel(front(HOVER), True)
        yield from hand.go(lambda: front(-0.04), True, limit=80, over=lambda: scene.holds(["close", self.name]))
        yield from hand.let_go(0.02 * out)


@dataclass(frozen=True)
class TurnKnob:
    """Takes a knob from above and turns it."""

    fixture: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene
        joint, knob = scene.joint(self.fixture), scene.knob(self.fixture)
        place = np.array([*joint.anchor[:2], knob.top - 0.02])
        rotation = about(UP, knob.angle) @ DOWN

        def turned() -> Pose:
            return Pose(place, about(UP, 1.2) @ rotation)

        yield from hand.travel(Pose(place + HOVER * UP, rotation))
        yield from hand.go(lambda: Pose(place, rotation), False, near=NEAR / 2)
        yield from hand.grip(lambda: Pose(place, rotation))
        yield from hand.go(turned, True, limit=60, over=lambda: scene.holds(["turnon", self.fixture]))
        yield from hand.let_go(RISE)


@dataclass(frozen=True)
class Push:
    """Pushes a thing along the table with closed fingers."""

    thing: str
    target: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene

        def inside(above: float, ahead: float) -> Pose:
            """Above the thing, or so far ahead of its middle on its way."""
            way = (scene.place(self.target) - scene.at(self.thing))[:2]
            ahead = ahead * way / np.linalg.norm(way)
            return Pose(scene.at(self.thing) + np.array([*ahead, above]), DOWN_TURNED)

        def slipped() -> bool:
            return bool(np.linalg.norm((scene.hand().place - scene.at(self.thing))[:2]) > 0.07)

        yield from hand.travel(inside(HOVER, 0.0), True)
        yield from hand.go(lambda: inside(INSIDE, 0.03), True)
        yield from hand.go(lambda: inside(INSIDE, 0.1), True, limit=150, over=slipped)


def _pointing(direction: Vector) -> Rotation:
    """A hand that points sideways with its fingers one above the other: one that points down, tilted."""
    axis = np.cross(np.array([0, 0, -1.0]), direction)
    return about(axis, np.pi / 2) @ DOWN
