"""What a training run reports: a progress bar, a JSONL log and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LOG = "metrics.jsonl"


def reports(out: Path) -> list[dict[str, Any]]:
    """What a run has reported so far; nothing before its first report."""
    path = out / LOG
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def processor_seconds(out: Path) -> float:
    """What a run has taken so far."""
    return sum((row.get("processor_seconds", 0.0) for row in reports(out)), start=0.0)


class Metrics:
    """Appends one JSON line per report to metrics.jsonl and mirrors it to TensorBoard and the terminal.

    A resumed run drops the lines after the step it continues from, so that the log reads like one run.
    """

    def __init__(self, out: Path, steps: int, first_step: int, minutes: float | None = None) -> None:
        """A run that ends after so many steps, or earlier: after so much processor time."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._path = out / LOG
        if self._path.exists():
            rows = [row for row in self._path.read_text().splitlines() if _step_of(row) <= first_step]
            self._path.write_text("".join(row + "\n" for row in rows))
        self._board_folder, self._board = str(out / "tensorboard"), None
        self._interactive = sys.stderr.isatty()
        columns = ("loss {task.fields[loss]:.4f}", "{task.fields[rate]:.0f} samples/s", "{task.fields[left]}")
        from rich.console import Console

        self._bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, columns),
            console=Console(stderr=True), disable=not self._interactive,
        )  # fmt: skip
        fields = {"loss": float("nan"), "rate": 0.0, "left": ""}
        self._task = self._bar.add_task("training", total=steps, completed=first_step, **fields)
        self._steps, self._started, self._first = steps, time.monotonic(), first_step
        self._minutes, self.processor_seconds = minutes, processor_seconds(out)

    def __enter__(self) -> Metrics:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._board is not None:
            self._board.close()

    def report(self, step: int, **values: float) -> None:
        """Log the values of this step."""
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 1)} | values
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is None:  # a run that ends before its first report leaves nothing behind
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(self._board_folder, purge_step=self._first)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self.processor_seconds += values["processor_seconds"]
        rate, left = values["samples_per_second"], self._left(step)
        self._bar.update(self._task, completed=step, loss=values["loss"], rate=rate, left=left)
        if not self._interactive:
            text = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
            print(f"step {step}/{self._steps}: {text}, {left}", flush=True)

    def _left(self, step: int) -> str:
        """How long the run will still take: to its last step, or until its processor time is used up."""
        by_steps = (time.monotonic() - self._started) / 60 / max(1, step - self._first) * (self._steps - step)
        if self._minutes is None:
            return f"{by_steps:.0f} min left"
        by_time = max(0.0, self._minutes - self.processor_seconds / 60)
        return f"{by_steps:.0f} min left" if by_steps < by_time else f"{by_time:.0f} min of processor time left"


def _step_of(row: str) -> int:
    """The step of a log line; a line that a kill cut short counts as never written."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError):
        return sys.maxsize
