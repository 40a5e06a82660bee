"""Records demonstrations: an expert acts in parallel processes until every task has its successful episodes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
from jaxtyping import Float32

from hypervla.alone import alone_in
from hypervla.child import interrupts_kept_from_children
from hypervla.contracts import Demonstrator, Environment, Episode, Make, Observation, UserError
from hypervla.data.progress import RecordingProgress
from hypervla.data.staged import stage_episode, write_json
from hypervla.data.staging import FOLDER, Plan, assemble, attempt_folder, is_finished, open_staging, tallies_of


@runtime_checkable
class Driver(Protocol):
    """A policy that moves the robot for the first part of an episode, while the demonstrator says what it should do."""

    def start(self, instruction: str, observation: Observation) -> None:
        """Begin an episode with its first observation."""
        ...

    def action(self, observation: Observation) -> Float32[np.ndarray, " A"]:
        """The action to carry out now."""
        ...


MakeDriver = Callable[[], Driver]
DRIVEN_STEPS = 120
"""A driver hands over to the demonstrator after at most so many steps, drawn anew for each episode."""


def record(
    out: Path,
    tasks: Sequence[str],
    episodes: Sequence[int] | int,
    *,
    make: Make,
    noise: float,
    seed: int,
    workers: int,
    max_steps: int = 400,
    suite: str = "",
    command: str = "",
    make_driver: MakeDriver | None = None,
    driver: str = "",
) -> None:
    """Record a LeRobot v3.0 dataset of successful demonstrations into `out`.

    With `make_driver` a policy drives the first steps of each episode and the demonstrator labels the states it gets
    into, then rescues it (DAgger, Ross et al. 2011); `driver` names it, for instance by its checkpoint's digest.

    `make(task)` gives an environment and its demonstrator; it is called in spawned processes, so it must be a
    module-level function (or a `functools.partial` of one), except with one worker, which is this process.
    The same call continues an interrupted recording. Raises UserError, and KeyboardInterrupt with a message.
    """
    counts = (episodes,) * len(tasks) if isinstance(episodes, int) else tuple(episodes)
    plan = Plan(suite, tuple(tasks), counts, noise, seed, max_steps, driver)
    _check(plan, workers)
    staging = out / FOLDER
    try:
        with alone_in(out):
            if is_finished(out, plan):
                print(f"{out} already holds this recording.")
                return
            open_staging(out, staging, plan)
            _collect(staging, plan, _Tools(make, make_driver), workers)
            assemble(out, staging, plan, command)
    except KeyboardInterrupt:
        kept = sum(tally.kept for tally in tallies_of(staging, plan))
        raise KeyboardInterrupt(
            f"Interrupted: {kept} of {sum(plan.episodes)} episodes are kept; the same command continues."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"The disk of {out} is full: free some space; the same command continues where this one stopped."
        ) from error


def _check(plan: Plan, workers: int) -> None:
    if not plan.tasks or len(set(plan.tasks)) != len(plan.tasks):
        raise UserError(f"Recording needs one or more different tasks, but {list(plan.tasks)} came.")
    if len(plan.episodes) != len(plan.tasks):
        raise UserError(f"{len(plan.tasks)} tasks need as many numbers of episodes, but {len(plan.episodes)} came.")
    if min(plan.episodes) < 1 or workers < 1 or plan.max_steps < 1:
        raise UserError("Episodes, workers and steps must each be at least 1.")
    if plan.seed < 0:
        raise UserError(f"The seed is a whole number of 0 or more, but {plan.seed} came.")
    if not 0 <= plan.noise < float("inf"):
        raise UserError(f"The action noise is a standard deviation of 0 or more, but {plan.noise} came.")


@dataclass(frozen=True)
class _Tools:
    """What a worker process needs to make its own environments, demonstrators and driver."""

    make: Make
    make_driver: MakeDriver | None


# One attempt


def demonstrate(
    environment: Environment,
    demonstrator: Demonstrator,
    *,
    seed: int,
    noise: float,
    max_steps: int,
    driver: Driver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Episode | None:
    """One attempt from the scene of `seed`; None when it is stopped or has not succeeded within `max_steps`.

    The executed action is the expert's (or, at first, the driver's) plus Gaussian noise on all but the gripper, of up
    to `noise` times an action's largest value; the label is the expert's alone.
    """
    embodiment = environment.embodiment
    random = np.random.default_rng([seed, crc32(environment.task.encode())])
    drawn = random.uniform(0, noise)
    scale = drawn * (np.array(embodiment.action_high) - np.array(embodiment.action_low)) / 2
    if embodiment.gripper is not None:
        scale[embodiment.gripper.index] = 0
    hidden_state = getattr(environment, "environment_state", None)
    environment.reset(seed)
    observations, actions, states = [], [], []
    driven = 0 if driver is None else int(random.integers(DRIVEN_STEPS))
    for step in range(max_steps):
        if stop():
            return None
        observations.append(environment.observe())
        if hidden_state is not None:
            states.append(hidden_state())
        action = np.asarray(demonstrator.action(), np.float32)
        actions.append(action)
        if driver is not None and step == 0:
            driver.start(str(random.choice(list(environment.instructions))), observations[0])
        chosen = driver.action(observations[-1]) if driver is not None and step < driven else action
        noisy = chosen + np.float32(scale * random.standard_normal(len(action)))
        if environment.execute(embodiment.clip(noisy[None])).success:
            break
    else:
        return None
    success = np.zeros(len(actions), bool)
    success[-1] = True
    return Episode(
        instruction=environment.instructions[0],
        images={
            camera.name: np.stack([observation.images[camera.name] for observation in observations])
            for camera in embodiment.cameras
        },
        actions=np.stack(actions),
        proprio=np.stack([np.float32(observation.proprio) for observation in observations])
        if embodiment.proprio_size
        else None,
        success=success,
        environment_state=np.stack(states) if states else None,
        source={"task": environment.task, "seed": seed, "noise": drawn, "driven": driven},
    )


class _Recorder:
    """Carries out attempts in one process, keeping the environment of the latest task."""

    def __init__(self, staging: Path, plan: Plan, tools: _Tools, stop: Callable[[], bool]) -> None:
        self._staging, self._plan, self._make, self._stop = staging, plan, tools.make, stop
        self._make_driver: MakeDriver | None = tools.make_driver
        self._driver: Driver | None = None
        self._task = -1
        self._environment: Environment | None = None
        self._demonstrator: Demonstrator | None = None

    def attempt(self, task: int, attempt: int) -> bool | None:
        """Leave what came of the attempt in the staging folder; None when it was stopped."""
        plan = self._plan
        if self._task != task:
            self.close()
            self._environment, self._demonstrator = self._make(plan.tasks[task])
            self._task = task
        if self._make_driver is not None and self._driver is None:
            self._driver = self._make_driver()
        environment = self._environment
        assert environment is not None
        assert self._demonstrator is not None
        episode = demonstrate(
            environment, self._demonstrator,
            seed=plan.seed + attempt, noise=plan.noise, max_steps=plan.max_steps,
            driver=self._driver, stop=self._stop,
        )  # fmt: skip
        if episode is None and self._stop():
            return None
        final = attempt_folder(self._staging, task, attempt)
        temporary = final.with_name(final.name + ".tmp")
        temporary.mkdir(parents=True)
        if episode is not None:
            stage_episode(temporary, episode, int(environment.embodiment.control_hz))
        about = {
            "success": episode is not None,
            "embodiment": environment.embodiment.to_json(),
            "instructions": list(environment.instructions),
        }
        write_json(temporary / "attempt.json", about)
        temporary.rename(final)
        return episode is not None

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment, self._task = None, -1


_recorder: _Recorder | None = None


def _start_worker(staging: Path, plan: Plan, tools: _Tools, stop: Any) -> None:
    """Set up a spawned process, which ends with its parent."""
    global _recorder
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _recorder = _Recorder(staging, plan, tools, stop.is_set)


def _attempt_in_worker(task: int, attempt: int) -> bool | None:
    assert _recorder is not None
    return _recorder.attempt(task, attempt)


# All attempts


def _collect(staging: Path, plan: Plan, tools: _Tools, workers: int) -> None:
    tallies = tallies_of(staging, plan)
    with RecordingProgress(tallies) as display, _workers(staging, plan, tools, workers) as submit:
        running: dict[Future[bool | None], tuple[int, int]] = {}
        while True:
            for task, tally in enumerate(tallies):
                while len(running) < workers and (attempt := tally.next_attempt()) is not None:
                    running[submit(task, attempt)] = (task, attempt)
                    tally.running.add(attempt)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, attempt = running.pop(future)
                success = future.result()
                tallies[task].running.remove(attempt)
                assert success is not None
                tallies[task].ended[attempt] = success
                display.update()
                if tallies[task].hopeless:
                    raise UserError(
                        f"The demonstrator of {plan.tasks[task]} succeeded in {tallies[task].kept} of "
                        f"{len(tallies[task].ended)} attempts: lower the action noise or allow more steps."
                    )


Submit = Callable[[int, int], "Future[bool | None]"]


@contextmanager
def _workers(staging: Path, plan: Plan, tools: _Tools, workers: int) -> Iterator[Submit]:
    """Something to submit attempts to; leaving early stops the episodes under way."""
    if workers == 1:
        recorder = _Recorder(staging, plan, tools, lambda: False)

        def here(task: int, attempt: int) -> Future[bool | None]:
            future: Future[bool | None] = Future()
            future.set_result(recorder.attempt(task, attempt))
            return future

        try:
            yield here
        finally:
            recorder.close()
        return
    context = get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (staging, plan, tools, stop))

    def there(task: int, attempt: int) -> Future[bool | None]:
        with interrupts_kept_from_children():  # workers start here
            return pool.submit(_attempt_in_worker, task, attempt)

    try:
        yield there
    except BrokenProcessPool as error:
        raise UserError(
            "A recording process died (out of memory?): run the same command again with fewer workers; it continues."
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
