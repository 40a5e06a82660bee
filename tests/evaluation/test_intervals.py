"""Intervals against published values and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervla.evaluation.intervals import Estimate, PairedDifference, Rate, agresti_min, mcnemar, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_gives_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors_failures(pair: tuple[int, int]) -> None:
    successes, trials = pair
    interval, mirrored = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0 <= interval.low <= successes / trials <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high)


def test_no_trials_say_nothing() -> None:
    assert (Rate(0, 0).interval.low, Rate(0, 0).interval.high) == (0.0, 1.0)


def test_paired_interval_is_agresti_and_mins() -> None:
    found = agresti_min(pairs=100, gained=12, lost=4)  # (12.5 - 4.5) / 102 ± 1.96 √(17 - 8²/102) / 102
    assert (found.low, found.high) == pytest.approx((0.000671, 0.156192), abs=1e-5)


def test_agreeing_pairs_leave_some_doubt() -> None:
    found = PairedDifference(pairs=300, gained=0, lost=0)
    assert found.mean == 0
    assert -0.01 < found.interval.low < 0 < found.interval.high < 0.01


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
def test_swapping_the_conditions_flips_the_paired_interval(pairs: int, gained: int, lost: int) -> None:
    pairs = max(pairs, gained + lost)
    there, back = agresti_min(pairs, gained, lost), agresti_min(pairs, lost, gained)
    assert there.low == pytest.approx(-back.high)


def test_the_paired_interval_covers_the_truth_about_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    draws = random.multinomial(100, (0.06, 0.10, 0.84), size=2000)
    intervals = [agresti_min(100, int(gained), int(lost)) for gained, lost, _ in draws]
    covered = np.mean([interval.low <= -0.04 <= interval.high for interval in intervals])
    assert 0.93 < covered < 0.98


def test_a_paired_difference_reads_as_a_sentence() -> None:
    text = str(PairedDifference(pairs=300, gained=6, lost=12))
    assert text == "−2.0 points (95 % interval −4.8 to +0.8) over 300 pairs: 6 gained, 12 lost"


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (4, 1, 0.375), (3, 3, 1.0)])
def test_mcnemars_test_tosses_a_fair_coin_for_each_pair_that_disagrees(gained: int, lost: int, p: float) -> None:
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == p


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemars_test_is_scipys_binomial_test(gained: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    if gained + lost:
        assert mcnemar(gained, lost) == pytest.approx(stats.binomtest(gained, gained + lost).pvalue, abs=1e-12)


def test_several_runs_have_students_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count in range(2, 14):
        runs = tuple(Rate(5_000 + 400 * run, 20_000) for run in range(count))
        values = np.array([run.mean for run in runs])
        wanted = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
        found = Estimate(runs)
        assert found.standard_error == pytest.approx(stats.sem(values))
        if count <= 10:
            assert (found.interval.low, found.interval.high) == pytest.approx(wanted, abs=1e-4)
        assert found.interval.low < wanted[0] + 1e-4, "never too sure"
    wide = Estimate((Rate(1, 10), Rate(9, 10))).interval
    assert (wide.low, wide.high) == (0.0, 1.0)
    wide = Estimate((PairedDifference(10, 9, 0), PairedDifference(10, 0, 9))).interval
    assert (wide.low, wide.high) == (-1.0, 1.0)


def test_runs_that_agree_are_no_surer_than_one() -> None:
    for one in (Rate(30, 30), Rate(0, 30), Rate(12, 30), PairedDifference(30, 0, 0), PairedDifference(30, 4, 2)):
        alike = Estimate((one, one, one))  # type: ignore[arg-type]
        assert alike.standard_error == 0
        assert (alike.interval.low, alike.interval.high) == pytest.approx((one.interval.low, one.interval.high))
