"""Calls timed one round after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

ROUNDS, WARM_UP = 5, 2
"""Rounds that are timed at least, and before those."""
LONG_ROUNDS, LONG = 3, 20.0
"""Rounds at least where one takes more than so many seconds; one of those warms up."""


@dataclass(frozen=True)
class Times:
    """Quantiles of a call's seconds, and how many calls they are of."""

    p50: float
    p95: float
    p99: float
    steps: int


def in_turn(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Seconds of each call, one round after another, so that whatever else the machine does strikes all alike."""
    began = time.perf_counter()
    for call in calls.values():
        call()
    long = time.perf_counter() - began > LONG
    for call in calls.values():
        for _ in range(0 if long else WARM_UP - 1):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < (LONG_ROUNDS if long else ROUNDS) or time.perf_counter() < end:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
        rounds += 1
    return {
        name: Times(*(float(q) for q in np.quantile(taken, (0.5, 0.95, 0.99))), steps=len(taken))
        for name, taken in times.items()
    }
