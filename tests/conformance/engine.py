"""What every Engine has to do, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tests import tiny

from hypervla.runtime.task_policy import Engine, TaskPolicy


def check_threads(policies: Sequence[TaskPolicy], engine: Engine, times: int = 200) -> None:
    """Whoever else acts on it at the same moment, a policy's actions are its own."""
    own, seen = [TaskPolicy(policy.weights, policy.card, engine) for policy in policies], tiny.observation(7)
    wanted = [policy.act(seen).actions for policy in own]
    assert not np.allclose(wanted[0], wanted[1], atol=1e-3)

    def wrong(policy: TaskPolicy, actions: np.ndarray) -> int:
        return sum(not np.allclose(policy.act(seen).actions, actions, atol=1e-5) for _ in range(times))

    with ThreadPoolExecutor() as pool:
        assert sum(pool.map(wrong, own, wanted)) == 0
