"""What an engine is checked on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import tiny

from hypervla.contracts import UserError
from hypervla.data.opening import open_dataset
from hypervla.runtime.compiler import Compiler
from hypervla.runtime.frames import random_frames, recorded_frames
from hypervla.runtime.task_policy import preprocess


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "points")


def test_each_frame_is_seen_under_its_own_episodes_task_policy(compiler: Compiler, dataset: Path) -> None:
    reader = open_dataset(dataset)
    frames = recorded_frames(compiler, reader, len(reader))
    assert len(frames) == len(reader)
    assert frames.of == f"{len(reader)} frames of {reader.name}"
    found = set()
    for e in range(len(reader)):
        first, end = int(reader.starts[e]), int(reader.starts[e + 1])
        wanted = compiler.compile(reader.instruction(first), reader.images("top", [first])[0]).weights
        mine = [i for i in range(len(frames)) if np.allclose(frames.weights[i], wanted, atol=1e-6)]
        shown = [preprocess({"top": x}, compiler.embodiment, 24) for x in reader.images("top", range(first, end))]
        assert all(any(np.array_equal(frames.images[i], one) for one in shown) for i in mine)
        found |= set(mine)
    assert found == set(range(len(frames)))


def test_more_frames_than_episodes_are_drawn_again(compiler: Compiler, dataset: Path) -> None:
    reader = open_dataset(dataset)
    frames = recorded_frames(compiler, reader, 3 * len(reader))
    assert len(frames) == 3 * len(reader)
    assert np.array_equal(frames.images, recorded_frames(compiler, reader, 3 * len(reader)).images)


def test_another_robots_data_is_refused(compiler: Compiler, dataset: Path) -> None:
    compiler.embodiment = replace(compiler.embodiment, cameras=tiny.cameras(1).cameras)
    with pytest.raises(UserError, match="shows no camera 'camera0' of 32×32 pixels"):
        recorded_frames(compiler, open_dataset(dataset), 2)


def test_noise_is_what_the_robot_could_see(compiler: Compiler) -> None:
    frames = random_frames(compiler, 3)
    assert frames.images.shape == (3, 1, 24, 24, 3)
    assert frames.proprio is not None
    named = compiler.engine.layout.split(frames.weights)
    assert all(np.array_equal(rows, named[name][2:3]) for name, rows in frames.row(2)[0].named.items())
