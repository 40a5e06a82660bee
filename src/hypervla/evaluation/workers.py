"""Worker processes that make trials: each loads the checkpoint once and keeps one environment open.

Every ticket handed out comes back as a record: from the worker, or, when the worker died over it, from here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hypervla.contracts import Environment, UserError
from hypervla.evaluation.expert import EXPERT, Demonstrating
from hypervla.evaluation.film import Film, save_filmstrip
from hypervla.evaluation.results import TrialRecord
from hypervla.evaluation.suites import Suite
from hypervla.evaluation.trial import Compiler, Load, Ticket, check_embodiment, roll_out
from hypervla.runtime.execution import Execution


@dataclass(frozen=True)
class Job:
    """What every worker is told once."""

    checkpoint: Path | str
    suite: Suite
    execution: Execution
    device: str
    load: Load
    films: Path
    threads: int


@dataclass(frozen=True)
class Model:
    """What a worker says about the checkpoint once it is loaded."""

    digest: str
    provenance: Mapping[str, Any]
    device: str


@dataclass(frozen=True)
class Refusal:
    """Why a worker cannot go on, in words for the user."""

    message: str


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, job), daemon=True)
        with _interrupts_kept_from_children():
            self.process.start()
        theirs.close()
        self.model: Model | None = None
        self.ticket: Ticket | None = None
        self.task: str | None = None
        """The task whose environment it has open."""
        self.since = 0.0

    def give(self, ticket: Ticket) -> None:
        self.ticket, self.task, self.since = ticket, ticket.task, time.perf_counter()
        with suppress(BrokenPipeError):  # a dead worker is noticed when its connection is read
            self.connection.send(ticket)

    def hear(self) -> TrialRecord | None:
        """The record it sends, or None when it has just become ready. A worker that died over a ticket failed it."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            death = f"the worker process died (exit code {self.process.exitcode})"
            if self.ticket is None:
                raise RuntimeError(f"While loading the checkpoint, {death}; its own words are above.") from None
            return self.ticket.record(started=self.since, error=death)
        if isinstance(message, Refusal):
            raise UserError(message.message)
        if isinstance(message, Model):
            self.model = message
            return None
        return message

    def stop(self, *, kindly: bool) -> None:
        if kindly:
            with suppress(OSError):
                self.connection.send(None)
            self.process.join(timeout=5)
        self.process.terminate()
        self.process.join(timeout=5)
        self.process.kill()
        self.process.join()
        self.connection.close()


class Crew:
    """Several workers on one job. Leaving the `with` block stops them all."""

    def __init__(self, job: Job, size: int) -> None:
        self.job, self.size = job, size
        self.workers: list[Worker] = []

    def __enter__(self) -> Crew:
        try:
            for _ in range(self.size):
                self.workers.append(Worker(self.job))
        except BaseException:
            self.__exit__(KeyboardInterrupt, None, None)
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for worker in self.workers:
            worker.stop(kindly=kind is None)

    def ready(self) -> Model:
        """Wait until every worker has loaded the checkpoint. Raises UserError when one refuses."""
        for worker in self.workers:
            while worker.model is None:
                worker.hear()
        models = [worker.model for worker in self.workers if worker.model]
        assert len({model.digest for model in models}) == 1, "all workers load the same checkpoint"
        return models[0]

    def work(self, tickets: Sequence[Ticket]) -> Iterator[TrialRecord]:
        """Make the trials, several at once; records come as they end."""
        pending: dict[str, deque[Ticket]] = {}
        for ticket in tickets:
            pending.setdefault(ticket.task, deque()).append(ticket)
        for worker in self.workers:
            _give_next(worker, pending)
        while any(worker.ticket for worker in self.workers) or any(pending.values()):
            heard = wait([worker.connection for worker in self.workers if worker.ticket or worker.model is None])
            for place, worker in enumerate(self.workers):
                if worker.connection not in heard:
                    continue
                record = worker.hear()
                worker.ticket = None
                if not worker.process.is_alive() and any(pending.values()):
                    worker.stop(kindly=False)
                    self.workers[place] = Worker(self.job)
                elif worker.process.is_alive():
                    _give_next(worker, pending)
                if record is not None:
                    yield record


def _give_next(worker: Worker, pending: Mapping[str, deque[Ticket]]) -> None:
    """Hand out a trial of the task the worker has open, or of the task with most trials left."""
    left = {task: queue for task, queue in pending.items() if queue}
    if left:
        task = worker.task if worker.task in left else max(left, key=lambda task: len(left[task]))
        worker.give(left[task].popleft())


def _work(connection: Connection, job: Job) -> None:
    """A worker's life: load, then make trials until told to stop or the parent is gone."""
    os.environ.setdefault("OMP_NUM_THREADS", str(job.threads))  # before PyTorch is imported
    opened = OpenEnvironment(job.suite.environment)
    try:
        if job.checkpoint == EXPERT:
            compiler = expert = Demonstrating(job.suite)
            opened = OpenEnvironment(expert.environment)
        else:
            compiler = job.load(job.checkpoint, job.device)
        check_embodiment(compiler, job.suite)
        connection.send(Model(compiler.digest, dict(compiler.provenance), _device_name(job.device)))
        while (ticket := connection.recv()) is not None:
            connection.send(_make(ticket, job, compiler, opened))
    except UserError as error:
        connection.send(Refusal(str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    finally:
        opened.close()


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


def _make(ticket: Ticket, job: Job, compiler: Compiler, opened: OpenEnvironment) -> TrialRecord:
    """One trial. Raises UserError when the environment cannot be had (not installed) or the film cannot be written."""
    started = time.perf_counter()
    try:
        environment = opened.get(ticket.task)
    except UserError:
        raise
    except Exception as crash:
        return ticket.record(started=started, error=f"{type(crash).__name__} while opening the environment: {crash}")
    film = Film(environment) if ticket.filmed else None
    record = roll_out(ticket, environment, compiler, job.execution, job.suite.steps_of(ticket.task), film)
    if record.trial.error is not None:
        with suppress(Exception):  # nothing a crashed environment does may reach the next trial
            opened.close()
    if film is not None and film.frames:
        try:
            save_filmstrip(film, job.films / ticket.task, ticket.instruction, record.trial.ending)
        except OSError as error:
            raise UserError(f"The film of {ticket.task} could not be written to {job.films}: {error}.") from error
    return record


def _device_name(device: str) -> str:
    """The accelerator's own name, or "cpu"."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; a child started in here inherits that it is not for them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it later would unblock the signal again (CPython 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
