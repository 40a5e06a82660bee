"""Metaworld's scripted experts as demonstrators. They read the simulator's state, which no policy ever sees."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from hypervla.simulation.metaworld import MetaworldEnvironment

GENTLE = {"peg-unplug-side-v3": 0.9, "pick-out-of-hole-v3": 0.5}
"""Tasks whose experts grip with a sixth of our force and so begin on the way down; with the fingers' opening, of 1,
below which they have closed around the thing."""


class ScriptedExpert:
    """The expert that ships with Metaworld for this environment's task, its gripper command made open or closed."""

    def __init__(self, environment: MetaworldEnvironment) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self.environment = environment
        self._policy = ENV_POLICY_MAP[environment.task]()

    def action(self) -> Float32[np.ndarray, "4"]:
        """The expert's action for the present state, inside the robot's limits."""
        embodiment = self.environment.embodiment
        gripper = embodiment.gripper
        assert gripper is not None
        action = np.clip(self._policy.get_action(self.environment.full_state()), -1.0, 1.0).astype(np.float32)
        closing = bool(action[gripper.index] > 0)
        if closing and self.environment.proprio()[3] > GENTLE.get(self.environment.task, 1.0):
            descending = bool(action[2] < -0.1)
            closing = not descending
            action *= descending  # at the bottom it waits for the fingers
        action[gripper.index] = gripper.closed if closing else gripper.open
        return action


def make(task: str, goal_visible: bool = True) -> tuple[MetaworldEnvironment, ScriptedExpert]:
    """An environment for the task and the expert that solves it."""
    environment = MetaworldEnvironment(task, goal_visible)
    return environment, ScriptedExpert(environment)
