"""Which frames a context shows: a pure function of the seed and its number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervla.contracts import UserError
from hypervla.data.draws import BLOCK, Draw, Draws, Passes

LENGTHS = [1, 5, 12, 3, 7]
STARTS = np.cumsum([0, *LENGTHS])


def passes(*, frames: int = 1, most: int = 100, episodes=(0, 1, 2, 3, 4)) -> Passes:
    return Passes(STARTS, np.array(episodes, np.int64), frames=frames, most=most)


def draws(seed: int = 0, shares=(1.0,), **options) -> Draws:
    return Draws([passes(**options) for _ in shares], np.array(shares), seed)


def key(draw: Draw) -> tuple:
    return draw.dataset, draw.episode, tuple(draw.rows.tolist()), draw.trajectory, draw.seed


@given(
    seed=st.integers(0, 2**32),
    numbers=st.lists(st.integers(0, 40_000), min_size=1, max_size=6),
    before=st.lists(st.integers(0, 40_000), max_size=4),
)
def test_a_context_depends_on_seed_and_number_alone(seed: int, numbers: list[int], before: list[int]) -> None:
    fresh, used = draws(seed, (0.6, 0.3, 0.1)), draws(seed, (0.6, 0.3, 0.1))
    for i in before:
        used[i]
    assert [key(fresh[i]) for i in numbers] == [key(used[i]) for i in numbers]


def test_a_pass_shows_every_frame_once_when_nothing_is_left_out() -> None:
    stream = draws()
    total = int(STARTS[-1])
    for lap in range(3):
        rows = [int(stream[i].rows[0]) for i in range(lap * total, (lap + 1) * total)]
        assert sorted(rows) == list(range(total))
    assert [int(stream[i].rows[0]) for i in range(total)] != [int(stream[total + i].rows[0]) for i in range(total)]


def test_a_pass_takes_at_most_so_many_frames_of_an_episode_and_others_each_time() -> None:
    stream = draws(most=3)
    size = sum(min(3, length) for length in LENGTHS)
    laps = [Counter(stream[i].episode for i in range(lap * size, (lap + 1) * size)) for lap in range(2)]
    assert laps[0] == laps[1] == Counter({e: min(3, length) for e, length in enumerate(LENGTHS)})
    seen = {int(stream[i].rows[0]) for i in range(40 * size)}
    assert seen == set(range(STARTS[-1]))


def test_frames_of_a_context_are_of_one_episode_and_differ_while_they_can() -> None:
    stream = draws(frames=4)
    for i in range(200):
        draw = stream[i]
        first, end = STARTS[draw.episode], STARTS[draw.episode + 1]
        assert ((draw.rows >= first) & (draw.rows < end)).all()
        if end - first >= 8:
            assert len(set(draw.rows.tolist())) == 4


def test_one_group_of_an_episode_a_pass_draws_episodes_evenly() -> None:
    """What metaworld_small asks for: as many frames of an episode in a pass as a context has."""
    stream = draws(frames=8, most=8)
    counts = Counter(stream[i].episode for i in range(50 * len(LENGTHS)))
    assert set(counts.values()) == {50}


def test_datasets_come_by_their_shares() -> None:
    stream, shares, many = draws(3, (0.7, 0.2, 0.1)), np.array([0.7, 0.2, 0.1]), 3 * BLOCK
    counts = np.bincount([stream[i].dataset for i in range(many)], minlength=3)
    assert np.abs(counts / many - shares).max() < 4 * np.sqrt(0.25 / many)
    second = [stream[i] for i in range(many) if stream._place(i)[0] == 1]
    lap = sorted(int(draw.rows[0]) for draw in second[: STARTS[-1]])
    assert lap == list(range(STARTS[-1]))  # each dataset's own passes are whole, whatever is drawn between


def test_only_the_given_episodes_are_drawn() -> None:
    stream = draws(episodes=[1, 4])
    assert {stream[i].episode for i in range(100)} == {1, 4}


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(UserError, match="number 1 of the mixture has no episode to draw"):
        draws(episodes=[])
