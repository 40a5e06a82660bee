"""A user's own robot in a TOML file: what the data does not say about it, without editing the package.

    name = "my-arm"
    action_kind = "absolute joint"            # see hypervla.embodiment.ActionKind
    action_low = [-3.1, -1.5, 0.0]            # limits that actions are kept in
    action_high = [3.1, 1.5, 1.0]
    gripper = { index = 2, open = 1.0, closed = 0.0 }

    [cameras.wrist]                           # the cameras to use, in this order; leave out to use all
    feature = "observation.images.cam_2"      # its name in the data, when that differs
    crop = [0, 80, 480, 480]                  # top, left, height, width of the part to look at
    flip = "both"                             # none, vertical, horizontal, both (half a turn)

    [features]                                # other names in the data
    "action" = "actions"
    "observation.state" = "state"

Everything is optional: what is left out is inferred from the data.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.embodiment import FLIPS, ActionKind, Camera, Embodiment, Gripper

IMAGES = "observation.images."
LISTS = ("action_names", "action_low", "action_high", "proprio_names")
KNOWN = {entry.name for entry in fields(Embodiment)} | {"features"}
CAMERA_KEYS = {"feature", "crop", "flip"}


@dataclass(frozen=True)
class RobotFile:
    """What a user's TOML says about a robot."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> dict[str, str]:
        """Our name of each feature → its name in the data."""
        cameras = self.values.get("cameras", {})
        named = {IMAGES + name: row["feature"] for name, row in cameras.items() if "feature" in row}
        return dict(self.values.get("features", {})) | named

    def apply(self, inferred: Embodiment) -> Embodiment:
        """The robot of the data with what the file says of it. Raises UserError where the two do not fit."""
        changes = {name: value for name, value in self.values.items() if name not in ("cameras", "features", *LISTS)}
        for name in LISTS:
            if name in self.values:
                kind = str if name.endswith("names") else float
                changes[name] = tuple(kind(value) for value in self.values[name])
        if "control_hz" in changes:
            changes["control_hz"] = float(changes["control_hz"])
        if "gripper" in changes:
            row = changes["gripper"]
            changes["gripper"] = Gripper(row["index"], float(row["open"]), float(row["closed"]))
        if "cameras" in self.values:
            changes["cameras"] = tuple(
                _camera(inferred.camera(name), row, self.path) for name, row in self.values["cameras"].items()
            )
        robot = replace(inferred, **changes)
        for names, sizes in (
            ("action_names", {"action_low", "action_high"}),
            ("proprio_names", set()),
        ):
            wanted = len(getattr(inferred, names))
            for name in (names, *sizes):
                if len(getattr(robot, name)) != wanted:
                    raise UserError(f"{self.path} gives {len(getattr(robot, name))} {name}, but the data has {wanted}.")
        low_high = zip(robot.action_low, robot.action_high, strict=True)
        if any(low > high for low, high in low_high):
            raise UserError(f"{self.path} gives an action_low above its action_high: exchange the two.")
        if robot.gripper is not None and not 0 <= robot.gripper.index < robot.action_size:
            raise UserError(
                f"{self.path} says the gripper is entry {robot.gripper.index} of the action, but the action has "
                f"{robot.action_size}, counted from 0."
            )
        return robot


def read_robot(path: Path) -> RobotFile:
    """Read a robot's TOML. Raises UserError naming the first key or value that is unfit."""
    if not path.is_file():
        raise UserError(f"There is no robot file '{path}': write one, or leave --robot out to infer the robot.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML ({error}).") from error
    for name, value in values.items():
        if name not in KNOWN:
            raise UserError(f"{path} has the key '{name}', which no robot has; there is {', '.join(sorted(KNOWN))}.")
        _check(path, name, value)
    return RobotFile(path, values)


def _check(path: Path, name: str, value: Any) -> None:
    def refuse(wanted: str) -> UserError:
        return UserError(f"{path}: '{name}' wants {wanted}, but {json.dumps(value, default=str)} came.")

    if name in ("action_names", "proprio_names") and not _all(value, str):
        raise refuse("a list of words")
    if name in ("action_low", "action_high") and not _all(value, int | float):
        raise refuse("a list of numbers")
    if name == "name" and not (isinstance(value, str) and value):
        raise refuse("a word")
    if name == "control_hz" and not (_all([value], int | float) and float(value) > 0):
        raise refuse("a number above 0")
    if name == "action_kind" and (not isinstance(value, str) or value not in get_args(ActionKind)):
        raise refuse(" or ".join(get_args(ActionKind)))
    if name == "gripper":
        row: Any = value if isinstance(value, dict) else {}
        fits = set(row) == {"index", "open", "closed"} and _all([row["open"], row["closed"]], int | float)
        if not fits or not _is(row["index"], int):
            raise refuse("{ index = …, open = …, closed = … }")
        if row["open"] == row["closed"]:
            raise refuse("different numbers for open and closed")
    if name == "features" and not (isinstance(value, dict) and _all(list(value.values()), str)):
        raise refuse("a table of feature names")
    if name == "cameras":
        for row in value.values() if isinstance(value, dict) and value else [None]:
            if not isinstance(row, dict) or not set(row) <= CAMERA_KEYS:
                raise refuse(f"a table for each camera with {', '.join(sorted(CAMERA_KEYS))}")
            if "crop" in row and not (_all(row["crop"], int) and len(row["crop"]) == 4):
                raise refuse("crop = [top, left, height, width] in pixels")
            flip = row.get("flip", "none")
            if not isinstance(flip, str) or flip not in FLIPS:
                raise refuse(f"flip = {' or '.join(FLIPS)}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of this kind; numbers are finite, and booleans none."""
    return isinstance(value, kind) and not isinstance(value, bool) and (isinstance(value, str) or math.isfinite(value))


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(_is(value, kind) for value in values)


def _camera(camera: Camera, row: Mapping[str, Any], path: Path) -> Camera:
    crop = tuple(row["crop"]) if "crop" in row else camera.crop
    if crop is not None:
        top, left, height, width = crop
        inside = top >= 0 and left >= 0 and top + height <= camera.height and left + width <= camera.width
        if min(height, width) < 1 or not inside:
            raise UserError(
                f"{path}: the crop {list(crop)} of camera '{camera.name}' leaves its image of "
                f"{camera.height}×{camera.width} pixels."
            )
    return replace(camera, crop=crop, flip=row.get("flip", camera.flip))


def write_robot(path: Path, robot: Embodiment, features: Mapping[str, str] | None = None) -> None:
    """The robot as a TOML file that `read_robot` reads; `features` are our names of the data's, where they differ."""
    features = dict(features or {})
    lines = ["# The robot as it was inferred from the data. Correct it and pass the file with --robot."]
    lines += [f"name = {_text(robot.name)}", f"control_hz = {robot.control_hz}"]
    lines += [f"action_kind = {_text(robot.action_kind)}"]
    lines += [f"{name} = {_text(list(getattr(robot, name)))}" for name in LISTS]
    if robot.gripper is None:
        lines += ["# gripper = { index = 6, open = 1.0, closed = 0.0 }   # which entry of the action, and its commands"]
    else:
        grip = robot.gripper
        lines += [f"gripper = {{ index = {grip.index}, open = {grip.open}, closed = {grip.closed} }}"]
    for camera in robot.cameras:
        lines += ["", f"[cameras.{_text(camera.name)}]  # {camera.height}×{camera.width}"]
        if theirs := features.pop(IMAGES + camera.name, None):
            lines += [f"feature = {_text(theirs)}"]
        lines += [f"crop = {_text(list(camera.crop))}"] if camera.crop else []
        lines += [f"flip = {_text(camera.flip)}"]
    if features:
        lines += ["", "[features]", *(f"{_text(ours)} = {_text(theirs)}" for ours, theirs in features.items())]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _text(value: Any) -> str:
    """As TOML, which for text, numbers and lists of them is JSON."""
    return json.dumps(value, ensure_ascii=False)
