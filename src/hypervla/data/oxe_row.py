"""What one dataset of Open X-Embodiment's kind stores under which names, and how that is brought to one convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hypervla.contracts import UserError
from hypervla.data.rlds_features import inflate
from hypervla.data.standardise import (
    GRIPPER_RULES,
    euler_from_quaternion,
    letters,
    relabel_arm_actions,
    sentence,
)
from hypervla.embodiment import ActionKind, Camera, Embodiment, Gripper, find_embodiment

ARM_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")
CONSTANTS: Mapping[str, float] = {"zeros": 0.0, "ones": 1.0}
"""Columns that no dataset stores."""


@dataclass(frozen=True)
class Column:
    """Neighbouring numbers of one step feature: `observation/state[0:7]`, `action[3:7] as euler`."""

    key: str
    start: int | None
    stop: int | None
    form: str = ""
    """`euler` makes angles of a quaternion, `zlib` unpacks float32."""

    @property
    def stored(self) -> int:
        """How many numbers are read."""
        start, stop = self.start or 0, self.stop or 0
        return stop - start

    @property
    def size(self) -> int:
        """How many numbers come of it."""
        return 3 if self.form == "euler" else self.stored

    @property
    def names(self) -> tuple[str, ...]:
        """What its numbers are called: the feature's last name and a number."""
        last = self.key.rsplit("/", 1)[-1]
        return tuple(f"{last}.{(self.start or 0) + number}" for number in range(self.size))


@dataclass(frozen=True)
class Standardised:
    """An episode in the convention of all datasets: T' steps, fewer than were stored where some were dropped."""

    actions: Float32[np.ndarray, "T A"]
    """Arm, then gripper: 1 open, 0 closed."""
    proprio: Float32[np.ndarray, "T P"] | None
    instructions: list[str]
    """Empty where nobody said anything, or nothing that tells tasks apart."""
    kept: Int64[np.ndarray, " T"]
    """The steps' numbers in the stored episode."""


@dataclass(frozen=True)
class OxeRow:
    """What is to be known of one dataset in order to read it; plain facts, so that a user can write another."""

    name: str
    control_hz: float
    views: Mapping[str, str]
    """Camera → image feature below `observation`, all that there are."""
    cameras: Mapping[str, str]
    """Those of the views that are read: one, or all of a known robot's, unless `seeing` chooses others."""
    arm: tuple[Column, ...] = ()
    relabel: Column | None = None
    """States whose differences are the arm's actions, in place of `arm`."""
    gripper: Column | None = None
    gripper_rule: str = "as is"
    proprio: tuple[Column, ...] = ()
    language: str | None = None
    """The feature that holds the instruction; None where it tells no tasks apart."""
    spelled: bool = False
    """The instruction is stored as Unicode numbers, ended by 0."""
    robot: str | None = None
    """The known robot whose numbers these are, as they are, and as whose views its images are stored."""
    skip_first: int = 0
    """Steps dropped at the start of each episode."""
    action_kind: ActionKind = "delta end-effector"
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often it is drawn, by mixture; multiplied by its number of steps."""

    @property
    def labelled(self) -> bool:
        """Whether it says what is to be done: HyperVLA keeps only these."""
        return self.language is not None

    def seeing(self, *cameras: str) -> OxeRow:
        """The row with these of its views. Raises UserError naming the ones it has."""
        for camera in cameras:
            if camera not in self.views:
                raise UserError(f"{self.name} has no camera '{camera}'; it has {', '.join(self.views)}.")
        return replace(self, cameras={camera: self.views[camera] for camera in cameras})

    def standardise(self, steps: Mapping[str, Any]) -> Standardised:
        """The episode whose step features these are, T values each, by their names below `steps`.

        It has no inverse: gripper rules and relabelling lose what was stored. Raises UserError for features that are
        not there or have other shapes.
        """
        arm = self._columns(steps, (self.relabel,) if self.relabel else self.arm)
        count = len(arm)
        actions = relabel_arm_actions(arm) if self.relabel else arm
        if self.gripper is not None:
            commands = self._columns(steps, (self.gripper,), count)
            gripper = GRIPPER_RULES[self.gripper_rule](commands[:, 0])
            actions = np.concatenate([actions, gripper[: len(actions), None]], axis=1)
        proprio = self._columns(steps, self.proprio, count) if self.proprio else None
        kept = np.arange(min(self.skip_first, len(actions)), len(actions))
        said = self._instructions(steps, count)
        return Standardised(
            actions=actions[kept],
            proprio=None if proprio is None else proprio[kept],
            instructions=[said[step] for step in kept],
            kept=kept,
        )

    def embodiment(self, cameras: Sequence[Camera], actions: Float32[np.ndarray, "F A"] | None = None) -> Embodiment:
        """The robot, with cameras of the sizes found in the data and the limits that the actions there reached.

        Of a known robot only the cameras' sizes are those of the data.
        """
        if self.robot is not None:
            known = find_embodiment(self.robot)
            sized = (replace(known.camera(c.name), height=c.height, width=c.width) for c in cameras)
            return replace(known, cameras=tuple(sized))
        size = self.relabel.size if self.relabel else sum(column.size for column in self.arm)
        arm = ARM_NAMES if size == len(ARM_NAMES) else tuple(f"a{number}" for number in range(size))
        names = arm if self.gripper is None else (*arm, "gripper")
        unknown = (float(np.finfo(np.float32).max),) * len(names)
        return Embodiment(
            name=self.name,
            cameras=tuple(cameras),
            action_names=names,
            action_low=tuple(-x for x in unknown) if actions is None else tuple(actions.min(axis=0).tolist()),
            action_high=unknown if actions is None else tuple(actions.max(axis=0).tolist()),
            proprio_names=tuple(name for column in self.proprio for name in column.names),
            control_hz=self.control_hz,
            gripper=None if self.gripper is None else Gripper(index=size, open=1.0, closed=0.0),
            action_kind=self.action_kind,
        )

    def _columns(
        self, steps: Mapping[str, Any], columns: Sequence[Column], count: int | None = None
    ) -> Float32[np.ndarray, "T n"]:
        """Columns side by side, in order. All have `count` steps, or as many as the first that is stored."""
        for column in columns:
            if count is None and column.key not in CONSTANTS:
                count = len(self._feature(steps, column.key))
        assert count is not None
        return np.concatenate([self._column(steps, column, count) for column in columns], axis=1)

    def _column(self, steps: Mapping[str, Any], column: Column, count: int) -> Float32[np.ndarray, "T n"]:
        if column.key in CONSTANTS:
            return np.full((count, column.size), CONSTANTS[column.key], np.float32)
        stored, what = self._feature(steps, column.key), f"'{column.key}' of {self.name}"
        if len(stored) != count:
            raise UserError(f"{what} has {len(stored)} steps where others have {count}: copy the dataset again.")
        if column.form == "zlib" and isinstance(stored, list):
            stored = [np.frombuffer(inflate(data, 4 * column.stored, what), "<f4") for data in stored]
            stored = np.array(stored).reshape(count, column.stored)
        if isinstance(stored, list) or stored.ndim > 2 or stored.dtype.kind not in "fiub":
            raise UserError(f"{what} holds no vectors of numbers: correct the dataset's row.")
        stored = stored[:, None] if stored.ndim == 1 else stored
        numbers = stored[:, column.start : column.stop].astype(np.float32)
        if numbers.shape[1] != column.stored:
            raise UserError(
                f"{what} has {stored.shape[1]} numbers a step, but its row reads "
                f"[{_blank(column.start)}:{_blank(column.stop)}]: correct the dataset's row."
            )
        return euler_from_quaternion(numbers) if column.form == "euler" else numbers

    def _instructions(self, steps: Mapping[str, Any], count: int) -> list[str]:
        if self.language is None:
            return [""] * count
        said, what = self._feature(steps, self.language), f"'{self.language}' of {self.name}"
        if len(said) != count:
            raise UserError(f"{what} has {len(said)} steps where others have {count}: copy the dataset again.")
        if self.spelled:
            if not isinstance(said, np.ndarray) or said.ndim != 2 or said.dtype.kind not in "iu":
                raise UserError(f"{what} holds no lists of whole numbers: correct the dataset's row.")
            different, place = np.unique(said, axis=0, return_inverse=True)
            texts = [letters(codes) for codes in different]
            return [texts[index] for index in place.ravel()]
        if not all(isinstance(text, bytes | str) for text in said):
            raise UserError(f"{what} holds no text: correct the dataset's row.")
        try:
            return [sentence(text) for text in said]
        except UnicodeDecodeError as error:
            raise UserError(f"{what} holds bytes that are no UTF-8 ({error.reason}): repair the dataset.") from error

    def _feature(self, steps: Mapping[str, Any], key: str) -> Any:
        try:
            return steps[key]
        except KeyError:
            known = ", ".join(sorted(steps))
            raise UserError(
                f"{self.name} has no step feature '{key}'; there are {known}: correct the dataset's row."
            ) from None


def _blank(bound: int | None) -> str:
    return "" if bound is None else str(bound)
