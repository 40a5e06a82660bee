"""Laws of the execution modes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.fakes import POINT

from hypervla.contracts import ActionChunk, UserError
from hypervla.runtime.execution import OpenLoop, RecedingHorizon, TemporalEnsemble, blend, execution_mode

FREE = replace(POINT, gripper=None)
"""A robot without a gripper, so that nothing is snapped."""

finite = st.floats(-10, 10, width=32)


def chunks(count: int, length: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, (count, length, 3), elements=finite)


def carried_out(mode, predictions: np.ndarray) -> np.ndarray:
    mode.reset()
    return np.concatenate([mode.next(ActionChunk(chunk)).actions for chunk in predictions])


def published_act(predictions: np.ndarray, m: float) -> np.ndarray:
    """ACT's evaluation loop (imitate_episodes.py): a table of predictions, oldest first, weights exp(-m i)."""
    steps, length, size = predictions.shape
    table = np.full((steps, steps + length, size), np.nan)
    actions = []
    for t in range(steps):
        table[t, t : t + length] = predictions[t]
        reaching = table[:, t][~np.isnan(table[:, t]).any(axis=1)]
        weights = np.exp(-m * np.arange(len(reaching)))
        actions.append((reaching * (weights / weights.sum())[:, None]).sum(axis=0))
    return np.array(actions)


@given(arrays(np.float32, (5, 3), elements=finite))
def test_recency_zero_is_the_plain_mean(predictions: np.ndarray) -> None:
    np.testing.assert_allclose(blend(predictions, np.arange(5), 0.0), predictions.mean(axis=0), atol=1e-5)


@given(arrays(np.float32, (5, 3), elements=finite), st.permutations(range(5)))
def test_large_recency_is_the_newest_prediction(predictions: np.ndarray, ages: list[int]) -> None:
    np.testing.assert_array_equal(blend(predictions, np.array(ages), 1e6), predictions[ages.index(0)])


@given(arrays(np.float32, (5, 3), elements=finite))
def test_very_negative_recency_is_the_oldest_prediction(predictions: np.ndarray) -> None:
    np.testing.assert_array_equal(blend(predictions, np.arange(5), -1e6), predictions[-1])


@given(arrays(np.float32, 3, elements=finite), st.integers(1, 6), st.floats(-3, 3))
def test_identical_predictions_blend_to_themselves(action: np.ndarray, count: int, recency: float) -> None:
    np.testing.assert_array_equal(blend(np.tile(action, (count, 1)), np.arange(count), recency), action)


@given(chunks(9, 4), st.floats(-1, 1))
def test_temporal_ensemble_is_act_with_recency_minus_m(predictions: np.ndarray, m: float) -> None:
    ours = carried_out(TemporalEnsemble(FREE, recency=-m), predictions)
    np.testing.assert_allclose(ours, published_act(predictions.astype(np.float64), m), atol=1e-4)


@given(st.integers(1, 4), st.floats(-2, 2))
def test_an_ensemble_that_always_agrees_carries_out_the_plan(every: int, recency: float) -> None:
    plan = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    predictions = np.stack([plan[start : start + 4] for start in range(0, 20, every)])
    carried = carried_out(TemporalEnsemble(FREE, recency, every), predictions)
    np.testing.assert_array_equal(carried, plan[: len(carried)])
    assert len(carried) == every * len(predictions)


@given(chunks(6, 4))
def test_an_ensemble_that_looks_once_per_chunk_is_open_loop(predictions: np.ndarray) -> None:
    ensemble, open_loop = TemporalEnsemble(FREE, every=4), OpenLoop()
    np.testing.assert_array_equal(carried_out(ensemble, predictions), carried_out(open_loop, predictions))


@given(chunks(3, 4))
def test_open_loop_concatenates_the_chunks(predictions: np.ndarray) -> None:
    np.testing.assert_array_equal(carried_out(OpenLoop(), predictions), predictions.reshape(-1, 3))


@given(chunks(3, 4), st.integers(1, 4))
def test_receding_horizon_carries_out_the_first_steps(predictions: np.ndarray, steps: int) -> None:
    carried = carried_out(RecedingHorizon(steps), predictions)
    np.testing.assert_array_equal(carried, predictions[:, :steps].reshape(-1, 3))


def test_reset_forgets_the_episode_before() -> None:
    ensemble = TemporalEnsemble(FREE)
    before, after = np.zeros((3, 4, 3), np.float32), np.ones((2, 4, 3), np.float32)
    carried_out(ensemble, before)
    np.testing.assert_array_equal(carried_out(ensemble, after), np.ones((2, 3)))


def test_a_short_chunk_among_long_ones_stops_counting_when_it_ends() -> None:
    ensemble = TemporalEnsemble(FREE)
    ensemble.next(ActionChunk(np.zeros((1, 3), np.float32)))
    np.testing.assert_array_equal(ensemble.next(ActionChunk(np.ones((4, 3), np.float32))).actions, np.ones((1, 3)))


def test_the_blended_gripper_is_open_or_closed() -> None:
    ensemble = TemporalEnsemble(POINT)
    votes = [1.0, -1.0, -1.0, 1.0, 1.0, 1.0]  # the last four of them reach each step; ties open
    predictions = np.array([[[0, 0, vote]] * 4 for vote in votes], np.float32)
    assert carried_out(ensemble, predictions)[:, 2].tolist() == [1.0, -1.0, -1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize("mode", [OpenLoop(), RecedingHorizon(3), TemporalEnsemble(POINT, -0.25, 2)])
def test_what_a_mode_prints_is_what_the_command_line_reads(mode) -> None:
    assert execution_mode(str(mode), POINT) == mode


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("open-lop", "did you mean open-loop"),
        ("receding-horizon", "steps=int"),
        ("receding-horizon:steps=0", "at least 1"),
        ("temporal-ensemble:recency=nan", "finite"),
        ("temporal-ensemble:m=1", "recency=float, every=int"),
        ("temporal-ensemble:recency=0.1,recency=0.9", "recency=float, every=int"),
        ("open-loop:steps=2", "no options"),
    ],
)
def test_a_wrong_mode_is_explained(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        execution_mode(text, POINT)


@pytest.mark.parametrize("mode", [RecedingHorizon(5), TemporalEnsemble(POINT, every=5)])
def test_carrying_out_more_than_is_predicted_is_refused(mode) -> None:
    with pytest.raises(UserError, match="at most 4"):
        mode.next(ActionChunk(np.zeros((4, 3), np.float32)))
