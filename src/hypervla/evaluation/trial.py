"""One trial: compile from the first image, then look, act and execute until success or the last step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import ActionChunk, Environment, Situated, Situation, Unusable, UserError
from hypervla.embodiment import Embodiment
from hypervla.evaluation.film import Film
from hypervla.evaluation.results import STAGES, Trial, TrialRecord
from hypervla.evaluation.smoothness import smoothness
from hypervla.evaluation.standing_in import load_for
from hypervla.evaluation.suites import InstructionSet, Suite, environment_seed
from hypervla.evaluation.taxonomy import Failure, failure
from hypervla.runtime.execution import Execution
from hypervla.runtime.protocols import Compiler, TimedPolicy

Answer = TypeVar("Answer")


Load = Callable[[Path | str, str], Compiler[TimedPolicy]]
"""Loads a checkpoint onto a device, or connects to the policy server at an address (ws://…)."""


def load_compiler(
    checkpoint: Path | str, device: str, *, robot: Embodiment, engine: str | None = None, middle: float = 1.0
) -> Compiler[TimedPolicy]:
    """The compiler of a checkpoint for that robot, as `load_for` has it, or of the server at an address."""
    if isinstance(checkpoint, str):
        from hypervla.runtime.client import RemoteCompiler

        return RemoteCompiler(checkpoint, robot)
    return load_for(checkpoint, device, robot, engine, middle)


@dataclass(frozen=True)
class Ticket:
    """One trial to be made."""

    task: str
    trial: int
    environment_seed: int
    instruction: str | None
    """None: what the scene asks for, once it is there."""
    filmed: bool

    def record(self, *, started: float, seconds: Sequence[Sequence[float]] = (), **found: Any) -> TrialRecord:
        """The row this ticket comes to; `found` overrides the row of a trial that crashed before it went anywhere."""
        row: dict[str, Any] = {"success": False, "steps": 0, "error": None, "compile_seconds": None}
        row |= {"failure": "crashed"} | found
        trial = Trial(
            task=self.task,
            trial=self.trial,
            environment_seed=self.environment_seed,
            instruction=self.instruction or "",
            acts=len(seconds),
            wall_seconds=time.perf_counter() - started,
            **row,
        )
        return TrialRecord(trial, np.array(seconds, np.float32).reshape(-1, len(STAGES)))


def tickets(suite: Suite, *, trials: int, seed: int, instructions: InstructionSet) -> list[Ticket]:
    """Every trial of an evaluation, task by task; the first of each task is filmed. Raises UserError for more scenes
    than a task has."""
    for task, scenes in suite.scenes.items():
        if task in suite.tasks and (trials > scenes or seed):
            raise UserError(
                f"{task} has {scenes} scenes, one for each trial of seed 0, and no others: ask for at most {scenes} "
                "trials, and leave out --seed."
            )
    return [
        Ticket(
            task=task,
            trial=trial,
            environment_seed=environment_seed(seed, trial),
            instruction=suite.instruction(task, instructions, trial),
            filmed=trial == 0,
        )
        for task in suite.tasks
        for trial in range(trials)
    ]


class Witness:
    """Sees what the robot is told and how things stand after it: what a trial is judged by, beside its success."""

    def __init__(self, environment: Environment) -> None:
        self._environment, self._situated = environment, isinstance(environment, Situated)
        self._actions: list[Float32[np.ndarray, "H A"]] = []
        self._situations: list[Situation] = []

    def look(self, executed: ActionChunk | None = None) -> None:
        """At the beginning, and after every execution."""
        if executed is not None:
            self._actions.append(executed.actions)
        if self._situated:
            self._situations.append(cast(Situated, self._environment).situation())

    def smoothness(self) -> float | None:
        """None for a robot that never moved, or whose actions are of no known kind."""
        return smoothness(np.concatenate(self._actions), self._environment.embodiment) if self._actions else None

    def failure(self) -> Failure | None:
        """Why the trial failed, if it did; None where the environment does not say how things stand."""
        return failure(self._situations) if self._situations else None


def roll_out(
    ticket: Ticket,
    environment: Environment,
    compiler: Compiler[TimedPolicy],
    execution: Execution,
    max_steps: int,
    film: Film | None = None,
) -> TrialRecord:
    """Make one trial. What goes wrong on the way becomes the error of its row: a crash is a failure, not a gap. Raises
    Unusable for what would go wrong in every trial."""
    started = time.perf_counter()
    seconds: list[tuple[float, ...]] = []
    steps, success, compile_seconds, error = 0, False, None, None
    witness = Witness(environment)
    try:
        environment.reset(ticket.environment_seed)
        sentence = environment.instructions[0] if ticket.instruction is None else ticket.instruction
        ticket = replace(ticket, instruction=sentence)
        execution.reset()
        witness.look()
        if film is not None:
            film.look(0)
        observation = environment.observe()
        policy, compile_seconds = _timed(lambda: compiler.compile(sentence, observation.images))
        while not success and steps < max_steps:
            if steps:
                observation = environment.observe()
            chunk, total = _timed(lambda seen=observation: policy.act(seen))
            timing = policy.last_timing
            seconds.append((timing.preprocessing, timing.backbone, timing.policy, total))
            due = execution.next(chunk).first(max_steps - steps)
            outcome = environment.execute(due)
            assert outcome.steps > 0, "the environment carried out no action"
            steps, success = steps + outcome.steps, outcome.success
            witness.look(due.first(outcome.steps))
            if film is not None:
                film.look(steps, last=success or steps >= max_steps)
    except Unusable:
        raise
    except Exception as crash:
        success, error = False, f"{type(crash).__name__}: {crash}"
    return ticket.record(
        started=started,
        seconds=seconds,
        success=success,
        steps=steps,
        error=error,
        compile_seconds=compile_seconds,
        smoothness=witness.smoothness(),
        failure="crashed" if error is not None else None if success else witness.failure(),
    )


def check_robot(compiler: Compiler[TimedPolicy], robot: Embodiment) -> None:
    """Raises UserError when the checkpoint drives another robot."""
    if compiler.embodiment.name != robot.name:
        raise UserError(
            f"This suite wants a policy for {robot.name}, but this checkpoint drives {compiler.embodiment.name}: "
            "choose another checkpoint or suite."
        )


def _timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    started = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - started
