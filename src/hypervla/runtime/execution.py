"""Execution modes: which actions the robot carries out of the chunks a policy predicts, before it looks again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from hypervla.contracts import ActionChunk, Unusable, UserError, unknown
from hypervla.embodiment import Embodiment


@runtime_checkable
class Execution(Protocol):
    """Stands between prediction and robot; `str()` of a mode is the text that `execution_mode` reads."""

    def reset(self) -> None:
        """Forget the episode before this one."""
        ...

    def next(self, chunk: ActionChunk) -> ActionChunk:
        """What to carry out now, given the newest prediction, before looking again."""
        ...


def blend(
    predictions: Float32[np.ndarray, "M A"], ages: Int[np.ndarray, " M"], recency: float
) -> Float32[np.ndarray, " A"]:
    """Mean of M predictions for one step, weighted in proportion to exp(-recency · age).

    `ages` counts the control steps since each prediction was made, 0 for the newest. Recency 0 is the plain mean,
    positive trusts the newest. ACT, SIMPLER and the released HyperVLA code count from the oldest prediction, so a
    positive coefficient there trusts the oldest: their m is `recency=-m`.
    """
    exponents = -recency * ages.astype(np.float64)
    weights = np.exp(exponents - exponents.max())
    return (weights @ predictions.astype(np.float64) / weights.sum()).astype(np.float32)


@dataclass(frozen=True)
class OpenLoop:
    """Carry out the whole chunk, then look again."""

    def __str__(self) -> str:
        return "open-loop"

    def reset(self) -> None:
        pass

    def next(self, chunk: ActionChunk) -> ActionChunk:
        return chunk


@dataclass(frozen=True)
class RecedingHorizon:
    """Carry out the first `steps` actions of the chunk, then look again. Raises Unusable beyond the chunk."""

    steps: int

    def __post_init__(self) -> None:
        _at_least_one("steps", self.steps)

    def __str__(self) -> str:
        return f"receding-horizon:steps={self.steps}"

    def reset(self) -> None:
        pass

    def next(self, chunk: ActionChunk) -> ActionChunk:
        _within("steps", self.steps, chunk)
        return chunk.first(self.steps)


@dataclass
class TemporalEnsemble:
    """Blend the overlapping chunks that reach each step; look again after `every` steps.

    Actions are blended in the robot's own units (after un-normalising, as the released HyperVLA code does). The
    gripper entry is averaged like the others and then snapped to the nearer of the embodiment's open and closed
    commands (open on a tie): nobody asks for a half-closed gripper. Raises Unusable when `every` exceeds the chunk.
    """

    embodiment: Embodiment = field(repr=False)
    recency: float = 0.0
    every: int = 1
    _chunks: list[tuple[int, ActionChunk]] = field(default_factory=list, init=False, repr=False, compare=False)
    """Chunks that still reach the present step, each with its age in steps, oldest first."""

    def __post_init__(self) -> None:
        _at_least_one("every", self.every)
        if not math.isfinite(self.recency):
            raise UserError(
                f"The temporal ensemble wants a finite recency, but {self.recency} came: 0 is the plain mean."
            )

    def __str__(self) -> str:
        return f"temporal-ensemble:recency={self.recency!r},every={self.every}"

    def reset(self) -> None:
        self._chunks.clear()

    def next(self, chunk: ActionChunk) -> ActionChunk:
        _within("every", self.every, chunk)
        self._chunks.append((0, chunk))
        actions = np.stack([self._action(ahead) for ahead in range(self.every)])
        older = ((age + self.every, chunk) for age, chunk in self._chunks)
        self._chunks = [(age, chunk) for age, chunk in older if age < len(chunk)]
        return ActionChunk(actions)

    def _action(self, ahead: int) -> Float32[np.ndarray, " A"]:
        """The blended action for the step `ahead` of the present one."""
        reaching = [(age, chunk.actions[age + ahead]) for age, chunk in self._chunks if age + ahead < len(chunk)]
        ages, predictions = zip(*reaching, strict=True)
        action = blend(np.stack(predictions), np.array(ages), self.recency)
        gripper = self.embodiment.gripper
        if gripper is not None:
            mean = float(action[gripper.index])
            action[gripper.index] = min(gripper.open, gripper.closed, key=lambda command: abs(command - mean))
        return action


def execution_mode(text: str, embodiment: Embodiment) -> Execution:
    """The mode a user names: `open-loop`, `receding-horizon:steps=4`, `temporal-ensemble:recency=0.1,every=2`.

    Raises UserError for an unknown mode or option.
    """
    name, _, options = text.partition(":")
    modes = {
        "open-loop": (OpenLoop, {}),
        "receding-horizon": (RecedingHorizon, {"steps": int}),
        "temporal-ensemble": (partial(TemporalEnsemble, embodiment), {"recency": float, "every": int}),
    }
    if name not in modes:
        raise unknown(name, modes, "execution mode")
    make, known = modes[name]
    try:
        given = [option.split("=") for option in options.split(",") if option]
        pairs = dict(given)
        if len(pairs) < len(given):
            raise ValueError("an option came twice")
        return make(**{key: known[key](value) for key, value in pairs.items()})
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        wanted = ", ".join(f"{key}={kind.__name__}" for key, kind in known.items()) or "no options"
        raise UserError(f"Execution mode '{name}' takes {wanted}, but '{options}' came.") from error


def _at_least_one(name: str, steps: int) -> None:
    if steps < 1:
        raise UserError(f"The execution horizon wants {name} of at least 1, but {steps} came.")


def _within(name: str, steps: int, chunk: ActionChunk) -> None:
    if steps > len(chunk):
        raise Unusable(
            f"The execution horizon ({name}={steps}) is longer than the {len(chunk)} actions the policy predicts: "
            f"choose {name} of at most {len(chunk)}."
        )
