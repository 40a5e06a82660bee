"""What an evaluation found: every trial and its conditions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.embodiment import EMBODIMENTS
from hypervla.evaluation.intervals import PairedDifference, Rate
from hypervla.evaluation.suites import SUITES, Suite
from hypervla.evaluation.taxonomy import counted

FORMAT = 1
STAGES = ("preprocessing", "backbone", "policy", "total")
"""What the time of one act is spent on: image preprocessing, shared backbone, generated policy; and all of it."""

StageSeconds = Float32[np.ndarray, "acts 4"]


@dataclass(frozen=True)
class Conditions:
    """All that must be equal for two evaluations to be the same one; an interrupted one goes on only under these."""

    suite: str
    tasks: tuple[str, ...]
    trials: int
    """Trials of each task."""
    seed: int
    instructions: str
    execution: str
    max_steps: int
    success_rule: str
    scene: str
    embodiment: str
    checkpoint: str
    """Digest of the checkpoint."""
    device: str
    commit: str
    """Commit of the code that ran."""
    engine: str | None = None
    """Runtime, precision and sha256 of an exported engine; None is eager PyTorch."""
    task_steps: tuple[int, ...] = ()
    """The step limit of each task in order, where not all have `max_steps`."""

    @property
    def asked(self) -> list[tuple[str, int]]:
        """The names of all trials, in order."""
        return [(task, trial) for task in self.tasks for trial in range(self.trials)]

    @property
    def step_limit(self) -> str:
        """Of the shortest and of the longest trial, in words."""
        limits = self.task_steps or (self.max_steps,)
        return " to ".join(str(limit) for limit in sorted({min(limits), max(limits)}))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Conditions:
        lists = {name: tuple(data.get(name, ())) for name in ("tasks", "task_steps")}
        return Conditions(**{**data, **lists})


@dataclass(frozen=True)
class Trial:
    """One attempt at a task. A trial that crashed is a failure that keeps its error."""

    task: str
    trial: int
    environment_seed: int
    instruction: str
    success: bool
    steps: int
    error: str | None
    compile_seconds: float | None
    """Instruction and first image to generated weights; None when it never came to that."""
    acts: int
    """How many times the policy looked and predicted."""
    wall_seconds: float
    smoothness: float | None = None
    """Log dimensionless jerk of what the arm was told (smoothness.py); None for an unknown kind of action."""
    failure: str | None = None
    """Why it failed (taxonomy.py); None for a success, and where the environment does not say how things stand."""

    @property
    def name(self) -> tuple[str, int]:
        return self.task, self.trial

    @property
    def outcome(self) -> str:
        """Success, or why not, as far as it is known."""
        return "success" if self.success else self.failure or ("crashed" if self.error is not None else "not done")

    @property
    def ending(self) -> str:
        return f"{self.outcome} after {self.steps} steps"


@dataclass(frozen=True)
class TrialRecord:
    """A trial and the raw seconds of each of its acts."""

    trial: Trial
    seconds: StageSeconds

    def to_json(self) -> dict[str, Any]:
        microseconds = np.rint(self.seconds * 1e6).astype(int)
        return {**asdict(self.trial), "act_microseconds": microseconds.tolist()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrialRecord:
        microseconds = np.array(data["act_microseconds"], np.float32).reshape(-1, len(STAGES))
        return TrialRecord(_trial(data), (microseconds / 1e6).astype(np.float32))


@dataclass(frozen=True)
class Percentiles:
    """Seconds that 50, 95 and 99 of 100 stay within."""

    p50: float
    p95: float
    p99: float

    @staticmethod
    def of(values: Float[np.ndarray, " n"]) -> Percentiles | None:
        """None for no values."""
        return Percentiles(*(float(value) for value in np.percentile(values, (50, 95, 99)))) if values.size else None


@dataclass(frozen=True)
class Results:
    """Every trial of an evaluation, in order, and where they came from."""

    conditions: Conditions
    trials: tuple[Trial, ...]
    latency: Mapping[str, Percentiles]
    """Seconds by stage of an act (see STAGES) and `compile`, over all trials; stages never reached are absent."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Checkpoint, machine, versions, command: recorded, not compared."""

    @staticmethod
    def of(conditions: Conditions, records: Iterable[TrialRecord], provenance: Mapping[str, Any]) -> Results:
        """Results of all the trials the conditions ask for."""
        order = {task: place for place, task in enumerate(conditions.tasks)}
        ordered = sorted(records, key=lambda record: (order[record.trial.task], record.trial.trial))
        assert [record.trial.name for record in ordered] == conditions.asked, "every trial is accounted for, once"
        trials = tuple(record.trial for record in ordered)
        seconds = np.concatenate([record.seconds for record in ordered])
        found = {stage: Percentiles.of(seconds[:, column]) for column, stage in enumerate(STAGES)}
        compiling = [trial.compile_seconds for trial in trials if trial.compile_seconds is not None]
        found["compile"] = Percentiles.of(np.array(compiling))
        return Results(conditions, trials, {name: row for name, row in found.items() if row}, provenance)

    @cached_property
    def overall(self) -> Rate:
        """Successes over all trials; the tasks weigh the same, having equally many."""
        return Rate.of(trial.success for trial in self.trials)

    @cached_property
    def by_task(self) -> Mapping[str, Rate]:
        return {task: Rate.of(trial.success for trial in trials) for task, trials in self.trials_by_task.items()}

    @cached_property
    def by_scene(self) -> Mapping[tuple[str, int], bool]:
        """Whether each task was done in each scene (its seed)."""
        return {(trial.task, trial.environment_seed): trial.success for trial in self.trials}

    @cached_property
    def suite(self) -> Suite | None:
        """The suite as it is here; None for one that is not known here."""
        make = SUITES.get(self.conditions.suite)
        return None if make is None else make()

    @cached_property
    def by_group(self) -> Mapping[str, Rate]:
        """Of a suite whose published figure is a mean over groups of tasks; empty where some tasks were left out."""
        groups = {} if self.suite is None else self.suite.groups
        if {task for tasks in groups.values() for task in tasks} != set(self.conditions.tasks):
            return {}
        return {
            name: Rate.of(trial.success for task in tasks for trial in self.trials_by_task[task])
            for name, tasks in groups.items()
        }

    @property
    def group_mean(self) -> float | None:
        """The mean over groups, each of which weighs the same; None of a suite without them."""
        return statistics.mean(rate.mean for rate in self.by_group.values()) if self.by_group else None

    @cached_property
    def trials_by_task(self) -> Mapping[str, tuple[Trial, ...]]:
        return {task: tuple(t for t in self.trials if t.task == task) for task in self.conditions.tasks}

    @property
    def errors(self) -> int:
        return sum(trial.error is not None for trial in self.trials)

    @property
    def explained(self) -> bool:
        """Whether it is known of failures why they are."""
        return any(trial.failure is not None for trial in self.trials)

    @property
    def control_hz(self) -> float | None:
        """Steps of the robot in a second; None for a robot that is not known here."""
        robot = EMBODIMENTS.get(self.conditions.embodiment)
        return None if robot is None else robot.control_hz

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "conditions": asdict(self.conditions),
            "overall": self._row(self.trials) | {"errors": self.errors},
            "tasks": [{"task": task} | self._row(trials) for task, trials in self.trials_by_task.items()],
            **({"groups": self._groups()} if self.by_group else {}),
            "latency_seconds": {stage: asdict(row) for stage, row in self.latency.items()},
            "provenance": dict(self.provenance),
            "trials": [asdict(trial) for trial in self.trials],
        }

    def _groups(self) -> dict[str, Any]:
        rows = {name: {"successes": rate.successes, "trials": rate.trials} for name, rate in self.by_group.items()}
        return {"mean_rate": self.group_mean, **rows}

    def _row(self, trials: Sequence[Trial]) -> dict[str, Any]:
        rate = Rate.of(trial.success for trial in trials)
        return {
            "successes": rate.successes,
            "trials": rate.trials,
            "rate": rate.mean,
            **asdict(rate.interval),
            "completion_seconds": completion(trials, self.control_hz),
            "smoothness": smoothness(trials),
            "failures": failures(trials),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Results:
        """The inverse of `to_json`; summaries are counted again. Raises UserError on a foreign format."""
        if data.get("format") != FORMAT:
            raise UserError(
                f"These results have format {data.get('format')}, but this version reads {FORMAT}: evaluate again."
            )
        provenance = data["provenance"]
        if not isinstance(provenance, dict) or not isinstance(provenance.get("machine", {}), dict):
            raise TypeError("its provenance is no table")
        conditions, trials = Conditions.from_json(data["conditions"]), tuple(_trial(row) for row in data["trials"])
        if [trial.name for trial in trials] != conditions.asked:
            raise ValueError("its trials are not those that its conditions ask for")
        return Results(
            conditions=conditions,
            trials=trials,
            latency={stage: Percentiles(**row) for stage, row in data["latency_seconds"].items()},
            provenance=provenance,
        )

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises UserError when the disk refuses."""
        save_whole(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @staticmethod
    def load(path: Path) -> Results:
        """Results written by `save`. Raises UserError for anything else."""
        try:
            return Results.from_json(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise UserError(f"There are no results at {path}: `hypervla eval` writes them.") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not a results file ({error}): give the results.json of an evaluation."
            ) from error


def completion(trials: Sequence[Trial], control_hz: float | None) -> float | None:
    """Median seconds that the successes took on the robot's own clock: steps over steps a second."""
    steps = [trial.steps for trial in trials if trial.success]
    return statistics.median(steps) / control_hz if steps and control_hz else None


def smoothness(trials: Sequence[Trial]) -> float | None:
    """Median over all trials that have one, failures as well."""
    found = [trial.smoothness for trial in trials if trial.smoothness is not None]
    return statistics.median(found) if found else None


def failures(trials: Sequence[Trial]) -> dict[str, int]:
    """How often trials failed, by why, as far as that is known."""
    return counted(trial.outcome for trial in trials)


def paired(first: Results, second: Results) -> PairedDifference:
    """Second minus first on the same tasks and scenes. Raises UserError unless both tried exactly the same ones."""
    before, after = first.by_scene, second.by_scene
    check_pairs(first, second.conditions.suite, after)
    gained = sum(after[scene] and not success for scene, success in before.items())
    lost = sum(success and not after[scene] for scene, success in before.items())
    return PairedDifference(pairs=len(before), gained=gained, lost=lost)


def check_pairs(first: Results, suite: str, scenes: Collection[tuple[str, int]]) -> None:
    """Raises UserError unless trials in these scenes of a suite (task and seed) have their pairs in `first`."""
    if first.conditions.suite != suite:
        raise UserError(
            f"Paired results want the same scenes twice, but {first.conditions.suite} and {suite} have others."
        )
    known = first.by_scene.keys()
    if not known or known != set(scenes):
        raise UserError(
            f"Paired results want the same scenes twice, but {len(known & set(scenes))} of {len(known)} and "
            f"{len(scenes)} are shared: evaluate both with the same suite, tasks, trials and seed."
        )


def save_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises UserError when the disk refuses."""
    with disk(path):
        write_atomically(path, content)


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a path into one sentence for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}): free the disk or choose another --out."
        ) from error


def _trial(row: Mapping[str, Any]) -> Trial:
    """Rows of before there was an optional column do without it."""
    columns = [column for column in fields(Trial) if column.name in row or column.default is MISSING]
    return Trial(**{column.name: row[column.name] for column in columns})
