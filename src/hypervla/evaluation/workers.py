"""What a worker does, wherever it lives: it loads the checkpoint once, keeps one environment open and makes trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypervla.contracts import Adjustable, Environment, UserError
from hypervla.embodiment import Embodiment
from hypervla.evaluation.expert import EXPERT, Demonstrating
from hypervla.evaluation.film import Film, Filmstrip, filmstrip
from hypervla.evaluation.results import TrialRecord
from hypervla.evaluation.suites import Suite
from hypervla.evaluation.trial import Load, Ticket, check_robot, roll_out
from hypervla.runtime.client import RemoteCompiler, Served
from hypervla.runtime.execution import Execution


@dataclass(frozen=True)
class Job:
    """What every worker is told once."""

    checkpoint: Path | str
    suite: Suite
    execution: Execution
    device: str
    load: Load


@dataclass(frozen=True)
class Model:
    """What a worker says about the checkpoint once it is loaded."""

    digest: str
    provenance: Mapping[str, Any]
    device: str
    served: Served | None = None
    """What its server says, where it lives behind one."""


@dataclass(frozen=True)
class Made:
    """What a ticket came to; bytes of a film rather than its files, since a worker may have another disk than ours."""

    record: TrialRecord
    film: Filmstrip | None


@dataclass(frozen=True)
class Refusal:
    """Why a worker cannot go on, in words for the user."""

    message: str


class TrialMaker:
    """A worker's checkpoint and environment."""

    def __init__(self, job: Job) -> None:
        """Raises UserError for a checkpoint that cannot be loaded or drives another robot than the suite's."""
        self.job = job
        if job.checkpoint == EXPERT:
            self.compiler = expert = Demonstrating(job.suite)
            self.opened = OpenEnvironment(expert.environment)
        else:
            self.compiler = job.load(job.checkpoint, job.device)
            self.opened = OpenEnvironment(job.suite.environment)
        check_robot(self.compiler, job.suite.embodiment)
        served = self.compiler.served if isinstance(self.compiler, RemoteCompiler) else None
        device = _device_name(job.device) if served is None else served.device
        self.model = Model(self.compiler.digest, dict(self.compiler.provenance), device, served)

    def make(self, ticket: Ticket) -> Made:
        """One trial. Raises UserError when the environment cannot be had (not installed) or the film not encoded."""
        started = time.perf_counter()
        try:
            environment = self.opened.get(ticket.task)
            adjust(environment, self.compiler.embodiment)
        except UserError:
            raise
        except Exception as crash:
            error = f"{type(crash).__name__} while opening the environment: {crash}"
            return Made(ticket.record(started=started, error=error), None)
        film = Film(environment) if ticket.filmed else None
        steps = self.job.suite.steps_of(ticket.task)
        record = roll_out(ticket, environment, self.compiler, self.job.execution, steps, film)
        if record.trial.error is not None:
            with suppress(Exception):  # nothing a crashed environment does may reach the next trial
                self.close()
        if film is None or not film.frames:
            return Made(record, None)
        return Made(record, filmstrip(film, record.trial.instruction, record.trial.ending))

    def close(self) -> None:
        self.opened.close()


class OpenEnvironment:
    """Keeps the environment of the latest task open: the next trial is likely to want it."""

    def __init__(self, make: Callable[[str], Environment]) -> None:
        self.make = make
        self.environment: Environment | None = None

    def get(self, task: str) -> Environment:
        if self.environment is None or self.environment.task != task:
            self.close()
            self.environment = self.make(task)
        return self.environment

    def close(self) -> None:
        closing, self.environment = self.environment, None
        if closing is not None:
            closing.close()


def adjust(environment: Environment, robot: Embodiment) -> None:
    """Let the environment's cameras deliver what a policy for this robot looks at, and no more where that saves work.
    Raises UserError where they cannot."""
    wanted, delivered = _sizes(robot), _sizes(environment.embodiment)
    if wanted == delivered:
        return
    if isinstance(environment, Adjustable):
        environment.look_through(robot.cameras)
    elif not wanted.items() <= delivered.items():
        raise UserError(
            f"The policy looks at {_said(wanted)}, but the cameras of {environment.embodiment.name} deliver "
            f"{_said(delivered)} here: choose another checkpoint or suite."
        )


def _sizes(robot: Embodiment) -> dict[str, tuple[int, int]]:
    return {camera.name: (camera.height, camera.width) for camera in robot.cameras}


def _said(sizes: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {height}×{width}" for name, (height, width) in sizes.items())


def _device_name(device: str) -> str:
    """The accelerator's own name, or "cpu"."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)
