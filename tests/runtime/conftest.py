"""A checkpoint whose tasks differ from the start, and the compiler that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint_folder(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny convolutional checkpoint with variance initialisation, so that contexts differ without training."""
    from tests import tiny

    from hypervla.models.hypernetwork import HypernetworkConfig

    heads = HypernetworkConfig(width=8, layers=1, heads=2, mlp=16, initialisation="variance")
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.save_checkpoint(folder, tiny.convolutional(text_folder, hypernetwork=heads))
    return folder


@pytest.fixture
def compiler(checkpoint_folder: Path):
    """That checkpoint, loaded afresh: the test may take it to pieces."""
    from hypervla.runtime.compiler import load

    return load(checkpoint_folder)
