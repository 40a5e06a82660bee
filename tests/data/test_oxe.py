"""The table of Open X-Embodiment's datasets, and what becomes of their episodes."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypervla.contracts import UserError
from hypervla.data.oxe import mixture, read_rows, row, rows
from hypervla.data.standardise import binarise_gripper
from hypervla.embodiment import LIBERO_PANDA, Camera, Embodiment

LABELLED = {
    "fractal20220817_data", "bridge_dataset", "taco_play", "jaco_play", "berkeley_autolab_ur5", "language_table",
    "furniture_bench_dataset_converted_externally_to_rlds", "ucsd_kitchen_dataset_converted_externally_to_rlds", "bc_z",
    "dlr_edan_shared_control_converted_externally_to_rlds", "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    "berkeley_fanuc_manipulation", "cmu_stretch",
}  # fmt: skip
PROPRIO = {
    "fractal20220817_data": 8, "kuka": 8, "roboturk": None, "nyu_door_opening_surprising_effectiveness": None,
    "viola": 8, "berkeley_autolab_ur5": 8, "language_table": 2, "austin_buds_dataset_converted_externally_to_rlds": 8,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 6, "austin_sailor_dataset_converted_externally_to_rlds": 8,
    "furniture_bench_dataset_converted_externally_to_rlds": 8, "utaustin_mutex": 8,
    "austin_sirius_dataset_converted_externally_to_rlds": 8,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 8,
    "libero_spatial": 8, "libero_object": 8, "libero_goal": 8, "liber_o10": 8,
}  # fmt: skip
"""Numbers of the robot's state where they are not seven."""
T = 5


def series(width: int = 1, *, first: float = 0.0) -> np.ndarray:
    """(T, width) different numbers."""
    return (first + np.arange(T * width).reshape(T, width) / 100).astype(np.float32)


STEPS: dict[str, Any] = {
    "action/world_vector": series(3),
    "action/rotation_delta": series(3, first=1),
    "action/gripper_closedness_action": np.float32([[0], [1], [0], [-1], [0]]),
    "action/rel_actions_world": series(7),
    "action/open_gripper": np.array([True, False, True, True, False]),
    "action/future/xyz_residual": series(30),
    "action/future/axis_angle_residual": series(30, first=1),
    "action/future/target_close": np.int64([[1] * 10, [0] * 10] * 2 + [[1] * 10]),
    "language_instruction": [b"put it down"] * T,
    "observation/natural_language_instruction": [b"pick it up"] * T,
    "observation/state": series(24),
    "observation/robot_state": series(15),
    "observation/robot_obs": series(15),
    "observation/joint_states": series(7),
    "observation/gripper_states": series(1),
    "observation/base_pose_tool_reached": series(7),
    "observation/gripper_closed": series(1),
    "observation/end_effector_cartesian_pos": series(7),
    "observation/effector_translation": series(2),
    "observation/present/xyz": series(3),
    "observation/present/axis_angle": series(3),
    "observation/present/sensed_close": series(1),
    "observation/instruction": np.int32([[*map(ord, "push"), 0, 65]] * T),
}
"""Features under every name that a row reads; `steps_of` adds those that differ from dataset to dataset."""
WIDTHS = {
    "language_table": 2, "nyu_franka_play_dataset_converted_externally_to_rlds": 15, "cmu_stretch": 8,
    "furniture_bench_dataset_converted_externally_to_rlds": 8, "berkeley_fanuc_manipulation": 6,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 8, "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 8,
}  # fmt: skip
"""Entries of the action where they are not seven."""


def steps_of(name: str) -> dict[str, Any]:
    steps = STEPS | {"action": series(WIDTHS.get(name, 7))}
    if name == "kuka":
        for feature, width in (("clip_function_input/base_pose_tool_reached", 7), ("gripper_closed", 1)):
            steps[f"observation/{feature}"] = [zlib.compress(values.tobytes()) for values in series(width)]
    if name in ("viola", "berkeley_autolab_ur5"):  # a number a step, where others have a vector of one
        steps["action/gripper_closedness_action"] = steps["action/gripper_closedness_action"][:, 0]
    return steps


# The table


def test_the_mixture_has_25_datasets_of_which_hypervla_keeps_the_13_with_language() -> None:
    soup, kept = mixture("oxe_magic_soup"), mixture("oxe_hypervla")
    assert (len(soup), set(kept)) == (25, LABELLED)
    assert kept == {name: weight for name, weight in soup.items() if row(name).labelled}
    assert sum(soup.values()) == pytest.approx(30.77497585143)
    assert soup["fractal20220817_data"] == 0.54087122203


def test_openvlas_mixture_leaves_two_out_and_reads_bridge_its_own_way() -> None:
    soup, other = dict(mixture("oxe_magic_soup")), dict(mixture("openvla_magic_soup"))
    for gone in ("nyu_door_opening_surprising_effectiveness", "bc_z"):
        del soup[gone]
    assert soup.pop("bridge_dataset") == other.pop("bridge_orig")
    assert soup == other


def test_one_camera_is_read_unless_others_are_chosen() -> None:
    assert all(len(row.cameras) == 1 for row in rows().values() if row.robot is None)
    assert list(row("libero_goal").cameras) == ["image", "wrist_image"], "all of a known robot's"
    viola = row("viola")
    assert dict(viola.cameras) == {"primary": "agentview_rgb"}
    assert dict(viola.seeing("wrist", "primary").cameras) == {"wrist": "eye_in_hand_rgb", "primary": "agentview_rgb"}
    assert dict(row("nyu_door_opening_surprising_effectiveness").cameras) == {"wrist": "image"}
    with pytest.raises(UserError, match="kuka has no camera 'wrist'; it has primary"):
        row("kuka").seeing("wrist")


def test_rows_are_plain_facts_that_travel_and_compare() -> None:
    for each in rows().values():
        assert pickle.loads(pickle.dumps(each)) == each
        assert repr(pickle.loads(pickle.dumps(each))) == repr(each), "caches are keyed by it"


def test_unknown_names_are_met_with_near_ones() -> None:
    with pytest.raises(UserError, match="'bridge_datset'; near are bridge_dataset"):
        row("bridge_datset")
    with pytest.raises(UserError, match="'viol'; near are viola"):
        row("viol")
    with pytest.raises(UserError, match="no mixture 'soup'; there are oxe_magic_soup, oxe_hypervla"):
        mixture("soup")


# Episodes


@pytest.mark.parametrize("name", list(rows()))
def test_every_dataset_becomes_seven_numbers_a_step(name: str) -> None:
    done = row(name).standardise(steps_of(name))
    first, last = name == "bridge_orig", T - name.startswith("bridge")
    assert (done.actions.shape, done.actions.dtype) == ((last - first, 7), np.float32)
    assert done.kept.tolist() == list(range(first, last))
    assert len(done.instructions) == len(done.kept)
    assert {text != "" for text in done.instructions} == {name in LABELLED or name.startswith(("bridge_orig", "liber"))}
    size = PROPRIO.get(name, 7)
    assert (None if done.proprio is None else done.proprio.shape) == (None if size is None else (last - first, size))
    assert len(row(name).embodiment(()).proprio_names) == (size or 0)


@pytest.mark.parametrize(
    ("name", "gripper"),
    [
        ("fractal20220817_data", [1, 0, 0, 1, 1]),
        ("berkeley_autolab_ur5", [1, 0, 0, 1, 1]),
        ("taco_play", [0.06, 0.13, 0.2, 0.27, 0.34]),
        ("roboturk", [1, 0, 1, 1, 1]),
        ("viola", [1, 0, 1, 1, 1]),
        ("toto", [1, 0, 1, 1, 0]),
        ("bc_z", [0, 1, 0, 1, 0]),
        ("language_table", [1] * 5),
        ("berkeley_cable_routing", [0] * 5),
        ("nyu_franka_play_dataset_converted_externally_to_rlds", [0.13, 0.28, 0.43, 0.58, 0.73]),
        ("dlr_edan_shared_control_converted_externally_to_rlds", [0.94, 0.87, 0.8, 0.73, 0.66]),
        ("berkeley_fanuc_manipulation", [0.94, 0.7, 0.46, 0.22, -0.02]),
    ],
)
def test_one_is_open_and_zero_is_closed_everywhere(name: str, gripper: list[float]) -> None:
    np.testing.assert_allclose(row(name).standardise(steps_of(name)).actions[:, 6], gripper, atol=1e-6)


def test_a_gripper_command_beyond_open_and_closed_is_clipped_where_the_row_says_so() -> None:
    steps = steps_of("taco_play") | {"action/rel_actions_world": series(7)}
    steps["action/rel_actions_world"][:, 6] = [-1, 0, 0.5, 1, 2]
    assert row("taco_play").standardise(steps).actions[:, 6].tolist() == [0, 0, 0.5, 1, 1]


def test_arms_are_the_entries_the_row_names() -> None:
    def arm(name: str) -> np.ndarray:
        return row(name).standardise(steps_of(name)).actions[:, :6]

    zeros = np.zeros((T, 4), np.float32)
    franka = "nyu_franka_play_dataset_converted_externally_to_rlds"
    np.testing.assert_array_equal(arm(franka), steps_of(franka)["action"][:, 7:13])
    np.testing.assert_array_equal(arm("jaco_play"), np.hstack([STEPS["action/world_vector"], zeros[:, :3]]))
    np.testing.assert_array_equal(arm("bc_z")[:, 3:], STEPS["action/future/axis_angle_residual"][:, :3])
    np.testing.assert_array_equal(arm("language_table"), np.hstack([steps_of("language_table")["action"], zeros]))
    stretch = row("cmu_stretch").standardise(steps_of("cmu_stretch"))
    np.testing.assert_array_equal(stretch.actions, steps_of("cmu_stretch")["action"][:, :7])
    assert stretch.proprio is not None
    np.testing.assert_array_equal(stretch.proprio[:, 3:6], zeros[:, :3])


def test_bridge_tells_what_the_arm_did_and_its_gripper_where_it_arrives() -> None:
    steps = steps_of("bridge_dataset")
    steps["action"][:, 6] = [1, 0.5, 0, 0.3, 0.4]
    done = row("bridge_dataset").standardise(steps)
    states = STEPS["observation/state"]
    np.testing.assert_array_equal(done.actions[:, :6], states[1:, :6] - states[:-1, :6])
    np.testing.assert_array_equal(done.actions[:, 6], np.float32([1, 0, 0, 0.4]))
    np.testing.assert_array_equal(done.proprio, states[:-1, :7])
    openvla = row("bridge_orig").standardise(steps)
    np.testing.assert_array_equal(openvla.actions, done.actions[1:])


def test_the_bridge_sample_moves_as_its_states_do(shared_data: Path) -> None:
    from hypervla.data.rlds import RldsDataset
    from hypervla.data.rlds_folder import RldsFolder
    from hypervla.data.rlds_index import Steps

    folder = RldsFolder(shared_data / "bridge_dataset")
    dataset = RldsDataset(shared_data / "bridge_dataset")
    for record, start in zip(folder.choose("train")[0], dataset.starts, strict=False):
        steps = Steps(folder.features, record)
        states, raw = np.array(steps["observation/state"]), np.array(steps["action"])
        wanted = np.column_stack([np.diff(states[:, :6], axis=0), binarise_gripper(raw[:, 6])[:-1]])
        np.testing.assert_array_equal(dataset.actions[start : start + 9], wanted)


def test_compressed_states_are_unpacked_and_plain_ones_taken_as_they_are() -> None:
    packed = row("kuka").standardise(steps_of("kuka"))
    np.testing.assert_array_equal(packed.proprio, np.hstack([series(7), series(1)]))
    plain = {
        "observation/clip_function_input/base_pose_tool_reached": series(7),
        "observation/gripper_closed": series(),
    }
    np.testing.assert_array_equal(row("kuka").standardise(steps_of("kuka") | plain).proprio, packed.proprio)


def test_instructions_end_at_the_first_zero_and_blank_ones_are_none() -> None:
    assert row("language_table").standardise(steps_of("language_table")).instructions == ["push"] * T
    spaced = steps_of("dlr") | {"language_instruction": [b"put it", b" ", b"", "bött".encode(), "c"]}
    dlr = row("dlr_edan_shared_control_converted_externally_to_rlds")
    assert dlr.standardise(spaced).instructions == ["put it", "", "", "bött", "c"]


def test_an_episode_of_one_step_gives_nothing_where_the_last_is_dropped() -> None:
    steps = {name: values[:1] for name, values in steps_of("bridge_dataset").items()}
    assert row("bridge_dataset").standardise(steps).actions.shape == (0, 7)
    assert row("bridge_orig").standardise(steps).instructions == []


# The robot


def test_the_robot_is_what_row_and_data_say() -> None:
    actions = np.float32([[0, -1, 0, 0, 0, 0, 1], [2, 1, 0, 0, 0, 0, 0]])
    robot = row("bridge_dataset").embodiment((Camera("primary", 48, 64),), actions)
    assert (robot.name, robot.control_hz, robot.action_kind) == ("bridge_dataset", 5.0, "delta end-effector")
    assert robot.action_names == ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    assert (robot.action_low[:2], robot.action_high[:2]) == ((0, -1), (2, 1))
    assert robot.gripper is not None
    assert (robot.gripper.index, robot.gripper.open, robot.gripper.closed) == (6, 1.0, 0.0)
    assert robot.proprio_names == tuple(f"state.{number}" for number in range(7))
    assert Embodiment.from_json(robot.to_json()) == robot


def test_a_robot_without_data_has_no_limits_that_matter() -> None:
    robot = row("viola").embodiment(())
    np.testing.assert_array_equal(robot.clip(np.full((1, 7), -1e9, np.float32)).actions, np.float32([[-1e9] * 7]))
    assert len(set(robot.proprio_names)) == 8


# Refusals


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("taco_play", {"action/rel_actions_world": series(4)}, r"has 4 numbers a step, but its row reads \[0:6\]"),
        ("taco_play", {"action/rel_actions_world": [b"x"] * T}, "holds no vectors of numbers"),
        ("viola", {"action/world_vector": np.zeros((T, 3, 1), np.float32)}, "holds no vectors of numbers"),
        ("viola", {"action/rotation_delta": series(3)[:3]}, "has 3 steps where others have 5"),
        ("kuka", {"observation/gripper_closed": [b"xyz"] * T}, "'observation/gripper_closed' of kuka is no zlib"),
        ("kuka", {"observation/gripper_closed": [zlib.compress(bytes(1 << 22))] * T}, "more than 4"),
        ("language_table", {"observation/instruction": [b"push"] * T}, "holds no lists of whole numbers"),
        ("bridge_dataset", {"language_instruction": [b"\xff"] * T}, "no UTF-8"),
        ("bridge_dataset", {"language_instruction": [b"a"] * 4}, "has 4 steps where others have 5"),
        ("bridge_dataset", {"language_instruction": series()}, "holds no text"),
    ],
)
def test_data_of_another_shape_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        row(name).standardise(steps_of(name) | change)


def test_a_feature_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match="toto has no step feature 'action/world_vector'; there are a, b: correct"):
        row("toto").standardise({"b": 1, "a": 2})


# A user's own rows

GOOD = """
[mine]
hz = 10
cameras = { top = "front", hand = "wrist" }
arm = ["action[0:2]", "zeros[0:1]"]
gripper = "action[6:7]"
gripper_rule = "invert"
proprio = ["observation/state[-2:]"]
language = "language_instruction"
action_kind = "delta joint"
weights = { mix = 2 }
"""


def written(folder: Path, text: str) -> Path:
    (folder / "rows.toml").write_text(text)
    return folder / "rows.toml"


def test_a_row_of_ones_own_reads_ones_own_data(tmp_path: Path) -> None:
    own = read_rows(written(tmp_path, GOOD))["mine"]
    done, steps = own.standardise(steps_of("mine")), steps_of("mine")
    np.testing.assert_array_equal(done.actions[:, :3], np.column_stack([steps["action"][:, :2], np.zeros(T)]))
    np.testing.assert_allclose(done.actions[:, 3], 1 - steps["action"][:, 6])
    np.testing.assert_array_equal(done.proprio, steps["observation/state"][:, -2:])
    robot = own.embodiment(())
    assert robot.action_names == ("a0", "a1", "a2", "gripper")
    assert (robot.action_kind, robot.proprio_names) == ("delta joint", ("state.-2", "state.-1"))
    assert robot.gripper is not None
    assert robot.gripper.index == 3
    assert (dict(own.cameras), dict(own.weights)) == ({"top": "front"}, {"mix": 2.0})


def test_a_robot_without_gripper_or_words_is_read_too(tmp_path: Path) -> None:
    own = read_rows(written(tmp_path, '[mine]\nhz = 1\ncameras = { a = "b" }\narm = ["action[0:7]"]'))["mine"]
    done = own.standardise(steps_of("mine"))
    np.testing.assert_array_equal(done.actions, steps_of("mine")["action"])
    assert (done.proprio, done.instructions, own.labelled) == (None, [""] * T, False)
    assert own.embodiment(()).gripper is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("hz = 10", "hz = 0", "'hz' of mine: a number above 0"),
        ("hz = 10", "hz = true", "'hz' of mine"),
        ("hz = 10", "hz = inf", "'hz' of mine"),
        ("hz = 10", "", "'hz' of mine: it is missing"),
        ('"invert"', '"wild"', "as is or clip or invert"),
        ('"action[0:2]"', '"action[0:2"', "as zlib.* is wanted, but 'action"),
        ('"action[0:2]"', '"action[2:0]"', "does not say which"),
        ('"action[0:2]"', '"action[2:-1]"', "does not say which"),
        ('"action[0:2]"', '"action[0:3] as euler"', "a quaternion has four numbers"),
        ('"action[0:2]"', '"action[1:3] as zlib"', "does not say which"),
        ('"action[0:2]", ', "", "at least one stored column"),
        ('"action[6:7]"', '"action[5:7]"', "one number is wanted"),
        ("proprio", "speed = 3\nproprio", "'speed' of mine: no such key; there are hz"),
        ('cameras = { top = "front", hand = "wrist" }', "cameras = {}", "'cameras' of mine"),
        ("proprio", 'relabel = "x[0:6]"\nproprio', "either 'arm' or 'relabel'"),
        ('"delta joint"', '"dancing"', "unknown or delta end-effector"),
        ("weights = { mix = 2 }", "weights = { mix = 0 }", "'weights' of mine"),
        ("weights = { mix = 2 }", "skip_first = -1", "'skip_first' of mine"),
        ("[mine]", "[mine", "is no TOML"),
        ("[mine]", "mine = 3\n[other]", "'mine' is no table"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=said):
        read_rows(written(tmp_path, GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"libero-panda"', '"nobody"', "no robot 'nobody'; there is metaworld-sawyer"),
        ('"libero-panda"', "3", "'robot' of mine: the name of a known robot"),
        ("hz = 20", "hz = 10", "libero-panda has 7 actions, 8 of proprio, 20 Hz.* 8 of proprio, 10 Hz"),
        ("state[0:8]", "state[0:7]", "the row reads 7 actions, 7 of proprio"),
        ("action[0:6]", "action[0:5]", "the row reads 6 actions"),
        ("hz", 'gripper_rule = "clip"\nhz', "the gripper 'clip'"),
        ("image =", "front =", r"the cameras image, wrist_image, but .* and front\.$"),
    ],
)
def test_a_known_robot_in_a_row_has_to_be_that_robot(tmp_path: Path, old: str, new: str, said: str) -> None:
    good = """
[mine]
hz = 20
robot = "libero-panda"
cameras = { image = "front" }
arm = ["action[0:6]"]
gripper = "action[6:7]"
proprio = ["observation/state[0:8]"]
"""
    robot = read_rows(written(tmp_path, good))["mine"].embodiment((Camera("image", 40, 50),))
    assert robot == replace(LIBERO_PANDA, cameras=(Camera("image", 40, 50, flip="both"),))
    with pytest.raises(UserError, match=said):
        read_rows(written(tmp_path, good.replace(old, new, 1)))


def test_a_file_of_rows_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.toml cannot be read: No such file"):
        read_rows(tmp_path / "none.toml")
