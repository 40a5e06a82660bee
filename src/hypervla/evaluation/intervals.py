"""How sure a success rate is: Wilson intervals for rates, Agresti-Min intervals for paired differences, Student's for
several training runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""The 97.5 % point of the normal distribution: two-sided 95 % intervals."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The same of Student's distribution, for two values, three and so on; for more than ten it is less."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """So many successes in so many trials."""

    successes: int
    trials: int

    @staticmethod
    def of(outcomes: Iterable[bool]) -> Rate:
        found = list(outcomes)
        return Rate(sum(found), len(found))

    @property
    def mean(self) -> float:
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self) -> Interval:
        return wilson(self.successes, self.trials)


@dataclass(frozen=True)
class PairedDifference:
    """How much the success rate changes between two conditions tried on the same scenes."""

    pairs: int
    gained: int
    """Scenes where only the second condition succeeded."""
    lost: int
    """Scenes where only the first condition succeeded."""

    @property
    def mean(self) -> float:
        """Second minus first, in [-1, 1]."""
        return (self.gained - self.lost) / self.pairs

    @property
    def interval(self) -> Interval:
        return agresti_min(self.pairs, self.gained, self.lost)

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely a split at least as uneven is, when neither condition is better."""
        return mcnemar(self.gained, self.lost)

    def __str__(self) -> str:
        low, high = points(self.interval.low), points(self.interval.high)
        return (
            f"{points(self.mean)} points (95 % interval {low} to {high}) over {self.pairs} pairs: "
            f"{self.gained} gained, {self.lost} lost"
        )


@dataclass(frozen=True)
class Estimate:
    """What several training runs come to that were tried in the same scenes: rates of success, or differences of such.
    What varies between runs is in the interval, and what the scenes leave open."""

    runs: tuple[Rate, ...] | tuple[PairedDifference, ...]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(run.mean for run in self.runs)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def standard_error(self) -> float:
        return statistics.stdev(self.values) / math.sqrt(len(self.values))

    @property
    def interval(self) -> Interval:
        """Student's, and never narrower than a single run's own: runs that agree are no more scenes."""
        reach = T_95[min(len(self.runs), len(T_95) + 1) - 2] * self.standard_error
        own = [run.interval for run in self.runs]
        low = min(self.mean - reach, statistics.fmean(interval.low for interval in own))
        high = max(self.mean + reach, statistics.fmean(interval.high for interval in own))
        return Interval(max(0.0 if isinstance(self.runs[0], Rate) else -1.0, low), min(1.0, high))


def points(share: float) -> str:
    """0.051 as "+5.1": percentage points."""
    return f"{100 * share:+.1f}".replace("-", "−")


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval for a rate in [0, 1]; 8 of 10 gives 0.490 to 0.943. No trials: [0, 1]."""
    assert 0 <= successes <= trials, (successes, trials)
    if trials == 0:
        return Interval(0.0, 1.0)
    mean, square = successes / trials, Z_95**2
    centre = (mean + square / (2 * trials)) / (1 + square / trials)
    half = Z_95 / (1 + square / trials) * math.sqrt(mean * (1 - mean) / trials + square / (4 * trials**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(low, high)


def agresti_min(pairs: int, gained: int, lost: int) -> Interval:
    """Interval for a difference of paired proportions: Wald's, after half a case is added to each of four cells.

    Unlike plain Wald it keeps its width when no pair disagrees (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    assert 0 < pairs >= gained + lost, (pairs, gained, lost)
    total, up, down = pairs + 2, gained + 0.5, lost + 0.5
    mean = (up - down) / total
    half = Z_95 * math.sqrt(up + down - (up - down) ** 2 / total) / total
    return Interval(max(-1.0, mean - half), min(1.0, mean + half))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of as many heads and tails of a fair coin; 1 when no pair disagrees."""
    tosses = gained + lost
    tail = sum(math.comb(tosses, heads) for heads in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**tosses)
