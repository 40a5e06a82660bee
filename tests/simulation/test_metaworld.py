"""Metaworld as an Environment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.conformance.environment import check_environment

from hypervla.contracts import ActionChunk, UserError
from hypervla.evaluation.suites import MT10
from hypervla.evaluation.taxonomy import failure

pytest.importorskip("metaworld")

from hypervla.simulation.demonstrators.metaworld import ScriptedExpert
from hypervla.simulation.metaworld import MetaworldEnvironment, tasks


def expert_action(environment: MetaworldEnvironment) -> ActionChunk:
    return ActionChunk(ScriptedExpert(environment).action()[None])


@pytest.mark.parametrize("task", ["drawer-close-v3", "pick-place-v3", "reach-v3"])
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


def told(environment: MetaworldEnvironment, act: Callable[[int], np.ndarray], steps: int) -> str:
    """The word for a trial of these actions."""
    environment.reset(3)
    seen = [environment.situation()]
    for step in range(steps):
        assert not environment.execute(ActionChunk(np.float32([act(step)]))).success
        seen.append(environment.situation())
    environment.close()
    return failure(seen)


STILL, AWAY = np.float32([0, 0, 0, -1]), np.float32([-1, 0, 1, -1])


@pytest.mark.parametrize("task", ["peg-unplug-side-v3", "pick-out-of-hole-v3"])
def test_a_gripper_that_opens_or_closes_still_takes_what_wants_a_gentle_one(task: str) -> None:
    environment = MetaworldEnvironment(task)
    expert = ScriptedExpert(environment)
    environment.reset(3)
    done = (environment.execute(ActionChunk(expert.action()[None])).success for _ in range(200))
    assert any(done)
    environment.close()


def test_what_an_expert_is_kept_from_is_told_from_the_simulators_state() -> None:
    """Its fingers stay open, or open on the way; it never sets out, or leaves off before the end."""

    def acting(task: str, until: int, opening: int, then: np.ndarray) -> str:
        environment = MetaworldEnvironment(task)
        expert = ScriptedExpert(environment)

        def act(step: int) -> np.ndarray:
            action = expert.action() if step < until else then
            return np.append(action[:3], -1.0) if step >= opening else action

        return told(environment, act, 90)

    assert acting("pick-place-v3", until=70, opening=0, then=AWAY) == "missed"
    assert acting("pick-place-v3", until=40, opening=40, then=AWAY) == "dropped"
    assert acting("pick-place-v3", until=0, opening=0, then=STILL) == "stuck"
    assert acting("drawer-open-v3", until=30, opening=0, then=AWAY) == "missed"
    assert acting("drawer-open-v3", until=68, opening=0, then=AWAY) == "out of time"
    assert acting("reach-v3", until=20, opening=0, then=STILL) == "stuck"


def test_taking_the_puck_where_only_the_hand_is_asked_for_is_taking_the_wrong_object() -> None:
    from metaworld.policies import ENV_POLICY_MAP

    environment = MetaworldEnvironment("reach-v3", scene="pick-place-v3")
    picks = ENV_POLICY_MAP["pick-place-v3"]()

    def act(step: int) -> np.ndarray:
        return np.clip(picks.get_action(environment.full_state()), -1, 1) if step < 45 else np.array([0, -1, 0.5, 1])

    assert told(environment, act, 60) == "wrong object"
