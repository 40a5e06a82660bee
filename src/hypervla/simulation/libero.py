"""LIBERO's four suites as Environments: a Panda arm on MuJoCo through robosuite, with the benchmark's stored states.

Made for hf-libero 0.1.4 and robosuite 1.4.0, in an environment of their own (`make env-libero`). The assets are not in
the package: HYPERVLA_LIBERO_ASSETS names their folder. Conventions are those of the published evaluations.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickletools
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from hypervla.contracts import ActionChunk, Observation, Outcome, Situation, UserError
from hypervla.embodiment import LIBERO_PANDA, Camera, Embodiment, Flip
from hypervla.simulation.movables import Movables
from hypervla.simulation.renderers import Renderers

ASSETS = "HYPERVLA_LIBERO_ASSETS"
STAND_INS = "STAND_INS.txt"
"""In a folder of assets: some of its pictures are plain ones in place of the originals."""
CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}
"""LIBERO's cameras by the embodiment's."""
STORED = 50
"""Initial states of each task."""
WAITING_STEPS = 10
"""What was put down comes to rest before the policy looks."""
PUSHED = "push_the_plate_to_the_front_of_the_stove"
"""The only task that asks for a thing to be somewhere without its being picked up."""
FIXTURES = 0
"""Seed of what a stored state does not hold: where cabinet and stove stand."""


@dataclass(frozen=True)
class Protocol:
    """How somebody tries policies on LIBERO, where the published evaluations differ."""

    whose: str
    steps: Mapping[str, int]
    """Of a trial, by suite."""
    flip: Flip
    """How pictures are turned for a policy that does not say so itself."""
    waiting_gripper: float
    """What the gripper is told while things come to rest: −1 opens it, 0 leaves it."""

    @property
    def robot(self) -> Embodiment:
        cameras = tuple(replace(camera, flip=self.flip) for camera in LIBERO_PANDA.cameras)
        return replace(LIBERO_PANDA, cameras=cameras)

    def rule(self, suite: str) -> str:
        """One sentence for the report."""
        waiting = "opening the gripper" if self.waiting_gripper else "leaving the gripper"
        turned = "turned by 180°" if self.flip == "both" else "flipped upright"
        return (
            f"LIBERO's own goal, at any step, from its stored initial states; {self.whose} protocol: ten steps of "
            f"waiting, {waiting}, then at most {self.steps[suite]}; pictures are {turned} for a policy that does not "
            f"say how."
        )


OPENVLA = Protocol("OpenVLA's", {"spatial": 220, "object": 280, "goal": 300, "10": 520}, "both", -1.0)
PROTOCOLS: Mapping[str, Protocol] = {
    "": OPENVLA,
    "-lerobot": replace(OPENVLA, whose="LeRobot's", steps={**OPENVLA.steps, "spatial": 280}),
    "-hypervla": Protocol("HyperVLA's released", dict.fromkeys(OPENVLA.steps, 520), "vertical", 0.0),
}
"""By the ending of the suite's name."""


@cache
def tasks() -> Mapping[str, tuple[str, ...]]:
    """The ten tasks of each suite (libero.toml), by LIBERO's names."""
    rows = tomllib.loads(files("hypervla.simulation").joinpath("libero.toml").read_text())
    return {suite: tuple(row["tasks"]) for suite, row in rows.items()}


def sentence(task: str) -> str:
    """The instruction in a task's name, as the published evaluations read it: without the scene."""
    words = task.split("_")
    scenes = [i for i, word in enumerate(words) if word.startswith("SCENE")]
    return " ".join(words[scenes[0] + 1 :] if scenes else words)


def scene() -> str:
    """What a reader of a success rate should know about the pictures."""
    folder = os.environ.get(ASSETS)
    stand_ins = folder is not None and any((Path(folder) / up / STAND_INS).is_file() for up in (".", ".."))
    return "LIBERO with stand-in visuals: not comparable with published rates." if stand_ins else ""


class LiberoEnvironment:
    """One task of LIBERO; an Environment.

    Seeds below `stored_from` draw the scene anew from the task's description; from there on they are LIBERO's stored
    initial states, one after another and around.
    """

    def __init__(self, suite: str, task: str, stored_from: int, protocol: Protocol = OPENVLA) -> None:
        """Raises UserError for a task that is none, and where LIBERO or its assets are missing."""
        if task not in tasks().get(suite, ()):
            raise UserError(f"LIBERO's suite '{suite}' has no task '{task}'.")
        self.suite, self.task = suite, task
        self.instructions: Sequence[str] = (sentence(task),)
        self._stored_from = stored_from
        self.embodiment = protocol.robot
        self._waiting = np.array([0, 0, 0, 0, 0, 0, protocol.waiting_gripper])
        package = _package()
        self._states = stored_states(package / "init_files" / f"libero_{suite}" / f"{task}.pruned_init")
        self.simulator: Any = _make_simulator(package / "bddl_files" / f"libero_{suite}" / f"{task}.bddl")
        self._seen: Mapping[str, Any] = {}
        sim = self.simulator.sim
        self._renderers = Renderers(sim.model._model, sim.data._data)
        self.episode = 0
        """How many have begun."""

    def reset(self, seed: int) -> None:
        """Start an episode with the scene of this seed, at rest."""
        self.episode += 1
        stored = seed >= self._stored_from
        self.simulator.seed(FIXTURES if stored else seed)
        self._put_fixtures_back()
        self.simulator.reset()
        gripper = self.simulator.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)  # which robosuite keeps from the last episode
        if stored:
            self.simulator.set_init_state(self._states[(seed - self._stored_from) % len(self._states)])
        for _ in range(WAITING_STEPS):
            self._step(self._waiting)

    def look_through(self, cameras: Sequence[Camera]) -> None:
        """Deliver these of the robot's cameras from now on, at their own sizes."""
        for camera in cameras:
            self.embodiment.camera(camera.name)
            if camera.height != camera.width:
                raise UserError(f"LIBERO's pictures are square, but {camera.height}×{camera.width} was wanted.")
        self.embodiment = replace(self.embodiment, cameras=tuple(cameras))

    def observe(self) -> Observation:
        images = {camera.name: self._picture(camera.name, camera.height) for camera in self.embodiment.cameras}
        return Observation(images, self.proprio())

    def proprio(self) -> Float32[np.ndarray, "8"]:
        """Position of the hand in metres, its rotation as an axis times an angle, and both fingers."""
        seen = self._seen
        rotation = axis_angle(seen["robot0_eef_quat"])
        return np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]]).astype(np.float32)

    def environment_state(self) -> Float32[np.ndarray, " S"]:
        """Poses of the task's things, seven numbers each, in the order of its description."""
        bodies, data = list(self.simulator.env.obj_body_id.values()), self.simulator.sim.data
        return np.concatenate([data.body_xpos[bodies], data.body_xquat[bodies]], 1).reshape(-1).astype(np.float32)

    def situation(self) -> Situation:
        """Things by the names of their joints; what the description asks for is asked for until it holds."""
        task, data = self.simulator.env, self.simulator.sim.data._data
        to_hold, to_move = set(), set()
        for predicate, thing, *where in task.parsed_problem["goal_state"]:
            if not task._eval_predicate([predicate, thing, *where]):
                asked = to_hold if where and self.task != PUSHED else to_move
                asked.update(task.get_object(thing).joints)
        hand, held = np.array(self._seen["robot0_eef_pos"]), self._movables.held(data)
        return Situation(hand, held, self._movables.places(data), frozenset(to_hold), frozenset(to_move))

    def execute(self, chunk: ActionChunk) -> Outcome:
        for count, action in enumerate(chunk.actions, start=1):
            if self._step(action):
                return Outcome(success=True, steps=count)
        return Outcome(success=False, steps=len(chunk))

    def render(self, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """What the camera in front sees, at size × size pixels and upright."""
        return np.ascontiguousarray(self._picture(LIBERO_PANDA.cameras[0].name, size)[::-1])

    def close(self) -> None:
        self._renderers.close()
        closing, self.simulator = self.simulator, None
        if closing is not None:
            closing.close()

    @cached_property
    def _movables(self) -> Movables:
        """Everything with a joint but the robot."""
        sim, gripper = self.simulator.sim, self.simulator.robots[0].gripper
        model, own = sim.model._model, set(self.simulator.robots[0].robot_model.joints) | set(gripper.joints)
        names = {joint: name for joint in range(model.njnt) if (name := model.joint(joint).name) not in own}
        left, right = (
            [model.geom(name).id for name in gripper.important_geoms[f"{side}_finger"]] for side in ("left", "right")
        )
        return Movables(model, sim.data._data, names, (left, right))

    def _put_fixtures_back(self) -> None:
        """To where a model that was just made has them: LIBERO measures from there what it puts on and into them."""
        model = self.simulator.sim.model
        for fixture in self.simulator.env.fixtures_dict.values():
            body = model.body_name2id(fixture.root_body)
            model.body_pos[body], model.body_quat[body] = (0, 0, 0), (1, 0, 0, 0)

    def _step(self, action: np.ndarray) -> bool:
        """One control step; whether the task is done."""
        self._seen, _, done, _ = self.simulator.step(np.asarray(action, np.float64))
        return bool(done)

    def _picture(self, camera: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """As LIBERO delivers it, with its first row at the bottom, but without shadows and smoothed edges."""
        mujoco: Any = import_module("mujoco")  # its names are compiled: type checkers see none of them
        shown = mujoco.MjvOption()
        shown.geomgroup[0] = 0  # the shapes that touch; what is seen is in the next group
        return self._renderers.draw(CAMERAS[camera], size, shown)[::-1]


def axis_angle(quaternion: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "3"]:
    """A rotation (x, y, z, w) as its axis times its angle in radians, 0 … 2π as robosuite has it."""
    *axis, cosine = quaternion
    sine = math.sqrt(max(0.0, 1.0 - min(1.0, cosine**2)))
    return np.zeros(3) if sine < 1e-9 else np.array(axis) * (2.0 * math.acos(np.clip(cosine, -1.0, 1.0)) / sine)


def stored_states(path: Path) -> Float64[np.ndarray, "K S"]:
    """LIBERO's initial states, one a row, out of the file that PyTorch wrote. Nothing in it is executed."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        steps = [(step.name, argument) for step, argument, _ in pickletools.genops(archive.read(name))]
    texts = [argument for step, argument in steps if step == "BINUNICODE" and isinstance(argument, str)]
    numbers = [argument for step, argument in steps if step.startswith("BININT") and isinstance(argument, int)]
    if "f8" not in texts or "latin1" not in texts:
        raise UserError(f"{path} does not hold initial states as LIBERO's package does: install hf-libero 0.1.4.")
    flat = np.frombuffer(max(texts, key=len).encode("latin1"), "<f8")
    rows = next(number for number in numbers if number > 1 and flat.size % number == 0)
    return flat.reshape(rows, -1)


def _package() -> Path:
    """Where LIBERO lies. Raises UserError where it is not installed."""
    found = find_spec("libero")
    if found is None or not found.submodule_search_locations:
        raise UserError("LIBERO is not installed here: make env-libero builds an environment that has it.")
    return Path(next(iter(found.submodule_search_locations))) / "libero"


def _make_simulator(description: Path) -> Any:
    """LIBERO's environment of one task."""
    assets = os.environ.get(ASSETS)
    if assets is None or not (Path(assets) / "scenes").is_dir():
        came = "it is not set" if assets is None else f"there is no folder scenes in '{assets}'"
        raise UserError(f"{ASSETS} has to name the folder of LIBERO's assets, but {came}.")
    os.environ.setdefault("MUJOCO_GL", "egl")
    with tempfile.TemporaryDirectory() as folder:  # LIBERO asks on standard input unless it finds a file of paths
        names = ("benchmark_root", "bddl_files", "init_states", "datasets", "assets")
        (Path(folder) / "config.yaml").write_text(json.dumps(dict.fromkeys(names, assets)))
        os.environ["LIBERO_CONFIG_PATH"] = folder
        package: Any = import_module("libero.libero")
        package._assets_path_cache = assets
        logging.disable(logging.WARNING)  # robosuite asks for a file of settings that nobody needs
        try:
            wrappers: Any = import_module("libero.libero.envs")
        finally:
            logging.disable(logging.NOTSET)
    made = wrappers.env_wrapper.ControlEnv(str(description), use_camera_obs=False, has_offscreen_renderer=False)
    made.env.hard_reset = False  # the model stays, which takes two seconds less than another one
    made.sim.model._model.vis.quality.offsamples = 0
    return made
