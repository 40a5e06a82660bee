"""The table of a study, as far as it has come: success of every system in every column, and how sure that is."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypervla.benchmark.counts import describe
from hypervla.durable import write_atomically
from hypervla.evaluation.intervals import PairedDifference, Rate
from hypervla.evaluation.report import percent, span
from hypervla.evaluation.results import Results, paired
from hypervla.studies.conduct import Conductor
from hypervla.studies.plot import draw
from hypervla.studies.study import Cell, Column, Part, Study, System
from hypervla.training.recipes import RECIPES


@dataclass(frozen=True)
class Entry:
    """One system in one column, over all training seeds that have come so far."""

    seeds: tuple[Results, ...]

    @property
    def rate(self) -> Rate:
        """Of all trials together."""
        return Rate(sum(r.overall.successes for r in self.seeds), sum(r.overall.trials for r in self.seeds))

    @property
    def standard_error(self) -> float:
        """Of the mean over training seeds; NaN for fewer than two."""
        means = [results.overall.mean for results in self.seeds]
        return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan

    def against(self, other: Entry) -> PairedDifference | None:
        """This minus the other on the scenes of the seeds that both have; None without any."""
        both = [paired(before, after) for before, after in zip(other.seeds, self.seeds, strict=False)]
        if not both:
            return None
        return PairedDifference(
            sum(one.pairs for one in both), sum(one.gained for one in both), sum(one.lost for one in both)
        )

    def __str__(self) -> str:
        if not self.seeds:
            return "–"
        if len(self.seeds) == 1:
            return f"{percent(self.rate.mean)} ({span(self.rate.interval)})"
        return f"{percent(self.rate.mean)} ± {100 * self.standard_error:.1f} ({span(self.rate.interval)})"


def entry(conductor: Conductor, part: Part, system: System, column: Column) -> Entry:
    """What has come of this system in this column."""
    found = [conductor.results(Cell(part, system, seed), column) for seed in range(conductor.budget.seeds)]
    return Entry(tuple(results for results in found if results is not None))


def columns(study: Study) -> Iterator[tuple[Part, Column]]:
    for part in study.parts:
        for column in part.columns:
            yield part, column


def title(column: Column) -> str:
    return column.name + ("" if column.in_distribution else " (out of distribution)")


Entries = Mapping[tuple[Part, System, Column], Entry]


def entries(conductor: Conductor) -> Entries:
    """What has come of every system in every column, read once."""
    cells = [(part, system, column) for part, column in columns(conductor.study) for system in conductor.study.systems]
    return {cell: entry(conductor, *cell) for cell in cells}


def rows(study: Study, found: Entries) -> list[list[str]]:
    """The table as text, its head first."""
    pairs, systems = list(columns(study)), study.systems
    published = any(system.published for system in systems)
    head = ["system", "activated parameters"]
    for _, column in pairs:
        head += [title(column), "against the first"]
    table = [[*head, "published"] if published else head]
    for system in systems:
        row = [system.name, f"{activated(system.recipe):,}"]
        for part, column in pairs:
            own, first = found[part, system, column], found[part, systems[0], column]
            change = None if system is systems[0] else own.against(first)
            row += [str(own), "" if change is None else difference(change)]
        table.append([*row, system.published] if published else row)
    return table


@cache
def activated(recipe: str) -> int:
    """Parameters that a recipe's model reads at a control step."""
    return describe(RECIPES[recipe]().model)["activated"]


def difference(change: PairedDifference) -> str:
    """ "+3.1 (−1.0 to +7.2)", in points."""
    low, high = 100 * change.interval.low, 100 * change.interval.high
    return f"{100 * change.mean:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")


def markdown(conductor: Conductor, found: Entries) -> str:
    """Question, conditions and table, for a page."""
    study, budget = conductor.study, conductor.budget
    length = f"{study.steps} steps" if study.steps else f"{budget.minutes:g} minutes of one core"
    text = [
        f"# {study.name}",
        "",
        study.question,
        "",
        f"Each run: {length}. {budget.trials} trials of each task. In brackets 95 % intervals (Wilson; Agresti and Min "
        "for differences on the same scenes); ± is the standard error over training seeds.",
        "",
    ]
    head, *body = rows(study, found)
    for row in (head, ["---"] * len(head), *body):
        text.append("| " + " | ".join(row) + " |")
    scenes = {r.conditions.scene for one in found.values() for r in one.seeds if r.conditions.scene}
    return "\n".join([*text, "", *(f"- {scene}" for scene in sorted(scenes)), ""])


def to_json(conductor: Conductor) -> dict[str, Any]:
    """Every trial of the study, briefly: what a results folder keeps."""
    study, found = conductor.study, []
    for part in study.parts:
        for system in study.systems:
            for seed in range(conductor.budget.seeds):
                cell = Cell(part, system, seed)
                judged = {column.name: _brief(conductor.results(cell, column)) for column in part.columns}
                if judged := {name: brief for name, brief in judged.items() if brief}:
                    about = {"part": part.name, "system": system.name, "seed": seed, "recipe": system.recipe}
                    found.append({**about, **conductor.training(cell), "columns": judged})
    return {"study": study.name, "trials": conductor.budget.trials, "runs": found}


def save(conductor: Conductor) -> Entries:
    """Write OUT/study.md, OUT/study.json and OUT/study.png as far as the study has come, and say how far that is."""
    found, study = entries(conductor), conductor.study
    rates = {
        title(column): [found[part, system, column].rate for system in study.systems] for part, column in columns(study)
    }
    draw([system.name for system in study.systems], rates, conductor.out / "study.png")
    write_atomically(conductor.out / "study.md", markdown(conductor, found).encode())
    write_atomically(conductor.out / "study.json", (json.dumps(to_json(conductor)) + "\n").encode())
    return found


def _brief(results: Results | None) -> Mapping[str, Any]:
    if results is None:
        return {}
    successes: Mapping[str, Sequence[int]] = {
        task: [int(trial.success) for trial in trials] for task, trials in results.trials_by_task.items()
    }
    return {"commit": results.conditions.commit, "seed": results.conditions.seed, "successes": successes}
