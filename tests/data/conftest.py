"""Datasets that several tests read. Nothing here imports hypervla at the top: jaxtyping's hook must come first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hypervla.data.lerobot import LeRobotDataset


def written(folder: Path, **options: str) -> LeRobotDataset:
    from tests.data import numbered

    return numbered.write(folder / "dataset", folder / "staging", **options)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """A dataset of numbered frames in LeRobot v3.0."""
    return written(tmp_path_factory.mktemp("lerobot"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """The same in v2.1."""
    return written(tmp_path_factory.mktemp("lerobot"), version="v2.1")


@pytest.fixture
def copy(dataset: LeRobotDataset, tmp_path: Path) -> Path:
    """A copy that a test may damage, without the manifest that would tell at once."""
    return without_manifest(dataset.root, tmp_path / "copy")


@pytest.fixture
def old_copy(older: LeRobotDataset, tmp_path: Path) -> Path:
    """The same in v2.1."""
    return without_manifest(older.root, tmp_path / "old")


def without_manifest(source: Path, target: Path) -> Path:
    from hypervla.data import manifest

    shutil.copytree(source, target)
    (target / manifest.NAME).unlink()
    return target
