"""A small intact dataset for each reader, to be damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.data import hdf5_files
from tests.data.rlds_files import bridge
from tests.fakes import POINT

from hypervla.contracts import Episode
from hypervla.data import manifest
from hypervla.data.lerobot_writer import LeRobotWriter
from hypervla.data.staged import stage_episode

LENGTHS = (4, 3, 5, 2)


def lerobot(root: Path, **options: Any) -> Path:
    """Episodes of moving noise by PointWorld's robot, without a manifest."""
    writer = LeRobotWriter(root, POINT, **options)
    for number, length in enumerate(LENGTHS):
        random = np.random.default_rng(number)
        episode = Episode(
            instruction=("go left", "go right")[number % 2],
            images={"top": random.integers(256, size=(length, 32, 32, 3), dtype=np.uint8)},
            actions=random.normal(size=(length, 3)).astype(np.float32),
            proprio=random.normal(size=(length, 2)).astype(np.float32),
        )
        staging = root.with_name(f"{root.name}-staging-{number}")
        stage_episode(staging, episode, writer.fps, images=options.get("images", "video"))
        writer.add(staging)
    writer.finish(paraphrases={}, about={})
    (root / manifest.NAME).unlink()
    return root


READERS: Mapping[str, Callable[[Path], Path]] = {
    "lerobot v3.0": lerobot,
    "lerobot v2.1": lambda root: lerobot(root, version="v2.1", images="image"),
    "libero": lambda root: hdf5_files.folder(root, LENGTHS),
    "rlds": lambda root: bridge(root, LENGTHS, shards=2),
}
