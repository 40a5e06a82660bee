"""Suites: names, subsets, seeds, sentences."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervla.contracts import UserError
from hypervla.evaluation.suites import MT10, RECORDING_SEEDS, SUITES, environment_seed, suite
from hypervla.evaluation.trial import tickets


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_can_be_sent_to_a_worker(name: str) -> None:
    found = suite(name)
    sent = pickle.loads(pickle.dumps(found))
    assert replace(sent, environment=found.environment, make=found.make) == found
    assert getattr(sent.environment, "keywords", None) == getattr(found.environment, "keywords", None)
    assert len(found.tasks) >= 4


def test_mt10_is_metaworlds() -> None:
    assert suite("metaworld-mt10").tasks == MT10
    assert set(MT10) <= set(suite("metaworld-mt50").tasks)
    assert "hidden" in suite("metaworld-mt10-hidden-goal").scene


def test_hypervlas_variants_alone_look_at_the_middle_of_the_pictures() -> None:
    for name in SUITES:
        found = suite(name)
        assert found.middle == (0.9 if name.endswith("-hypervla") else 1.0)


def test_finding_a_suite_starts_no_simulator() -> None:
    before = "mujoco" in sys.modules
    suite("metaworld-mt50")
    assert ("mujoco" in sys.modules) == before


def test_mt50_is_every_task_of_metaworld_each_with_sentences_of_its_own() -> None:
    metaworld = pytest.importorskip("metaworld")
    found = suite("metaworld-mt50")
    assert sorted(found.tasks) == sorted(metaworld.env_dict.ALL_V3_ENVIRONMENTS)
    sentences = [s for task in found.tasks for kind in ("train", "held_out") for s in found.sentences(task, kind)]
    assert len(sentences) == len(set(sentences))


def test_held_out_sentences_are_not_trained_on() -> None:
    found = suite("metaworld-mt50")
    for task in found.tasks:
        train, held_out = found.sentences(task, "train"), found.sentences(task, "held_out")
        assert held_out
        assert not set(train) & set(held_out)
        assert list(found.sentences(task, "canonical")) == [train[0]]


def test_several_sentences_take_turns() -> None:
    found = suite("metaworld-mt10")
    train = found.sentences("reach-v3", "train")
    asked = [found.instruction("reach-v3", "train", trial) for trial in range(2 * len(train))]
    assert asked == [*train, *train]


@given(st.integers(0, 100), st.integers(0, 9_999), st.integers(0, 100), st.integers(0, 9_999))
def test_scenes_of_evaluation_are_distinct_and_never_recorded(seed: int, trial: int, seed2: int, trial2: int) -> None:
    first, second = environment_seed(seed, trial), environment_seed(seed2, trial2)
    assert first not in RECORDING_SEEDS
    assert (first == second) == ((seed, trial) == (seed2, trial2))


def test_a_wrong_name_is_answered_with_the_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean metaworld-mt10"):
        suite("metaworld-mt1")
    with pytest.raises(UserError, match="did you mean drawer-open-v3"):
        suite("metaworld-mt10").only(["drawer-opn-v3"])
    with pytest.raises(UserError, match="there is libero"):
        suite("zzz")


def test_no_scene_is_tried_twice_as_another() -> None:
    found = suite("libero-object").only(["pick_up_the_milk_and_place_it_in_the_basket"])
    assert len(tickets(found, trials=50, seed=0, instructions="canonical")) == 50
    for asked in ({"trials": 51, "seed": 0}, {"trials": 1, "seed": 1}):
        with pytest.raises(UserError, match="has 50 scenes, one for each trial of seed 0, and no others"):
            tickets(found, **asked, instructions="canonical")
    simpler = suite("simpler-widowx")
    assert [simpler.scenes[task] for task in simpler.tasks] == [24] * 4


def test_a_hidden_goal_is_hidden_from_demonstrations_too() -> None:
    pytest.importorskip("metaworld")
    for name, visible in (("metaworld-mt10", True), ("metaworld-mt10-hidden-goal", False)):
        make = suite(name).make
        assert make is not None
        environment, _ = make("reach-v3")
        assert environment.goal_visible is visible
        environment.close()


def test_a_subset_keeps_the_suites_order() -> None:
    assert suite("metaworld-mt10").only(["push-v3", "reach-v3"]).tasks == ("reach-v3", "push-v3")


@pytest.mark.parametrize(("seed", "trial"), [(-1, 0), (0, 10_000)])
def test_seeds_out_of_range_are_refused(seed: int, trial: int) -> None:
    with pytest.raises(UserError):
        environment_seed(seed, trial)


def test_the_shared_scene_asks_for_every_task_in_every_scene() -> None:
    found = suite("metaworld-shared-scene")
    assert len(found.tasks) == 9
    assert found.instruction("push-v3 in the scene of reach-v3", "canonical", 0) == "push the puck to the goal"
