"""SIMPLER's robots are two of Open X-Embodiment's, seen by another camera and told in other numbers: what learned the
one from its dataset drives the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import ActionChunk, Image, Observation, UserError
from hypervla.data.augment import resize
from hypervla.embodiment import GOOGLE_ROBOT, WIDOWX, Embodiment
from hypervla.runtime.protocols import Compiler, NamedPolicy
from hypervla.runtime.task_policy import Timing

Seen = UInt8[np.ndarray, "twin_height twin_width 3"]

DATASETS: Mapping[str, tuple[str, ...]] = {
    WIDOWX.name: ("bridge_dataset", "bridge_orig"),
    GOOGLE_ROBOT.name: ("fractal20220817_data",),
}
"""By the simulated robot: what its real one is called in a checkpoint, which is the dataset's name (data/oxe.toml)."""


def load_for(
    checkpoint: Path, device: str, robot: Embodiment, engine: str | None = None, middle: float = 1.0
) -> Compiler[NamedPolicy]:
    """The checkpoint on this robot, or on the only one it knows, looking at the middle of what its cameras see; with
    `engine` its policies act on that (load_on). Raises UserError. It brings PyTorch."""
    from hypervla.runtime.opening import load_on

    compiler = load_on(checkpoint, device, robot_in(checkpoint, robot), engine, middle)
    return StandingIn(compiler, robot) if compiler.embodiment.name in DATASETS.get(robot.name, ()) else compiler


def robot_in(checkpoint: Path, robot: Embodiment) -> str | None:
    """What a checkpoint of several calls this robot; None leaves it the only one it knows. Raises UserError for one
    that stands in for it but reads proprio, which the simulated one does not give."""
    from hypervla.checkpoint import read_card

    card = read_card(checkpoint)
    if robot.name in card.robots:
        return robot.name
    known = [name for name in DATASETS.get(robot.name, ()) if name in card.robots]
    if known and card.config.proprio_size:
        raise UserError(
            f"{checkpoint} reads the proprio of {known[0]}, which {robot.name} does not give: choose a checkpoint "
            "without proprio."
        )
    return known[0] if known else None


@dataclass(frozen=True)
class StandingIn:
    """A compiler for a dataset's robot, for its simulated twin; a Compiler."""

    compiler: Compiler[NamedPolicy]
    embodiment: Embodiment
    """The twin, which has one camera."""

    def __post_init__(self) -> None:
        """Raises UserError for policies that look through several cameras."""
        names = [camera.name for camera in self.compiler.embodiment.cameras]
        if len(names) != 1:
            raise UserError(
                f"{self.embodiment.name} has one camera, but the policy for {self.compiler.embodiment.name} looks "
                f"through {', '.join(names)}: choose a checkpoint that looks through one."
            )

    @property
    def digest(self) -> str:
        return self.compiler.digest

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.compiler.provenance

    def compile(self, instruction: str, images: Mapping[str, Image]) -> StandingInPolicy:
        """The twin's policy, from its first image. Raises UserError as the compiler does."""
        for camera in self.embodiment.cameras:
            self.embodiment.check_image(camera.name, images.get(camera.name))
        own = self.compiler.compile(instruction, self.seen(images))
        return StandingInPolicy(own, self)

    def seen(self, images: Mapping[str, Seen]) -> dict[str, Image]:
        """What the dataset's camera would have delivered: the same picture in its size."""
        (theirs,), (ours,) = self.embodiment.cameras, self.compiler.embodiment.cameras
        return {ours.name: resize(images[theirs.name], (ours.height, ours.width))}

    def told(self, chunk: ActionChunk) -> ActionChunk:
        """The dataset's actions in the twin's numbers: metres are the same; angles are about axes that stay where they
        are, which ManiSkill's controller reads as about axes that turn; the gripper's numbers are its own."""
        actions, ours, theirs = chunk.actions.copy(), self.compiler.embodiment.gripper, self.embodiment.gripper
        assert ours is not None
        assert theirs is not None
        if (ours.open, ours.closed) != (theirs.open, theirs.closed):
            is_open = np.abs(actions[:, ours.index] - ours.open) < np.abs(actions[:, ours.index] - ours.closed)
            actions[:, ours.index] = np.where(is_open, theirs.open, theirs.closed)
        if self.embodiment.name == WIDOWX.name:
            actions[:, 3:6] = about_turning_axes(actions[:, 3:6])
        return self.embodiment.clip(actions)


def about_turning_axes(angles: Float32[np.ndarray, "H 3"]) -> Float32[np.ndarray, "H 3"]:
    """The same rotations, told about x, y and z that turn with them, from angles about x, y and z that stay."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles).T, np.cos(angles).T
    x = np.arctan2(-(sz * sy * cx - cz * sx), cy * cx)
    y = np.arcsin(np.clip(cz * sy * cx + sz * sx, -1, 1))
    z = np.arctan2(-(cz * sy * sx - sz * cx), cz * cy)
    return np.stack([x, y, z], axis=1)


@dataclass(frozen=True)
class StandingInPolicy:
    """One episode's; a Policy."""

    own: NamedPolicy
    between: StandingIn

    @property
    def last_timing(self) -> Timing:
        return self.own.last_timing

    @property
    def policy_id(self) -> str:
        return self.own.policy_id

    def act(self, observation: Observation) -> ActionChunk:
        """The twin's next actions. Raises UserError for an observation it cannot have made."""
        self.between.embodiment.check_observation(observation, needs_proprio=False)
        return self.between.told(self.own.act(Observation(self.between.seen(observation.images))))
