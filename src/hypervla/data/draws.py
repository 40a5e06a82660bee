"""Which frames are context number i of a mixture: a pure function of the seed and i, whoever asks and in what order.

A *pass* over a dataset visits every episode once: at most `most` of its frames, drawn anew in each pass and cut into
groups of F, in a shuffled order of all groups. This is what the published pipelines do with a shuffle buffer, but the
shuffle is complete and the position in the stream is one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int, Int64

from hypervla.contracts import UserError

BLOCK = 4096
"""Contexts whose datasets are drawn in one go."""
CHOICE, ORDER, FRAMES, CONTEXT = range(1, 5)
"""What a random number is for: stands behind the seed in every key, none of which then equals another one."""


@dataclass(frozen=True)
class Draw:
    """One context: F frames of an episode."""

    dataset: int
    episode: int
    rows: Int64[np.ndarray, " F"]
    trajectory: tuple[int, ...]
    """Seed of what is decided once for an episode in a pass."""
    seed: tuple[int, ...]
    """Seed of what is decided for this context alone."""


class Passes:
    """The contexts of one dataset, pass after pass."""

    def __init__(
        self, starts: Int64[np.ndarray, " starts"], episodes: Int[np.ndarray, " E"], *, frames: int, most: int
    ) -> None:
        self.starts, self.episodes, self.frames, self.most = starts, episodes, frames, most
        self._orders: dict[tuple[int, ...], Int64[np.ndarray, " G"]] = {}

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " E"]:
        """How many groups the episodes up to each one give."""
        lengths = self.starts[self.episodes + 1] - self.starts[self.episodes]
        return np.cumsum(-(-np.minimum(lengths, self.most) // self.frames))

    def __len__(self) -> int:
        """Contexts of one pass."""
        return int(self._ends[-1]) if len(self.episodes) else 0

    def context(self, k: int, seed: int, number: int) -> tuple[int, Int64[np.ndarray, " F"], tuple[int, ...]]:
        """Episode, rows and the seed of the episode in this pass, of context k of the dataset with this number."""
        lap, position = divmod(k, len(self))
        group = int(self._order((seed, ORDER, number, lap))[position])
        e = int(np.searchsorted(self._ends, group, side="right"))
        within = group - (int(self._ends[e - 1]) if e else 0)
        episode = int(self.episodes[e])
        first, end = self.starts[episode], self.starts[episode + 1]
        trajectory = (seed, FRAMES, number, lap, episode)
        order = np.random.default_rng(trajectory).permutation(end - first)[: self.most]
        chosen = np.take(order, np.arange(within * self.frames, (within + 1) * self.frames), mode="wrap")
        return episode, first + chosen, trajectory

    def _order(self, seed: tuple[int, ...]) -> Int64[np.ndarray, " G"]:
        if seed not in self._orders:
            if len(self._orders) > 1:  # this pass and the one before: workers meet where a pass ends
                self._orders.pop(next(iter(self._orders)))
            self._orders[seed] = np.random.default_rng(seed).permutation(len(self))
        return self._orders[seed]


class Draws:
    """The contexts of a mixture: datasets drawn by `shares`, then each dataset's passes in turn."""

    def __init__(self, datasets: Sequence[Passes], shares: Float64[np.ndarray, " D"], seed: int) -> None:
        """Raises UserError when a dataset with a share has nothing to draw from."""
        for number, (passes, share) in enumerate(zip(datasets, shares, strict=True)):
            if share > 0 and not len(passes):
                raise UserError(f"Dataset number {number + 1} of the mixture has no episode to draw: leave it out.")
        self.datasets, self.seed = list(datasets), seed
        self.shares = shares / shares.sum()
        self._before = [np.zeros(len(self.datasets), np.int64)]
        self._block: tuple[int, Int64[np.ndarray, " block"]] = (-1, np.zeros(0, np.int64))

    def __getitem__(self, i: int) -> Draw:
        dataset, k = self._place(i)
        episode, rows, trajectory = self.datasets[dataset].context(k, self.seed, dataset)
        return Draw(dataset, episode, rows, trajectory, (self.seed, CONTEXT, i))

    def _place(self, i: int) -> tuple[int, int]:
        """The dataset of context i, and how many contexts before it came from there."""
        if len(self.datasets) == 1:
            return 0, i
        block, within = divmod(i, BLOCK)
        while len(self._before) <= block:
            last = self._choices(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(last, minlength=len(self.datasets)))
        choices = self._choices(block)
        dataset = int(choices[within])
        return dataset, int(self._before[block][dataset] + np.count_nonzero(choices[:within] == dataset))

    def _choices(self, block: int) -> Int64[np.ndarray, " block"]:
        if self._block[0] != block:
            random = np.random.default_rng((self.seed, CHOICE, block))
            self._block = block, random.choice(len(self.shares), size=BLOCK, p=self.shares)
        return self._block[1]
