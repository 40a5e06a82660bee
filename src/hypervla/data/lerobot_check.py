"""Whether a LeRobot dataset is intact, down to the last pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hypervla.contracts import UserError
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_numbers import parts_of, read_numbers
from hypervla.data.lerobot_robot import image_size
from hypervla.data.manifest import NAME, Manifest
from hypervla.data.video_reader import OpenVideo

ROWS = 64
"""Pictures that are decoded in one go."""


def check(root: Path) -> list[str]:
    """Read all of a dataset; a line for each kind of thing that was checked.

    Raises UserError at the first fault, naming the file, or the episode and frame.
    """
    done = [_check_manifest(root)]
    dataset = LeRobotDataset(root)
    layout = dataset.layout
    read_numbers(layout, parts_of(layout), [], whole=True)
    done.append(
        f"numbers    {len(dataset):,} episodes, {dataset.frames:,} frames, {len(layout.tasks):,} tasks: complete, in "
        f"order, finite"
    )
    dataset.statistics()
    done.append("statistics those of the numbers")
    for key, feature in dataset.features.items():
        if feature["dtype"] == "video":
            done.append(_check_videos(dataset, key))
        elif feature["dtype"] == "image":
            for first in range(0, dataset.frames, ROWS):
                dataset.frames_of(key, np.arange(first, min(first + ROWS, dataset.frames)))
            done.append(f"images     {dataset.frames:,} of {key}: complete, of their size")
    return done


def _check_manifest(root: Path) -> str:
    manifest = Manifest.read(root)
    if manifest is None:
        return f"manifest   none ({NAME}): changed bits in numbers or videos can go unseen"
    manifest.check_listing(root)
    manifest.check(root)
    return f"manifest   {len(manifest.files):,} files have the sha256 it lists"


def _check_videos(dataset: LeRobotDataset, key: str) -> str:
    """Decode every video of a camera: each frame of each episode must be there, and no other."""
    claims: dict[str, list[tuple[float, int]]] = {}
    for entry in dataset.layout.entries:
        place = entry.videos[key]
        claims.setdefault(place.path, []).append((place.start, entry.length))
    for path, episodes in claims.items():
        video = OpenVideo(dataset.root / path, *image_size(dataset.features[key]))
        try:
            frames = sum(length for _, length in episodes)
            times = [start + number / dataset.fps for start, length in sorted(episodes) for number in range(length)]
            found = video.check(times)
        finally:
            video.close()
        if found != frames:
            raise UserError(
                f"The video {dataset.root / path} holds {found} frames, but the metadata speaks of {frames}: "
                f"copy or record the dataset again."
            )
    return f"videos     {len(claims):,} of {key}: {dataset.frames:,} frames, each at its time"
