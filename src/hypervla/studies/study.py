"""What a study is: systems trained in the same way on the same demonstrations and judged on the same scenes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class System:
    """A row of the table: what is trained."""

    name: str
    recipe: str
    start: str | None = None
    """What it starts from: a pretraining of the study, or the name or folder of a checkpoint."""
    vision_only: bool = False
    """Of what it starts from, the vision backbone alone."""
    published: str = ""
    """What the paper reports of its counterpart, at its own size and on its own benchmark."""


@dataclass(frozen=True)
class Column:
    """One evaluation: a suite, or some of its tasks."""

    name: str
    suite: str
    tasks: tuple[str, ...] = ()
    """All of the suite's where there is none."""
    held_out_instructions: bool = False
    """Ask in other sentences for what was trained on."""
    in_distribution: bool = True
    """Whether tasks and objects of the kind were trained on."""
    unseen_instructions: bool = False
    """Whether nothing that was trained on is asked for."""

    @property
    def title(self) -> str:
        """The name, and what training has not seen."""
        marks = [] if self.in_distribution else ["out of distribution"]
        marks += ["unseen instructions"] if self.held_out_instructions or self.unseen_instructions else []
        return f"{self.name} ({', '.join(marks)})" if marks else self.name


@dataclass(frozen=True)
class Part:
    """What every system is trained on, each from its own start, and then judged on."""

    name: str
    data: tuple[str, ...]
    """Datasets by name (Study.recordings)."""
    columns: tuple[Column, ...]
    leave_out: tuple[str, ...] = ()
    """Instructions whose episodes are not trained on."""


@dataclass(frozen=True)
class Pretraining:
    """A run that systems start from, made once."""

    recipe: str
    data: tuple[str, ...]
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A question, and the systems that answer it. The first system is what the others are compared with."""

    name: str
    question: str
    systems: tuple[System, ...]
    parts: tuple[Part, ...]
    recordings: Mapping[str, str]
    """The command that records each dataset, by the dataset's name."""
    pretrainings: Mapping[str, Pretraining] = field(default_factory=dict)
    steps: int | None = None
    """Of each run, where that and not time is what they share."""
    published: str = ""
    """What the figures in that column are, and which of them to compare."""


@dataclass(frozen=True)
class Budget:
    """What a study may cost. Everything but `seeds` must stay the same while it goes on."""

    minutes: float = 40.0
    """Of one core, for each training run of a study without steps."""
    trials: int = 10
    """Of each task."""
    seeds: int = 1
    """Training runs of each system; the scenes of the trials are the same for all."""


@dataclass(frozen=True)
class Cell:
    """One training run of a study."""

    part: Part
    system: System
    seed: int

    @property
    def folder(self) -> str:
        """Where its run and its evaluations lie, below the study's own folder."""
        return f"{self.part.name}/{slug(self.system.name)}/seed-{self.seed}"


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub("[^a-z0-9]+", "-", name.lower())


def cells(study: Study, seeds: int, only: Collection[str] = ()) -> list[Cell]:
    """All runs, or those of some systems and parts; seed by seed, so that a study that was stopped early has every
    system."""
    systems = [system for system in study.systems if system.name in only] or study.systems
    parts = [part for part in study.parts if part.name in only] or study.parts
    return [Cell(part, system, seed) for seed in range(seeds) for part in parts for system in systems]
