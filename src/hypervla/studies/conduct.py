"""Makes the runs and evaluations of a study, each by the command a person would type, and keeps each as it comes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypervla.child import run_child
from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.evaluation.results import Results
from hypervla.evaluation.suites import suite
from hypervla.evaluation.trial import tickets
from hypervla.studies.study import Budget, Cell, Column, Part, Study, System, slug
from hypervla.training.metrics import processor_seconds, reports

FOREVER = 1_000_000
"""Steps of a run that ends by its time."""

Hypervla = Callable[[Sequence[str]], None]
"""Carries out a command of hypervla, given by the words behind that name. Raises SystemExit when it fails."""


BUDGET = "budget.json"
"""In a study's folder: what of its budget must stay the same."""


def _known(out: Path) -> dict[str, Any] | None:
    """None where no study was begun. Raises UserError for a file that is damaged."""
    path = out / BUDGET
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"study", "trials"} <= found.keys():
        raise UserError(f"{path} is damaged: choose another --out, or delete that folder.")
    return found


def begun(study: Study, out: Path) -> tuple[Study, Budget]:
    """The study in a folder, as it was begun there. Raises UserError where there is none of that name."""
    found = _known(out)
    if found is None or found["study"] != study.name:
        raise UserError(f"{out} holds {'no study' if found is None else found['study']}, but {study.name} was wanted.")
    budget = Budget(trials=found["trials"], minutes=found.get("minutes", Budget.minutes))
    return replace(study, steps=found.get("steps")), budget


@dataclass(frozen=True)
class Conductor:
    """One study in one folder: OUT/PART/SYSTEM/seed-N holds a run, OUT/PART/SYSTEM/seed-N/COLUMN an evaluation."""

    study: Study
    budget: Budget
    data: Path
    """Folder that holds the datasets by name."""
    out: Path
    workers: int | None = None
    hypervla: Hypervla | None = None
    """Another way to carry out commands than in processes of their own."""

    def check(self, todo: Sequence[Cell]) -> None:
        """Raises UserError where a dataset that these cells want is missing, a suite has not so many scenes, or OUT
        holds a study of another kind or budget."""
        starts = [self.study.pretrainings.get(cell.system.start or "") for cell in todo]
        names = [*(cell.part.data for cell in todo), *(start.data for start in starts if start)]
        for name in dict.fromkeys(name for several in names for name in several):
            if not (self.data / name).is_dir():
                raise UserError(
                    f"The study wants the dataset {self.data / name}, which is not there; record it: "
                    f"{self.study.recordings[name]} --out {self.data / name}"
                )
        for cell in todo:
            for column in cell.part.columns:
                tickets(suite(column.suite), trials=self.budget.trials, seed=0, instructions="canonical")
        asked = {"study": self.study.name, "trials": self.budget.trials}
        asked |= {"steps": self.study.steps} if self.study.steps else {"minutes": self.budget.minutes}
        if (found := _known(self.out)) not in (None, asked):
            raise UserError(f"{self.out} holds a study of another budget, {found}: choose another --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / BUDGET, (json.dumps(asked) + "\n").encode())

    def make(self, cell: Cell) -> None:
        """Train and judge, unless that is done."""
        run, system = self.out / cell.folder, cell.system
        start = [] if system.start is None else ["--init", self._start(system.start)]
        start += ["--vision-only"] if system.vision_only else []
        self._train(run, system.recipe, cell.part.data, cell.part.leave_out, ["--seed", str(cell.seed), *start])
        for column in cell.part.columns:
            if not self.judged(cell, column):
                self._run(self._evaluation(run, column))

    def seeds(self, part: Part, system: System) -> list[int]:
        """Training seeds of which there is something."""
        folders = (self.out / Cell(part, system, 0).folder).parent.glob("seed-*")
        return sorted(int(folder.name.removeprefix("seed-")) for folder in folders)

    def judged(self, cell: Cell, column: Column) -> bool:
        return (self.out / cell.folder / slug(column.name) / "results.json").is_file()

    def results(self, cell: Cell, column: Column) -> Results | None:
        """What an evaluation found; None as long as it has not ended."""
        if not self.judged(cell, column):
            return None
        return Results.load(self.out / cell.folder / slug(column.name) / "results.json")

    def training(self, cell: Cell) -> dict:
        """Steps and minutes of a run that has ended; empty for another."""
        path = self.out / cell.folder / "trained.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _start(self, name: str) -> str:
        """The checkpoint of a pretraining, which is made if it is not there; other names are checkpoints."""
        if name not in self.study.pretrainings:
            return name
        wanted, run = self.study.pretrainings[name], self.out / "pretraining" / name
        self._train(run, wanted.recipe, wanted.data, wanted.leave_out, [])
        return str(run)

    def _train(
        self, run: Path, recipe: str, data: Sequence[str], leave_out: Sequence[str], more: Sequence[str]
    ) -> None:
        done = run / "trained.json"
        if done.is_file():
            return
        words = ["train", recipe, *more, "--out", str(run), "--steps", str(self.study.steps or FOREVER)]
        words += ["--pictures", str(self.out / "pictures")]
        words += [] if self.study.steps else ["--minutes", f"{self.budget.minutes:g}"]
        words += [word for name in data for word in ("--data", str(self.data / name))]
        words += [word for sentence in leave_out for word in ("--leave-out", sentence)]
        self._run([*words, *(["--resume"] if (run / "resume" / "state.json").is_file() else [])])
        found = {"steps": reports(run)[-1]["step"], "minutes": round(processor_seconds(run) / 60, 1)}
        write_atomically(done, (json.dumps(found) + "\n").encode())

    def _evaluation(self, run: Path, column: Column) -> list[str]:
        words = ["eval", str(run), "--suite", column.suite, "--trials", str(self.budget.trials)]
        words += [word for task in column.tasks for word in ("--task", task)]
        words += ["--held-out-instructions"] if column.held_out_instructions else []
        words += [] if self.workers is None else ["--workers", str(self.workers)]
        return [*words, "--out", str(run / slug(column.name))]

    def _run(self, words: Sequence[str]) -> None:
        print("$", shlex.join(["hypervla", *words]), flush=True)
        (self.hypervla or partial(run_child, sys.executable))(words)
