"""What commands show in the terminal: the progress of trials, a dataset in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hypervla.contracts import EpisodeReader
from hypervla.data.mixture import Mixture
from hypervla.evaluation.results import Trial

MOST_INSTRUCTIONS = 20
"""Instructions that a summary lists."""


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


def say_kept(console: Console, out: Path, kept: int, total: int) -> None:
    """Before an evaluation goes on: of which trials nothing will be made again."""
    console.print(f"{kept} of {total} trials are kept from before in {out}; for new ones choose another --out.")


def dataset_summary(reader: EpisodeReader) -> str:
    """Size, robot and instructions of a dataset, a few lines."""
    robot = reader.embodiment
    cameras = ", ".join(f"{camera.name} {camera.height}×{camera.width}" for camera in robot.cameras)
    gripper = robot.gripper
    grip = (
        "none known" if gripper is None else f"entry {gripper.index}, open {gripper.open:g}, closed {gripper.closed:g}"
    )
    lengths = np.diff(reader.starts)
    lines = [
        f"{reader.name}: {len(reader):,} episodes of {lengths.min():,} to {lengths.max():,} steps, "
        f"{len(reader.actions):,} frames at {robot.control_hz:g} per second",
        f"robot    {robot.name}",
        f"cameras  {cameras or 'none'}",
        f"actions  {', '.join(robot.action_names)} ({robot.action_kind})",
        f"gripper  {grip}",
        f"proprio  {', '.join(robot.proprio_names) or 'none'}",
        f"sha256   {reader.digest}",
        "episodes by instruction:",
    ]
    counts = Counter(reader.instruction(int(row)) for row in reader.starts[:-1])
    listed = [f"{count:8,} {instruction or '(none)'}" for instruction, count in counts.most_common(MOST_INSTRUCTIONS)]
    rest = len(counts) - len(listed)
    return "\n".join(lines + listed + ([f"         and {rest:,} more instructions"] if rest > 0 else []))


def show_mixture(mixture: Mixture) -> None:
    """Print the datasets of a mixture with the share of samples each will give, and its robots."""
    table = Table(title="mixture", title_justify="left")
    for name in ("dataset", "robot", "episodes", "frames", "weight", "share"):
        table.add_column(name, justify="left" if name in ("dataset", "robot") else "right")
    for reader, weight, share in zip(mixture.readers, mixture.weights, mixture.shares, strict=True):
        size = (f"{len(reader):,}", f"{len(reader.actions):,}")
        table.add_row(reader.name, reader.embodiment.name, *size, f"{weight:g}", f"{share:.1%}")
    console = Console(stderr=True)
    console.print(table)
    for robot in mixture.embodiments.values():
        cameras = ", ".join(f"{camera.name} {camera.height}×{camera.width}" for camera in robot.cameras)
        console.print(
            f"{robot.name}: cameras {cameras}; {robot.action_size} actions ({robot.action_kind}), gripper "
            f"{'unknown' if robot.gripper is None else robot.action_names[robot.gripper.index]}; "
            f"{robot.proprio_size or 'no'} proprio; {robot.control_hz:g} Hz",
            soft_wrap=True,
            highlight=False,
        )
