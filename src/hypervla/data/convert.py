"""Rewrites any dataset as a LeRobot dataset, one episode at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_layout import STRUCTURE, VISUAL
from hypervla.data.lerobot_numbers import parts_of, read_part
from hypervla.data.lerobot_robot import image_size, is_camera
from hypervla.data.lerobot_statistics import episode_histogram
from hypervla.data.lerobot_writer import LeRobotWriter, Version, image_feature
from hypervla.data.pictures import encode_picture
from hypervla.data.staged import Images, Piece, StagedEpisode, columns_of, image_key
from hypervla.data.statistics import image_histogram
from hypervla.data.video import can_copy, encode


def convert(source: EpisodeReader, out: Path, *, version: Version = "v3.0", images: Images = "video") -> None:
    """Write `source` as a LeRobot dataset into `out`, which appears when it is complete.

    From a LeRobot dataset all features are kept, and its videos' packets are copied where that is exact. From others
    the numbers, instructions and images that an Episode has. Raises UserError when `out` holds something, or the
    source is not intact or cannot be held by the format.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: convert into a new folder.")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    try:
        os.chmod(work, 0o755)
        _write(source, work, version, images)
        LeRobotDataset(work)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(source: EpisodeReader, root: Path, version: Version, images: Images) -> None:
    about: dict[str, Any] = {"converted_from": {"name": source.name, "digest": source.digest}}
    if isinstance(source, LeRobotDataset):
        if source.renamed:
            raise UserError(
                f"{source.root} is converted under its own feature names, but the robot file renames "
                f"{', '.join(source.renamed.values())}: leave the names out, and give them when you train."
            )
        plan = _Plan(source, images)
        writer = LeRobotWriter(root, source.embodiment, version=version, features=plan.features)
        episodes, splits = plan.episodes(root / ".staged"), source.info.get("splits")
    else:
        writer = LeRobotWriter(root, source.embodiment, version=version, images=images)
        episodes, splits = _episodes(source, root / ".staged", images, writer.fps), _splits(source)
    (root / ".staged").mkdir()
    for episode in episodes:
        writer.add(episode)
    shutil.rmtree(root / ".staged")
    writer.finish(paraphrases=source.paraphrases, about=about, splits=splits)


def _splits(source: EpisodeReader) -> dict[str, str] | None:
    """Training and validation, where the latter is the last of the episodes: LeRobot's splits are ranges."""
    held_back, total = sorted(source.validation_episodes.tolist()), len(source)
    first = total - len(held_back)
    if not held_back or held_back != list(range(first, total)):
        return None
    return {"train": f"0:{first}", "val": f"{first}:{total}"}


def _episodes(source: EpisodeReader, folder: Path, images: Images, fps: int) -> Iterator[StagedEpisode]:
    """The episodes of any reader."""
    for index in range(len(source)):
        episode = source.episode(index)
        rows = range(int(source.starts[index]), int(source.starts[index + 1]))
        videos, pictures, histograms = {}, {}, {}
        for camera, pixels in episode.images.items():
            key = image_key(camera)
            if images == "video":
                videos[key] = _encoded(folder / f"{camera}.mp4", pixels, fps)
            else:
                pictures[key] = [encode_picture(image) for image in pixels]
            histograms[key] = image_histogram(pixels)
        said = [source.instruction(row) for row in rows]
        yield StagedEpisode(columns_of(episode), said, videos, pictures, histograms, dict(episode.source))


def _encoded(path: Path, pixels: np.ndarray, fps: int) -> Piece:
    path.write_bytes(encode(pixels, fps))
    return Piece(path)


class _Plan:
    """What becomes of each feature of a LeRobot dataset."""

    def __init__(self, source: LeRobotDataset, images: Images) -> None:
        """Raises UserError for a video that can neither be copied nor decoded to RGB."""
        self.source = source
        self.images: Images = images
        unseen = set(source.cameras.values()) - {source.cameras[camera.name] for camera in source.embodiment.cameras}
        chosen = {key: feature for key, feature in source.features.items() if key not in unseen}
        self.visual = [key for key, feature in chosen.items() if feature["dtype"] in VISUAL]
        self.copied = {key for key in self.visual if self._can_copy(key)}
        for key in self.visual:
            if key not in self.copied and not is_camera(source.features[key]):
                raise UserError(
                    f"'{key}' of {source.root} holds no RGB images, and its videos cannot be copied: leave it out of "
                    f"the dataset first."
                )
        self.features = {key: self._feature(key, feature) for key, feature in chosen.items()}

    def _can_copy(self, key: str) -> bool:
        """Whether every video of this feature, or every picture, can be taken over as it is."""
        source = self.source
        if source.features[key]["dtype"] == "image":
            return self.images == "image"
        if self.images == "image" or source.fps != int(source.fps):
            return False
        found = set()
        for entry in source.layout.entries:
            place = entry.videos[key]
            found.add(can_copy(source.checked(place.path), place.start, entry.length, int(source.fps)))
        return len(found) == 1 and None not in found

    def _feature(self, key: str, feature: Mapping[str, Any]) -> dict[str, Any]:
        if key in self.visual and key not in self.copied:
            return image_feature(*image_size(feature), int(self.source.fps), self.images)
        return {name: value for name, value in feature.items() if name != "fps"}

    def episodes(self, folder: Path) -> Iterator[StagedEpisode]:
        source = self.source
        kept = [key for key in self.features if key not in self.visual and key not in STRUCTURE]
        for part in parts_of(source.layout):
            columns = read_part(source.layout, part, kept)
            first = 0
            for offset, length in enumerate(part.lengths):
                taken = {name: values[first : first + length] for name, values in columns.items()}
                yield self._episode(part.episode + offset, taken, folder)
                first += length

    def _episode(self, index: int, columns: Mapping[str, np.ndarray], folder: Path) -> StagedEpisode:
        source = self.source
        start, end = map(int, source.starts[index : index + 2])
        rows = np.arange(start, end)
        videos, pictures, histograms = {}, {}, {}
        for key in self.visual:
            entry = source.layout.entries[index]
            if is_camera(source.features[key]):
                histograms[key] = episode_histogram(source, key, start, end)
            if key in self.copied and self.images == "video":
                videos[key] = Piece(source.root / entry.videos[key].path, entry.videos[key].start, entry.length)
            elif key in self.copied:
                pictures[key] = source.cells_of(key, rows)
            elif self.images == "video":
                frames = np.stack(source.frames_of(key, rows))
                videos[key] = _encoded(folder / f"{key}.mp4", frames, int(source.fps))
            else:
                pictures[key] = [
                    encode_picture(image)
                    for row in range(start, end)
                    for image in source.frames_of(key, np.array([row]))
                ]
        said = [source.instruction(row) for row in range(start, end)]
        return StagedEpisode(columns, said, videos, pictures, histograms, source.source_of(index))
