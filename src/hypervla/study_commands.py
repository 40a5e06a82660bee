"""`hypervla study`: a question of the papers, answered by training and evaluating every system that it compares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional, UseAppendAction

from hypervla.options import Flag, Out

if TYPE_CHECKING:
    from hypervla.studies.conduct import Conductor
    from hypervla.studies.study import Cell


def study(
    name: Positional[str],
    /,
    *,
    data: Path = Path("data"),
    out: Out,
    minutes: float = 40.0,
    steps: int | None = None,
    trials: int = 10,
    seeds: int = 1,
    only: UseAppendAction[tuple[str, ...]] = (),
    workers: int | None = None,
    show: Flag = False,
) -> None:
    """Train and evaluate every system of a study and make its table: zero-shot, few-shot, comparison or ablations.

    Running it again goes on where it stopped; what has come so far is in OUT/study.md and OUT/study.png at any time.

    Example: hypervla study ablations --data data --out runs/ablations --minutes 40 --seeds 3
    Example: hypervla study comparison --data data --out runs/equal-samples --steps 1500

    Args:
        name: Name of the study.
        data: Folder that holds the demonstrations by name (mt10, mt50, libero-object, ...); what is missing is named
            with the command that records it.
        out: Folder of the study.
        minutes: Processor time of each training run, in minutes of one core, where the study has no steps of its own.
        steps: Steps of each training run, in place of a time or of the study's own number.
        trials: Attempts at each task.
        seeds: Training runs of each system.
        only: Only this system of the study, or this part of it.
        workers: Processes that simulate.
        show: Train nothing; make the table of what has come so far.
    """
    from hypervla.studies.catalogue import study as find_study
    from hypervla.studies.conduct import Conductor, begun
    from hypervla.studies.study import Budget, cells

    found = find_study(name)
    found = found if steps is None else replace(found, steps=steps)
    given = {"--minutes": minutes, "--steps": steps, "--trials": trials, "--seeds": seeds, "--workers": workers}
    _check({what: value for what, value in given.items() if value is not None})
    _check_names(name, only, [one.name for one in (*found.systems, *found.parts)])
    if show:
        _show(Conductor(*begun(found, out), data, out))
        return
    conductor = Conductor(found, Budget(minutes, trials, seeds), data, out, workers)
    _conduct(conductor, cells(found, seeds, only))
    _show(conductor)


def _check(numbers: Mapping[str, float]) -> None:
    from hypervla.contracts import UserError

    for what, value in numbers.items():
        if not 0 < value < math.inf:
            raise UserError(f"{what} must be above 0, and finite, but {value} came.")


def _check_names(study: str, only: Sequence[str], names: Sequence[str]) -> None:
    from hypervla.contracts import unknown

    for asked in only:
        if asked not in names:
            raise unknown(asked, names, f"system or part of {study} called")


def _conduct(conductor: Conductor, todo: Sequence[Cell]) -> None:
    """Make these cells one after another, with what has come so far in the study's folder."""
    from rich.console import Console

    from hypervla.studies import table

    conductor.check(todo)
    table.save(conductor)
    for place, cell in enumerate(todo, start=1):
        Console().print(
            f"{place} of {len(todo)}: {cell.system.name}, {cell.part.name}, seed {cell.seed}", highlight=False
        )
        conductor.make(cell)
        table.save(conductor)


def _show(conductor: Conductor) -> None:
    """Keep and print the table of what has come so far."""
    from rich.console import Console
    from rich.table import Table

    from hypervla.studies import table

    found = table.save(conductor)
    head, *body = table.rows(conductor.study, found)
    page = Table(*head, title=conductor.study.question)
    for row in body:
        page.add_row(*row)
    console = Console()
    console.print(page)
    for note in table.notes(conductor.study, found):
        console.print(note, soft_wrap=True, highlight=False)
    console.print(f"The table is in {conductor.out / 'study.md'}", soft_wrap=True)
