"""Open X-Embodiment: a row for each dataset that says what its numbers mean, and mixtures of them (oxe.toml)."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from hypervla.contracts import UserError
from hypervla.data.oxe_row import CONSTANTS, Column, OxeRow, Standardised
from hypervla.data.standardise import GRIPPER_RULES
from hypervla.embodiment import ActionKind, Embodiment, find_embodiment

__all__ = ["OxeRow", "Standardised", "mixture", "read_rows", "row", "rows"]

SHIPPED = Path(__file__).with_name("oxe.toml")
COLUMN = re.compile(r"(?P<key>[^\[\]]+)\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\](?: as (?P<form>euler|zlib))?")
LANGUAGE = re.compile(r"(?P<key>.+?)(?P<spelled> as letters)?")


def rows() -> Mapping[str, OxeRow]:
    """All rows of the shipped table, by name."""
    return dict(_shipped())


def row(name: str) -> OxeRow:
    """The row of a dataset. Raises UserError naming those whose names are near."""
    known = _shipped()
    if name not in known:
        raise UserError(
            f"No row describes the dataset '{name}'{_near(name, known)}: add one in a TOML file as in "
            f"hypervla/data/oxe.toml, or convert it to LeRobot."
        )
    return known[name]


def mixture(name: str) -> Mapping[str, float]:
    """The datasets of a named mixture and their weights. Raises UserError naming the mixtures."""
    weights = {row.name: row.weights[name] for row in _shipped().values() if name in row.weights}
    if not weights:
        known = dict.fromkeys(mixture for row in _shipped().values() for mixture in row.weights)
        raise UserError(f"There is no mixture '{name}'; there are {', '.join(known)}.")
    return weights


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = [other for other in known if name and (name in other or other in name)]
    near += [other for other in difflib.get_close_matches(name, known, 3) if other not in near]
    return f"; near are {', '.join(near[:3])}" if near else ""


@cache
def _shipped() -> Mapping[str, OxeRow]:
    return read_rows(SHIPPED)


def read_rows(path: Path) -> Mapping[str, OxeRow]:
    """The rows of a TOML file with a table for each dataset, see oxe.toml. Raises UserError naming what is unfit."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The rows of {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML ({error}).") from error
    return {name: _Reader(path, name).row(values) for name, values in tables.items()}


class _Reader:
    """Reads one table of a file of rows."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def row(self, values: Any) -> OxeRow:
        wanted = {
            "hz": (lambda x: _number(x) and x > 0, "a number above 0"),
            "cameras": (lambda x: isinstance(x, dict) and x and _all_words(list(x.values())), "camera = feature"),
            "arm": (_all_words, "a list of columns"),
            "relabel": (_word, "a column of states"),
            "gripper": (_word, "a column"),
            "gripper_rule": (lambda x: _word(x) and x in GRIPPER_RULES, " or ".join(GRIPPER_RULES)),
            "proprio": (_all_words, "a list of columns"),
            "language": (_word, "a feature"),
            "robot": (_word, "the name of a known robot"),
            "skip_first": (lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0, "a number of steps"),
            "action_kind": (lambda x: _word(x) and x in get_args(ActionKind), " or ".join(get_args(ActionKind))),
            "weights": (
                lambda x: isinstance(x, dict) and all(_number(weight) and weight > 0 for weight in x.values()),
                "mixture = a number above 0",
            ),
        }
        if not isinstance(values, dict):
            raise UserError(f"{self.path}: '{self.name}' is no table; each dataset wants one.")
        for key, value in values.items():
            if key not in wanted:
                raise self._refusal(key, f"no such key; there are {', '.join(wanted)}")
            fits, description = wanted[key]
            if not fits(value):
                raise self._refusal(key, f"{description} is wanted, but {value!r} came")
        for key in ("hz", "cameras"):
            if key not in values:
                raise self._refusal(key, "it is missing")
        if ("arm" in values) == ("relabel" in values):
            raise self._refusal("arm", "either 'arm' or 'relabel' is wanted, and not both")
        row = self._build(values)
        if row.robot is not None:
            self._check_robot(row, find_embodiment(row.robot))
        return row

    def _build(self, values: Mapping[str, Any]) -> OxeRow:
        views: dict[str, str] = values["cameras"]
        first = "primary" if "primary" in views else next(iter(views))
        language = LANGUAGE.fullmatch(values.get("language", ""))
        gripper = self._column("gripper", values["gripper"]) if "gripper" in values else None
        if gripper is not None and gripper.size != 1:
            raise self._refusal("gripper", f"one number is wanted, but {values['gripper']!r} has {gripper.size}")
        arm = tuple(self._column("arm", word) for word in values.get("arm", ()))
        if "relabel" not in values and all(column.key in CONSTANTS for column in arm):
            raise self._refusal("arm", "at least one stored column is wanted")
        return OxeRow(
            name=self.name,
            control_hz=float(values["hz"]),
            views=views,
            cameras=views if "robot" in values else {first: views[first]},
            arm=arm,
            relabel=self._column("relabel", values["relabel"]) if "relabel" in values else None,
            gripper=gripper,
            gripper_rule=values.get("gripper_rule", "as is"),
            proprio=tuple(self._column("proprio", word) for word in values.get("proprio", ())),
            language=language["key"] if language else None,
            spelled=language is not None and language["spelled"] is not None,
            robot=values.get("robot"),
            skip_first=values.get("skip_first", 0),
            action_kind=values.get("action_kind", "delta end-effector"),
            weights={mixture: float(weight) for mixture, weight in values.get("weights", {}).items()},
        )

    def _check_robot(self, row: OxeRow, robot: Embodiment) -> None:
        """Compare what is read with what the robot has. Raises UserError where they differ."""
        columns = (*([row.relabel] if row.relabel else row.arm), *([row.gripper] if row.gripper else ()))
        came = (sum(column.size for column in columns), sum(column.size for column in row.proprio), row.control_hz)
        wanted = (robot.action_size, robot.proprio_size, robot.control_hz)
        cameras = [camera.name for camera in robot.cameras]
        if came != wanted or row.gripper_rule != "as is" or not set(row.views) <= set(cameras):
            raise self._refusal(
                "robot",
                f"{robot.name} has {wanted[0]} actions, {wanted[1]} of proprio, {wanted[2]:g} Hz, the gripper 'as is' "
                f"and the cameras {', '.join(cameras)}, but the row reads {came[0]} actions, {came[1]} of proprio, "
                f"{came[2]:g} Hz, the gripper '{row.gripper_rule}' and {', '.join(row.views)}",
            )

    def _column(self, key: str, word: str) -> Column:
        found = COLUMN.fullmatch(word)
        if found is None:
            raise self._refusal(key, f"'observation/state[0:7]' (as euler, as zlib) is wanted, but {word!r} came")
        start, stop = (None if found[name] is None else int(found[name]) for name in ("start", "stop"))
        column = Column(found["key"], start, stop, found["form"] or "")
        if column.stored < 1 or (start or 0) * (stop or 0) < 0 or (column.form == "zlib" and start):
            raise self._refusal(key, f"{word!r} does not say which entries are read, and how many")
        if column.form == "euler" and column.stored != 4:
            raise self._refusal(key, f"a quaternion has four numbers, but {word!r} has {column.stored}")
        return column

    def _refusal(self, key: str, what: str) -> UserError:
        return UserError(f"{self.path}: '{key}' of {self.name}: {what}.")


def _word(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _all_words(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_word(word) for word in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
