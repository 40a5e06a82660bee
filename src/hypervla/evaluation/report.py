"""The report a person reads: one HTML file that needs nothing else, and a table for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypervla.evaluation.expert import EXPERT
from hypervla.evaluation.film import Filmstrip
from hypervla.evaluation.intervals import Rate
from hypervla.evaluation.page import milliseconds, percent, render, seconds, span
from hypervla.evaluation.results import Percentiles, Results, Trial, completion, failures, save_whole, smoothness
from hypervla.evaluation.suites import RECORDING_SEEDS
from hypervla.evaluation.taxonomy import MEANINGS

if TYPE_CHECKING:
    from rich.table import Table

STAGE_NAMES = {
    "preprocessing": "Image preprocessing",
    "backbone": "Shared backbone",
    "policy": "Generated policy",
    "total": "One act in all",
    "compile": "Generating the weights, once per trial",
}

INSTRUCTION_SETS = {
    "canonical": "one canonical sentence per task",
    "train": "the sentences seen in training, in turn",
    "held_out": "paraphrases held out from training, in turn",
}


@dataclass(frozen=True)
class TaskSection:
    """What the page shows of one task."""

    task: str
    rate: Rate
    trials: Sequence[Trial]
    filmstrip: Filmstrip | None
    control_hz: float | None

    @property
    def instruction(self) -> str:
        return self.trials[0].instruction

    @property
    def steps(self) -> str:
        """Median steps of the successes, in words."""
        return _median_steps(self.trials)

    @property
    def seconds(self) -> float | None:
        return completion(self.trials, self.control_hz)

    @property
    def jerk(self) -> float | None:
        return smoothness(self.trials)

    @property
    def failures(self) -> Mapping[str, int]:
        return explained(self.trials)


def write(results: Results, filmstrips: Mapping[str, Filmstrip], out: Path) -> Path:
    """Write OUT/report.html: self-contained, light and dark. `filmstrips` by task, as `load_filmstrips` finds them."""
    sections = [
        TaskSection(task, results.by_task[task], trials, filmstrips.get(task), results.control_hz)
        for task, trials in results.trials_by_task.items()
    ]
    page = render(
        "report.html.jinja",
        results=results,
        conditions=results.conditions,
        expert=EXPERT,
        sections=sections,
        stages=[(name, title, results.latency[name]) for name, title in STAGE_NAMES.items() if name in results.latency],
        parts=_parts(results.latency),
        median_steps=_median_steps(results.trials),
        seconds_to_success=completion(results.trials, results.control_hz),
        jerk=smoothness(results.trials),
        failures=explained(results.trials),
        meanings=MEANINGS,
        protocol=list(_protocol(results)),
        provenance=_provenance(results),
    )
    save_whole(out / "report.html", page)
    return out / "report.html"


def table(results: Results) -> Table:
    """Success by task with 95 % intervals, for the terminal."""
    from rich.table import Table

    page = Table(title=f"{results.conditions.suite}, {results.conditions.instructions.replace('_', '-')} instructions")
    page.add_column("task", footer="all tasks")
    page.add_column("success", justify="right", footer=percent(results.overall.mean))
    page.add_column("95 % interval", justify="right", footer=span(results.overall.interval))
    page.add_column("trials", justify="right", footer=f"{results.overall.successes}/{results.overall.trials}")
    page.add_column("median steps", justify="right", footer=_median_steps(results.trials))
    page.show_footer = True
    for task, rate in results.by_task.items():
        trials = f"{rate.successes}/{rate.trials}"
        steps = _median_steps(results.trials_by_task[task])
        page.add_row(task, percent(rate.mean), span(rate.interval), trials, steps)
    caption = [f"{results.errors} crashed (counted as failures)"] if results.errors and not results.explained else []
    if results.explained:
        caption.append("failures: " + said_counts(failures(results.trials)))
    if results.group_mean is not None:
        groups = ", ".join(f"{name} {percent(rate.mean)}" for name, rate in results.by_group.items())
        caption.append(f"{groups}, mean of these groups {percent(results.group_mean)}")
    if duration := completion(results.trials, results.control_hz):
        caption.append(f"a success takes {seconds(duration)} (median)")
    if total := results.latency.get("total"):
        caption.append(f"one act {milliseconds(total.p50)} ms (p50)")
    if compiling := results.latency.get("compile"):
        caption.append(f"generating the weights {milliseconds(compiling.p50)} ms (p50)")
    page.caption = ", ".join(caption) or None
    return page


def said_counts(counts: Mapping[str, int]) -> str:
    """As in "3 missed, 1 dropped"."""
    return ", ".join(f"{count} {word}" for word, count in counts.items()) or "none"


def explained(trials: Sequence[Trial]) -> dict[str, int]:
    """All failures by why they are, those of which nobody knows it last."""
    unknown = sum(trial.outcome == "not done" for trial in trials)
    return failures(trials) | ({"not done": unknown} if unknown else {})


def _median_steps(trials: Sequence[Trial]) -> str:
    steps = [trial.steps for trial in trials if trial.success]
    return f"{statistics.median(steps):.0f}" if steps else "–"


def _parts(latency: Mapping[str, Percentiles]) -> list[tuple[str, str, float]]:
    """Stage, title and share of the median act, for the bar; the rest is what lies between the stages."""
    if "total" not in latency:
        return []
    stages = [(name, STAGE_NAMES[name], latency[name].p50) for name in ("preprocessing", "backbone", "policy")]
    total = max(latency["total"].p50, sum(spent for *_, spent in stages))
    return [(name, title, spent / total if total else 0.0) for name, title, spent in stages]


def _protocol(results: Results) -> Iterator[tuple[str, str]]:
    conditions = results.conditions
    seeds = [trial.environment_seed for trial in results.trials]
    yield "Suite", conditions.suite
    if results.group_mean is not None:
        yield "Mean over groups", f"{percent(results.group_mean)}: what published figures of this suite are"
    protocol = conditions.trials if results.suite is None else results.suite.trials
    said = "" if protocol == conditions.trials else f" (the protocol has {protocol})"
    yield "Tasks × trials", f"{len(conditions.tasks)} × {conditions.trials}{said}"
    yield "Scenes", f"environment seeds {min(seeds):,} to {max(seeds):,} (seed {conditions.seed})"
    yield "Training scenes", f"environment seeds below {RECORDING_SEEDS.stop:,}"
    yield "Instructions", INSTRUCTION_SETS[conditions.instructions]
    yield "Success", conditions.success_rule
    yield "Scene", conditions.scene
    yield "Step limit", conditions.step_limit
    yield "Execution", conditions.execution
    yield "Crashed trials", f"{results.errors}, counted as failures"
    yield "Intervals", "Wilson's score interval, 95 %"


def _provenance(results: Results) -> dict[str, list[tuple[str, str]]]:
    """Boxes of rows: checkpoint, machine, and how it was run."""
    boxes = {"Checkpoint": [], "Machine": [], "Run": [("commit", results.conditions.commit)]}
    for name, value in results.provenance.items():
        if isinstance(value, Mapping):
            boxes[name.capitalize()] = [(_said(key), _words(inner)) for key, inner in value.items()]
        else:
            boxes["Run"].append((_said(name), _words(value)))
    return {title: rows for title, rows in boxes.items() if rows}


def _said(key: str) -> str:
    return key.replace("_", " ")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_said(key)} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_words(part) for part in value)
    return str(value)
