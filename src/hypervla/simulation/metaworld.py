"""Metaworld 3.1.1 as an Environment: Sawyer tasks with natural-language instructions, rendered in software.

Camera, flips and fast rendering follow the simulator notes of the project: camera `corner2` moved to LeRobot's place,
image turned by 180 degrees, no multisampling, shadows or reflections (about fifteen times faster, docs/log.md).
"""

from __future__ import annotations

import os
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import ActionChunk, Observation, Outcome, Situation, UserError, unknown
from hypervla.embodiment import METAWORLD_SAWYER
from hypervla.simulation.movables import Movables
from hypervla.simulation.renderers import Renderers

CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)


@dataclass(frozen=True)
class TaskInstructions:
    """Ways to ask for one task: those a recording may use, the first canonical, and those kept for testing."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@cache
def tasks() -> Mapping[str, TaskInstructions]:
    """Every task with instructions (metaworld.toml), by Metaworld's name."""
    rows = tomllib.loads(files("hypervla.simulation").joinpath("metaworld.toml").read_text())
    return {name: TaskInstructions(tuple(row["train"]), tuple(row["held_out"])) for name, row in rows.items()}


SHARED_SCENE = ("reach-v3", "push-v3", "pick-place-v3")
"""Tasks whose scenes hold the same puck and a goal marker, so that each can be asked for in each."""


HARDER = {
    "medium": (
        "basketball-v3",
        "bin-picking-v3",
        "box-close-v3",
        "coffee-pull-v3",
        "coffee-push-v3",
        "hammer-v3",
        "peg-insert-side-v3",
        "push-wall-v3",
        "soccer-v3",
        "sweep-v3",
        "sweep-into-v3",
    ),
    "hard": ("assembly-v3", "hand-insert-v3", "pick-out-of-hole-v3", "pick-place-v3", "push-v3", "push-back-v3"),
    "very hard": ("shelf-place-v3", "disassemble-v3", "stick-pull-v3", "stick-push-v3", "pick-place-wall-v3"),
}


def difficulties() -> Mapping[str, tuple[str, ...]]:
    """The fifty tasks by how hard they are, as LeRobot groups them (after Seo et al., 2022)."""
    harder = {task for group in HARDER.values() for task in group}
    return {"easy": tuple(task for task in tasks() if task not in harder), **HARDER}


PICKED_UP = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "disassemble-v3",
    "hammer-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "pick-place-wall-v3",
    "shelf-place-v3",
    "stick-pull-v3",
    "stick-push-v3",
)
"""Tasks in which what lies loose has to be picked up; in all others it may as well be pushed."""

BYSTANDERS = {
    "reach-v3": "obj",
    "reach-wall-v3": "obj",
    "coffee-button-v3": "obj",
    "coffee-push-v3": "coffee_machine",
    "coffee-pull-v3": "coffee_machine",
}
"""What can be moved but is not asked for, by task and by its body's name; everything else is what the task is about."""


class MetaworldEnvironment:
    """One Metaworld task; an Environment. `goal_visible` draws the goal marker where Metaworld draws one.

    `scene` sets the task in the scene of another one of SHARED_SCENE; its own distance then judges success.
    """

    embodiment = METAWORLD_SAWYER

    def __init__(self, task: str, goal_visible: bool = True, scene: str | None = None) -> None:
        for name in (task, scene or task):
            if name not in tasks():
                raise unknown(name, tasks(), "Metaworld task")
        self.task = task
        self.instructions: Sequence[str] = tasks()[task].train
        self.goal_visible = goal_visible
        self._own_scene = scene in (None, task)
        self._simulator = _make_simulator(scene or task)
        self._renderers = Renderers(self._simulator.model, self._simulator.data)
        self._state = np.zeros(39)

    def reset(self, seed: int) -> None:
        """Start an episode with the scene of this seed."""
        simulator = self._simulator
        simulator.seed(seed)
        self._state, _ = simulator.reset()
        self._place_goal_marker()

    def observe(self) -> Observation:
        camera = self.embodiment.camera(CAMERA)
        return Observation(images={CAMERA: self.render(camera.height)}, proprio=self.proprio())

    def proprio(self) -> Float32[np.ndarray, "4"]:
        """Hand position in metres and gripper opening in [0, 1]."""
        return self._state[:4].astype(np.float32)

    def environment_state(self) -> Float32[np.ndarray, "17"]:
        """Poses of the task's objects (14 numbers) and the goal (3): what the scripted experts see."""
        return np.concatenate([self._state[4:18], self._state[36:39]]).astype(np.float32)

    def full_state(self) -> np.ndarray:
        """Metaworld's own 39 numbers, goal included, for its scripted experts."""
        return self._state

    def execute(self, chunk: ActionChunk) -> Outcome:
        for count, action in enumerate(chunk.actions, start=1):
            self._state, _, _, _, info = self._simulator.step(np.asarray(action, np.float32))
            if bool(info["success"]) if self._own_scene else self._achieved():
                return Outcome(success=True, steps=count)
        return Outcome(success=False, steps=len(chunk))

    def situation(self) -> Situation:
        """What is asked for stays asked for until the end, since success ends the trial."""
        data, movables = self._simulator.data, self._movables
        places = movables.places(data)
        asked = frozenset(places) - {BYSTANDERS.get(self.task)}
        to_hold = asked & movables.loose if self.task in PICKED_UP else frozenset()
        hand = np.array(self._simulator.tcp_center)
        return Situation(hand, movables.held(data), places, to_hold, asked - to_hold)

    def render(self, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """The whole camera view at size × size pixels, upright."""
        return np.ascontiguousarray(self._renderers.draw(CAMERA, size)[::-1, ::-1])

    def close(self) -> None:
        self._renderers.close()
        self._simulator.close()

    @cached_property
    def _movables(self) -> Movables:
        """Everything with a joint but the robot, by the name of the body it stands on."""
        model, names = self._simulator.model, {}
        for joint, body in enumerate(model.jnt_bodyid.tolist()):
            if (name := model.body(model.body_rootid[body]).name) != "base":
                names[joint] = name
        pads = [[model.geom(f"{side}pad_geom").id] for side in ("left", "right")]
        return Movables(model, self._simulator.data, names, (pads[0], pads[1]))

    def _achieved(self) -> bool:
        """This task's success in another task's scene, by Metaworld's own distances: the hand (reach) or the puck
        (pick-place) is at the marker, or the puck lies below or at it (push)."""
        hand, puck, goal = self._simulator.tcp_center, self._state[4:7], self._simulator._target_pos
        distances = {
            "reach-v3": (np.linalg.norm(hand - goal), 0.05),
            "push-v3": (np.linalg.norm((puck - goal)[:2]), 0.05),
            "pick-place-v3": (np.linalg.norm(puck - goal), 0.07),
        }
        distance, limit = distances[self.task]
        return bool(distance <= limit)

    def _place_goal_marker(self) -> None:
        """Metaworld moves the marker only after the first step; the first image must show it too."""
        mujoco: Any = import_module("mujoco")  # its names are compiled: type checkers see none of them
        simulator = self._simulator
        for name, position in simulator._target_site_config:
            simulator._set_pos_site(name, position)
            if not self.goal_visible:
                simulator.model.site(name).rgba[3] = 0.0
        mujoco.mj_forward(simulator.model, simulator.data)


def _make_simulator(task: str) -> Any:
    """Metaworld's environment for one task: seeded random scenes, goal in the state, cheap rendering."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        from metaworld import env_dict
    except ModuleNotFoundError as error:
        raise UserError("Metaworld is not installed: pip install 'hypervla[metaworld]'.") from error
    warnings.filterwarnings("ignore", message="Constant.s. may be too high")
    simulator: Any = env_dict.ALL_V3_ENVIRONMENTS[task]()
    simulator._partially_observable = False
    simulator.__dict__.pop("sawyer_observation_space", None)  # cached while the goal was still hidden
    simulator._freeze_rand_vec = False
    simulator.seeded_rand_vec = True
    simulator._set_task_called = True
    simulator.max_path_length = 10**9  # the suite counts steps
    simulator.model.vis.quality.offsamples = 0
    simulator.model.camera(CAMERA).pos[:] = CAMERA_POSITION
    return simulator
