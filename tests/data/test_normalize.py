"""Robot units ↔ the numbers a network sees: whatever is done is undone."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.fakes import POINT
from tests.tiny import NORMALIZER

from hypervla.contracts import UserError
from hypervla.data.normalize import Normalizer
from hypervla.embodiment import METAWORLD_SAWYER

STATISTICS = {
    "action": {"mean": [0.01, -0.02, 0.3], "std": [0.05, 0.04, 0.9]},
    "observation.state": {"mean": [0.5, 0.4], "std": [0.2, 0.3]},
}
FREE = replace(POINT, gripper=None)

numbers = st.floats(-100, 100, width=32)
deviations = st.floats(0.0099945068359375, 100, width=32)


@st.composite
def normalizers(draw: st.DrawFn, robot=FREE) -> Normalizer:
    kinds = {"mean": numbers, "std": deviations}

    def feature(size: int) -> dict[str, np.ndarray]:
        return {stat: draw(arrays(np.float32, size, elements=x)) for stat, x in kinds.items()}

    statistics = {"action": feature(robot.action_size), "observation.state": feature(robot.proprio_size)}
    return Normalizer.from_statistics(statistics, robot)


@given(normalizers(), arrays(np.float32, (5, 3), elements=numbers), arrays(np.float32, (5, 2), elements=numbers))
def test_inverse_undoes_forward(normalizer: Normalizer, actions: np.ndarray, proprio: np.ndarray) -> None:
    def close(undone: np.ndarray, original: np.ndarray) -> None:
        np.testing.assert_allclose(undone, original, rtol=1e-4, atol=1e-3)
        assert undone.dtype == np.float32

    close(normalizer.inverse_actions(normalizer.forward_actions(actions)), actions)
    close(normalizer.inverse_proprio(normalizer.forward_proprio(proprio)), proprio)


def test_forward_gives_zero_mean_and_unit_variance() -> None:
    random = np.random.default_rng(0)
    data = random.normal([1, 2, 3], [0.1, 2, 30], (1000, 3)).astype(np.float32)
    statistics = STATISTICS | {"action": {"mean": data.mean(0), "std": data.std(0)}}
    out = Normalizer.from_statistics(statistics, FREE).forward_actions(data)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(0), 1, rtol=1e-4)


@pytest.mark.parametrize("robot", [POINT, METAWORLD_SAWYER], ids=lambda robot: robot.name)
def test_an_open_gripper_is_one_and_a_closed_one_zero(robot) -> None:
    zeros = {"mean": np.zeros(robot.action_size), "std": np.ones(robot.action_size)}
    state = {"mean": np.zeros(robot.proprio_size), "std": np.ones(robot.proprio_size)}
    normalizer = Normalizer.from_statistics({"action": zeros, "observation.state": state}, robot)
    open_, closed, index = robot.gripper.open, robot.gripper.closed, robot.gripper.index
    commands = [open_, closed, (open_ + closed) / 2, 2 * open_ - closed, 2 * closed - open_]
    actions = np.zeros((5, robot.action_size), np.float32)
    actions[:, index] = commands
    seen = normalizer.forward_actions(actions)
    np.testing.assert_allclose(seen[:, index], [1, 0, 0.5, 1, 0], atol=1e-6)
    assert not np.delete(seen, index, 1).any()
    undone = normalizer.inverse_actions(seen)[:, index]
    np.testing.assert_allclose(undone, [open_, closed, commands[2], open_, closed], atol=1e-6)


def test_the_input_is_left_as_it_was() -> None:
    actions = np.full((2, 3), 0.7, np.float32)
    NORMALIZER.inverse_actions(NORMALIZER.forward_actions(actions))
    assert (actions == np.float32(0.7)).all()


def test_a_number_that_never_moved_is_shifted_but_not_scaled() -> None:
    statistics = STATISTICS | {"action": {"mean": [1, 1, 1], "std": [0, 1e-9, 2]}}
    out = Normalizer.from_statistics(statistics, FREE).forward_actions(np.full((1, 3), 1.5, np.float32))
    np.testing.assert_allclose(out, [[0.5, 0.5, 0.25]])


@pytest.mark.parametrize("feature", ["action", "observation.state"])
@pytest.mark.parametrize("stat", ["mean", "std"])
@pytest.mark.parametrize("bad", ["missing", "short", nan, inf], ids=str)
def test_unfit_statistics_are_refused_by_name(feature: str, stat: str, bad: str | float) -> None:
    statistics = json.loads(json.dumps(STATISTICS))
    values = statistics[feature][stat]
    if bad == "missing":
        del statistics[feature][stat]
    elif bad == "short":
        values.pop()
    else:
        values[-1] = bad
    with pytest.raises(UserError, match=f"finite numbers for the {stat} of '{feature}', but .* data stats"):
        Normalizer.from_statistics(statistics, POINT)


def test_a_missing_feature_is_refused() -> None:
    with pytest.raises(UserError, match="2 finite numbers for the mean of 'observation.state', but none came"):
        Normalizer.from_statistics({"action": STATISTICS["action"]}, POINT)


def test_a_robot_without_proprio_needs_no_statistics_of_it() -> None:
    blind = replace(POINT, proprio_names=())
    assert Normalizer.from_statistics({"action": STATISTICS["action"]}, blind).proprio_mean.size == 0


@given(normalizers(robot=POINT))
def test_a_normalizer_survives_json(normalizer: Normalizer) -> None:
    through = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())), POINT)
    assert through.digest == normalizer.digest
    for name, value in vars(normalizer).items():
        np.testing.assert_array_equal(vars(through)[name], value)


@given(normalizers(robot=POINT), st.data())
def test_the_digest_changes_with_any_number(normalizer: Normalizer, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["action_mean", "action_std", "proprio_mean", "proprio_std"]))
    values = getattr(normalizer, name).copy()
    at = data.draw(st.integers(0, len(values) - 1))
    values[at] = np.nextafter(values[at], np.float32(inf))
    assume(values[at] != getattr(normalizer, name)[at])
    assert replace(normalizer, **{name: values}).digest != normalizer.digest


@pytest.mark.parametrize("change", [{"index": 1}, {"open": 0.9}, {"closed": 0.5}, None], ids=str)
def test_the_digest_changes_with_the_gripper(change: dict | None) -> None:
    gripper = None if change is None else replace(NORMALIZER.gripper, **change)
    assert replace(NORMALIZER, gripper=gripper).digest != NORMALIZER.digest
