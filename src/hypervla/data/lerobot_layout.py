"""Where a LeRobot dataset keeps what: the metadata of v2.0, v2.1 and v3.0, checked and in one form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from hypervla.contracts import UserError
from hypervla.data.parquet import damaged, open_parquet, read_columns, to_rows

VERSIONS = ("v3.0", "v2.1", "v2.0")
STRUCTURE = {
    "timestamp": ("float32", "float64"),
    "frame_index": ("int64",),
    "episode_index": ("int64",),
    "index": ("int64",),
    "task_index": ("int64",),
}
"""Features that every LeRobot dataset has, and their possible dtypes."""
VISUAL = ("image", "video")
TEXT_BYTES = 4096
"""More than an episode's instruction needs."""
JSON_BYTES = 256 * 2**20
PLACE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


@dataclass(frozen=True)
class Place:
    """A video file, relative to the dataset's folder, and the second at which something begins there."""

    path: str
    start: float


@dataclass(frozen=True)
class Entry:
    """What the metadata says about one episode."""

    tasks: tuple[str, ...]
    length: int
    data: str
    """Its parquet file, relative to the dataset's folder."""
    videos: Mapping[str, Place]
    """By feature."""


@dataclass(frozen=True)
class Layout:
    """The metadata of a dataset of any version."""

    root: Path
    version: str
    info: Mapping[str, Any]
    tasks: Sequence[str]
    """Instructions by task index."""
    entries: Sequence[Entry]

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        return self.info["features"]

    @property
    def frames(self) -> int:
        return self.info["total_frames"]


def read_layout(root: Path) -> Layout:
    """Read and check the metadata. Raises UserError naming the file and what is wrong."""
    info = read_info(root)
    version = info["codebase_version"]
    tasks = _tasks_v3(root, info) if version == "v3.0" else _tasks_v2(root)
    if not len(tasks) == info["total_tasks"] == len(set(tasks)):
        raise UserError(
            f"{root / 'meta'} lists {len(tasks)} tasks, {len(set(tasks))} of them different, but info.json speaks of "
            f"{info['total_tasks']}: copy or record the dataset again."
        )
    entries = list(_entries_v3(root, info) if version == "v3.0" else _entries_v2(root, info))
    total = sum(entry.length for entry in entries)
    if total != info["total_frames"]:
        raise UserError(
            f"{root / 'meta'} describes episodes of {total} frames in all, but info.json speaks of "
            f"{info['total_frames']}: copy or record the dataset again."
        )
    _check_videos(root, info, entries)
    return Layout(root, version, info, tasks, entries)


# meta/info.json


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json, checked. Raises UserError."""
    path = root / "meta/info.json"
    if not path.is_file():
        what = "has no meta/info.json" if root.is_dir() else "is not a folder"
        hint = " (an unfinished recording: repeat its command)" if (root / ".recording").is_dir() else ""
        raise UserError(f"Not a LeRobot dataset: {root} {what}{hint}; record one with `hypervla record`.")
    info = read_json(path)
    if not isinstance(info, dict):
        raise damaged(path, "it holds no table")
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise UserError(
            f"{path} says LeRobot {version}, but {', '.join(VERSIONS)} are read here: convert the dataset with lerobot."
        )

    def refuse(key: str, wanted: str) -> UserError:
        came = json.dumps(info.get(key), default=str)
        return UserError(f"{path}: '{key}' should be {wanted}, but is {came[:80]}: copy or record the dataset again.")

    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 10_000:
        raise refuse("fps", "a number above 0")
    for key in ("total_episodes", "total_frames", "total_tasks", "chunks_size"):
        if type(info.get(key)) is not int or not 1 <= info[key] <= 2**40:
            raise refuse(key, "a whole number above 0")
    fields = {"chunk_index", "file_index"} if version == "v3.0" else {"episode_chunk", "episode_index"}
    _check_template(path, "data_path", info.get("data_path"), fields)
    _check_features(path, info.get("features"))
    if any(feature["dtype"] == "video" for feature in info["features"].values()):
        _check_template(path, "video_path", info.get("video_path"), fields | {"video_key"})
    return info


def _check_template(path: Path, key: str, template: Any, fields: set[str]) -> None:
    """A path below the dataset's folder that is made of these fields and nothing else."""
    try:
        parts = list(Formatter().parse(template))
        inside = not template.startswith("/") and "\\" not in template and ".." not in template.split("/")
        known = all(
            field is None or (field in fields and not conversion and (spec == "" or spec in ("03d", "06d", "d")))
            for _, field, spec, conversion in parts
        )
        used = {field for _, field, _, _ in parts if field}
    except (TypeError, ValueError, AttributeError):
        inside, known, used = False, False, set()
    if not inside or not known or (used & fields) != used or not used:
        raise UserError(
            f"{path}: '{key}' should be a path below the dataset's folder made of {', '.join(sorted(fields))}, but is "
            f"{str(template)[:80]!r}: copy the dataset again."
        )


def _check_features(path: Path, features: Any) -> None:
    if not isinstance(features, dict) or not features:
        raise UserError(f"{path} describes no features: copy or record the dataset again.")
    for name, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        sized = isinstance(shape, list) and all(type(size) is int and size >= 1 for size in shape)
        if not sized or not shape or len(shape) > 5 or math.prod(shape) > 2**28 or not _is_dtype(feature.get("dtype")):
            raise UserError(
                f"{path}: the feature '{name}' has no proper dtype and shape: copy or record the dataset again."
            )
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"{path}: '{name}' is no name for a feature: copy or record the dataset again.")
    for name, dtypes in STRUCTURE.items():
        feature = features.get(name)
        if feature is None or feature["dtype"] not in dtypes or feature["shape"] != [1]:
            raise UserError(
                f"{path} needs a feature '{name}' of {dtypes[0]} and shape [1], but has "
                f"{'none' if feature is None else feature['dtype']}: copy or record the dataset again."
            )


def _is_dtype(name: Any) -> bool:
    if name in (*VISUAL, "string", "language"):
        return True
    try:
        return isinstance(name, str) and np.dtype(name).kind in "fiub"
    except TypeError:
        return False


# Version 3.0


def _tasks_v3(root: Path, info: Mapping[str, Any]) -> list[str]:
    path = root / "meta/tasks.parquet"
    file = open_parquet(path, info["total_tasks"])
    names = file.schema_arrow.names
    column = "task" if "task" in names else "__index_level_0__"
    rows = to_rows(path, read_columns(file, path, ["task_index", column], row_bytes=TEXT_BYTES))
    if [row["task_index"] for row in rows] != list(range(len(rows))):
        raise damaged(path, "its task_index does not count from 0")
    return _texts(path, [row[column] for row in rows])


def _texts(path: Path, values: Sequence[Any]) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise damaged(path, "a task is no text")
    return list(values)


def _entries_v3(root: Path, info: Mapping[str, Any]) -> Iterator[Entry]:
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    columns += ["dataset_from_index", "dataset_to_index"]
    columns += [f"videos/{key}/{name}" for key in keys for name in PLACE]
    count = first = 0
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        file = open_parquet(path, range(info["total_episodes"] - count + 1))
        for row in to_rows(path, read_columns(file, path, columns, row_bytes=TEXT_BYTES)):
            _check_types(path, row, keys)
            end = first + row["length"]
            if (row["episode_index"], row["dataset_from_index"], row["dataset_to_index"]) != (count, first, end):
                raise damaged(path, f"episode {row['episode_index']} does not follow on episode {count - 1}")
            yield _entry_v3(path, info, row, keys)
            count, first = count + 1, end
    if count != info["total_episodes"]:
        raise UserError(
            f"{root / 'meta/episodes'} describes {count} episodes, but meta/info.json speaks of "
            f"{info['total_episodes']}: copy or record the dataset again."
        )


def _check_types(path: Path, row: Mapping[str, Any], keys: Sequence[str]) -> None:
    whole = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
    whole += [f"videos/{key}/{name}" for key in keys for name in PLACE[:2]]
    for name in whole:
        if type(row[name]) is not int or row[name] < (1 if name == "length" else 0):
            raise damaged(path, f"'{name}' is {row[name]}")
    for name in (f"videos/{key}/{name}" for key in keys for name in PLACE[2:]):
        if not isinstance(row[name], float) or not 0 <= row[name] < 1e9:
            raise damaged(path, f"'{name}' is {row[name]}")
    if not isinstance(row["tasks"], list):
        raise damaged(path, "'tasks' is no list")
    _texts(path, row["tasks"])


def _entry_v3(path: Path, info: Mapping[str, Any], row: Mapping[str, Any], keys: Sequence[str]) -> Entry:
    videos = {}
    for key in keys:
        chunk, file, start, end = (row[f"videos/{key}/{name}"] for name in PLACE)
        if abs(end - start - row["length"] / info["fps"]) > 0.5 / info["fps"]:
            raise damaged(
                path,
                f"episode {row['episode_index']} has {row['length']} frames, but {end - start:.3f} s of '{key}'",
            )
        place = info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
        videos[key] = Place(place, start)
    data = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    return Entry(tuple(row["tasks"]), row["length"], data, videos)


def _check_videos(root: Path, info: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """No two episodes may claim the same frames of a file."""
    pieces: dict[str, list[tuple[float, float, int]]] = {}
    for number, entry in enumerate(entries):
        for place in entry.videos.values():
            pieces.setdefault(place.path, []).append((place.start, entry.length / info["fps"], number))
    for path, claims in pieces.items():
        claims.sort()
        for (start, seconds, number), (following, _, other) in pairwise(claims):
            if following < start + seconds - 0.5 / info["fps"]:
                raise UserError(
                    f"{root / path} cannot hold episodes {number} and {other} both from {following:.3f} s on: "
                    f"copy or record the dataset again."
                )


# Versions 2.0 and 2.1


def _tasks_v2(root: Path) -> list[str]:
    path = root / "meta/tasks.jsonl"
    rows = read_json_lines(path, ("task_index", "task"))
    if [row["task_index"] for row in rows] != list(range(len(rows))):
        raise damaged(path, "its task_index does not count from 0")
    return _texts(path, [row["task"] for row in rows])


def _entries_v2(root: Path, info: Mapping[str, Any]) -> Iterator[Entry]:
    path = root / "meta/episodes.jsonl"
    rows = read_json_lines(path, ("episode_index", "tasks", "length"))
    if len(rows) != info["total_episodes"]:
        raise UserError(
            f"{path} describes {len(rows)} episodes, but meta/info.json speaks of {info['total_episodes']}: "
            f"copy or record the dataset again."
        )
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            raise damaged(path, f"episode {row['episode_index']} stands where {number} should")
        if type(row["length"]) is not int or not 1 <= row["length"] <= info["total_frames"]:
            raise damaged(path, f"episode {number} has the length {row['length']}")
        if not isinstance(row["tasks"], list):
            raise damaged(path, f"episode {number} has no list of tasks")
        place = {"episode_chunk": number // info["chunks_size"], "episode_index": number}
        videos = {key: Place(info["video_path"].format(video_key=key, **place), 0.0) for key in keys}
        tasks = tuple(_texts(path, row["tasks"]))
        yield Entry(tasks, row["length"], info["data_path"].format(**place), videos)


# Files


def read_json(path: Path) -> Any:
    """A JSON file. Raises UserError when it is missing, huge or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or record the dataset again.")
    if path.stat().st_size > JSON_BYTES:
        raise damaged(path, f"it has {path.stat().st_size} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def read_json_lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """A file of one JSON table a line, each with these keys. Raises UserError when it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or record the dataset again.")
    rows = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or not all(key in row for key in keys):
                    raise damaged(path, f"line {number} has no {' or no '.join(keys)}")
                rows.append(row)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise damaged(path, error) from error
    return rows
