"""A tiny recipe and its uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recipe(text_folder: Path):
    """Twelve steps of a tiny convolutional model, with dropped context images, so that random numbers matter."""
    from tests import tiny

    return tiny.recipe(tiny.convolutional(text_folder))


@pytest.fixture(scope="session")
def uninterrupted(recipe, point_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that recipe's run, read only."""
    from hypervla.training.loop import train

    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(recipe, point_data, out, save_every=3)
    return out
