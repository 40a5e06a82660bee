"""What a LeRobot dataset says about the robot that recorded it, in the words of hypervla."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import UserError
from hypervla.data.lerobot_layout import VISUAL
from hypervla.embodiment import Camera, Embodiment

IMAGES, IMAGE = "observation.images.", "observation.image"
ACTION, STATE = "action", "observation.state"
OTHER_NAMES = {ACTION: ("action", "actions"), STATE: ("observation.state", "state")}
"""How datasets call what we know under one name."""


def feature_names(
    features: Mapping[str, Any], renamed: Mapping[str, str] | None, where: object
) -> tuple[dict[str, str], dict[str, str]]:
    """Their names of `action` and `observation.state` by ours, and those of the image features by camera.

    `renamed` gives their names by ours and wins over the usual ones. Raises UserError for names that are not there.
    """
    renamed = dict(renamed or {})
    for ours, theirs in renamed.items():
        if theirs not in features:
            raise UserError(
                f"{where} has no feature '{theirs}', which was to be '{ours}'; it has {', '.join(sorted(features))}."
            )
    names = {}
    for ours, usual in OTHER_NAMES.items():
        found = [renamed[ours]] if ours in renamed else [name for name in usual if name in features]
        if found:
            names[ours] = found[0]
    chosen = {theirs: ours.removeprefix(IMAGES) for ours, theirs in renamed.items() if ours.startswith(IMAGES)}
    if len(chosen) < sum(ours.startswith(IMAGES) for ours in renamed):
        raise UserError(f"Two cameras of the robot file are the same feature of {where}: name another one for each.")
    cameras = {
        chosen.get(key) or camera_name(key): key
        for key, feature in features.items()
        if is_camera(feature) and (key in chosen or camera_name(key) not in chosen.values())
    }
    if ACTION not in names:
        known = ", ".join(sorted(features))
        raise UserError(
            f"{where} has no feature 'action' or 'actions', only {known}: name it under [features] in a robot file "
            f"and pass --robot."
        )
    return names, cameras


def rename_cameras(robot: Embodiment, renamed: Mapping[str, str]) -> Embodiment:
    """The robot with its cameras called as `renamed` (ours → the data's name) wants it."""
    ours = {theirs: name.removeprefix(IMAGES) for name, theirs in renamed.items() if name.startswith(IMAGES)}
    named = (replace(camera, name=ours.get(IMAGES + camera.name, camera.name)) for camera in robot.cameras)
    return replace(robot, cameras=tuple(named))


def is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether a feature holds RGB images."""
    if feature["dtype"] not in VISUAL or len(feature["shape"]) != 3 or 3 not in feature["shape"]:
        return False
    about = feature.get("info") or {}
    return not (about.get("video.is_depth_map") or about.get("is_depth_map"))


def camera_name(key: str) -> str:
    """What we call the camera of a feature."""
    return "image" if key == IMAGE else key.removeprefix(IMAGES)


def image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an image feature, whose shape may be (H, W, C) or (C, H, W)."""
    shape, names = feature["shape"], feature.get("names")
    first = isinstance(names, list) and names and str(names[0]).startswith("channel")
    if first or (shape[2] != 3 and shape[0] == 3):
        return shape[1], shape[2]
    return shape[0], shape[1]


def infer_embodiment(
    info: Mapping[str, Any],
    names: Mapping[str, str],
    cameras: Mapping[str, str],
    actions: Float32[np.ndarray, "F A"],
    *,
    name: str,
) -> Embodiment:
    """The robot as far as the data tells: sizes, names, rate and the limits that its actions reached.

    What an action means and which entry drives a gripper is not in the format: unknown, and none. `name` is used when
    the dataset gives none.
    """
    features, said = info["features"], info.get("robot_type")
    return Embodiment(
        name=said if isinstance(said, str) and said not in ("", "unknown") else name,
        cameras=tuple(Camera(camera, *image_size(features[key])) for camera, key in cameras.items()),
        action_names=_entries(features[names[ACTION]], "a"),
        action_low=tuple(actions.min(axis=0).tolist()),
        action_high=tuple(actions.max(axis=0).tolist()),
        proprio_names=_entries(features[names[STATE]], "p") if STATE in names else (),
        control_hz=float(info["fps"]),
        gripper=None,
    )


def _entries(feature: Mapping[str, Any], letter: str) -> tuple[str, ...]:
    """The names of a vector's numbers: a list, or a table that holds one; else the letter with a number."""
    size, names = feature["shape"][0], feature.get("names")
    if isinstance(names, Mapping):
        lists = [value for value in names.values() if isinstance(value, Sequence) and not isinstance(value, str)]
        names = [name for value in lists for name in value]
    if isinstance(names, list) and len(names) == size == len(set(map(str, names))):
        return tuple(map(str, names))
    return tuple(f"{letter}{number}" for number in range(size))


def check_features(
    robot: Embodiment, features: Mapping[str, Any], names: Mapping[str, str], cameras: Mapping[str, str], where: object
) -> None:
    """Compare the robot with the features it is read from. Raises UserError naming the first that differs."""
    wanted = [(ACTION, names.get(ACTION), robot.action_size)]
    if robot.proprio_size:
        wanted.append((STATE, names.get(STATE), robot.proprio_size))
    for ours, theirs, size in wanted:
        came = features[theirs]["shape"] if theirs is not None else None
        kind = np.dtype(features[theirs]["dtype"]).kind if theirs is not None and _is_numeric(features[theirs]) else ""
        if came != [size] or kind not in ("f", "i", "u"):
            raise UserError(
                f"{robot.name} needs a feature '{ours}' of shape [{size}], but {where} has "
                f"{'none' if came is None else came}: correct meta/hypervla.json or the robot file, or record again."
            )
    for camera in robot.cameras:
        came = image_size(features[cameras[camera.name]]) if camera.name in cameras else None
        if came != (camera.height, camera.width):
            raise UserError(
                f"{robot.name} needs images of {camera.height}×{camera.width} from camera '{camera.name}', but {where} "
                f"has {'none' if came is None else f'{came[0]}×{came[1]}'}: correct meta/hypervla.json or --robot."
            )


def _is_numeric(feature: Mapping[str, Any]) -> bool:
    return feature["dtype"] not in (*VISUAL, "string", "language")
