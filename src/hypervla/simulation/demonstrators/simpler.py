"""An expert for SIMPLER's WidowX tasks: picks the first thing up and puts it onto the second. It reads the simulator's
state, which no policy ever sees."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float32

from hypervla.simulation.demonstrators.aim import Aim, Pose, Rotation, Vector, held, rotation_left
from hypervla.simulation.demonstrators.aim import go as to
from hypervla.simulation.simpler import SimplerEnvironment

STEP, TURN = 0.05, 0.25
"""Metres and radians of one action at most: the embodiment's limits."""
LEAST_TURN = -3 * np.pi / 4
"""Radians that the hand turns by at least, to lie across something long. What lies at a right angle, as half of the
benchmark's things do, is always turned to in the same direction: demonstrations that go either way teach neither."""
HOVER, CARRYING = 0.08, 0.1
"""Metres above a grasp before it, and above the target on the way."""
LIFTING = 0.02
"""Metres of a step up: what is lifted faster slips."""
NEAR = 0.012
"""Metres: there."""
SLIPPED = 0.06
"""Metres from the hand at which a thing is not in it any more."""
CLOSING, LETTING_GO = 4, 12
"""Steps that fingers take to close; to open and to move away."""


class SimplerExpert:
    """Approaches, grasps, lifts, carries, lowers and lets go; a Demonstrator."""

    def __init__(self, environment: SimplerEnvironment) -> None:
        self.environment = environment
        self._episode = -1
        self._aims: Iterator[Aim] = iter(())

    def action(self) -> Float32[np.ndarray, "7"]:
        """The next action for the present state."""
        if self.environment.episode != self._episode:
            self._episode, self._aims = self.environment.episode, self._again_and_again()
        aim, hand = next(self._aims), self._hand()
        move = np.clip(aim.pose.place - hand.place, -STEP, STEP)
        turn = np.clip(rotation_left(hand.rotation, aim.pose.rotation), -TURN, TURN)
        # The robot looks against the world's x and y.
        way = np.array([-1.0, -1.0, 1.0])
        return np.array([*way * move, *way * turn, -1.0 if aim.closed else 1.0], np.float32)

    def _again_and_again(self) -> Iterator[Aim]:
        while True:
            yield from self._pick_and_place()

    def _pick_and_place(self) -> Iterator[Aim]:
        go = partial(to, self._hand, near=NEAR)

        def grasp(above: float = 0.0) -> Pose:
            return Pose(self._thing() + np.array([0, 0, above]), self._across())

        def over() -> Pose:
            """Where the hand is when the thing stands where it should."""
            return Pose(self._hand().place + self._goal() - self._thing(), self._straight())

        def high_over() -> Pose:
            place = over().place
            place[2] = max(self._hand().place[2], self._goal()[2] + CARRYING)
            return Pose(place, self._straight())

        def is_over() -> bool:
            return bool(np.linalg.norm((self._goal() - self._thing())[:2]) < NEAR)

        yield from go(lambda: grasp(HOVER), False, aligned=0.1, limit=60)
        yield from go(grasp, False, aligned=np.pi, limit=6)
        for _ in range(CLOSING):
            yield Aim(self._hand(), True)
        here = self._hand().place

        def high() -> Pose:
            """A step up, slowly."""
            top = min(self._hand().place[2] + LIFTING, self._goal()[2] + CARRYING)
            return Pose(np.array([*here[:2], top]), self._straight())

        carrying = [
            go(high, True, aligned=np.pi, limit=12),
            go(high_over, True, aligned=np.pi, limit=30, over=is_over),
            go(over, True, aligned=np.pi, limit=7),
        ]
        yield from held(chain(*carrying), self._slipped)
        if not self._slipped():
            for step in range(LETTING_GO):
                hand = self._hand()
                yield Aim(Pose(hand.place + np.array([0, 0, 0.03 if step > 1 else 0]), hand.rotation), False)

    def _slipped(self) -> bool:
        return bool(np.linalg.norm(self._thing() - self._hand().place) > SLIPPED)

    # Geometry

    def _hand(self) -> Pose:
        """Between the tips of the fingers."""
        link = self.environment.simulator.agent.robot.links_map["ee_gripper_link"]
        return Pose(_numbers(link.pose.p), _numbers(link.pose.to_transformation_matrix())[:3, :3])

    def _thing(self) -> Vector:
        return _numbers(self._source.pose.p)

    def _goal(self) -> Vector:
        """Where the middle of the thing comes to stand."""
        simulator = self.environment.simulator
        target = simulator.objs[simulator.target_obj_name]
        sides = simulator.episode_model_bbox_sizes
        heights = [float(sides[name][2]) for name in (simulator.source_obj_name, simulator.target_obj_name)]
        return _numbers(target.pose.p) + np.array([0, 0, sum(heights) / 2 + 0.01])

    def _across(self) -> Rotation:
        """The hand turned until its fingers are across the thing's longer side."""
        simulator = self.environment.simulator
        sides = simulator.episode_model_bbox_sizes[simulator.source_obj_name].cpu().numpy()
        axes = self._source.pose.to_transformation_matrix()[0, :3, :3].cpu().numpy() * sides
        flat = np.linalg.norm(axes[:2], axis=0)
        long = axes[:2, int(flat.argmax())]
        square = np.ptp(np.sort(flat)[-2:]) < 0.005
        least, period = (-np.pi / 4, np.pi / 2) if square else (LEAST_TURN, np.pi)
        angle = np.arctan2(long[0], -long[1]) - self._turned()
        return self._straight(least + (angle - least) % period)

    def _straight(self, turn: float = 0.0) -> Rotation:
        """The hand pointing straight down, turned about the vertical by so many radians from how it is now."""
        angle = self._turned() + turn
        down, apart = np.array([0, 0, -1.0]), np.array([np.cos(angle), np.sin(angle), 0])
        return np.stack([down, apart, np.cross(down, apart)], axis=1)

    def _turned(self) -> float:
        """Where the line between the fingers, the hand's own y, points in the world's x and y."""
        apart = self._hand().rotation[:, 1]
        return float(np.arctan2(apart[1], apart[0]))

    @property
    def _source(self) -> Any:
        simulator = self.environment.simulator
        return simulator.objs[simulator.source_obj_name]


def _numbers(tensor: Any) -> np.ndarray:
    return tensor[0].cpu().numpy().astype(np.float64)
