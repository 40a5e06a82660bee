"""A user's own robot in a TOML file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes import POINT

from hypervla.contracts import UserError
from hypervla.data.robot_file import read_robot, write_robot
from hypervla.embodiment import Camera, Gripper


def robot_file(folder: Path, text: str) -> Path:
    path = folder / "robot.toml"
    path.write_text(text)
    return path


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    write_robot(tmp_path / "point.toml", POINT)
    assert read_robot(tmp_path / "point.toml").apply(POINT) == POINT


def test_a_file_adds_what_the_data_does_not_say(tmp_path: Path) -> None:
    path = robot_file(
        tmp_path,
        """
        name = "mine"
        action_kind = "absolute joint"
        action_high = [1, 2, 3]
        gripper = { index = 1, open = 0.0, closed = 1.0 }
        [cameras.top]
        feature = "image"
        crop = [0, 2, 16, 20]
        flip = "both"
        [features]
        "action" = "actions"
        """,
    )
    told = read_robot(path)
    robot = told.apply(POINT)
    assert (robot.name, robot.action_kind, robot.action_high) == ("mine", "absolute joint", (1, 2, 3))
    assert robot.gripper == Gripper(1, open=0.0, closed=1.0)
    assert robot.cameras == (Camera("top", 32, 32, (0, 2, 16, 20), flip="both"),)
    assert robot.action_low == POINT.action_low
    assert told.features == {"action": "actions", "observation.images.top": "image"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speed = 3", "has the key 'speed', which no robot has"),
        ("name = 3", "'name' wants a word, but 3 came"),
        ("control_hz = 0", "'control_hz' wants a number above 0"),
        ("action_low = ['a']", "'action_low' wants a list of numbers"),
        ("action_low = [1.0]", "gives 1 action_low, but the data has 3"),
        ("action_kind = 'joint'", "'action_kind' wants unknown or delta end-effector"),
        ("gripper = { index = 2 }", "'gripper' wants { index"),
        ("gripper = { index = 2, open = 1, closed = 1 }", "different numbers for open and closed"),
        ("gripper = { index = 3, open = 1, closed = 0 }", "gripper is entry 3 of the action, but the action has 3"),
        ("[cameras.side]\nflip = 'both'", "has no camera 'side'; it has top"),
        ("[cameras.top]\nflip = 'left'", "flip = none or vertical"),
        ("[cameras.top]\ncrop = [0, 0, 40, 10]", "leaves its image of 32×32 pixels"),
        ("[cameras.top]\ncrop = [0, 0, 4]", "crop = \\[top, left, height, width\\]"),
        ("[features]\naction = 3", "'features' wants a table of feature names"),
        ("name = ", "is no TOML"),
    ],
)
def test_what_fits_no_robot_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_robot(robot_file(tmp_path, text)).apply(POINT)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no robot file"):
        read_robot(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("control_hz = inf", "'control_hz' wants a number above 0"),
        ("action_low = [nan, 0.0, 0.0]", "'action_low' wants a list of numbers"),
        ("action_low = [1.0, 1.0, 2.0]", "gives an action_low above its action_high"),
        ("[cameras.top]\nflip = ['both']", "flip = none or vertical"),
        ("[cameras]", "'cameras' wants a table for each camera"),
        ("action_kind = ['velocity']", "'action_kind' wants unknown or"),
        ("gripper = { index = true, open = 0, closed = 1 }", "'gripper' wants { index"),
    ],
)
def test_values_that_no_robot_can_have_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_robot(robot_file(tmp_path, text)).apply(POINT)


def test_names_of_the_data_come_back_from_what_is_written(tmp_path: Path) -> None:
    features = {"observation.images.top": "observation.images.cam é", "action": "actions"}
    write_robot(tmp_path / "point.toml", POINT, features)
    assert read_robot(tmp_path / "point.toml").features == features
    assert read_robot(tmp_path / "point.toml").apply(POINT) == POINT
