"""Reads LeRobot datasets of version 2.0, 2.1 and 3.0: numbers at once, images when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from hypervla.contracts import Episode, Image, UserError
from hypervla.data import lerobot_statistics
from hypervla.data.handles import Handles
from hypervla.data.lerobot_layout import read_info, read_layout
from hypervla.data.lerobot_numbers import parts_of, read_column, read_numbers
from hypervla.data.lerobot_own import read_about, validation_episodes
from hypervla.data.lerobot_robot import (
    ACTION,
    IMAGES,
    STATE,
    check_features,
    feature_names,
    image_size,
    infer_embodiment,
    rename_cameras,
)
from hypervla.data.manifest import Hashes, Manifest
from hypervla.data.manifest import digest as files_digest
from hypervla.data.pictures import PictureFile, decode_picture
from hypervla.data.tasks import read_paraphrases
from hypervla.data.video_reader import OpenVideo
from hypervla.embodiment import Camera, Embodiment

DIGESTED = ("*.json", "*.jsonl", "*.parquet", "*.mp4")
OPEN_FILES = 8
"""Files that each thread keeps open."""
PICTURE_BYTES = 128 * 2**20
"""Encoded pictures that each thread keeps in memory."""
DELTA_TOLERANCE = 1e-4
"""Seconds by which a delta may differ from a whole number of frames, as LeRobot has it."""


class LeRobotDataset:
    """A folder in LeRobot's format; an EpisodeReader.

    Rows are numbered as LeRobot's `index`. Everything that numbers can show is checked here, at opening; images are
    checked when they are decoded.
    """

    def __init__(
        self, root: Path, *, embodiment: Embodiment | None = None, features: Mapping[str, str] | None = None
    ) -> None:
        """Open a dataset. `features` gives its names for `action`, `observation.state` and `observation.images.NAME`.

        The robot is `embodiment`, else the one in meta/hypervla.json, else as much of it as the metadata tells.
        Raises UserError, naming the file, for anything that is not intact.
        """
        self.root = root
        read_info(root)
        self._manifest, self._hashes = Manifest.read(root), Hashes(root)
        if self._manifest is not None:
            self._manifest.check_listing(root)
            for path in self._manifest.files:
                if path.split("/")[0] != "videos":
                    self.checked(path)
            self._hashes.save()
        self.layout = layout = read_layout(root)
        self.info, self.features, self.tasks = layout.info, layout.features, list(layout.tasks)
        fps = layout.info["fps"]
        self.fps: int | float = int(fps) if fps == int(fps) else fps
        self.name = root.resolve().name
        self._parts = parts_of(layout)
        self._part_ends = np.cumsum([part.rows for part in self._parts])
        lengths = [entry.length for entry in layout.entries]
        self.starts: Int64[np.ndarray, " starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.names, self.cameras = feature_names(layout.features, features, root)
        about = read_about(root)
        self.renamed = dict(features or {})
        recorded = about.get("embodiment")
        known = embodiment or (recorded and rename_cameras(recorded, self.renamed))
        if known is not None:
            check_features(known, layout.features, self.names, self.cameras, root)
        numbers = read_numbers(layout, self._parts, list(self.names.values()))
        said = np.repeat([bool(entry.tasks) for entry in layout.entries], lengths)
        self._task_index = np.where(said, numbers["task_index"], -1).astype(np.int32)
        self.actions: Float32[np.ndarray, "F A"] = _vectors(numbers[self.names[ACTION]])
        self.embodiment: Embodiment = known or infer_embodiment(
            layout.info, self.names, self.cameras, self.actions, name=self.name
        )
        check_features(self.embodiment, layout.features, self.names, self.cameras, root)
        has_state = STATE in self.names and self.embodiment.proprio_size > 0
        self.proprio: Float32[np.ndarray, "F P"] | None = _vectors(numbers[self.names[STATE]]) if has_state else None
        self._sources: Sequence[Mapping[str, Any]] = about.get("episodes", [])
        paraphrases = root / "meta/paraphrases.json"
        self.paraphrases: Mapping[str, Sequence[str]] = read_paraphrases(paraphrases) if paraphrases.is_file() else {}
        self.validation_episodes: Int64[np.ndarray, " V"] = validation_episodes(root, layout.info)
        self._open, self._cells = Handles(OPEN_FILES), Handles(PICTURE_BYTES)

    # What it holds

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    @property
    def version(self) -> str:
        """LeRobot's version of the format: v2.0, v2.1 or v3.0."""
        return self.layout.version

    @property
    def frames(self) -> int:
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """sha256 over the names and contents of all metadata, parquet and video files.

        Raises UserError when one of them is not what the manifest says.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return files_digest(self.root, DIGESTED)

    @property
    def instructions(self) -> list[str]:
        """The different instructions, in order of first appearance."""
        return list(dict.fromkeys(self.episode_instructions))

    @property
    def episode_instructions(self) -> list[str]:
        """The instruction that every episode begins with."""
        return [self.instruction(int(row)) for row in self.starts[:-1]]

    def instruction(self, row: int) -> str:
        """What was to be done at this step; empty where the metadata do not say."""
        task = self._task_index[row]
        return self.tasks[task] if task >= 0 else ""

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """mean, std, min, max, q01, q99 and count of `action` and `observation.state`, with true quantiles.

        Raises UserError when the dataset's own statistics are missing or those of other data.
        """
        return self._statistics

    @cached_property
    def _statistics(self) -> dict[str, dict[str, np.ndarray]]:
        values = {ACTION: self.actions} | ({} if self.proprio is None else {STATE: self.proprio})
        return lerobot_statistics.verified(self.layout, self.names, values)

    def column(self, name: str) -> Shaped[np.ndarray, "F ..."]:
        """One column of all frames; vectors become (F, D)."""
        return read_column(self.layout, self._parts, self.names.get(name, name))

    # Images

    def images(self, camera: str, rows: Sequence[int]) -> list[Image]:
        """What the camera saw at these rows, in their order. Raises UserError when a frame is missing or damaged."""
        self.embodiment.camera(camera)
        return self.frames_of(self.cameras[camera], np.asarray(rows, np.int64).reshape(-1))

    def frames_of(self, key: str, rows: Int64[np.ndarray, " rows"]) -> list[Image]:
        """The images of an image or video feature, by the dataset's own name for it."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.frames:
            raise UserError(f"{self.root} has rows 0 to {self.frames - 1}, but {rows.min()} to {rows.max()} came.")
        if self.features[key]["dtype"] == "image":
            size = image_size(self.features[key])
            pairs = zip(self.cells_of(key, rows), rows.tolist(), strict=True)
            return [decode_picture(data, size, self._where(key, row)) for data, row in pairs]
        found: list[Any] = [None] * len(rows)
        wanted: dict[str, list[tuple[float, int]]] = {}
        for place, (row, episode) in enumerate(zip(rows.tolist(), self._episodes_of(rows), strict=True)):
            file = self.layout.entries[episode].videos[key]
            wanted.setdefault(file.path, []).append((file.start + (row - self.starts[episode]) / self.fps, place))
        for path, times in wanted.items():
            times.sort()
            video = self._open.get(path, lambda path=path: self._open_video(path, key))
            images = video.at([float(time) for time, _ in times], 1 / self.fps)
            for (_, place), image in zip(times, images, strict=True):
                found[place] = image
        return found

    def cells_of(self, key: str, rows: Int64[np.ndarray, " rows"]) -> list[bytes]:
        """The encoded images of an image feature, as the data files hold them."""
        height, width = image_size(self.features[key])
        numbers = np.searchsorted(self._part_ends, rows, side="right")
        found: list[bytes] = [b""] * len(rows)
        for place in np.argsort(rows, kind="stable").tolist():  # each row group once
            part, row = self._parts[numbers[place]], int(rows[place])
            path = self.root / part.path
            file = self._open.get(part.path, lambda path=path, part=part: PictureFile(path, part.rows))
            group = file.group(row - part.first)
            cells = self._cells.get(
                (part.path, group, key),
                lambda file=file, group=group: file.cells(group, key, 2 * height * width * 3),
                lambda cells: cells.nbytes,
            )
            data = file.read(cells, row - part.first - int(file.starts[group]))
            if data is None:
                raise UserError(f"{self._where(key, row)} is not in its file: convert the dataset with lerobot.")
            found[place] = data
        return found

    def _episodes_of(self, rows: Int64[np.ndarray, " rows"]) -> list[int]:
        return (np.searchsorted(self.starts, rows, side="right") - 1).tolist()

    def _where(self, key: str, row: int) -> str:
        episode = self._episodes_of(np.array([row]))[0]
        path = self.root / self.layout.entries[episode].data
        return f"{path}: '{key}' of episode {episode}, frame {row - int(self.starts[episode])}"

    def _open_video(self, path: str, key: str) -> OpenVideo:
        return OpenVideo(self.checked(path), *image_size(self.features[key]))

    def checked(self, path: str) -> Path:
        """A file of the dataset. Raises UserError when it is not the one in the manifest."""
        if self._manifest is not None:
            self._manifest.check(self.root, path, known=self._hashes)
        return self.root / path

    # Episodes and windows

    def episode(self, index: int, *, cameras: Sequence[str] | None = None, crop: bool = False) -> Episode:
        """One episode; `cameras` are decoded (all, when None), `crop` cuts their images to `Camera.crop`."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.root} has episodes 0 to {len(self) - 1}, but {index} was asked for.")
        start, end = map(int, self.starts[index : index + 2])
        names = [camera.name for camera in self.embodiment.cameras] if cameras is None else cameras
        images = {}
        for camera in map(self.embodiment.camera, names):
            seen = self.images(camera.name, range(start, end))
            images[camera.name] = np.stack([camera.view(image) if crop else image for image in seen])
        return Episode(
            instruction=self.instruction(start),
            images=images,
            source=self.source_of(index),
            actions=self.actions[start:end],
            proprio=None if self.proprio is None else self.proprio[start:end],
            **{name: values[start:end] for name, values in self._extra.items()},
        )

    def source_of(self, index: int) -> Mapping[str, Any]:
        """Where an episode came from, as its recording noted it."""
        return self._sources[index] if index < len(self._sources) else {}

    @cached_property
    def _extra(self) -> dict[str, np.ndarray]:
        """The columns of an episode that no policy reads."""
        found = {}
        for name, key, dtype in (
            ("environment_state", "observation.environment_state", "float32"),
            ("success", "next.success", "bool"),
        ):
            if key in self.features and self.features[key]["dtype"] == dtype:
                found[name] = self.column(key)
        return found

    def window(self, row: int, deltas: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """Values of features so many seconds from a row, as LeRobot's delta_timestamps give them.

        Steps beyond the episode repeat its first or last one; `<feature>_is_pad` marks them. Images are uint8
        (n, H, W, 3). Raises UserError for a delta that is no whole number of frames.
        """
        if not 0 <= row < self.frames:
            raise UserError(f"{self.root} has rows 0 to {self.frames - 1}, but {row} was asked for.")
        episode = self._episodes_of(np.array([row]))[0]
        first, last = int(self.starts[episode]), int(self.starts[episode + 1]) - 1
        found: dict[str, Any] = {}
        for key, seconds in deltas.items():
            steps = np.round(np.asarray(seconds, np.float64) * self.fps).astype(np.int64)
            off = np.abs(steps / self.fps - np.asarray(seconds, np.float64))
            if (off > DELTA_TOLERANCE).any():
                raise UserError(
                    f"The deltas of '{key}' must be whole numbers of frames at {self.fps} per second, but "
                    f"{list(seconds)[int(np.argmax(off))]} s came."
                )
            wanted = np.clip(row + steps, first, last)
            found[key] = self._values(key, wanted)
            found[f"{key}_is_pad"] = (row + steps < first) | (row + steps > last)
        return found

    def _values(self, key: str, rows: Int64[np.ndarray, " n"]) -> np.ndarray:
        theirs = self.names.get(key) or self.cameras.get(key.removeprefix(IMAGES), key)
        if theirs in self.cameras.values():
            return np.stack(self.frames_of(theirs, rows))
        if theirs == self.names[ACTION]:
            return self.actions[rows]
        return self.column(theirs)[rows]

    def video(self, index: int, camera: Camera) -> tuple[Path, float]:
        """The file that holds an episode as this camera saw it, and the second at which it starts there."""
        place = self.layout.entries[index].videos[self.cameras[camera.name]]
        return self.checked(place.path), place.start


def _vectors(values: Shaped[np.ndarray, "F ..."]) -> Float32[np.ndarray, "F D"]:
    return np.ascontiguousarray(values.reshape(len(values), -1), np.float32)
