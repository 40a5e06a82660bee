"""The weights of the task policies that share one call, tensor by tensor, as an engine computes with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float32, Int64

NamedWeights = Mapping[str, Float32[np.ndarray, "N *shape"]]
"""The weights of N task policies by name."""

Form = Callable[[NamedWeights], NamedWeights]
"""Turns the weights by the names of their layout into those that an engine takes."""

_stamps = itertools.count(1)


class Slots:
    """N task policies' weights, which may change between calls without a copy of those that stay.

    Each tensor is one array over all policies, with room for more behind them. Every row carries a stamp that no other
    content of any row has or had, so that an engine with a copy of its own knows which rows to bring up to date.
    """

    def __init__(self, weights: NamedWeights, form: Form = dict) -> None:
        self._form = form
        self._room = {name: np.ascontiguousarray(rows) for name, rows in form(weights).items()}
        self._count = len(next(iter(self._room.values())))
        self._stamped = np.array([next(_stamps) for _ in range(self._count)])

    def __len__(self) -> int:
        return self._count

    @property
    def named(self) -> NamedWeights:
        """Views of the weights; C-contiguous."""
        return {name: rows[: self._count] for name, rows in self._room.items()}

    @property
    def stamps(self) -> Int64[np.ndarray, " N"]:
        return self._stamped[: self._count]

    def put(self, place: int, weights: NamedWeights) -> None:
        """One task policy's weights (N = 1) in this place."""
        for name, rows in self._form(weights).items():
            self._room[name][place] = rows[0]
        self._stamped[place] = next(_stamps)

    def append(self, weights: NamedWeights) -> None:
        """One task policy's weights behind the others."""
        if self._count == len(self._stamped):  # twice the room: each row is copied a few times at most
            self._room = {name: np.concatenate([rows, np.empty_like(rows)]) for name, rows in self._room.items()}
            self._stamped = np.concatenate([self._stamped, np.zeros_like(self._stamped)])
        self._count += 1
        self.put(self._count - 1, weights)

    def pop(self) -> None:
        """Without the last one."""
        self._count -= 1
