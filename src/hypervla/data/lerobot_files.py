"""How the versions of LeRobot's format lay episodes out in files, for writing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hypervla.contracts import UserError
from hypervla.data.staged import Piece, write_json
from hypervla.data.video import JoinedVideo
from hypervla.durable import write_atomically

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise UserError("Writing datasets needs pyarrow: pip install 'hypervla[data]'.") from error

CHUNKS_SIZE = 1000
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V3_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"

Row = dict[str, Any]
"""What the metadata say of an episode: its index, tasks, length, place; and `stats/<feature>/<statistic>`."""


class Files(Protocol):
    """The files of one version."""

    def add_data(self, table: pa.Table, episode: int) -> Row:
        """Write an episode's numbers; what its row says of their place."""
        ...

    def add_video(self, key: str, piece: Piece, length: int, episode: int) -> Row:
        """Copy an episode's video; what its row says of its place."""
        ...

    def close(self) -> None:
        """Finish the files of numbers and videos."""
        ...

    def write_metadata(self, rows: Sequence[Row], tasks: Sequence[str], statistics: Mapping[str, Any]) -> None:
        """Write all of meta/ but info.json."""
        ...

    def info(self, episodes: int, videos: int) -> dict[str, Any]:
        """The entries of info.json that differ between versions."""
        ...


class FilesV3:
    """Version 3.0: many episodes to a file."""

    def __init__(self, root: Path, fps: int, data_file_mb: int | float, video_file_mb: int | float) -> None:
        self.root, self.fps = root, fps
        self.data_file_mb, self.video_file_mb = data_file_mb, video_file_mb
        self._data: pq.ParquetWriter | None = None
        self._data_sink: Any = None
        self._data_file = -1
        self._videos: dict[str, JoinedVideo] = {}
        self._video_files: dict[str, int] = {}

    def add_data(self, table: pa.Table, episode: int) -> Row:
        if self._data is None or self._data_sink.tell() + table.nbytes > self.data_file_mb * 2**20:
            self._close_data()
            self._data_file += 1
            path = self.root / V3_DATA.format(**_place(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data_sink = pa.OSFile(str(path), "wb")
            self._data = pq.ParquetWriter(self._data_sink, table.schema, **_packing(table))
        self._data.write_table(table, row_group_size=len(table))
        return {f"data/{name}": value for name, value in _place(self._data_file).items()}

    def add_video(self, key: str, piece: Piece, length: int, episode: int) -> Row:
        video, size = self._videos.get(key), piece.path.stat().st_size if piece.count is None else 0
        if video is None or video.size + size > self.video_file_mb * 2**20 or not video.fits(piece.path):
            if video is not None:
                video.close()
            self._video_files[key] = self._video_files.get(key, -1) + 1
            path = V3_VIDEO.format(video_key=key, **_place(self._video_files[key]))
            video = self._videos[key] = JoinedVideo(self.root / path, self.fps)
        start = video.frames
        append(video, piece, length)
        place = {f"videos/{key}/{name}": value for name, value in _place(self._video_files[key]).items()}
        return place | {
            f"videos/{key}/from_timestamp": start / self.fps,
            f"videos/{key}/to_timestamp": video.frames / self.fps,
        }

    def close(self) -> None:
        self._close_data()
        for video in self._videos.values():
            video.close()

    def write_metadata(self, rows: Sequence[Row], tasks: Sequence[str], statistics: Mapping[str, Any]) -> None:
        path = self.root / V3_EPISODES
        path.parent.mkdir(parents=True, exist_ok=True)
        place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        pq.write_table(pa.Table.from_pylist([row | place for row in rows]), path.absolute(), compression="snappy")
        write_tasks(self.root / "meta/tasks.parquet", tasks)
        write_json(self.root / "meta/stats.json", statistics)

    def info(self, episodes: int, videos: int) -> dict[str, Any]:
        return {
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": self.data_file_mb,
            "video_files_size_in_mb": self.video_file_mb,
            "data_path": V3_DATA,
            "video_path": V3_VIDEO if videos else None,
        }

    def _close_data(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data_sink.close()
            self._data = None


class FilesV21:
    """Version 2.1: a file of numbers, and of each camera's video, for every episode."""

    def __init__(self, root: Path, fps: int) -> None:
        self.root, self.fps = root, fps

    def add_data(self, table: pa.Table, episode: int) -> Row:
        path = self.root / V2_DATA.format(**_episode(episode))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path.absolute(), row_group_size=len(table), **_packing(table))
        return {}

    def add_video(self, key: str, piece: Piece, length: int, episode: int) -> Row:
        video = JoinedVideo(self.root / V2_VIDEO.format(video_key=key, **_episode(episode)), self.fps)
        append(video, piece, length)
        video.close()
        return {}

    def close(self) -> None: ...

    def write_metadata(self, rows: Sequence[Row], tasks: Sequence[str], statistics: Mapping[str, Any]) -> None:
        meta = self.root / "meta"
        _write_lines(meta / "tasks.jsonl", [{"task_index": n, "task": task} for n, task in enumerate(tasks)])
        named = ("episode_index", "tasks", "length")
        _write_lines(meta / "episodes.jsonl", [{name: row[name] for name in named} for row in rows])
        _write_lines(meta / "episodes_stats.jsonl", [_statistics_line(row) for row in rows])

    def info(self, episodes: int, videos: int) -> dict[str, Any]:
        return {
            "total_videos": episodes * videos,
            "total_chunks": -(-episodes // CHUNKS_SIZE),
            "chunks_size": CHUNKS_SIZE,
            "data_path": V2_DATA,
            "video_path": V2_VIDEO if videos else None,
        }


def _packing(table: pa.Table) -> dict[str, Any]:
    """How Parquet packs a table: PNGs do not get smaller, and unpacked ones are read three times as fast."""
    pictures = any(pa.types.is_struct(field.type) for field in table.schema)
    return {"compression": "none" if pictures else "snappy", "use_dictionary": not pictures}


def append(video: JoinedVideo, piece: Piece, length: int) -> None:
    """Copy an episode's frames. Raises UserError when the piece does not hold them all."""
    frames = video.append(piece.path, piece.start, piece.count)
    if frames != length:
        raise UserError(
            f"{piece.path} holds {frames} frames, not {length}: delete {piece.path.parent} and record again."
        )


def _statistics_line(row: Row) -> Row:
    """One line of episodes_stats.jsonl, which knows no quantiles."""
    stats: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            feature, statistic = name.removeprefix("stats/").rsplit("/", 1)
            if not statistic.startswith("q"):
                stats.setdefault(feature, {})[statistic] = value
    return {"episode_index": row["episode_index"], "stats": stats}


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(path, "".join(lines).encode())


def write_tasks(path: Path, tasks: Sequence[str]) -> None:
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


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNKS_SIZE, "file_index": number % CHUNKS_SIZE}


def _episode(number: int) -> dict[str, int]:
    return {"episode_chunk": number // CHUNKS_SIZE, "episode_index": number}
