"""`hypervla study`: a question of the papers, answered by training and evaluating every system that it compares."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional, UseAppendAction

from hypervla.options import Flag, Out


def study(
    name: Positional[str],
    /,
    *,
    data: Path = Path("data"),
    out: Out,
    minutes: float = 40.0,
    trials: int = 10,
    seeds: int = 1,
    only: UseAppendAction[tuple[str, ...]] = (),
    workers: int | None = None,
    show: Flag = False,
) -> None:
    """Train and evaluate every system of a study and make its table: ablations, zero-shot or few-shot.

    Running it again goes on where it stopped; what has come so far is in OUT/study.md at any time.

    Example: hypervla study ablations --data data --out runs/ablations --minutes 40 --seeds 3

    Args:
        name: Name of the study.
        data: Folder that holds the demonstrations by name (mt10, mt50, libero-object, ...); what is missing is named
            with the command that records it.
        out: Folder of the study.
        minutes: Processor time of each training run, in minutes of one core, where the study has no steps of its own.
        trials: Attempts at each task.
        seeds: Training runs of each system.
        only: Only this system of the study, or this part of it.
        workers: Processes that simulate.
        show: Train nothing; make the table of what has come so far.
    """
    import math

    from rich.console import Console
    from rich.table import Table

    from hypervla.arguments import unknown
    from hypervla.contracts import UserError
    from hypervla.studies import table
    from hypervla.studies.catalogue import study as find_study
    from hypervla.studies.conduct import Conductor
    from hypervla.studies.study import Budget, cells

    found = find_study(name)
    for what, value in (("--minutes", minutes), ("--trials", trials), ("--seeds", seeds)):
        if not 0 < value < math.inf:
            raise UserError(f"{what} must be above 0, and finite, but {value} came.")
    names = [one.name for one in (*found.systems, *found.parts)]
    for asked in only:
        if asked not in names:
            raise unknown(asked, names, f"system or part of {name} called")
    conductor = Conductor(found, data, out, Budget(minutes, trials, seeds), workers)
    todo = [] if show else cells(found, seeds, only)
    conductor.check(todo)
    console = Console()

    kept = table.save(conductor)
    for place, cell in enumerate(todo, start=1):
        console.print(
            f"{place} of {len(todo)}: {cell.system.name}, {cell.part.name}, seed {cell.seed}", highlight=False
        )
        conductor.make(cell)
        kept = table.save(conductor)
    head, *body = table.rows(found, kept)
    page = Table(*head, title=found.question)
    for row in body:
        page.add_row(*row)
    console.print(page)
    console.print(f"The table is in {out / 'study.md'}", soft_wrap=True)
