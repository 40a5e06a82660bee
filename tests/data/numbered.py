"""LeRobot datasets whose every frame carries its number in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.fakes import POINT

from hypervla.contracts import Episode
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_writer import LeRobotWriter
from hypervla.data.staged import stage_episode

LENGTHS = (7, 12, 1, 9)
INSTRUCTIONS = ("go left", "go right", "go left", "go up")


def numbered_images(first: int, count: int) -> np.ndarray:
    """32×32 frames that carry their number as sixteen black or white blocks."""
    numbers = np.arange(first, first + count)
    bits = (numbers[:, None] >> np.arange(16)) & 1
    blocks = bits.reshape(count, 4, 4, 1).repeat(8, axis=1).repeat(8, axis=2)
    return np.broadcast_to(blocks * 255, (count, 32, 32, 3)).astype(np.uint8)


def number_in(image: np.ndarray) -> int:
    bits = image.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3, 4)).ravel() > 127
    return int((bits << np.arange(16)).sum())


def episode(index: int, lengths: Sequence[int] = LENGTHS) -> Episode:
    """Episode `index` of a dataset; its frames are numbered through all of them."""
    random, length = np.random.default_rng(index), lengths[index]
    success = np.zeros(length, bool)
    success[-1] = True
    return Episode(
        instruction=INSTRUCTIONS[index % len(INSTRUCTIONS)],
        images={"top": numbered_images(sum(lengths[:index]), length)},
        actions=random.normal(size=(length, 3)).astype(np.float32),
        proprio=random.normal(size=(length, 2)).astype(np.float32),
        success=success,
        environment_state=random.normal(size=(length, 5)).astype(np.float32),
        source={"seed": index},
    )


def write(root: Path, staging: Path, *, lengths: Sequence[int] = LENGTHS, **options: Any) -> LeRobotDataset:
    """A dataset of episodes of these lengths; `options` are the writer's."""
    writer = LeRobotWriter(root, POINT, **options)
    kept = {name: options[name] for name in ("images", "codec") if name in options}
    for index in range(len(lengths)):
        stage_episode(staging / str(index), episode(index, lengths), writer.fps, **kept)
        writer.add(staging / str(index))
    writer.finish(paraphrases={"go left": ["go left", "left please"]}, about={"command": "test"})
    return LeRobotDataset(root)
