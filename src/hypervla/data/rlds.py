"""Reads RLDS datasets, such as Open X-Embodiment's, without TensorFlow: numbers from an index, images at random."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from hypervla.contracts import Episode, Image, UserError
from hypervla.data import manifest, oxe
from hypervla.data.encoded_image import decode_image, image_size
from hypervla.data.oxe import OxeRow
from hypervla.data.rlds_folder import RldsFolder
from hypervla.data.rlds_index import camera_feature, open_index
from hypervla.data.statistics import reader_statistics
from hypervla.data.tfrecord import crc32c
from hypervla.embodiment import Camera, Embodiment


class RldsDataset:
    """A folder in RLDS form, standardised by its row of Open X-Embodiment's table; an EpisodeReader."""

    name: str
    embodiment: Embodiment
    starts: Int64[np.ndarray, " starts"]
    actions: Float32[np.ndarray, "F 7"]
    proprio: Float32[np.ndarray, "F P"] | None
    paraphrases: Mapping[str, Sequence[str]]
    validation_episodes: Int64[np.ndarray, " V"]

    def __init__(self, root: Path, row: OxeRow | None = None, *, split: str | None = None) -> None:
        """The episodes of one split, or of all whose shards are here; `row` is found by the dataset's name.

        The first time, all shards are read once (see `rlds_index`). With a manifest every file is compared with it.
        Raises UserError for data that is not intact.
        """
        self.folder = RldsFolder(root)
        self.row = row or oxe.row(self.folder.name)
        self.root, self.name, self.paraphrases = self.folder.root, self.row.name, {}
        self.left_out = [] if split else self.folder.left_out
        """Splits that are announced but whose shards are not here."""
        self._splits = self.folder.choose(split)
        hashes = manifest.Hashes(self.root)
        self.folder.check_manifest(hashes)
        hashes.save()
        self._index = open_index(self.folder, self._splits, self.row)
        self.starts, self.actions, self.proprio = self._index.starts, self._index.actions, self._index.proprio
        self._shards = [path for part in self._splits for path in part.shards]
        self._sizes = {camera: self._size(camera) for camera in self.row.cameras}
        cameras = tuple(Camera(name, *size) for name, size in self._sizes.items())
        self.embodiment = self.row.embodiment(cameras, self.actions)
        self.validation_episodes = self._validation()

    @property
    def digest(self) -> str:
        """sha256 over all files of the folder: metadata and the shards of every split that is here."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return manifest.digest(self.root)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def instruction(self, row: int) -> str:
        """What was to be done at this step; empty where nobody said."""
        return self._index.instructions[self._index.instruction_of[row]]

    def images(self, camera: str, rows: Sequence[int]) -> list[Image]:
        """What the camera saw at these rows, as it delivered it; reads no more of the shards than these images."""
        if camera not in self._sizes:
            raise UserError(f"{self.name} has no camera '{camera}'; it has {', '.join(self._sizes) or 'none'}.")
        rows, size = [int(row) for row in rows], self._sizes[camera]
        if rows and not 0 <= min(rows) <= max(rows) < len(self.actions):
            raise UserError(f"{self.root} has rows 0 to {len(self.actions) - 1}, but {min(rows)} to {max(rows)} came.")
        encoded = self._encoded(camera, rows)
        view = self.embodiment.camera(camera).view  # images are stored as they are viewed, and flips undo themselves
        return [
            view(decode_image(data, size, self._where(camera, row), fast=True))
            for row, data in zip(rows, encoded, strict=True)
        ]

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """mean, std, min, max, q01, q99 and count of the standardised numbers, over all episodes read."""
        return self._statistics

    def episode(self, index: int) -> Episode:
        """One whole episode, all images decoded."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.root} has episodes 0 to {len(self) - 1}, but {index} was asked for.")
        start, end = self.starts[index : index + 2]
        return Episode(
            instruction=self.instruction(int(start)),
            images={camera: np.stack(self.images(camera, range(start, end))) for camera in self._sizes},
            actions=self.actions[start:end],
            proprio=None if self.proprio is None else self.proprio[start:end],
            source={"dataset": self.name, "record": int(self._index.records[index])},
        )

    @cached_property
    def _statistics(self) -> dict[str, dict[str, np.ndarray]]:
        return reader_statistics(self.actions, self.proprio)

    def _size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera: those of features.json, or of the first image where it leaves them open."""
        height, width, _ = camera_feature(self.folder, self.row, camera).shape
        if height is None or width is None:
            return image_size(self._encoded(camera, [0])[0], self._where(camera, 0))
        return height, width

    def _validation(self) -> Int64[np.ndarray, " V"]:
        """All episodes outside the first split; without a split "val" also its last 5 %, cut where TFDS cuts it."""
        first = self._splits[0]
        inside = self._index.shards < len(first.shards)
        held = ~inside
        if "val" not in self.folder.splits or "val" in self.folder.left_out:
            held |= inside & (self._index.records >= round(len(first) * 95 / 100))
        return np.flatnonzero(held)

    def _encoded(self, camera: str, rows: Sequence[int]) -> list[bytes]:
        """The images as stored. Raises UserError when they are not what the index was made of."""
        images, encoded = self._index.images[camera], []
        episodes = np.searchsorted(self.starts, rows, side="right") - 1
        with ExitStack() as stack:
            files: dict[int, int] = {}
            for row, shard in zip(rows, self._index.shards[episodes].tolist(), strict=True):
                try:
                    if shard not in files:
                        files[shard] = os.open(self._shards[shard], os.O_RDONLY)
                        stack.callback(os.close, files[shard])
                    data = os.pread(files[shard], int(images.lengths[row]), int(images.offsets[row]))
                except OSError as error:
                    raise UserError(f"{self._where(camera, row)} cannot be read: {error.strerror}.") from error
                if crc32c(data) != images.checksums[row]:
                    raise UserError(f"{self._where(camera, row)} has changed since it was indexed: copy it again.")
                encoded.append(data)
        return encoded

    def _where(self, camera: str, row: int) -> str:
        episode = int(np.searchsorted(self.starts, row, side="right")) - 1
        path = self._shards[self._index.shards[episode]]
        return f"Camera '{camera}' at step {row - self.starts[episode]} of episode {episode} in {path}"
