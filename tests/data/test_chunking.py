"""Windows, chunks and masks, by tables worked out by hand and by their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervla.data.chunking import MaskMode, action_mask, action_rows, observation_rows


def test_the_first_observation_is_repeated_to_the_left_and_says_so() -> None:
    rows, real = observation_rows(np.arange(4), 3)
    assert rows.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert real.tolist() == [[False, False, True], [False, True, True], [True] * 3, [True] * 3]


def test_the_last_action_is_repeated_to_the_right() -> None:
    assert action_rows(np.arange(4), 1, 3, 4)[:, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]]


def test_each_observation_of_a_window_has_its_own_chunk_and_a_repeated_one_the_first() -> None:
    assert action_rows(np.array([0, 1, 3]), 2, 3, 4).tolist() == [
        [[0, 1, 2], [0, 1, 2]],
        [[0, 1, 2], [1, 2, 3]],
        [[2, 3, 3], [3, 3, 3]],
    ]


# An episode of 4 steps whose goal is the last, chunks of 4: which of the actions t, t + 1, t + 2, t + 3 count.
TABLES: dict[MaskMode, list[str]] = {
    "released": ["1111", "1111", "1110", "1100"],
    "literal": ["1110", "1100", "1000", "0000"],
    "pad_only": ["1111", "1110", "1100", "1000"],
}


@pytest.mark.parametrize("mode", TABLES)
def test_actions_that_count_towards_the_end_of_an_episode(mode: MaskMode) -> None:
    mask = action_mask(np.arange(4), 1, 4, 4, np.full(4, 3), mode)[:, 0]
    assert ["".join("01"[int(counts)] for counts in row) for row in mask] == TABLES[mode]


def test_released_counts_the_first_repetition_and_pad_only_all_real_actions() -> None:
    length, horizon = 6, 4
    steps, last = np.arange(length), np.full(length, length - 1)
    ahead = steps[:, None] + np.arange(horizon)
    np.testing.assert_array_equal(action_mask(steps, 1, horizon, length, last, "released")[:, 0], ahead <= length)
    np.testing.assert_array_equal(action_mask(steps, 1, horizon, length, last, "pad_only")[:, 0], ahead < length)
    np.testing.assert_array_equal(action_mask(steps, 1, horizon, length, last, "literal")[:, 0], ahead < length - 1)


def test_an_earlier_goal_ends_the_chunk_earlier_but_padding_knows_no_goal() -> None:
    steps, goals = np.array([2, 2, 2]), np.array([2, 4, 9])
    assert action_mask(steps, 1, 4, 10, goals, "released").sum(axis=-1).ravel().tolist() == [2, 4, 4]
    assert action_mask(steps, 1, 4, 10, goals, "literal").sum(axis=-1).ravel().tolist() == [0, 2, 4]
    assert action_mask(steps, 1, 4, 10, goals, "pad_only").sum(axis=-1).ravel().tolist() == [4, 4, 4]


def test_the_released_offset_grows_with_the_window() -> None:
    # W = 2, goal 4 of t = 4: completed is goal − (t − 3 + w + h) ≤ 0, so 3, 2, 1 and 2, 1 count
    mask = action_mask(np.array([4]), 2, 4, 5, np.array([4]), "released")
    assert mask.astype(int).tolist() == [[[1, 1, 1, 0], [1, 1, 0, 0]]]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6), st.data())
def test_masks_follow_their_formula(length: int, window: int, horizon: int, data: st.DataObject) -> None:
    steps = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=6)))
    goals = np.array([data.draw(st.integers(int(step), length - 1)) for step in steps])
    for mode, offset in (("released", window + 1), ("literal", window - 1)):
        found = action_mask(steps, window, horizon, length, goals, mode)
        for f, w, h in np.ndindex(found.shape):
            assert found[f, w, h] == (goals[f] - (steps[f] - offset + w + h) > 0)
    rows, _ = observation_rows(steps, window)
    chunks, padded = action_rows(steps, window, horizon, length), rows[..., None] + np.arange(horizon) >= length
    np.testing.assert_array_equal(action_mask(steps, window, horizon, length, goals, "pad_only"), ~padded)
    assert (chunks[padded] == length - 1).all()
