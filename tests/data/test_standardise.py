"""Open X-Embodiment's conventions, by values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hypervla.data.standardise import (
    GRIPPER_RULES,
    binarise_gripper,
    euler_from_quaternion,
    invert,
    letters,
    quaternion_from_euler,
    relabel_arm_actions,
    relabelled_states,
    relative_to_absolute_gripper,
    sentence,
)

GRIPPERS = arrays(np.float32, st.integers(1, 12), elements=st.sampled_from([-1, -0.5, 0, 0.02, 0.5, 0.7, 0.96, 1]))


@pytest.mark.parametrize(
    ("raw", "settled"),
    [
        ([1, 0.9, 0.5, 0.1, 0], [1, 0, 0, 0, 0]),
        ([0, 0.3, 1, 0.5, 0.5, 0.02], [0, 1, 1, 0, 0, 0]),
        ([1, 0.5, 0.6], [1, 0.6, 0.6]),
        ([0.3, 0.4], [0.4, 0.4]),
        ([0.95, 0.05], [0.05, 0.05]),
        ([0.96], [1]),
    ],
)
def test_a_gripper_on_its_way_counts_as_where_it_arrives(raw: list[float], settled: list[float]) -> None:
    np.testing.assert_array_equal(binarise_gripper(np.float32(raw)), np.float32(settled))


@pytest.mark.parametrize(
    ("commands", "state"),
    [
        ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1]),
        ([0, -1, 0], [0, 1, 1]),
        ([0.05, -0.05, 0.1], [1, 1, 1]),
        ([1, 1, 1], [0, 0, 0]),
        ([0, 0.2, 0, -0.2], [1, 0, 0, 1]),
        ([0], [1]),
    ],
)
def test_relative_commands_become_the_state_they_lead_to(commands: list[float], state: list[float]) -> None:
    np.testing.assert_array_equal(relative_to_absolute_gripper(np.float32(commands)), np.float32(state))


@given(GRIPPERS)
def test_relative_commands_follow_their_definition_step_by_step(commands: np.ndarray) -> None:
    sign = [1 if c < -0.1 else -1 if c > 0.1 else 0 for c in commands]
    now = next((-s for s in sign if s), 1)
    wanted = []
    for s in sign:
        now = s or now
        wanted.append(now / 2 + 0.5)
    assert relative_to_absolute_gripper(commands).tolist() == wanted


@given(GRIPPERS)
def test_inverting_twice_changes_nothing(gripper: np.ndarray) -> None:
    np.testing.assert_allclose(invert(invert(gripper)), gripper, atol=1e-6)


@given(GRIPPERS, st.sampled_from(["clip", "clip and invert", "relative"]))
def test_these_rules_end_between_closed_and_open(gripper: np.ndarray, rule: str) -> None:
    out = GRIPPER_RULES[rule](gripper)
    assert ((out >= 0) & (out <= 1)).all()


def test_bridge_actions_are_what_the_arm_did_and_the_last_step_goes() -> None:
    state = np.float32([[0, 0, 0, 0, 0, 0, 1], [0.5, 0, 0.25, 0, 0, -1, 0], [0.5, 1, 0, 0, 2, -1, 0]])
    moves = relabel_arm_actions(state[:, :6])
    np.testing.assert_array_equal(moves, np.float32([[0.5, 0, 0.25, 0, 0, -1], [0, 1, -0.25, 0, 2, 0]]))
    np.testing.assert_allclose(relabelled_states(state[0, :6], moves), state[:, :6])


@pytest.mark.parametrize(
    ("quaternion", "angles"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([np.sin(0.3), 0, 0, np.cos(0.3)], [0.6, 0, 0]),
        ([0, np.sin(0.2), 0, np.cos(0.2)], [0, 0.4, 0]),
        ([0, 0, np.sin(-0.7), np.cos(-0.7)], [0, 0, -1.4]),
        ([0, 0, 1, 0], [0, 0, np.pi]),
        ([0, np.sqrt(0.5), 0, np.sqrt(0.5)], [0, np.pi / 2, 0]),
    ],
)
def test_quaternions_become_roll_pitch_and_yaw(quaternion: list[float], angles: list[float]) -> None:
    np.testing.assert_allclose(euler_from_quaternion(np.float32([quaternion]))[0], angles, atol=1e-3)


def rotation(angles: np.ndarray) -> np.ndarray:
    """The matrix that turns by roll, then pitch, then yaw, about the fixed axes x, y and z."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles), np.sin(angles)
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    return np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ y @ x


@given(arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_the_angles_turn_as_the_quaternion_does(quaternion: np.ndarray) -> None:
    x, y, z, w = quaternion = quaternion / np.linalg.norm(quaternion)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    angles = euler_from_quaternion(np.float32([quaternion]))[0].astype(np.float64)
    np.testing.assert_allclose(rotation(angles), matrix, atol=4e-3)


@given(arrays(np.float32, (3, 3), elements=st.floats(-1.5, 1.5, width=32)))
def test_angles_come_back_from_the_quaternion(angles: np.ndarray) -> None:
    np.testing.assert_allclose(euler_from_quaternion(quaternion_from_euler(angles)), angles, atol=2e-3)


def test_text_is_text_however_it_is_stored() -> None:
    assert [sentence(b"put it"), sentence("put it"), sentence(b"  "), sentence("")] == ["put it", "put it", "", ""]
    assert letters([112, 117, 116, 0, 120]) == "put"
    assert letters([0, 120]) == ""
    assert letters([104, 0xD800, -3]) == "h\ufffd\ufffd"
