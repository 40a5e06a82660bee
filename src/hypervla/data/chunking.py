"""Windows of observations and chunks of actions as row numbers, and which of the actions count (Octo's chunking)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

MaskMode = Literal["released", "literal", "pad_only"]
"""Which actions of a chunk count. `released`: the code of Octo and HyperVLA, whose offset keeps all real actions and
the first repetition of the last; `literal`: strictly before the goal; `pad_only`: all but repetitions."""


def observation_rows(
    steps: Int64[np.ndarray, " F"], window: int
) -> tuple[Int64[np.ndarray, "F T"], Bool[np.ndarray, "F T"]]:
    """The last `window` steps up to each one, the first step repeated to the left, and which of them are real."""
    wanted = steps[:, None] + np.arange(1 - window, 1)
    return np.maximum(wanted, 0), wanted >= 0


def action_rows(steps: Int64[np.ndarray, " F"], window: int, horizon: int, length: int) -> Int64[np.ndarray, "F T H"]:
    """For each observation of the window the `horizon` steps from it on, the last one repeated to the right."""
    seen, _ = observation_rows(steps, window)
    return np.minimum(seen[..., None] + np.arange(horizon), length - 1)


def action_mask(
    steps: Int64[np.ndarray, " F"],
    window: int,
    horizon: int,
    length: int,
    goals: Int64[np.ndarray, " F"],
    mode: MaskMode,
) -> Bool[np.ndarray, "F T H"]:
    """Which actions of each chunk count, in an episode of `length` steps with each step's goal."""
    observation, ahead = np.arange(window)[:, None], np.arange(horizon)
    if mode == "pad_only":
        seen, _ = observation_rows(steps, window)
        return seen[..., None] + ahead < length
    offset = window + 1 if mode == "released" else window - 1
    return (goals - steps)[:, None, None] + offset - observation - ahead > 0
