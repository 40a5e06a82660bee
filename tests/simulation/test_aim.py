"""Rotations, and hands that go somewhere."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hypervla.simulation.demonstrators.aim import Aim, Pose, about, go, held, rotation_left


@pytest.mark.parametrize("seed", range(5))
def test_rotations_are_those_of_scipy(seed: int) -> None:
    now, wanted = Rotation.random(2, rng=np.random.default_rng(seed))
    axis = np.random.default_rng(seed).normal(size=3)
    axis /= np.linalg.norm(axis)
    np.testing.assert_allclose(about(axis, 0.7), Rotation.from_rotvec(0.7 * axis).as_matrix(), atol=1e-12)
    left = rotation_left(now.as_matrix(), wanted.as_matrix())
    np.testing.assert_allclose(left, (wanted * now.inv()).as_rotvec(), atol=1e-9)


def test_nothing_is_left_where_nothing_is_to_turn() -> None:
    np.testing.assert_array_equal(rotation_left(np.eye(3), np.eye(3)), np.zeros(3))


def test_a_hand_goes_until_it_is_there_and_turned_or_for_so_many_steps_and_rests() -> None:
    now = [Pose(np.zeros(3), np.eye(3))]
    wanted = Pose(np.array([1.0, 0, 0]), about(np.array([0, 0, 1.0]), 1.0))
    going = partial(go, lambda: now[0], lambda: wanted, True, near=0.1, aligned=0.1, limit=5)
    aims = going()
    assert next(aims).pose is wanted
    now[0] = Pose(wanted.place, np.eye(3))
    assert len([next(aims) for _ in range(2)]) == 2, "it is not turned yet"
    now[0] = wanted
    assert len(list(aims)) == 1
    now[0] = Pose(np.zeros(3), np.eye(3))
    assert len(list(going())) == 6
    assert len(list(going(over=lambda: True))) == 1


def test_a_hand_that_comes_no_nearer_is_as_near_as_it_gets() -> None:
    now = [Pose(np.zeros(3), np.eye(3))]
    wanted = Pose(np.array([1.0, 0, 0]), np.eye(3))
    steps = [0.0, 0.3, 0.6, 0.8, 0.81, 0.812, 0.812, 0.812]
    asked = 0
    for _ in go(lambda: now[0], lambda: wanted, False, near=0.1, aligned=0.1, limit=50, patience=3):
        asked += 1
        now[0] = Pose(np.array([steps[min(asked, len(steps) - 1)], 0, 0]), np.eye(3))
    assert asked == 7, "three that brought it nearer, the one that shows it did not, two more, and one to rest"


def test_what_slipped_is_carried_no_further() -> None:
    aims = [Aim(Pose(np.full(3, float(i)), np.eye(3)), True) for i in range(4)]
    slipped = iter([False, False, True])
    assert list(held(iter(aims), lambda: next(slipped))) == aims[:2]
