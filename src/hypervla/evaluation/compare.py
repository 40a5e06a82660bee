"""Evaluations of one suite side by side: one HTML file that needs nothing else, and a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypervla.contracts import UserError
from hypervla.evaluation.intervals import PairedDifference, Rate, points
from hypervla.evaluation.page import UNKNOWN, figure, milliseconds, percent, probability, render, seconds, span
from hypervla.evaluation.report import STAGE_NAMES, explained
from hypervla.evaluation.results import Results, completion, paired, save_whole, smoothness
from hypervla.evaluation.taxonomy import MEANINGS

if TYPE_CHECKING:
    from rich.table import Table

RESULTS = "results.json"
CONDITIONS = {
    "tasks": "tasks",
    "trials": "trials a task",
    "instructions": "instructions",
    "execution": "execution mode",
    "step_limit": "step limit",
    "success_rule": "success",
    "scene": "scene",
    "commit": "commit of the code",
    "engine": "engine",
    "device": "device",
}
"""What two evaluations should have in common for their rates and times to be comparable, and what it is called."""


@dataclass(frozen=True)
class Run:
    """An evaluation and what it is called here."""

    name: str
    results: Results

    def rate(self, task: str) -> Rate | None:
        """None for a task that it did not try."""
        return self.results.by_task.get(task)


@dataclass(frozen=True)
class Row:
    """Something measured of every run."""

    title: str
    cells: tuple[str, ...]
    differs: bool = False


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Evaluations by their folders or results files, named by the parts of the paths that tell them apart.

    Raises UserError for fewer than two, for what is none, and for evaluations of different suites.
    """
    if len(paths) < 2:
        raise UserError(f"A comparison wants at least 2 evaluations, but {len(paths)} came.")
    files = [path / RESULTS if path.is_dir() else path for path in paths]
    runs = [Run(name, Results.load(file)) for name, file in zip(_names(files), files, strict=True)]
    suites = list(dict.fromkeys(run.results.conditions.suite for run in runs))
    if len(suites) > 1:
        raise UserError(f"Only evaluations of one suite can be compared, but these are of {' and '.join(suites)}.")
    return runs


def write(runs: Sequence[Run], out: Path) -> None:
    """Write the page, whole or not at all."""
    page = render(
        "compare.html.jinja",
        runs=runs,
        suite=runs[0].results.conditions.suite,
        embodiment=runs[0].results.conditions.embodiment,
        tasks=_tasks(runs),
        changes=changes(runs),
        conditions=conditions(runs),
        scenes=list(dict.fromkeys(scene for run in runs if (scene := run.results.conditions.scene))),
        latency=list(_latency(runs)),
        motion=list(_motion(runs)),
        failures=_failures(runs),
        meanings=MEANINGS,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_whole(out, page)


def table(runs: Sequence[Run]) -> Table:
    """The same for the terminal: a column for each run."""
    from rich.table import Table

    page = Table(title=f"{runs[0].results.conditions.suite}, {len(runs)} evaluations")
    page.add_column("")
    for run in runs:
        page.add_column(run.name, justify="right", overflow="fold")
    for task in _tasks(runs):
        page.add_row(task, *(_said_rate(run.rate(task)) for run in runs))
    page.add_section()
    page.add_row("all tasks", *(_said_rate(run.results.overall) for run in runs))
    page.add_row("against the first", "", *(_said_change(change) for change in changes(runs)))
    sections = {"Milliseconds, p50 / p95": _latency(runs), "Movement": _motion(runs), "Failures": _failures(runs)}
    for title, rows in sections.items():
        for number, row in enumerate(rows):
            if number == 0:
                page.add_section()
                page.add_row(f"[b]{title}[/b]")
            page.add_row(row.title, *row.cells)
    return page


def changes(runs: Sequence[Run]) -> list[PairedDifference | str]:
    """Of each run but the first, what changed since, scene by scene; or why that cannot be said."""
    found: list[PairedDifference | str] = []
    for run in runs[1:]:
        try:
            found.append(paired(runs[0].results, run.results))
        except UserError as error:
            found.append(str(error))
    return found


def conditions(runs: Sequence[Run]) -> list[Row]:
    """How the runs were made, and on what processor, which decides the latency."""
    rows = [(title, [getattr(run.results.conditions, name) for run in runs]) for name, title in CONDITIONS.items()]
    machines = [run.results.provenance.get("machine", {}) for run in runs]
    rows.append(("processor", [machine.get("processor") for machine in machines]))
    return [Row(title, tuple(map(_said, values)), len(set(values)) > 1) for title, values in rows]


def _names(files: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ, without the name that all results have."""
    parts = [(file.parent if file.name == RESULTS else file.with_suffix("")).absolute().parts for file in files]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("The same evaluation came twice: give each once.")


def _tasks(runs: Sequence[Run]) -> list[str]:
    """Every task that any run tried, in the order of the first that did."""
    return list(dict.fromkeys(task for run in runs for task in run.results.conditions.tasks))


def _latency(runs: Sequence[Run]) -> Iterator[Row]:
    """Milliseconds, p50 and p95, of every stage that any run reached."""
    for stage, title in STAGE_NAMES.items():
        found = [run.results.latency.get(stage) for run in runs]
        if any(found):
            cells = (f"{milliseconds(row.p50)} / {milliseconds(row.p95)}" if row else UNKNOWN for row in found)
            yield Row(title, tuple(cells))


def _motion(runs: Sequence[Run]) -> Iterator[Row]:
    """What is known of any run."""
    rows = {
        "Time to success, median": [seconds(completion(run.results.trials, run.results.control_hz)) for run in runs],
        "Smoothness, median": [figure(smoothness(run.results.trials)) for run in runs],
    }
    for title, cells in rows.items():
        if set(cells) != {UNKNOWN}:
            yield Row(title, tuple(cells))


def _failures(runs: Sequence[Run]) -> list[Row]:
    """How often trials failed, by why; nothing where no run knows it."""
    if not any(run.results.explained for run in runs):
        return []
    counts = [explained(run.results.trials) for run in runs]
    words = [word for word in [*MEANINGS, "not done"] if any(word in count for count in counts)]
    return [Row(word, tuple(str(count.get(word, 0)) for count in counts)) for word in words]


def _said(value: object) -> str:
    """In words, and of digests no more than tells them apart."""
    words = ", ".join(value) if isinstance(value, tuple) else str(value or "none")
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}", r"\1…", words)


def _said_rate(rate: Rate | None) -> str:
    return UNKNOWN if rate is None else f"{percent(rate.mean)} ({span(rate.interval)})"


def _said_change(change: PairedDifference | str) -> str:
    if isinstance(change, str):
        return "other scenes"
    interval = change.interval
    return f"{points(change.mean)} ({points(interval.low)} to {points(interval.high)}), p {probability(change.p_value)}"
