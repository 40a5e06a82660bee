"""How smoothly an arm was told to move: the log dimensionless jerk of its commanded velocity."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32

from hypervla.embodiment import Embodiment


def log_dimensionless_jerk(velocity: Float[np.ndarray, "T D"]) -> float | None:
    """-ln(T³ / v_peak² · ∫|d²v/dt²|² dt) of a movement from rest to rest: below 0, and smoother the nearer to it.

    `velocity` at equal intervals; at rest before the first and after the last. Neither how long nor how far the
    movement is matters, so neither do units of time and space. A minimum-jerk movement has -ln 204.8 = -5.32. None for
    what never moves. From Balasubramanian, Melendez-Calderon, Roby-Brami and Burdet, "On the analysis of movement
    smoothness", J. NeuroEng. Rehabil. 12:112, 2015.
    """
    peak = float(np.square(velocity).sum(1).max(initial=0.0))
    if peak == 0.0:
        return None
    jerk = np.diff(np.pad(velocity, ((1, 1), (0, 0))), n=2, axis=0)  # each times the square of the interval
    return -math.log(len(velocity) ** 3 * float(np.square(jerk).sum()) / peak)


def smoothness(actions: Float32[np.ndarray, "T A"], robot: Embodiment) -> float | None:
    """Log dimensionless jerk of the arm under these actions, each entry in shares of its range; the gripper left out.

    Actions that are steps or velocities are the velocity, of those that are places it is the difference. None where
    nothing moved, and for a robot of which nobody said what its actions mean.
    """
    if robot.action_kind == "unknown":
        return None
    arm = [entry for entry in range(robot.action_size) if robot.gripper is None or entry != robot.gripper.index]
    scale = np.subtract(robot.action_high, robot.action_low)[arm]
    commands = actions[:, arm].astype(np.float64) / scale
    return log_dimensionless_jerk(np.diff(commands, axis=0) if robot.action_kind.startswith("absolute") else commands)
