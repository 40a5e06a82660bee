"""Smoothness: the published measure, on commands."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import POINT

from hypervla.evaluation.smoothness import log_dimensionless_jerk, smoothness

STEERED = replace(POINT, action_kind="delta end-effector")


def minimum_jerk(steps: int) -> np.ndarray:
    """Velocity of the smoothest movement from rest to rest over a distance of 1 (Flash and Hogan 1985)."""
    time = (np.arange(steps) + 0.5) / steps
    return (30 * time**2 * (1 - time) ** 2)[:, None] / steps


def test_a_minimum_jerk_movement_has_the_value_that_calculus_gives() -> None:
    """∫jerk² = 720 A²/T⁵ and v_peak = 15/8 A/T, so that the dimensionless jerk is 720 · (8/15)² = 204.8."""
    assert log_dimensionless_jerk(minimum_jerk(2000)) == pytest.approx(-math.log(204.8), abs=0.01)


def test_two_movements_one_after_the_other_are_less_smooth_than_one() -> None:
    twice = np.concatenate([minimum_jerk(100)] * 2)
    assert log_dimensionless_jerk(twice) == pytest.approx(-math.log(16 * 204.8), abs=0.1)  # T³ · 2 integrals


@given(st.integers(0, 2**32 - 1), st.integers(20, 200), st.floats(0.02, 0.5))
def test_noise_makes_a_movement_less_smooth(seed: int, steps: int, level: float) -> None:
    clean = minimum_jerk(steps)
    noise = np.random.default_rng(seed).normal(0, level * clean.max(), clean.shape)
    assert log_dimensionless_jerk(clean + noise) < log_dimensionless_jerk(clean)


@given(st.floats(1e-3, 1e3), st.integers(50, 400), st.integers(2, 4))
def test_neither_size_nor_duration_matters(scale: float, steps: int, slower: int) -> None:
    reference = log_dimensionless_jerk(minimum_jerk(steps))
    assert log_dimensionless_jerk(scale * minimum_jerk(steps)) == pytest.approx(reference)
    assert log_dimensionless_jerk(minimum_jerk(slower * steps)) == pytest.approx(reference, abs=0.1)


def test_what_never_moves_has_no_smoothness() -> None:
    assert log_dimensionless_jerk(np.zeros((5, 3))) is None
    assert log_dimensionless_jerk(np.zeros((0, 3))) is None
    assert smoothness(np.zeros((5, 3), np.float32), STEERED) is None
    assert math.isfinite(log_dimensionless_jerk(np.full((1, 2), 0.1)))


def commands(steps: int) -> np.ndarray:
    """Actions of POINT: along both axes, and a gripper that opens and closes."""
    gripper = np.sign(np.sin(np.arange(steps)))[:, None]
    return np.concatenate([minimum_jerk(steps), -minimum_jerk(steps), gripper], 1).astype(np.float32)


def test_the_gripper_is_left_out_and_entries_are_shares_of_their_range() -> None:
    expected = log_dimensionless_jerk(minimum_jerk(50))
    assert smoothness(commands(50), STEERED) == pytest.approx(expected, abs=1e-4)
    narrow = replace(STEERED, action_low=(-0.1, -1e-6, -1.0), action_high=(0.1, 1e-6, 1.0))
    shaken = commands(50)
    shaken[:, 1] = 1e-7 * np.sign(np.sin(2 * np.arange(50)))
    assert smoothness(shaken, STEERED) == pytest.approx(expected, abs=1e-3)
    assert smoothness(shaken, narrow) < expected - 1, "where the range is a millionth, that is much"


def test_places_are_as_smooth_as_the_steps_between_them() -> None:
    placed = replace(STEERED, action_kind="absolute joint")
    steps = commands(50)
    places = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)]).astype(np.float32)
    assert smoothness(places, placed) == pytest.approx(smoothness(steps, STEERED), abs=1e-2)
    assert smoothness(places[:1], placed) is None


def test_of_actions_that_mean_nobody_knows_what_nothing_is_said() -> None:
    assert smoothness(commands(50), POINT) is None
