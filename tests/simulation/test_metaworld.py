"""Metaworld as an Environment."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.environment import check_environment

from hypervla.contracts import ActionChunk, UserError
from hypervla.evaluation.suites import MT10

pytest.importorskip("metaworld")

from hypervla.simulation.demonstrators.metaworld import ScriptedExpert
from hypervla.simulation.metaworld import MetaworldEnvironment, tasks


def expert_action(environment: MetaworldEnvironment) -> ActionChunk:
    return ActionChunk(ScriptedExpert(environment).action()[None])


@pytest.mark.parametrize("task", ["drawer-close-v3", "reach-v3"])
def test_metaworld_keeps_the_contract(task: str) -> None:
    check_environment(lambda: MetaworldEnvironment(task), expert_action, limit=200)


@pytest.mark.parametrize("task", MT10)
def test_every_mt10_task_opens_and_shows_its_scene(task: str) -> None:
    environment = MetaworldEnvironment(task)
    environment.reset(1_000_000)
    image = environment.observe().images["corner2"]
    assert image.std() > 10, "not a blank picture"
    assert environment.instructions == tasks()[task].train
    environment.close()


def test_the_goal_marker_can_be_hidden_from_the_first_image() -> None:
    shown, hidden = MetaworldEnvironment("reach-v3"), MetaworldEnvironment("reach-v3", goal_visible=False)
    for environment in (shown, hidden):
        environment.reset(5)
    difference = np.abs(shown.render(192).astype(int) - hidden.render(192).astype(int)).max(axis=-1)
    assert 5 < (difference > 40).sum() < 2000, "a small marker, nothing else"
    np.testing.assert_array_equal(shown.proprio(), hidden.proprio())
    shown.execute(ActionChunk(np.zeros((1, 4), np.float32)))
    hidden.execute(ActionChunk(np.zeros((1, 4), np.float32)))
    assert (np.abs(shown.render(192).astype(int) - hidden.render(192).astype(int)) > 40).any(), "and it stays hidden"
    shown.close()
    hidden.close()


def test_a_view_for_people_has_the_size_asked_for() -> None:
    environment = MetaworldEnvironment("reach-v3")
    environment.reset(0)
    before = environment.observe().images["corner2"]
    assert environment.render(64).shape == (64, 64, 3)
    np.testing.assert_array_equal(environment.observe().images["corner2"], before)
    environment.close()


def test_an_unknown_task_is_answered_with_the_near_ones() -> None:
    with pytest.raises(UserError, match="drawer-open-v3"):
        MetaworldEnvironment("drawer-opn-v3")


def test_a_task_in_another_tasks_scene_is_judged_by_its_own_distance() -> None:
    reach, push = (MetaworldEnvironment(task, scene="pick-place-v3") for task in ("reach-v3", "push-v3"))
    outcomes = []
    for environment in (reach, push):
        environment.reset(3)
        for _ in range(150):
            way = environment.environment_state()[14:] - environment.proprio()[:3]
            outcome = environment.execute(ActionChunk(np.float32([[*np.clip(10 * way, -1, 1), -1.0]])))
            if outcome.success:
                break
        outcomes.append(outcome.success)
        environment.close()
    assert outcomes == [True, False], "the hand is at the marker; the puck is where it was"
    with pytest.raises(UserError, match="reach-v3"):
        MetaworldEnvironment("push-v3", scene="reach-v4")
