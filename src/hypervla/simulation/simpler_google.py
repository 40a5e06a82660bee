"""SIMPLER's Google-robot tasks as Environments: the original SimplerEnv, with a photograph behind robot and things.

Written for SimplerEnv at commit 4ab7178 and its ManiSkill2_real2sim at ef7a4d4 (sapien 2.2.2, gymnasium 0.29, numpy 1),
which whoever wants them installs (docs/guide.md). Tested against a stand-in for their interface, never against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image

from hypervla.contracts import ActionChunk, Observation, Outcome, UserError
from hypervla.embodiment import GOOGLE_ROBOT
from hypervla.simulation.homes import HOMES, UNMADE

CAMERA = "overhead_camera"
NEVER_RUN = "This suite has never been run against the real SimplerEnv, only against a stand-in for its interface."
STICKY = 15
"""Steps for which the gripper goes on with a change it was asked for, as Octo and RT-1 are evaluated."""
COLOURS = (
    "",
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
"""Of the robot, by SIMPLER's names of its descriptions."""


@dataclass(frozen=True)
class Scene:
    """Where things are at first."""

    robot: tuple[float, float]
    """Metres, of its base."""
    turn: float = 0.0
    """Radians about the vertical, from where it faces the table squarely."""
    things: Mapping[str, Any] = field(default_factory=dict)
    """SIMPLER's obj_init_options."""
    photograph: str | None = None
    """The file behind robot and things, where it is not the task's own."""


@dataclass(frozen=True)
class Task:
    """One task of the benchmark."""

    steps: int
    """Of a trial."""
    scenes: Sequence[Scene] = ()
    """The benchmark's, each of which it has in every colour; none where it only draws at random."""

    @property
    def grid(self) -> int:
        """How many scenes that makes."""
        return len(self.scenes) * len(COLOURS)


CANS = [
    Scene((0.35, 0.20), things={"init_xy": [x, y]})
    for x, y in product(np.linspace(-0.35, -0.12, 5).tolist(), np.linspace(-0.02, 0.42, 5).tolist())
]
"""Places of the can on the table, the farther ones first."""
LAYOUTS = [Scene((0.35, 0.21), -0.09, {"episode_id": number}) for number in range(60)]
"""SIMPLER's own: five sets of three things, each in two arrangements, with six choices of what to move near what."""
CABINET = [
    Scene((x, y), turn, photograph=f"open_drawer_{name}.png")
    for name, x, y, turn in (
        ("a0", 0.644, -0.179, -0.03),
        ("a1", 0.765, -0.182, -0.02),
        ("a2", 0.889, -0.203, -0.06),
        ("b0", 0.652, 0.009, 0.0),
        ("b1", 0.752, 0.009, 0.0),
        ("b2", 0.851, 0.035, 0.0),
        ("c0", 0.665, 0.224, 0.0),
        ("c1", 0.765, 0.222, -0.025),
        ("c2", 0.865, 0.222, -0.025),
    )
]
"""Places in front of the cabinet, each with the photograph that was taken there."""
_DRAWERS = ("top", "middle", "bottom")
TASKS: Mapping[str, Task] = {
    **{f"google-pick-{lying}-coke-can": Task(80, CANS) for lying in ("horizontal", "vertical", "standing")},
    "google-move-near": Task(80, LAYOUTS),
    **{f"google-{way}-{drawer}-drawer": Task(113, CABINET) for way in ("open", "close") for drawer in _DRAWERS},
    "google-pick-object": Task(80),
}
SETS: Mapping[str, Sequence[str]] = {
    "simpler-google": [task for task in TASKS if task != "google-pick-object"],
    "simpler-google-hypervla": [
        "google-pick-object",
        "google-move-near",
        *(f"google-close-{drawer}-drawer" for drawer in _DRAWERS),
    ],
}
"""Tasks by suite; the second are those of HyperVLA's released code, which makes 50, 60, 20, 20 and 20 trials a seed."""
DRAWN = frozenset(["simpler-google-hypervla"])
"""Suites that draw their scenes."""


class SimplerGoogleEnvironment:
    """One of SIMPLER's Google-robot tasks; an Environment.

    Seeds from `grid_from` on are the benchmark's scenes, one after another and around: all of them with the robot in
    its first colour, then in the next. Below it, for a task without scenes, and where they are to be `drawn`, SIMPLER
    draws from the seed: a can's place anywhere in the area, but layouts, places at the cabinet and colours among the
    benchmark's own. HyperVLA's released code draws so, but goes through the layouts of what is to be moved.
    """

    embodiment = GOOGLE_ROBOT

    def __init__(self, task: str, grid_from: int, drawn: bool = False) -> None:
        """Raises UserError for a task that is none, and where SimplerEnv is missing or cannot make its scene."""
        if task not in TASKS:
            raise UserError(f"SIMPLER's Google robot has no task '{task}' here, only {', '.join(TASKS)}.")
        self.task = task
        self._scenes, self._grid_from, self._drawn = TASKS[task].scenes, grid_from, drawn
        self.simulator: Any = _make_simulator(task)
        self.instructions: Sequence[str] = (self.simulator.unwrapped.get_language_instruction(),)
        """What the simulator asks for in the present scene."""
        self._seen: Mapping[str, Any] = {}
        self._gripper = StickyGripper()

    @property
    def grid(self) -> int:
        """How many scenes the benchmark has."""
        return TASKS[self.task].grid

    def reset(self, seed: int) -> None:
        """Start an episode with the scene of this seed, built anew, as SIMPLER's scripts do for each trial."""
        simulator = self.simulator.unwrapped
        pinned = seed >= self._grid_from and self.grid > 0 and not self._drawn
        simulator.prepackaged_config = not pinned  # which would draw robot, colour and photograph from the seed
        options: dict[str, Any] = {"reconfigure": True}
        if pinned:
            seed = (seed - self._grid_from) % self.grid
            colour, place = divmod(seed, len(self._scenes))
            options |= self._put(self._scenes[place], COLOURS[colour])
        elif seed >= self._grid_from and self._scenes is LAYOUTS:
            options["obj_init_options"] = dict(LAYOUTS[(seed - self._grid_from) % len(LAYOUTS)].things)
        self._seen, _ = self.simulator.reset(seed=seed, options=options)
        self.instructions = (simulator.get_language_instruction(),)
        self._gripper = StickyGripper()

    def observe(self) -> Observation:
        return Observation({CAMERA: np.ascontiguousarray(self._seen["image"][CAMERA]["rgb"])})

    def execute(self, chunk: ActionChunk) -> Outcome:
        for count, action in enumerate(chunk.actions, start=1):
            self._seen, _, done, _, _ = self.simulator.step(self._command(action))
            if done:
                return Outcome(success=True, steps=count)
        return Outcome(success=False, steps=len(chunk))

    def close(self) -> None:
        closing, self.simulator = self.simulator, None
        if closing is not None:
            closing.close()

    def _put(self, scene: Scene, colour: str) -> dict[str, Any]:
        """What SIMPLER is told of a scene, after the colour and the photograph, which it has no options for."""
        simulator = self.simulator.unwrapped
        simulator.urdf_version = colour
        simulator._configure_agent()
        if scene.photograph is not None:
            with Image.open(Path(simulator.rgb_overlay_path).with_name(scene.photograph)) as picture:
                simulator.rgb_overlay_img = np.asarray(picture.convert("RGB")) / 255
        half = (np.pi + scene.turn) / 2
        robot = {"init_xy": list(scene.robot), "init_rot_quat": [np.cos(half), 0.0, 0.0, np.sin(half)]}
        return {"robot_init_options": robot, "obj_init_options": dict(scene.things)}

    def _command(self, action: Float32[np.ndarray, " 7"]) -> Float64[np.ndarray, " 7"]:
        """An action as SIMPLER wants it: the rotation as an axis times an angle, the gripper's change."""
        rotation: Any = import_module("scipy.spatial.transform").Rotation
        turned = rotation.from_euler("xyz", action[3:6]).as_rotvec()
        return np.concatenate([action[:3], turned, [self._gripper.change(float(action[6]))]])


class StickyGripper:
    """Turns commands, 1 open and 0 closed, into changes, +1 closing and −1 opening. One of more than a half goes on for
    STICKY steps, whatever is commanded meanwhile. Source: SimplerEnv's evaluation of Octo."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._going_on, self._left = 0.0, 0

    def change(self, opening: float) -> float:
        """What the gripper is to do in this step; nothing in the first."""
        change = 0.0 if self._before is None else self._before - opening
        self._before = opening
        if self._left == 0 and abs(change) > 0.5:
            self._going_on, self._left = change, STICKY
        if self._left == 0:
            return change
        self._left -= 1
        return self._going_on


def _make_simulator(task: str) -> Any:
    """SimplerEnv's environment of one task, prepared as for its visual matching."""
    if find_spec("simpler_env") is None:
        raise UserError(f"SimplerEnv is not installed here: {UNMADE[HOMES['simpler_env']]}.")
    simpler_env: Any = import_module("simpler_env")
    try:
        return simpler_env.make(f"google_robot_{task.removeprefix('google-').replace('-', '_')}")
    except (RuntimeError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"SimplerEnv cannot make its scene ({reason}): it needs an NVIDIA GPU with Vulkan, and the folder data of "
            "ManiSkill2_real2sim, which MS2_REAL2SIM_ASSET_DIR names."
        ) from error
