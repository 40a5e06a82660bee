"""The table of a study, as far as it has come: success of every system in every column, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypervla.benchmark.counts import describe
from hypervla.durable import write_atomically
from hypervla.evaluation.intervals import Estimate, PairedDifference, Rate, points
from hypervla.evaluation.report import percent, span
from hypervla.evaluation.results import Results, paired
from hypervla.studies.conduct import Conductor
from hypervla.studies.plot import draw
from hypervla.studies.study import Cell, Column, Part, Study, System
from hypervla.training.recipes import RECIPES


@dataclass(frozen=True)
class Entry:
    """One system in one column, as far as it has come."""

    seeds: Mapping[int, Results]
    """By training seed."""

    @property
    def value(self) -> Rate | Estimate | None:
        """Of one run its trials' rate; of several the runs' mean, since they share their scenes; None of none."""
        rates = [results.overall for results in self.seeds.values()]
        if len(rates) > 1:
            return Estimate(tuple(rates))
        return rates[0] if rates else None

    def against(self, other: Entry) -> PairedDifference | Estimate | None:
        """This minus the other, scene by scene, of the seeds that both have; None where there is no such seed."""
        both = sorted(self.seeds.keys() & other.seeds.keys())
        found = [paired(other.seeds[seed], self.seeds[seed]) for seed in both]
        if len(found) > 1:
            return Estimate(tuple(found))
        return found[0] if found else None

    def __str__(self) -> str:
        value = self.value
        if value is None:
            return "–"
        error = f" ± {100 * value.standard_error:.1f}" if isinstance(value, Estimate) else ""
        return f"{percent(value.mean)}{error} ({span(value.interval)})"


def entry(conductor: Conductor, part: Part, system: System, column: Column) -> Entry:
    """What has come of this system in this column."""
    cells = [Cell(part, system, seed) for seed in conductor.seeds(part, system)]
    found = {cell.seed: conductor.results(cell, column) for cell in cells}
    return Entry({seed: results for seed, results in found.items() if results is not None})


def columns(study: Study) -> Iterator[tuple[Part, Column]]:
    for part in study.parts:
        for column in part.columns:
            yield part, column


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
        head += [column.title, "against the first"]
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


def difference(change: PairedDifference | Estimate) -> str:
    """ "+3.1 (−1.0 to +7.2)", in points."""
    return f"{points(change.mean)} ({points(change.interval.low)} to {points(change.interval.high)})"


def markdown(conductor: Conductor, found: Entries) -> str:
    """Question, conditions and table, for a page."""
    study, budget = conductor.study, conductor.budget
    length = f"{study.steps} steps" if study.steps else f"{budget.minutes:g} minutes of one core"
    text = [
        f"# {study.name}",
        "",
        study.question,
        "",
        f"Each run: {length}. {budget.trials} trials of each task. In brackets 95 % intervals: of one run over its "
        "trials (Wilson; Agresti and Min for differences on the same scenes), of several over the runs (Student, and "
        "no narrower than one run's), with their standard error after ±.",
        "",
    ]
    head, *body = rows(study, found)
    for row in (head, ["---"] * len(head), *body):
        text.append("| " + " | ".join(row) + " |")
    return "\n".join([*text, "", *(f"- {note}" for note in notes(study, found)), ""])


def scenes(found: Entries) -> list[str]:
    """What a reader of the rates should know about the pictures."""
    return sorted({r.conditions.scene for one in found.values() for r in one.seeds.values() if r.conditions.scene})


def notes(study: Study, found: Entries) -> list[str]:
    """And about the published figures beside them."""
    return [*scenes(found), *([study.published] if study.published else [])]


def to_json(conductor: Conductor) -> dict[str, Any]:
    """Every trial of the study, briefly: what a results folder keeps."""
    study, found = conductor.study, []
    for part in study.parts:
        for system in study.systems:
            for seed in conductor.seeds(part, system):
                cell = Cell(part, system, seed)
                judged = {column.name: _brief(conductor.results(cell, column)) for column in part.columns}
                if judged := {name: brief for name, brief in judged.items() if brief}:
                    about = {"part": part.name, "system": system.name, "seed": seed, "recipe": system.recipe}
                    found.append({**about, **conductor.training(cell), "columns": judged})
    return {"study": study.name, "trials": conductor.budget.trials, "runs": found}


def save(conductor: Conductor) -> Entries:
    """Write OUT/study.md, OUT/study.json and OUT/study.png as far as the study has come, and say how far that is."""
    found, study = entries(conductor), conductor.study
    values = {
        column.title: [found[part, system, column].value for system in study.systems] for part, column in columns(study)
    }
    draw([system.name for system in study.systems], values, scenes(found), conductor.out / "study.png")
    write_atomically(conductor.out / "study.md", markdown(conductor, found).encode())
    write_atomically(conductor.out / "study.json", (json.dumps(to_json(conductor)) + "\n").encode())
    return found


def _brief(results: Results | None) -> Mapping[str, Any]:
    if results is None:
        return {}
    successes: Mapping[str, Sequence[int]] = {
        task: [int(trial.success) for trial in trials] for task, trials in results.trials_by_task.items()
    }
    conditions = results.conditions
    about = {"commit": conditions.commit, "seed": conditions.seed, "scene": conditions.scene}
    return {**about, "successes": successes}
