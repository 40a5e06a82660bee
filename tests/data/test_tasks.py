"""Goals in hindsight, paraphrases, and what is left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hypervla.contracts import UserError
from hypervla.data.tasks import (
    Paraphrases,
    acting_steps,
    choose_goals,
    largest_by_episode,
    read_paraphrases,
    uniform_goals,
)

OTHERS = {"open the drawer": ["pull the drawer", "", " ", "slide it open"], "wait": []}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_goals_are_spread_evenly_over_the_rest_of_the_episode() -> None:
    goals = uniform_goals(np.repeat([0, 3, 4], 6000), 5, random()).reshape(3, 6000)
    assert np.bincount(goals[0], minlength=5) == pytest.approx([1200] * 5, rel=0.1)
    assert np.bincount(goals[1], minlength=5) == pytest.approx([0, 0, 0, 3000, 3000], rel=0.1)
    assert set(goals[2]) == {4}, "the last step is its own goal"


def test_a_goal_is_shown_always_without_an_instruction_and_else_by_chance() -> None:
    labelled = np.arange(8000) % 2 == 0
    shown, goals = choose_goals(np.full(8000, 3), labelled, 10, 0.25, random())
    assert shown[~labelled].all()
    assert shown[labelled].mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(goals, np.where(shown, 3, 9))
    shown, goals = choose_goals(np.full(4, 3), np.ones(4, bool), 10, 0.0, random())
    assert (shown.any(), goals.tolist()) == (False, [9] * 4)


def test_every_sentence_is_as_likely_and_empty_ones_are_never_said() -> None:
    paraphrases, draws = Paraphrases(OTHERS, 1.0), random()
    said = Counter(paraphrases.choose("open the drawer", draws) for _ in range(3000))
    assert set(said) == {"open the drawer", "pull the drawer", "slide it open"}
    assert list(said.values()) == pytest.approx([1000] * 3, rel=0.15)


def test_an_instruction_nobody_said_otherwise_stays() -> None:
    paraphrases = Paraphrases(OTHERS, 1.0)
    assert {paraphrases.choose(text, random(seed)) for text in ("wait", "other") for seed in range(9)} == {
        "wait",
        "other",
    }
    assert paraphrases.choose("", random()) == ""


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_coin_of_an_episode_falls_with_its_probability(probability: float) -> None:
    paraphrases, draws = Paraphrases(OTHERS, probability), random()
    assert np.mean([paraphrases.coin(draws) for _ in range(4000)]) == pytest.approx(probability, abs=0.03)


def test_paraphrases_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(OTHERS))
    assert read_paraphrases(tmp_path / "p.json") == OTHERS


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', '{"a": [1]}', "{", "null", '{"a": null}', "[" * 100_000, "\xff"])
def test_a_file_of_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"p.json"):
        read_paraphrases(tmp_path / "p.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_paraphrases(tmp_path / "none.json")


def test_the_largest_number_of_each_episode_is_found() -> None:
    values = np.float32([[1, -2], [0, 0.5], [0.25, 0], [-7, 3]])
    assert largest_by_episode(values, np.array([0, 1, 3, 4])).tolist() == [2, 0.5, 7]


def test_steps_that_do_nothing_are_told_apart_from_those_that_only_grip() -> None:
    arm = np.float32([0, 1, 0, 0, 0, 0, 1e-5, 2e-4])
    gripper = np.float32([1, 0, 0, 1, 1, 0, 0, 0])
    actions = np.column_stack([arm, np.zeros((8, 5), np.float32), gripper])
    # a still start counts as nothing whatever its gripper; later a new gripper command counts
    assert acting_steps(actions).tolist() == [False, True, False, True, False, True, False, True]
    assert acting_steps(actions[:0]).tolist() == []


def test_the_gripper_is_compared_with_the_last_step_that_was_kept() -> None:
    actions = np.zeros((4, 7), np.float32)
    actions[:, 6] = [1, 1, 0, 0]
    assert not acting_steps(actions).any(), "without one that is kept there is nothing to compare with"
    actions[0, 0] = 1
    assert acting_steps(actions).tolist() == [True, False, True, False]
