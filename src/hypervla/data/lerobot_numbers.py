"""The numbers of a LeRobot dataset: columns of all frames in memory, and the checks that make them trustworthy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from hypervla.contracts import UserError
from hypervla.data.lerobot_layout import STRUCTURE, TEXT_BYTES, VISUAL, Layout
from hypervla.data.parquet import check_type, damaged, open_parquet, read_columns, to_numpy

TIME_TOLERANCE = 1e-4
"""Seconds between a time stamp and its frame number / fps, as LeRobot has it; float32 needs a little more later on."""


@dataclass(frozen=True)
class Part:
    """One data file and the rows of the dataset that it holds."""

    path: str
    first: int
    lengths: tuple[int, ...]
    """Of its episodes."""
    episode: int
    """The first of them."""

    @property
    def rows(self) -> int:
        return sum(self.lengths)


def parts_of(layout: Layout) -> list[Part]:
    """The data files in order. Raises UserError when episodes lie scattered, or a file belongs to none."""
    grouped: list[tuple[str, int, int, list[int]]] = []
    first = 0
    for number, entry in enumerate(layout.entries):
        if not grouped or grouped[-1][0] != entry.data:
            grouped.append((entry.data, first, number, []))
        grouped[-1][3].append(entry.length)
        first += entry.length
    parts = [Part(path, start, tuple(lengths), number) for path, start, number, lengths in grouped]
    paths = {part.path for part in parts}
    if len(paths) != len(parts):
        raise UserError(f"The episodes of {layout.root} jump between data files: convert the dataset with lerobot.")
    top = layout.root / parts[0].path.split("/")[0]
    for path in sorted(top.glob("*/*.parquet")):
        if path.relative_to(layout.root).as_posix() not in paths:
            raise UserError(f"{path} belongs to no episode: move it away, or copy the dataset again.")
    return parts


def read_numbers(
    layout: Layout, parts: Sequence[Part], names: Sequence[str], *, whole: bool = False
) -> dict[str, Shaped[np.ndarray, "F ..."]]:
    """These columns of all frames, and `task_index`, after checking the structure of every file.

    Raises UserError when a file has other columns or rows than the metadata says, or a number is NaN or infinite.
    `whole` checks the cells of all other columns of numbers too.
    """
    numeric = [name for name, feature in layout.features.items() if _is_number(feature["dtype"])]
    wanted = [*dict.fromkeys([*STRUCTURE, *(numeric if whole else names)])]
    kept: dict[str, list[np.ndarray]] = {name: [] for name in dict.fromkeys([*names, "task_index"])}
    for part in parts:
        columns = read_part(layout, part, wanted)
        _check_structure(layout, part, columns)
        for name in wanted:
            _check_finite(layout, part, name, columns[name])
        for name, values in kept.items():
            values.append(columns[name])
    return {name: np.concatenate(values) for name, values in kept.items()}


def read_column(layout: Layout, parts: Sequence[Part], name: str) -> Shaped[np.ndarray, "F ..."]:
    """One column of all frames: (F,) for shape [1], else (F, *shape); text as an array of objects."""
    feature = layout.features.get(name)
    if feature is None or feature["dtype"] in VISUAL:
        known = ", ".join(key for key, each in layout.features.items() if each["dtype"] not in VISUAL)
        raise UserError(f"{layout.root} has no column '{name}'; it has {known}.")
    return np.concatenate([read_part(layout, part, [name])[name] for part in parts])


def read_part(layout: Layout, part: Part, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of one data file. Raises UserError when the file is not what the metadata say."""
    path, features = layout.root / part.path, layout.features
    file = open_parquet(path, part.rows)
    try:
        schema = file.schema_arrow
        expected = {name for name, feature in features.items() if feature["dtype"] != "video"}
        odd = sorted(expected.symmetric_difference(schema.names))
        if odd or len(schema.names) != len(expected):
            what = "lacks" if odd and odd[0] in expected else "has a second or unknown"
            name = odd[0] if odd else "name"
            raise UserError(f"{path} {what} column '{name}', unlike meta/info.json: copy or record the dataset again.")
        for name in expected:
            if features[name]["dtype"] == "image":
                _check_image_type(path, name, schema.field(name).type)
            elif features[name]["dtype"] != "language":
                check_type(path, name, schema.field(name).type, features[name]["dtype"], features[name]["shape"])
        row_bytes = sum(_bytes(features[name]) for name in names)
        table = read_columns(file, path, names, row_bytes=row_bytes)
    finally:
        file.close()
    if len(table) != part.rows:
        raise damaged(path, f"it gives {len(table)} of {part.rows} rows")
    return {name: to_numpy(path, name, table.column(name), features[name]["shape"]) for name in names}


def _check_image_type(path: Path, name: str, kind: pa.DataType) -> None:
    fields = [kind.field(number).name for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if "bytes" not in fields and not pa.types.is_binary(kind):
        raise UserError(
            f"{path} has a column '{name}' of {kind}, but meta/info.json says image: copy or record the dataset again."
        )


def _check_structure(layout: Layout, part: Part, columns: Mapping[str, np.ndarray]) -> None:
    lengths = np.array(part.lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    frame = np.arange(part.rows) - np.repeat(starts, lengths)
    wanted = {
        "index": part.first + np.arange(part.rows),
        "episode_index": np.repeat(part.episode + np.arange(len(lengths)), lengths),
        "frame_index": frame,
    }
    for name, values in wanted.items():
        _refuse_rows(layout, part, columns[name] != values, f"'{name}' does not count on")
    fps = layout.info["fps"]
    seconds = frame / fps
    off = ~(np.abs(columns["timestamp"].astype(np.float64) - seconds) <= TIME_TOLERANCE + 1e-6 * seconds)
    _refuse_rows(layout, part, off, f"'timestamp' is not frame_index / {fps}")
    tasks = columns["task_index"]
    _refuse_rows(layout, part, (tasks < 0) | (tasks >= len(layout.tasks)), "'task_index' names no task")
    said = np.zeros((len(lengths), len(layout.tasks)), bool)
    said[np.repeat(np.arange(len(lengths)), lengths), tasks] = True
    numbers = {task: number for number, task in enumerate(layout.tasks)}
    for offset, entry in enumerate(layout.entries[part.episode : part.episode + len(lengths)]):
        if entry.tasks and {numbers.get(task) for task in entry.tasks} != set(np.flatnonzero(said[offset]).tolist()):
            raise UserError(
                f"{layout.root / part.path}: the frames of episode {part.episode + offset} have other tasks than "
                f"{list(entry.tasks)}, which the metadata say: copy or record the dataset again."
            )


def _check_finite(layout: Layout, part: Part, name: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f":
        bad = np.logical_not(np.isfinite(values).reshape(len(values), -1).all(axis=1))
        _refuse_rows(layout, part, bad, f"'{name}' is NaN or infinite")


def _refuse_rows(layout: Layout, part: Part, bad: Any, reason: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        episode = int(np.searchsorted(np.cumsum(part.lengths), row, side="right"))
        frame = row - sum(part.lengths[:episode])
        raise UserError(
            f"{layout.root / part.path}: {reason} in episode {part.episode + episode}, frame {frame}: "
            f"copy or record the dataset again."
        )


def _is_number(dtype: str) -> bool:
    return dtype not in (*VISUAL, "string", "language")


def _bytes(feature: Mapping) -> int:
    size = np.dtype(feature["dtype"]).itemsize if _is_number(feature["dtype"]) else TEXT_BYTES
    return size * math.prod(feature["shape"])
