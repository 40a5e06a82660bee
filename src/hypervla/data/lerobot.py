"""Reads LeRobot v3.0 datasets: episode by episode, or every frame at once into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8

from hypervla.contracts import Episode, UserError
from hypervla.data.lerobot_writer import image_key
from hypervla.data.progress import decoding_progress
from hypervla.data.video import decode
from hypervla.embodiment import Camera, Embodiment

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise UserError("Reading datasets needs pyarrow: pip install 'hypervla[data]'.") from error

VERSION = "v3.0"
VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp")
FRAMES_PER_SPAN = 2000
"""Frames that one thread decodes in one go."""


class LeRobotDataset:
    """A folder in LeRobot's v3.0 format that also says which embodiment recorded it; an EpisodeReader."""

    embodiment: Embodiment
    fps: int
    features: Mapping[str, Any]
    paraphrases: Mapping[str, Sequence[str]]
    """Other ways to say an instruction, by instruction; the instruction itself comes first."""

    def __init__(self, root: Path) -> None:
        info = root / "meta/info.json"
        if not info.is_file():
            what = "has no meta/info.json" if root.is_dir() else "is not a folder"
            hint = " (an unfinished recording: repeat its command)" if (root / ".recording").is_dir() else ""
            raise UserError(f"Not a LeRobot dataset: {root} {what}{hint}; record one with `hypervla record`.")
        self.root = root
        self.info: Mapping[str, Any] = _read_json(info)
        if self.info.get("codebase_version") != VERSION:
            raise UserError(
                f"{info} says LeRobot {self.info.get('codebase_version')}, but {VERSION} is read here: "
                f"convert it with lerobot's convert_dataset_v21_to_v30."
            )
        self.fps, self.features = self.info["fps"], self.info["features"]
        own = root / "meta/hypervla.json"
        if not own.is_file():
            raise UserError(
                f"{own} is missing, so the robot's cameras, limits and gripper are unknown: "
                f"write it with an 'embodiment' (see hypervla.embodiment) or record with `hypervla record`."
            )
        about = _read_json(own)
        self.embodiment = Embodiment.from_json(about["embodiment"])
        self._sources: Sequence[Mapping[str, Any]] = about.get("episodes", [])
        paraphrases = root / "meta/paraphrases.json"
        self.paraphrases = _read_json(paraphrases) if paraphrases.is_file() else {}
        self._check_features()
        self._rows = self._read_rows()

    @cached_property
    def digest(self) -> str:
        """sha256 over the names and contents of all metadata, parquet and video files."""
        total = hashlib.sha256()
        for path in sorted(self.root.rglob("*"), key=lambda path: path.relative_to(self.root).as_posix()):
            if path.suffix in (".json", ".parquet", ".mp4") and path.is_file():
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                total.update(f"{path.relative_to(self.root).as_posix()}\0{content}\n".encode())
        return total.hexdigest()

    @property
    def instructions(self) -> list[str]:
        """The different instructions, in order of first appearance."""
        return list(dict.fromkeys(row["tasks"][0] for row in self._rows))

    @property
    def frames(self) -> int:
        return int(self._rows[-1]["dataset_to_index"])

    @cached_property
    def episode_starts(self) -> Int64[np.ndarray, " starts"]:
        """The first frame of every episode, and the end of the last."""
        return np.array([row["dataset_from_index"] for row in self._rows] + [self.frames], np.int64)

    @property
    def episode_instructions(self) -> list[str]:
        """The instruction of every episode."""
        return [row["tasks"][0] for row in self._rows]

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """mean, std, min, max, q01 and q99 by feature, from meta/stats.json."""
        path = self.root / "meta/stats.json"
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the dataset again, with its meta/ folder.")
        wanted = ("mean", "std", "min", "max", "q01", "q99")
        stored = _read_json(path)
        for name in ("action", "observation.state"):
            missing = [key for key in wanted if name in self.features and key not in stored.get(name, {})]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)} of '{name}': record or convert the dataset again.")
        return {
            name: {key: np.asarray(group[key], np.float32) for key in wanted if key in group}
            for name, group in stored.items()
        }

    def column(self, name: str) -> Shaped[np.ndarray, "F ..."]:
        """One column of all frames; vectors become (F, D)."""
        values = self._table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
            return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
        return values.to_numpy(zero_copy_only=False)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def episode(self, index: int, *, cameras: Sequence[str] | None = None, crop: bool = False) -> Episode:
        """One episode; `cameras` are decoded (all, when None), `crop` cuts their images to `Camera.crop`."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.root} has episodes 0 to {len(self) - 1}, but {index} was asked for.")
        row, start, end = self._rows[index], *self.episode_starts[index : index + 2]
        names = [camera.name for camera in self.embodiment.cameras] if cameras is None else cameras
        images = {}
        for camera in map(self.embodiment.camera, names):
            path, begin = self.video(index, camera)
            images[camera.name] = np.stack(
                [camera.view(image) if crop else image for image in decode(path, begin, row["length"], self.fps)]
            )
        columns = {
            name: self.column(key)[start:end]
            for name, key in {
                "actions": "action",
                "proprio": "observation.state",
                "environment_state": "observation.environment_state",
                "success": "next.success",
            }.items()
            if key in self.features
        }
        source = self._sources[index] if index < len(self._sources) else {}
        return Episode(instruction=row["tasks"][0], images=images, source=source, **columns)

    def video(self, index: int, camera: Camera) -> tuple[Path, float]:
        """The file that holds an episode as this camera saw it, and the second at which it starts there."""
        row, key = self._rows[index], image_key(camera.name)
        chunk, file, start = (row[f"videos/{key}/{name}"] for name in VIDEO_COLUMNS)
        return self.root / self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file), start

    @cached_property
    def _table(self) -> pa.Table:
        numbers = [name for name, feature in self.features.items() if feature["dtype"] not in ("video", "image")]
        places = dict.fromkeys((row["data/chunk_index"], row["data/file_index"]) for row in self._rows)
        paths = [self.root / self.info["data_path"].format(chunk_index=c, file_index=f) for c, f in places]
        table = pa.concat_tables([_read_parquet(path, numbers) for path in paths])
        if len(table) != self.frames or table.column("index").combine_chunks().to_numpy()[-1] != self.frames - 1:
            raise UserError(
                f"{self.root / 'data'} holds {len(table)} frames, but meta/episodes speaks of {self.frames}: "
                f"copy or record the dataset again."
            )
        return table

    def _read_rows(self) -> list[dict[str, Any]]:
        columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
        columns += ["dataset_from_index", "dataset_to_index"]
        for camera in self.embodiment.cameras:
            columns += [f"videos/{image_key(camera.name)}/{name}" for name in VIDEO_COLUMNS]
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        rows = [row for path in files for row in _read_parquet(path, columns).to_pylist()]
        ends = [0] + [row["dataset_to_index"] for row in rows]
        if (
            len(rows) != self.info["total_episodes"]
            or not rows
            or ends[:-1] != [row["dataset_from_index"] for row in rows]
        ):
            raise UserError(
                f"{self.root / 'meta/episodes'} describes {len(rows)} episodes, but meta/info.json speaks of "
                f"{self.info['total_episodes']}, one after another: copy or record the dataset again."
            )
        return rows

    def _check_features(self) -> None:
        robot = self.embodiment
        wanted: dict[str, list[int]] = {"action": [robot.action_size]}
        if robot.proprio_size:
            wanted["observation.state"] = [robot.proprio_size]
        wanted |= {image_key(camera.name): [camera.height, camera.width, 3] for camera in robot.cameras}
        for name, shape in wanted.items():
            came = self.features.get(name, {}).get("shape")
            if came != shape:
                raise UserError(
                    f"{robot.name} needs a feature '{name}' of shape {shape}, but {self.root} has "
                    f"{'none' if came is None else came}: correct meta/hypervla.json or record again."
                )


@dataclass(frozen=True)
class Frames:
    """Every frame of a dataset in memory, episode after episode."""

    images: Mapping[str, UInt8[np.ndarray, "F height width 3"]]
    """By camera, cut to its crop."""
    actions: Float32[np.ndarray, "F A"]
    proprio: Float32[np.ndarray, "F P"] | None
    episode_starts: Int64[np.ndarray, " starts"]
    episode_instruction: list[str]

    def __len__(self) -> int:
        return len(self.actions)


def load_frames(
    *datasets: LeRobotDataset, workers: int = 2, cameras: Sequence[str] | None = None, margin: int = 0
) -> Frames:
    """Decode whole datasets of one robot, one behind the other, with `workers` threads.

    `margin` keeps so many pixels more on each side of the view, for views that are shifted at random. Needs frames ×
    view height × view width × 3 bytes a camera. Raises UserError when the robots differ.
    """
    robot, total = datasets[0].embodiment, sum(dataset.frames for dataset in datasets)
    for dataset in datasets[1:]:
        if dataset.embodiment != robot:
            raise UserError(f"{dataset.root} was recorded with another robot or camera than {datasets[0].root}.")
    names = [camera.name for camera in robot.cameras] if cameras is None else cameras
    chosen = [robot.camera(name).wider(margin) for name in names]
    images = {camera.name: np.empty((total, *camera.view_size, 3), np.uint8) for camera in chosen}
    offsets = np.cumsum([0] + [dataset.frames for dataset in datasets])

    def fill(camera: Camera, span: _Span, offset: int, fps: int) -> int:
        target = images[camera.name][offset + span.row : offset + span.row + span.count]
        for row, image in enumerate(decode(span.path, span.start, span.count, fps)):
            target[row] = camera.view(image)
        return span.count

    with ThreadPoolExecutor(workers) as pool, decoding_progress(total * len(chosen)) as advance:
        futures = [
            pool.submit(fill, camera, span, int(offset), dataset.fps)
            for dataset, offset in zip(datasets, offsets[:-1], strict=True)
            for camera in chosen
            for span in _spans(dataset, robot.camera(camera.name))
        ]
        try:
            for future in as_completed(futures):
                advance(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

    def column(name: str) -> Float32[np.ndarray, "F D"]:
        return np.concatenate([np.asarray(dataset.column(name), np.float32) for dataset in datasets])

    starts = [dataset.episode_starts[:-1] + offset for dataset, offset in zip(datasets, offsets[:-1], strict=True)]
    return Frames(
        images=images,
        actions=column("action"),
        proprio=column("observation.state") if robot.proprio_size > 0 else None,
        episode_starts=np.concatenate([*starts, offsets[-1:]]),
        episode_instruction=[text for dataset in datasets for text in dataset.episode_instructions],
    )


@dataclass(frozen=True)
class _Span:
    """Consecutive episodes that lie one behind the other in one file."""

    path: Path
    start: float
    row: int
    count: int


def _spans(dataset: LeRobotDataset, camera: Camera) -> list[_Span]:
    spans: list[_Span] = []
    for index, (first, end) in enumerate(zip(dataset.episode_starts[:-1], dataset.episode_starts[1:], strict=True)):
        (path, start), count = dataset.video(index, camera), int(end - first)
        last = spans[-1] if spans else None
        follows = last is not None and last.path == path and abs(last.start + last.count / dataset.fps - start) < 1e-4
        if last is not None and follows and last.count + count <= FRAMES_PER_SPAN:
            spans[-1] = _Span(path, last.start, last.row, last.count + count)
        else:
            spans.append(_Span(path, start, int(first), count))
    return spans


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy or record the dataset again.") from error


def _read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path} is missing: copy or record the dataset again.")
    try:
        return pq.ParquetFile(path.absolute()).read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}): copy or record the dataset again.") from error
