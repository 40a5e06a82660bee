"""What commands show in the terminal: the progress of trials, a dataset in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hypervla.data.lerobot import LeRobotDataset
from hypervla.evaluation.results import Trial


@contextmanager
def trial_progress(console: Console) -> Iterator[Callable[[Trial, int, int], None]]:
    """A progress bar over trials; gives what `evaluate` calls after each: (trial, done, total)."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=None)

        def on_trial(trial: Trial, done: int, total: int) -> None:
            ending = "success" if trial.success else "no success"
            progress.update(bar, completed=done, total=total, description=f"{trial.task}: {ending}")

        yield on_trial


def dataset_summary(dataset: LeRobotDataset) -> str:
    """Size, robot and instructions of a dataset, a few lines."""
    robot = dataset.embodiment
    cameras = ", ".join(f"{camera.name} {camera.height}×{camera.width}" for camera in robot.cameras)
    lines = [
        f"{dataset.root}: {len(dataset):,} episodes, {dataset.frames:,} frames at {dataset.fps} per second",
        f"robot    {robot.name}",
        f"cameras  {cameras}",
        f"actions  {', '.join(robot.action_names)}",
        f"proprio  {', '.join(robot.proprio_names) or 'none'}",
        f"sha256   {dataset.digest}",
        "episodes by instruction:",
    ]
    counts = Counter(dataset.episode_instructions)
    return "\n".join(lines + [f"{count:8,} {instruction}" for instruction, count in counts.items()])
