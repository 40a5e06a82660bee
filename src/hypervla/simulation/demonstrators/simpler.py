"""An expert for SIMPLER's WidowX tasks: picks the first thing up and puts it onto the second. It reads the simulator's
state, which no policy ever sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

from hypervla.simulation.demonstrators.aim import Aim, Vector
from hypervla.simulation.simpler import SimplerEnvironment

STEP, TURN = 0.05, 0.25
"""Metres and radians of one action at most: the embodiment's limits."""
HOVER, CARRYING = 0.08, 0.1
"""Metres above a grasp before it, and above the target on the way."""
NEAR = 0.012
"""Metres: there."""
SLIPPED = 0.06
"""Metres from the hand at which a thing is not in it any more."""
CLOSING = 3
"""Steps that fingers take."""


class SimplerExpert:
    """Approaches, grasps, lifts, carries, lowers and lets go; a Demonstrator."""

    def __init__(self, environment: SimplerEnvironment) -> None:
        self.environment = environment
        self._episode, self._steps = -1, 0
        self._phase: Callable[[], Aim] = self._approach

    def action(self) -> Float32[np.ndarray, "7"]:
        """The next action for the present state."""
        if self.environment.episode != self._episode:
            self._episode, self._phase, self._steps = self.environment.episode, self._approach, 0
        if self._phase in (self._carry, self._lower) and np.linalg.norm(self._thing() - self._hand()) > SLIPPED:
            self._phase, self._steps = self._approach, 0
        aim = self._phase()
        self._steps += 1
        if aim.over:
            order = [self._approach, self._descend, self._close, self._lift, self._carry, self._lower, self._release]
            self._phase, self._steps = order[min(order.index(self._phase) + 1, len(order) - 1)], 0
        move = np.clip(aim.place - self._hand(), -STEP, STEP)
        turn = np.clip(self._turn_left(), -TURN, TURN)
        # The robot looks against the world's x and y.
        return np.array([-move[0], -move[1], move[2], 0, 0, turn, -1.0 if aim.closed else 1.0], np.float32)

    def _approach(self) -> Aim:
        place = self._thing() + np.array([0, 0, HOVER])
        return Aim(place, False, self._there(place) and abs(self._turn_left()) < 0.1)

    def _descend(self) -> Aim:
        return Aim(self._thing(), False, self._there(self._thing()) or self._steps > 5)

    def _close(self) -> Aim:
        return Aim(self._hand(), True, self._steps >= CLOSING)

    def _lift(self) -> Aim:
        hand = self._hand()
        place = np.array([*hand[:2], self._goal()[2] + CARRYING])
        return Aim(place, True, hand[2] > place[2] - NEAR or self._steps > 6)

    def _carry(self) -> Aim:
        place = self._hand() + self._goal() - self._thing()
        place[2] = max(self._hand()[2], self._goal()[2] + CARRYING)
        return Aim(place, True, bool(np.linalg.norm((place - self._hand())[:2]) < NEAR))

    def _lower(self) -> Aim:
        place = self._hand() + self._goal() - self._thing()
        return Aim(place, True, self._there(place) or self._steps > 6)

    def _release(self) -> Aim:
        return Aim(self._hand() + np.array([0, 0, 0.03 if self._steps > 1 else 0]), False, False)

    # Geometry

    def _hand(self) -> Vector:
        """Between the tips of the fingers."""
        agent = self.environment.simulator.agent
        return _numbers(agent.robot.links_map["ee_gripper_link"].pose.p)

    def _thing(self) -> Vector:
        return _numbers(self._source.pose.p)

    def _goal(self) -> Vector:
        """Where the middle of the thing comes to stand."""
        simulator = self.environment.simulator
        target = simulator.objs[simulator.target_obj_name]
        sides = simulator.episode_model_bbox_sizes
        heights = [float(sides[name][2]) for name in (simulator.source_obj_name, simulator.target_obj_name)]
        return _numbers(target.pose.p) + np.array([0, 0, sum(heights) / 2 + 0.01])

    def _turn_left(self) -> float:
        """Radians to turn about the vertical until the fingers are across the thing's longer side."""
        agent = self.environment.simulator.agent
        apart = _numbers(agent.finger1_link.pose.p) - _numbers(agent.finger2_link.pose.p)
        simulator = self.environment.simulator
        sides = simulator.episode_model_bbox_sizes[simulator.source_obj_name].cpu().numpy()
        axes = self._source.pose.to_transformation_matrix()[0, :3, :3].cpu().numpy() * sides
        flat = np.linalg.norm(axes[:2], axis=0)
        long = axes[:2, int(flat.argmax())]
        across = np.array([-long[1], long[0]])
        angle = np.arctan2(across[1], across[0]) - np.arctan2(apart[1], apart[0])
        period = np.pi / 2 if np.ptp(np.sort(flat)[-2:]) < 0.005 else np.pi
        return float((angle + period / 2) % period - period / 2)

    def _there(self, place: Vector) -> bool:
        return bool(np.linalg.norm(place - self._hand()) < NEAR)

    @property
    def _source(self) -> Any:
        simulator = self.environment.simulator
        return simulator.objs[simulator.source_obj_name]


def _numbers(tensor: Any) -> Vector:
    return tensor[0].cpu().numpy().astype(np.float64)
