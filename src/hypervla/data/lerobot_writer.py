"""Writes LeRobot datasets, v3.0 or v2.1: staged episodes are joined into one folder, one after another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from hypervla.contracts import UserError
from hypervla.data import manifest
from hypervla.data.lerobot_files import Files, FilesV3, FilesV21
from hypervla.data.staged import (
    Images,
    StagedEpisode,
    image_key,
    read_staged,
    stage_episode,
    to_json,
    write_json,
)
from hypervla.data.statistics import column_statistics, histogram_statistics
from hypervla.data.video import Codec, codec_info
from hypervla.durable import write_atomically
from hypervla.embodiment import Embodiment

__all__ = ["LeRobotWriter", "Version", "image_key", "stage_episode", "write_json"]

Version = Literal["v3.0", "v2.1"]


class LeRobotWriter:
    """Joins staged episodes into a LeRobot dataset; `meta/info.json`, written last, makes it one.

    Just before it comes the manifest of all files: a folder without info.json is no dataset, one with it is whole.
    """

    def __init__(
        self,
        root: Path,
        embodiment: Embodiment,
        *,
        version: Version = "v3.0",
        images: Images = "video",
        codec: Codec = "h264",
        data_file_mb: int | float = 100,
        video_file_mb: int | float = 200,
        features: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`images` and `codec` say what the staged episodes hold. `features` describes those of another dataset whose
        names, and image features, are to be kept. Raises UserError for a rate that the format cannot hold."""
        if embodiment.control_hz != int(embodiment.control_hz):
            raise UserError(
                f"LeRobot wants a whole number of frames per second, but {embodiment.name} runs at "
                f"{embodiment.control_hz} Hz: record at a whole rate."
            )
        self.root, self.embodiment, self.version = root, embodiment, version
        self.fps = int(embodiment.control_hz)
        self.frames = 0
        self._images: Images = images
        self._codec: Codec = codec
        self._known = features
        self._files: Files = (
            FilesV3(root, self.fps, data_file_mb, video_file_mb) if version == "v3.0" else FilesV21(root, self.fps)
        )
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._sources: list[Mapping[str, Any]] = []
        self._columns: list[Mapping[str, np.ndarray]] = []
        self._histograms: dict[str, np.ndarray] = {}

    def add(self, staged: Path | StagedEpisode) -> None:
        """Append an episode: what `stage_episode` left in a folder, or one in memory."""
        episode = read_staged(staged) if isinstance(staged, Path) else staged
        length, index = len(next(iter(episode.columns.values()))), len(self._rows)
        instructions = list(episode.instructions) * (length if len(episode.instructions) == 1 else 1)
        columns = {**episode.columns, **self._structure(index, instructions)}
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": list(dict.fromkeys(instructions)),
            "length": length,
            **self._files.add_data(_table(columns, episode.pictures), index),
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + length,
        }
        for key, piece in episode.videos.items():
            row |= self._files.add_video(key, piece, length, index)
        statistics = {}
        for key, histogram in episode.histograms.items():
            statistics[key] = histogram_statistics(histogram)
            self._histograms[key] = self._histograms.get(key, 0) + histogram
        numbers = {name: values for name, values in columns.items() if values.dtype.kind in "fiub"}
        statistics |= {name: column_statistics(_two_dimensional(values)) for name, values in numbers.items()}
        row |= {f"stats/{name}/{key}": value for name, group in statistics.items() for key, value in group.items()}
        self._rows.append(row)
        self._sources.append(episode.source)
        self._columns.append(columns)
        self.frames += length

    def _structure(self, index: int, instructions: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns that place frames in the dataset."""
        frame = np.arange(len(instructions), dtype=np.int64)
        tasks = [self._tasks.setdefault(instruction, len(self._tasks)) for instruction in instructions]
        return {
            "timestamp": (frame / self.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(len(frame), index),
            "index": self.frames + frame,
            "task_index": np.array(tasks),
        }

    def finish(
        self,
        *,
        paraphrases: Mapping[str, Sequence[str]],
        about: Mapping[str, Any],
        splits: Mapping[str, str] | None = None,
    ) -> None:
        """Write the metadata, `meta/info.json` last; `about` joins embodiment and sources in `meta/hypervla.json`."""
        self._files.close()
        columns = {
            name: _two_dimensional(np.concatenate([arrays[name] for arrays in self._columns]))
            for name, first in self._columns[0].items()
            if first.dtype.kind in "fiub"
        }
        statistics = {key: histogram_statistics(histogram) for key, histogram in self._histograms.items()}
        statistics |= {name: column_statistics(values) for name, values in columns.items()}
        self._files.write_metadata(self._rows, list(self._tasks), statistics)
        meta = self.root / "meta"
        write_json(meta / "paraphrases.json", {known: list(others) for known, others in paraphrases.items()})
        write_json(
            meta / "hypervla.json",
            {"format_version": 1, "embodiment": self.embodiment.to_json(), **about, "episodes": self._sources},
        )
        info = to_json(self._info(splits))
        manifest.write(self.root, pending={"meta/info.json": info})
        write_atomically(meta / "info.json", info)

    def _info(self, splits: Mapping[str, str] | None) -> dict[str, Any]:
        features = self._features()
        videos = sum(feature["dtype"] == "video" for feature in features.values())
        specific = self._files.info(len(self._rows), videos)
        paths = {name: specific.pop(name) for name in ("data_path", "video_path")}
        return {
            "codebase_version": self.version,
            "robot_type": self.embodiment.name,
            "total_episodes": len(self._rows),
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            **specific,
            "fps": self.fps,
            "splits": dict(splits or {"train": f"0:{len(self._rows)}"}),
            **paths,
            "features": features,
        }

    def _features(self) -> dict[str, Any]:
        if self._known is not None:
            return {name: dict(feature) for name, feature in self._known.items()}
        named = {
            "observation.state": list(self.embodiment.proprio_names),
            "action": list(self.embodiment.action_names),
        }
        features: dict[str, Any] = {
            image_key(camera.name): image_feature(camera.height, camera.width, self.fps, self._images, self._codec)
            for camera in self.embodiment.cameras
        }
        for name, values in self._columns[0].items():
            features[name] = {
                "dtype": values.dtype.name,
                "shape": list(values.shape[1:]) or [1],
                "names": named.get(name),
            }
        return features


def image_feature(height: int, width: int, fps: int, images: Images, codec: Codec = "h264") -> dict[str, Any]:
    """How info.json describes a camera."""
    feature = {"dtype": images, "shape": [height, width, 3], "names": ["height", "width", "channels"]}
    if images == "image":
        return feature
    return feature | {
        "info": {
            "video.height": height,
            "video.width": width,
            **codec_info(codec),
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
    }


def _two_dimensional(values: Shaped[np.ndarray, "F ..."]) -> Shaped[np.ndarray, "F D"]:
    return values.reshape(len(values), -1)


def _table(columns: Mapping[str, np.ndarray], pictures: Mapping[str, Sequence[bytes]]) -> pa.Table:
    """The columns of a data file; images first, as our features are."""
    table = pa.table(
        {
            **{key: _arrow_pictures(encoded) for key, encoded in pictures.items()},
            **{name: _arrow(values) for name, values in columns.items()},
        }
    )
    return table.replace_schema_metadata({"huggingface": _hub_features(columns, pictures)}) if pictures else table


def _arrow_pictures(encoded: Sequence[bytes]) -> pa.Array:
    cells = [{"bytes": data, "path": f"frame-{number:06d}.png"} for number, data in enumerate(encoded)]
    return pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _inner(values: Shaped[np.ndarray, "F ..."]) -> tuple[int, ...]:
    """The shape of a cell; LeRobot takes vectors of one number for numbers."""
    return () if values.shape[1:] == (1,) else values.shape[1:]


def _arrow(values: Shaped[np.ndarray, "F ..."]) -> pa.Array:
    if values.dtype.kind == "O":
        return pa.array(values.tolist(), pa.string())
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(_inner(values)):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _hub_features(columns: Mapping[str, np.ndarray], pictures: Mapping[str, Any]) -> str:
    """The schema in the words of the `datasets` library, which tells images from other structs by it."""
    described: dict[str, Any] = {key: {"_type": "Image"} for key in pictures}
    for name, values in columns.items():
        feature: dict[str, Any] = {
            "dtype": "string" if values.dtype.kind == "O" else values.dtype.name,
            "_type": "Value",
        }
        for size in reversed(_inner(values)):
            feature = {"feature": feature, "length": size, "_type": "Sequence"}
        described[name] = feature
    return json.dumps({"info": {"features": described}})
