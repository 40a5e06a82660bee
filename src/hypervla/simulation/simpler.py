"""SIMPLER's four WidowX tasks as Environments: ManiSkill 3 with the real table painted into the camera's picture.

Made for mani_skill 3.0.1 and sapien 3.0.3, in an environment of their own (`make env-simpler`). The assets are not in
the package: HYPERVLA_SIMPLER_ASSETS names the folder of SIMPLER's repository that holds them.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from hypervla.contracts import ActionChunk, Observation, Outcome, Situation, UserError
from hypervla.embodiment import WIDOWX

ASSETS = "HYPERVLA_SIMPLER_ASSETS"
CAMERA = "3rd_view_camera"
SCANNED = 100_000
"""Bytes that the scanned table takes at least; a smaller one stands in for it."""
APART = 0.12
"""Metres between the middles of things that are put down at random."""


@dataclass(frozen=True)
class Task:
    """One task of the benchmark."""

    identifier: str
    """ManiSkill's."""
    instruction: str
    steps: int
    """Of a trial."""
    turns: int | None = None
    """How many of ManiSkill's are SIMPLER's, where it has more of them."""


SCENES = 24
"""On the benchmark's grid, of each task."""


TASKS: Mapping[str, Task] = {
    "widowx-carrot-on-plate": Task("PutCarrotOnPlateInScene-v1", "put carrot on plate", 60),
    "widowx-spoon-on-towel": Task("PutSpoonOnTableClothInScene-v1", "put the spoon on the towel", 60),
    "widowx-stack-cube": Task(
        "StackGreenCubeOnYellowCubeBakedTexInScene-v1", "stack the green block on the yellow block", 60
    ),
    "widowx-eggplant-in-basket": Task("PutEggplantInBasketScene-v1", "put eggplant into yellow basket", 120, 3),
}


class SimplerEnvironment:
    """One of SIMPLER's WidowX tasks; an Environment.

    Seeds below `grid_from` put things down at random places of the same area; from there on they are the benchmark's
    own grid of places and turns, one after another and around, or drawn from it by the seed where they are to be
    `drawn`, as HyperVLA's released code has them.
    """

    embodiment = WIDOWX

    def __init__(self, task: str, grid_from: int, drawn: bool = False) -> None:
        """Raises UserError for a task that is none, and where ManiSkill or the assets are missing."""
        if task not in TASKS:
            raise UserError(f"SIMPLER has no task '{task}' here, only {', '.join(TASKS)}.")
        self.task = task
        self.instructions: Sequence[str] = (TASKS[task].instruction,)
        self._grid_from, self._drawn = grid_from, drawn
        self.simulator: Any = _make_simulator(TASKS[task].identifier, _linked_assets())
        self._places, self._turns = self.simulator.xyz_configs, self.simulator.quat_configs[: TASKS[task].turns]
        self._seen: Mapping[str, Any] = {}
        self.episode = 0
        """How many have begun."""

    @property
    def grid(self) -> int:
        """How many scenes the benchmark has."""
        return len(self._places) * len(self._turns)

    def reset(self, seed: int) -> None:
        """Start an episode with the scene of this seed, at rest."""
        self.episode += 1
        simulator = self.simulator
        on_grid = seed >= self._grid_from
        number = self._number(seed) if on_grid else 0
        simulator.xyz_configs, simulator.quat_configs = self._places, self._turns
        if not on_grid:
            simulator.xyz_configs, simulator.quat_configs = self._anywhere(seed)
        self._seen, _ = simulator.reset(seed=seed, options={"episode_id": number})

    def observe(self) -> Observation:
        picture = self._seen["sensor_data"][CAMERA]["rgb"][0]
        return Observation({CAMERA: np.ascontiguousarray(picture.cpu().numpy())})

    def environment_state(self) -> Float32[np.ndarray, " S"]:
        """Poses of the things, seven numbers each, the one to be moved first."""
        poses = [thing.pose.raw_pose[0].cpu().numpy() for thing in self.simulator.objs.values()]
        return np.concatenate(poses).astype(np.float32)

    def execute(self, chunk: ActionChunk) -> Outcome:
        for count, action in enumerate(chunk.actions, start=1):
            self._seen, _, _, _, info = self.simulator.step(np.asarray(action, np.float32))
            if bool(info["success"].item()):
                return Outcome(success=True, steps=count)
        return Outcome(success=False, steps=len(chunk))

    def situation(self) -> Situation:
        """The task's two things; the first is to be picked up, until the trial ends."""
        agent, things = self.simulator.agent, self.simulator.objs
        held = [name for name, thing in things.items() if bool(agent.is_grasping(thing).item())]
        return Situation(
            hand=_place(agent.robot.links_map["ee_gripper_link"]),
            held=held[0] if held else None,
            things={name: _place(thing) for name, thing in things.items()},
            to_hold=frozenset([self.simulator.source_obj_name]),
            to_move=frozenset(),
        )

    def close(self) -> None:
        closing, self.simulator = self.simulator, None
        if closing is not None:
            closing.close()

    def _number(self, seed: int) -> int:
        """Which scene of the grid a seed is."""
        if self._drawn:
            return int(np.random.default_rng(seed).integers(self.grid))
        return (seed - self._grid_from) % self.grid

    def _anywhere(self, seed: int) -> tuple[Any, Any]:
        """Random places in the area that the grid spans, apart from each other, and a turn of the grid's about the
        vertical: as a grid of one."""
        import torch

        random = np.random.default_rng(seed)
        places = self._places.cpu().numpy()
        low, high = places.min(0), places.max(0)
        for _ in range(1000):
            drawn = random.uniform(low, high)
            if np.linalg.norm(drawn[0, :2] - drawn[1, :2]) >= min(APART, np.linalg.norm((high - low)[0, :2])):
                break
        turns = self._turns.cpu().numpy()[random.integers(len(self._turns))].copy()
        turns[0] = _turned(turns[0], random.uniform(-np.pi, np.pi) if len(self._turns) <= 2 else 0.0)
        return torch.tensor(drawn[None], dtype=torch.float32), torch.tensor(turns[None], dtype=torch.float32)


def _place(body: Any) -> Float64[np.ndarray, "3"]:
    """Where a body of the simulator is, in metres."""
    return body.pose.p[0].cpu().numpy().astype(np.float64)


def _turned(quaternion: np.ndarray, angle: float) -> np.ndarray:
    """A rotation (w, x, y, z), then one about the vertical."""
    w, x, y, z = quaternion
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])


def scene() -> str:
    """What a reader of a success rate should know about the pictures."""
    table = Path(os.environ.get(ASSETS, "")) / "data" / "hab2_bench_assets" / "stages" / "bridge_table_1_v1.glb"
    small = table.is_file() and table.stat().st_size < SCANNED
    return "SIMPLER with stand-in visuals: not comparable with published rates." if small else ""


def _linked_assets() -> Path:
    """A folder as ManiSkill wants it, of links to SIMPLER's. Raises UserError where they are not."""
    named = os.environ.get(ASSETS)
    if named is None or not (Path(named) / "data" / "real_inpainting").is_dir():
        came = "it is not set" if named is None else f"there is no data/real_inpainting in '{named}'"
        raise UserError(f"{ASSETS} has to name the folder of SIMPLER's data and robots, but {came}.")
    return _links_to(Path(named).resolve())


@cache
def _links_to(source: Path) -> Path:
    """One folder for a process: where its assets lie is decided when ManiSkill is imported."""
    folder = Path(tempfile.mkdtemp(prefix="hypervla-simpler-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tasks, robots = folder / "data" / "tasks" / "bridge_v2_real2sim_dataset", folder / "data" / "robots"
    tasks.mkdir(parents=True)
    robots.mkdir(parents=True)
    (tasks / "custom").symlink_to(source / "data" / "custom")
    (tasks / "real_inpainting").symlink_to(source / "data" / "real_inpainting")
    (tasks / "stages").symlink_to(source / "data" / "hab2_bench_assets" / "stages")
    (robots / "widowx").symlink_to(source / "mani_skill2_real2sim/assets/descriptions/widowx_description")
    return folder


def _make_simulator(identifier: str, assets: Path) -> Any:
    """ManiSkill's environment of one task, physics and pictures on the processor."""
    if find_spec("mani_skill") is None:
        raise UserError("ManiSkill is not installed here: make env-simpler builds an environment that has it.")
    os.environ["MS_ASSET_DIR"] = str(assets)
    gymnasium: Any = import_module("gymnasium")
    import_module("mani_skill.envs")
    bridge: Any = import_module("mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env")
    for robot in (bridge.WidowX250SBridgeDatasetFlatTable, bridge.WidowX250SBridgeDatasetSink):
        robot.disable_self_collisions = True  # its fingers overlap the bar they slide on, and would be stuck
    import_module("mani_skill").logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mani_skill\.")
    try:
        made = gymnasium.make(
            identifier, obs_mode="rgb+segmentation", sim_backend="physx_cpu", render_backend="cpu", num_envs=1
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"ManiSkill cannot draw here ({reason}): it needs Vulkan, of Mesa 25 or newer where there is no GPU; "
            "VK_ICD_FILENAMES names its driver."
        ) from error
    return made.unwrapped
