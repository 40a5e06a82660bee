"""What commands show in the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hypervla.contracts import Episode
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_writer import LeRobotWriter, stage_episode
from hypervla.display import dataset_summary, trial_progress
from hypervla.evaluation.results import Trial
from tests.fakes import POINT


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """Three short episodes of two instructions."""
    writer = LeRobotWriter(tmp_path / "dataset", POINT)
    for index, instruction in enumerate(("go left", "go right", "go left")):
        episode = Episode(
            instruction=instruction,
            images={"top": np.full((4, 32, 32, 3), 50, np.uint8)},
            actions=np.zeros((4, 3), np.float32),
            proprio=np.zeros((4, 2), np.float32),
            success=np.zeros(4, bool),
        )
        stage_episode(tmp_path / str(index), episode, writer.fps)
        writer.add(tmp_path / str(index))
    writer.finish(paraphrases={}, about={})
    return LeRobotDataset(tmp_path / "dataset")


def test_a_dataset_is_summed_up_by_size_robot_and_instructions(dataset: LeRobotDataset) -> None:
    text = dataset_summary(dataset)
    assert f"{len(dataset)} episodes of 4 to 4 steps, {dataset.frames} frames at 10 per second" in text
    assert POINT.name in text
    assert dataset.digest in text
    for instruction in dataset.instructions:
        count = dataset.episode_instructions.count(instruction)
        assert f"{count:8} {instruction}" in text


def test_progress_counts_trials_and_names_the_last() -> None:
    page = io.StringIO()
    with trial_progress(Console(file=page, force_terminal=True, width=100)) as on_trial:
        on_trial(trial(success=True), 3, 10)
    assert "3/10" in page.getvalue()
    assert "find: success" in page.getvalue()


def trial(success: bool) -> Trial:
    found: dict[str, Any] = {"environment_seed": 1, "instruction": "go", "steps": 5, "error": None}
    return Trial(task="find", trial=0, success=success, compile_seconds=0.1, acts=5, wall_seconds=1.0, **found)
