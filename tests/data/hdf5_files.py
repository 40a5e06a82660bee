"""Writes small HDF5 files as LIBERO publishes its demonstrations; h5py does the writing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TASK = "pick_up_the_milk_and_place_it_in_the_basket"
SENTENCE = "pick up the milk and place it in the basket"
OWN_SENTENCE = "Pick the milk and place it in the basket"
STATE = 20
"""Numbers of a simulator state: the time, the arm's seven joints, the fingers, things."""


@dataclass(frozen=True)
class Motion:
    """What happened: T actions, and what was true before each and after the last."""

    actions: np.ndarray
    states: np.ndarray
    poses: np.ndarray
    fingers: np.ndarray
    images: Mapping[str, np.ndarray]
    seen_joints: np.ndarray | None = None
    """Where they are not just those of the states."""

    @property
    def joints(self) -> np.ndarray:
        return self.states[:, 1:8] if self.seen_joints is None else self.seen_joints


def motion(length: int, seed: int, size: int = 16) -> Motion:
    random = np.random.default_rng(seed)
    states = np.cumsum(random.normal(scale=0.1, size=(length + 1, STATE)), axis=0)
    actions = random.uniform(-1, 1, (length, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    return Motion(
        actions=actions,
        states=states,
        poses=random.normal(size=(length + 1, 6)),
        fingers=random.uniform(-0.04, 0.04, (length + 1, 2)),
        images={
            camera: random.integers(256, size=(length + 1, size, size, 3), dtype=np.uint8)
            for camera in ("agentview_rgb", "eye_in_hand_rgb")
        },
    )


def write(path: Path, motions: Sequence[Motion], *, after: bool, about: Mapping[str, Any] | None = None) -> Path:
    """A file of demonstrations; `after` stores each action with what was seen after it, as LIBERO's own files do.

    Regenerated files (not `after`) say nothing of their task, unless `about` does.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        described = {
            "env_name": "Libero_Object_Tabletop_Manipulation",
            "env_args": json.dumps({"type": 1, "problem_name": "libero_object_tabletop_manipulation"}),
            "problem_info": json.dumps({"problem_name": "libero", "language_instruction": OWN_SENTENCE}),
            "bddl_file_name": f"bddl_files/libero_object/{TASK}.bddl",
            "macros_image_convention": "opengl",
            "num_demos": len(motions),
            "total": sum(len(each.actions) for each in motions),
        }
        data.attrs.update((described if after else {}) if about is None else about)
        for number, each in enumerate(motions):
            count = len(each.actions)
            seen = slice(1, None) if after else slice(0, count)
            group = data.create_group(f"demo_{number}")
            done = np.uint8(np.arange(count) == count - 1)
            quaternions = np.tile([0.0, 0.0, 0.0, 1.0], (count, 1))
            observed = {
                "agentview_rgb": each.images["agentview_rgb"][seen],
                "eye_in_hand_rgb": each.images["eye_in_hand_rgb"][seen],
                "ee_states": each.poses[seen],
                "ee_pos": each.poses[seen, :3],
                "ee_ori": each.poses[seen, 3:],
                "gripper_states": each.fingers[seen],
                "joint_states": each.joints[seen],
            }
            stored = {
                "actions": each.actions,
                "states": each.states[:-1],
                "robot_states": np.hstack([each.fingers[seen], each.poses[seen, :3], quaternions]),
                "rewards": done,
                "dones": done,
                **{f"obs/{name}": values for name, values in observed.items()},
            }
            for name, values in stored.items():
                group.create_dataset(name, data=values)
            if after:
                group.attrs.update({"num_samples": count, "model_file": "<mujoco/>", "init_state": each.states[0]})
    return path


def folder(root: Path, lengths: Sequence[int] = (4, 3, 5, 2)) -> Path:
    """Two tasks as LIBERO publishes them, with half of the demonstrations each."""
    motions = [motion(length, seed) for seed, length in enumerate(lengths)]
    half = len(motions) // 2
    write(root / f"{TASK}_demo.hdf5", motions[:half], after=True)
    write(root / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5", motions[half:], after=True)
    return root
