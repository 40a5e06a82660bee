"""Writes LeRobot v3.0 datasets: episodes are staged one by one (in any process), then joined into one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped, UInt8

from hypervla.contracts import Episode, UserError
from hypervla.data.video import CODEC_INFO, JoinedVideo, encode
from hypervla.durable import write_atomically
from hypervla.embodiment import Embodiment

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise UserError("Writing datasets needs pyarrow: pip install 'hypervla[data]'.") from error

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
CHUNKS_SIZE = 1000
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Statistics = dict[str, Any]


def image_key(camera: str) -> str:
    """The LeRobot feature of a camera."""
    return f"observation.images.{camera}"


def write_json(path: Path, value: Any) -> None:
    """The value as JSON, all of it or nothing."""
    write_atomically(path, json.dumps(value, indent=4, ensure_ascii=False).encode())


# Statistics


def column_statistics(values: Shaped[np.ndarray, "F D"]) -> Statistics:
    """min, max, mean, population std, count and true quantiles of each column, as lists."""
    wide = values.astype(np.float64)
    limits = values.astype(np.float64) if values.dtype == bool else values
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {
        "min": limits.min(axis=0).tolist(),
        "max": limits.max(axis=0).tolist(),
        "mean": wide.mean(axis=0).tolist(),
        "std": wide.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


def image_histogram(images: UInt8[np.ndarray, "T height width 3"]) -> Int64[np.ndarray, "4 256"]:
    """How often each value occurs in each channel of a sample of the frames; the last row counts those frames.

    The sample is LeRobot's: about T^0.75 but at least 100 frames, evenly spaced, thinned to some 150 pixels a side.
    """
    count = min(len(images), max(100, min(10_000, int(len(images) ** 0.75))))
    chosen = np.round(np.linspace(0, len(images) - 1, count)).astype(int)
    side = max(images.shape[1:3])
    stride = max(1, side // 150) if side >= 300 else 1
    sample = images[chosen, ::stride, ::stride]
    rows = [np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)]
    return np.stack([*rows, np.eye(1, 256, dtype=np.int64)[0] * count]).astype(np.int64)


def histogram_statistics(histogram: Int64[np.ndarray, "4 256"]) -> Statistics:
    """Exact statistics of the sampled pixels in [0, 1], each shaped (3, 1, 1)."""
    values = np.arange(256) / 255

    def order_statistics(counts: Int64[np.ndarray, " 256"], share: float) -> float:
        position = share * (counts.sum() - 1)
        below, above = np.searchsorted(counts.cumsum(), [np.floor(position), np.ceil(position)], side="right")
        return float(values[below] + (values[above] - values[below]) * (position % 1))

    def shaped(numbers: Float64[np.ndarray, " 3"] | Sequence[float]) -> list[list[list[float]]]:
        return [[[float(number)]] for number in numbers]

    channels = histogram[:3]
    mean = channels @ values / channels.sum(axis=1)
    variance = channels @ values**2 / channels.sum(axis=1) - mean**2
    return {
        "min": shaped([order_statistics(row, 0.0) for row in channels]),
        "max": shaped([order_statistics(row, 1.0) for row in channels]),
        "mean": shaped(mean),
        "std": shaped(np.sqrt(np.maximum(variance, 0))),
        "count": [int(histogram[3, 0])],
        **{name: shaped([order_statistics(row, share) for row in channels]) for name, share in QUANTILES.items()},
    }


# Staging


def stage_episode(folder: Path, episode: Episode, fps: int) -> None:
    """Encode one episode into `folder`, from which `LeRobotWriter.add` takes it; safe to call in many processes."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    if episode.proprio is not None:
        arrays["observation.state"] = episode.proprio
    arrays["action"] = episode.actions
    if episode.environment_state is not None:
        arrays["observation.environment_state"] = episode.environment_state
    if episode.success is not None:
        done = np.zeros(len(episode), bool)
        done[-1] = True
        arrays |= {
            "next.reward": episode.success.astype(np.float32),
            "next.done": done,
            "next.success": episode.success,
        }
    for camera, images in episode.images.items():
        (folder / f"{camera}.mp4").write_bytes(encode(images, fps))
        arrays[f"histogram/{camera}"] = image_histogram(images)
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    write_json(folder / "episode.json", {"instruction": episode.instruction, "source": dict(episode.source)})


# Assembly


class LeRobotWriter:
    """Joins staged episodes into a LeRobot v3.0 dataset; `meta/info.json`, written last, makes it one."""

    def __init__(
        self, root: Path, embodiment: Embodiment, *, data_file_mb: int = 100, video_file_mb: int = 200
    ) -> None:
        if embodiment.control_hz != int(embodiment.control_hz):
            raise UserError(
                f"LeRobot wants a whole number of frames per second, but {embodiment.name} runs at "
                f"{embodiment.control_hz} Hz: record at a whole rate."
            )
        self.root = root
        self.embodiment = embodiment
        self.fps = int(embodiment.control_hz)
        self._data_file_mb, self._video_file_mb = data_file_mb, video_file_mb
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._sources: list[dict[str, Any]] = []
        self._columns: list[dict[str, np.ndarray]] = []
        self._histograms: dict[str, np.ndarray] = {}
        self.frames = 0
        self._data: pq.ParquetWriter | None = None
        self._data_sink: Any = None
        self._data_file = -1
        self._videos: dict[str, JoinedVideo] = {}
        self._video_files: dict[str, int] = {}

    def add(self, folder: Path) -> None:
        """Append the episode that `stage_episode` left in `folder`."""
        described = json.loads((folder / "episode.json").read_text(encoding="utf-8"))
        with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
            arrays = dict(stored)
        histograms = {name.split("/", 1)[1]: arrays.pop(name) for name in list(arrays) if name.startswith("histogram/")}
        length, index = len(arrays["action"]), len(self._rows)
        task = self._tasks.setdefault(described["instruction"], len(self._tasks))
        frame = np.arange(length, dtype=np.int64)
        arrays |= {
            "timestamp": (frame / self.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, index),
            "index": self.frames + frame,
            "task_index": np.full(length, task),
        }
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [described["instruction"]],
            "length": length,
            **self._write_data(arrays),
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + length,
        }
        statistics = {}
        for camera in self.embodiment.cameras:
            row |= self._write_video(camera.name, folder / f"{camera.name}.mp4", length)
            histogram = histograms[camera.name]
            statistics[image_key(camera.name)] = histogram_statistics(histogram)
            self._histograms[camera.name] = self._histograms.get(camera.name, 0) + histogram
        statistics |= {name: column_statistics(_two_dimensional(values)) for name, values in arrays.items()}
        row |= {f"stats/{name}/{key}": value for name, group in statistics.items() for key, value in group.items()}
        self._rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._sources.append(described["source"])
        self._columns.append(arrays)
        self.frames += length

    def finish(self, *, paraphrases: Mapping[str, Sequence[str]], about: Mapping[str, Any]) -> None:
        """Write the metadata, `meta/info.json` last; `about` joins embodiment and sources in `meta/hypervla.json`."""
        self._close_files()
        meta = self.root / "meta"
        columns = {
            name: _two_dimensional(np.concatenate([arrays[name] for arrays in self._columns]))
            for name in self._columns[0]
        }
        statistics = {
            image_key(camera): histogram_statistics(histogram) for camera, histogram in self._histograms.items()
        }
        statistics |= {name: column_statistics(values) for name, values in columns.items()}
        (meta / "episodes/chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self._rows), (self.root / EPISODES_PATH).absolute(), compression="snappy")
        _write_tasks(meta / "tasks.parquet", list(self._tasks))
        write_json(meta / "stats.json", statistics)
        write_json(meta / "paraphrases.json", {known: list(others) for known, others in paraphrases.items()})
        write_json(
            meta / "hypervla.json",
            {"format_version": 1, "embodiment": self.embodiment.to_json(), **about, "episodes": self._sources},
        )
        write_json(meta / "info.json", self._info())

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": self.embodiment.name,
            "total_episodes": len(self._rows),
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": self._data_file_mb,
            "video_files_size_in_mb": self._video_file_mb,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self._features(),
        }

    def _features(self) -> dict[str, Any]:
        named = {
            "observation.state": list(self.embodiment.proprio_names),
            "action": list(self.embodiment.action_names),
        }
        features: dict[str, Any] = {}
        for camera in self.embodiment.cameras:
            size = {"video.height": camera.height, "video.width": camera.width}
            features[image_key(camera.name)] = {
                "dtype": "video",
                "shape": [camera.height, camera.width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    **size,
                    **CODEC_INFO,
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        for name, values in self._columns[0].items():
            features[name] = {
                "dtype": values.dtype.name,
                "shape": list(values.shape[1:]) or [1],
                "names": named.get(name),
            }
        return features

    def _write_data(self, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
        table = pa.table({name: _arrow(values) for name, values in arrays.items()})
        if self._data is None or self._data_sink.tell() + table.nbytes > self._data_file_mb * 2**20:
            self._close_data()
            self._data_file += 1
            path = self.root / DATA_PATH.format(**_place(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data_sink = pa.OSFile(str(path), "wb")
            self._data = pq.ParquetWriter(self._data_sink, table.schema, compression="snappy", use_dictionary=True)
        self._data.write_table(table, row_group_size=len(table))
        return {f"data/{name}": value for name, value in _place(self._data_file).items()}

    def _write_video(self, camera: str, source: Path, length: int) -> dict[str, Any]:
        video, key = self._videos.get(camera), image_key(camera)
        if video is None or video.size + source.stat().st_size > self._video_file_mb * 2**20:
            if video is not None:
                video.close()
            self._video_files[camera] = self._video_files.get(camera, -1) + 1
            path = VIDEO_PATH.format(video_key=key, **_place(self._video_files[camera]))
            video = self._videos[camera] = JoinedVideo(self.root / path, self.fps)
        start = video.frames
        frames = video.append(source)
        if frames != length:
            raise UserError(f"{source} holds {frames} frames, not {length}: delete {source.parent} and record again.")
        place = {f"videos/{key}/{name}": value for name, value in _place(self._video_files[camera]).items()}
        return place | {
            f"videos/{key}/from_timestamp": start / self.fps,
            f"videos/{key}/to_timestamp": video.frames / self.fps,
        }

    def _close_data(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data_sink.close()

    def _close_files(self) -> None:
        self._close_data()
        for video in self._videos.values():
            video.close()


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNKS_SIZE, "file_index": number % CHUNKS_SIZE}


def _two_dimensional(values: Shaped[np.ndarray, "F ..."]) -> Shaped[np.ndarray, "F D"]:
    return values.reshape(len(values), -1)


def _arrow(values: Shaped[np.ndarray, "F ..."]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """The task table as pandas would write it: `task` is its index, row order is task_index."""

    def column(name: str | None, kind: str, numpy_kind: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}

    described = {
        "index_columns": ["task"],
        "column_indexes": [column(None, "unicode", "object") | {"metadata": {"encoding": "UTF-8"}}],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path.absolute())
