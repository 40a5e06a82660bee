"""Evaluate a checkpoint on a suite, or let it carry out one sentence of your own on film."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from hypervla.alone import alone_in
from hypervla.contracts import UserError
from hypervla.evaluation.expert import EXPERT
from hypervla.evaluation.film import PLAYBACK_HZ, Film, write_video
from hypervla.evaluation.journal import Journal
from hypervla.evaluation.processes import ProcessCrew
from hypervla.evaluation.ray_crew import RayCrew
from hypervla.evaluation.results import Conditions, Results, Trial
from hypervla.evaluation.suites import InstructionSet, Suite, environment_seed
from hypervla.evaluation.trial import Load, Ticket, check_robot, load_compiler, roll_out, tickets
from hypervla.evaluation.workers import Job, Model, adjust
from hypervla.runtime.client import Served
from hypervla.runtime.execution import Execution
from hypervla.runtime.opening import FAST, describe
from hypervla.runtime.provenance import code_commit, command, machine


def evaluate(
    checkpoint: Path | str,
    suite: Suite,
    *,
    trials: int,
    seed: int,
    execution: Execution,
    out: Path,
    workers: int | None = None,
    device: str = "cpu",
    instructions: InstructionSet = "canonical",
    engine: str | None = None,
    ray: str | None = None,
    on_trial: Callable[[Trial, int, int], None] = lambda trial, done, total: None,
    on_kept: Callable[[int, int], None] = lambda kept, total: None,
    load: Load | None = None,
) -> Results:
    """Try every task of a suite `trials` times, several environments at once, and write OUT/results.json. In place of a
    checkpoint's folder the address of a policy server will do (ws://HOST:PORT), or "expert", the suite's demonstrator.

    Every finished trial is kept in OUT/results.jsonl, so that the same call goes on where an interrupted one stopped
    and a different one is refused. `on_trial(trial, done, total)` hears of each that is made, and before
    `on_kept(kept, total)` of how many there are, where there are some. Films of the first trial of each task
    lie in OUT/films. With `engine` the policies act on that: the file of an exported one, or cuda:PRECISION. With
    `ray` the workers are actors on the cluster of that address (RayCrew). Raises UserError for what the user can put
    right, KeyboardInterrupt with one line on Ctrl-C.
    """
    _check(checkpoint, trials, workers, engine, ray)
    started = time.perf_counter()
    asked = tickets(suite, trials=trials, seed=seed, instructions=instructions)
    load = load or partial(load_compiler, robot=suite.embodiment, engine=engine, middle=suite.middle)
    job = Job(checkpoint, suite, execution, device, load)
    crew_of = ProcessCrew if ray is None else partial(RayCrew, address=ray)
    with crew_of(job, workers, len(asked), out / "films") as crew:
        model = crew.ready()
        conditions = _conditions(job, model, trials, seed, instructions, engine)
        with alone_in(out), closing(Journal(out / "results.jsonl", conditions)) as journal:
            if kept := journal.records:
                on_kept(len(kept), len(asked))
            try:
                for record in crew.work([ticket for ticket in asked if (ticket.task, ticket.trial) not in kept]):
                    journal.append(record)
                    on_trial(record.trial, len(kept), len(asked))
            except KeyboardInterrupt:
                message = f"Stopped with {len(kept)} of {len(asked)} trials kept in {out}; the same command goes on."
                raise KeyboardInterrupt(message) from None
    name = model.served.name if model.served else getattr(checkpoint, "name", checkpoint)
    provenance = {
        "checkpoint": {"name": name, "digest": model.digest, **model.provenance},
        "machine": machine() | {"device": model.device, "workers": crew.size, **crew.about()},
        "command": command(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    results = Results.of(conditions, kept.values(), provenance)
    results.save(out / "results.json")
    return results


def _check(checkpoint: Path | str, trials: int, workers: int | None, engine: str | None, ray: str | None) -> None:
    if trials < 1:
        raise UserError(f"An evaluation wants at least 1 trial a task, but {trials} came.")
    if workers is not None and workers < 1:
        raise UserError(f"An evaluation wants at least 1 worker, but {workers} came.")
    if ray is not None and engine is not None and not engine.startswith(FAST):
        raise UserError(f"'{engine}' is a file of this machine, which a Ray cluster does not have: leave out --ray.")
    if engine is not None and not isinstance(checkpoint, Path):
        raise UserError(f"An engine is for a checkpoint, but '{checkpoint}' came: leave out --engine.")


def _conditions(
    job: Job, model: Model, trials: int, seed: int, instructions: InstructionSet, engine: str | None
) -> Conditions:
    suite, served = job.suite, model.served
    steps = tuple(suite.steps_of(task) for task in suite.tasks)
    return Conditions(
        suite=suite.name,
        tasks=suite.tasks,
        trials=trials,
        seed=seed,
        instructions=instructions,
        execution=str(job.execution),
        max_steps=max(steps),
        task_steps=steps if len(set(steps)) > 1 else (),
        success_rule=suite.success_rule,
        scene=" ".join(filter(None, (suite.scene, _looked(job, served)))),
        embodiment=suite.embodiment.name,
        checkpoint=model.digest,
        device=served.device if served else job.device,
        commit=code_commit(),
        engine=served.engine if served else engine and describe(engine),
    )


def _looked(job: Job, served: Served | None) -> str:
    """How much of the pictures was looked at, where the protocol has checkpoints look at their middle."""
    middle = job.suite.middle
    if middle == 1.0 or job.checkpoint == EXPERT:
        return ""
    share = f"the middle {100 * middle:.0f} % of the pictures"
    if served is None or served.middle == middle:
        return f"The checkpoint looks at {share}."
    return f"The server was sent whole pictures, where this protocol has checkpoints look at {share}."


def act(
    checkpoint: Path,
    suite: Suite,
    task: str,
    *,
    instruction: str,
    seed: int,
    execution: Execution,
    video: Path,
    device: str = "cpu",
    size: int = 480,
    load: Load | None = None,
) -> Trial:
    """Ask for something in your own words, once, and film it: an MP4 with the sentence and the step below the picture.

    Raises UserError for an unknown task, an instruction no policy can be compiled from, or a crash on the way.
    """
    suite = suite.only([task])
    compiler = (load or partial(load_compiler, robot=suite.embodiment, middle=suite.middle))(checkpoint, device)
    check_robot(compiler, suite.embodiment)
    environment = suite.environment(task)
    adjust(environment, compiler.embodiment)
    film = Film(environment, size, smooth=1, every=max(1, round(suite.embodiment.control_hz / PLAYBACK_HZ)))
    ticket = Ticket(task, 0, environment_seed(seed, 0), instruction, filmed=True)
    try:
        trial = roll_out(ticket, environment, compiler, execution, suite.steps_of(task), film).trial
    finally:
        environment.close()
    if trial.error is not None:
        raise UserError(f"The rollout stopped after {trial.steps} steps: {trial.error}")
    video.parent.mkdir(parents=True, exist_ok=True)
    write_video(video, film.captioned(instruction, trial.ending), film.hz)
    return trial
