"""What LIBERO's tasks are made of: one thing picked up and put down, a drawer pulled, a door shut, a knob turned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np

from hypervla.simulation.demonstrators.aim import Aim, Pose, Vector, about, held
from hypervla.simulation.demonstrators.libero_grasps import HANDLE, choose
from hypervla.simulation.demonstrators.libero_motions import CLEARANCE, DOWN, NEAR, UP, Hand, pointing
from hypervla.simulation.demonstrators.libero_scene import Scene

HOVER = 0.1
"""Metres before a grasp."""
SLIPPED = 0.06
"""Metres from the hand at which a thing is not in it any more."""
PUSHING = 0.06
"""Metres that a push asks for in a step."""
AHEAD = 0.05
"""Metres that a hand at a drawer or a door asks for beyond where it is."""
TURNING = 1.2
"""Radians that a knob is turned at most."""
FINGERTIP = 0.012
"""Metres from where the fingers close to the end and the outer side of a finger."""
RISE = np.array([0, 0, 0.02])
"""Metres a step: slowly away from what was let go."""


@runtime_checkable
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

        def grasping(before: float = 0.0) -> Pose:
            return grasp.pose(scene.at(thing), before)

        def over(height: float | None = None) -> Pose:
            """Where the hand is when the thing stands where it should, or so high above."""
            place = scene.hand().place + scene.place(self.target, thing) - scene.at(thing)
            place[2] += 0.01 + scene.at(thing)[2] - scene.box(thing).low[2]
            return Pose(place if height is None else np.array([*place[:2], height]), grasp.rotation)

        def is_over() -> bool:
            return bool(np.linalg.norm((scene.place(self.target, thing) - scene.at(thing))[:2]) < NEAR)

        yield from hand.travel(grasping(HOVER))
        yield from hand.reach(grasping, NEAR / 2)
        yield from hand.grip(grasping)
        height = self._carrying_height(scene)
        free = scene.hand().place + scene.way_from_under(thing)
        aside, here = (Pose(np.array([*free[:2], z]), grasp.rotation) for z in (free[2] + 0.02, height))
        carrying = [
            hand.go(lambda: aside, True, near=2 * NEAR),
            hand.go(lambda: here, True, near=2 * NEAR, limit=40),
            hand.go(lambda: over(height), True, limit=100, over=is_over),
            hand.go(over, True),
        ]

        def slipped() -> bool:
            return bool(np.linalg.norm(grasping().place - scene.hand().place) > SLIPPED)

        yield from held(chain(*carrying), slipped)
        if not slipped():
            yield from hand.let_go(RISE)

    def _carrying_height(self, scene: Scene) -> float:
        """High enough for the thing to pass over all others on its way."""
        box, goal = scene.box(self.thing), scene.place(self.target, self.thing)
        breadth = float(np.linalg.norm((box.high - box.low)[:2])) / 2
        top = max(scene.top_between(scene.at(self.thing), goal, breadth, self.thing), goal[2])
        return float(top + scene.hand().place[2] - box.low[2] + CLEARANCE)


@dataclass(frozen=True)
class Insert:
    """Takes a thing by its handle from the side and slides it into a region that is open to that side only."""

    thing: str
    target: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene, thing = hand.scene, self.thing
        along, height = HANDLE[thing.rsplit("_", 1)[0]]
        into = -scene.rotation(thing)[:, 0]
        rotation = pointing(into, np.pi / 4, np.pi / 2)

        def handle(before: float = 0.0) -> Pose:
            place = scene.at(thing) - along * into + height * UP - before * rotation[:, 2]
            return Pose(place, rotation)

        def inside(before: float) -> Pose:
            """Where the hand is when the thing is so far before its place in the region."""
            place = scene.hand().place + scene.place_inside(self.target) - before * into - scene.at(thing)
            return Pose(place, rotation)

        yield from hand.travel(handle(HOVER))
        yield from hand.reach(handle, NEAR / 2)
        yield from hand.grip(handle)
        start = scene.hand().place
        lifted = Pose(np.array([*start[:2], start[2] + 0.1]), rotation)
        carrying = [
            hand.go(lambda: lifted, True, near=2 * NEAR),
            hand.go(lambda: inside(0.2), True, limit=60),
            hand.go(lambda: inside(0.0), True, limit=60),
        ]

        def slipped() -> bool:
            return bool(np.linalg.norm(handle().place - scene.hand().place) > SLIPPED)

        yield from held(chain(*carrying), slipped)
        yield from hand.let_go(-0.02 * into)


@dataclass(frozen=True)
class Pull:
    """Opens a drawer by its handle."""

    drawer: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene
        out = scene.joint(self.drawer).opening
        rotation = pointing(-out, np.pi / 2)

        def handle(before: float = 0.0) -> Pose:
            return Pose(scene.handle(self.drawer).middle + before * out, rotation)

        yield from hand.travel(handle(HOVER))
        yield from hand.reach(handle, NEAR / 2, limit=40)
        yield from hand.grip(handle)
        yield from hand.go(lambda: handle(AHEAD), True, limit=60, over=lambda: scene.holds(["open", self.drawer]))
        yield from hand.let_go(0.02 * out)


@dataclass(frozen=True)
class Shut:
    """Pushes a drawer or a door shut with closed fingers."""

    name: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene
        front = self._door if scene.joint(self.name).hinge else self._drawer

        def shut() -> bool:
            return scene.holds(["close", self.name])

        yield from hand.travel(front(scene, HOVER), closed=True)
        yield from hand.go(lambda: front(scene, -AHEAD), True, limit=120, over=shut)
        yield from hand.go(lambda: front(scene, HOVER), True)

    def _drawer(self, scene: Scene, before: float) -> Pose:
        out = scene.joint(self.name).opening
        return Pose(scene.handle(self.name).middle + before * out, pointing(-out, np.pi / 4, np.pi / 2))

    def _door(self, scene: Scene, before: float) -> Pose:
        """Outside of the door, nearer to its free edge than to its hinge."""
        joint, panel = scene.joint(self.name), scene.panel(self.name)
        arm = (panel.centre - joint.anchor) * [1, 1, 0]
        out = np.cross(joint.opening, arm / np.linalg.norm(arm))
        place = joint.anchor + 1.5 * arm + (panel.thickness / 2 + FINGERTIP + before) * out
        return Pose(np.array([*place[:2], panel.top - 0.04]), DOWN)


@dataclass(frozen=True)
class TurnKnob:
    """Takes a knob from above and turns it."""

    fixture: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene = hand.scene
        joint, knob = scene.joint(self.fixture), scene.knob(self.fixture)
        place = np.array([*joint.anchor[:2], knob.top - 0.02])
        rotation = about(UP, knob.angle) @ DOWN
        before, around = Pose(place, rotation), Pose(place, about(UP, TURNING) @ rotation)

        yield from hand.travel(Pose(place + HOVER * UP, rotation))
        yield from hand.reach(lambda: before, NEAR / 2)
        yield from hand.grip(lambda: before)
        yield from hand.go(lambda: around, True, limit=60, over=lambda: scene.holds(["turnon", self.fixture]))
        yield from hand.let_go(RISE)


@dataclass(frozen=True)
class Push:
    """Slides a plate along the table by its rim."""

    thing: str
    target: str

    def aims(self, hand: Hand) -> Iterator[Aim]:
        scene, thing = hand.scene, self.thing
        grasp = choose(scene, thing, self.target)

        def rim(before: float = 0.0) -> Pose:
            return grasp.pose(scene.at(thing), before)

        def pushed(end: Vector) -> Pose:
            """A step further towards a place."""
            left = (end - scene.at(thing)) * [1, 1, 0]
            return Pose(rim().place + left * PUSHING / max(PUSHING, float(np.linalg.norm(left))), grasp.rotation)

        def is_at(end: Vector) -> bool:
            return bool(np.linalg.norm((end - scene.at(thing))[:2]) < NEAR)

        yield from hand.travel(rim(HOVER))
        yield from hand.reach(rim, NEAR / 2)
        yield from hand.grip(rim)
        for end in self._legs(scene):
            yield from hand.go(partial(pushed, end), True, near=0.0, limit=80, over=partial(is_at, end))
        yield from hand.let_go(RISE)

    def _legs(self, scene: Scene) -> tuple[Vector, Vector]:
        """Two places to slide to: past what lies before the region, on to its far part, and then sideways."""
        start, centre = scene.at(self.thing), scene.place(self.target, self.thing)
        way = (centre - start) * [1, 1, 0]
        ahead = np.eye(3)[np.abs(way).argmax()]
        end = centre + 0.6 * scene.half_size(self.target) * np.sign(way) * ahead
        return np.where(ahead, end, start), end
