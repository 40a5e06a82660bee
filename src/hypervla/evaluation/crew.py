"""Several workers on one job: who gets which trial, and what becomes of the trials of a worker that dies.

Every ticket handed out comes back as a record: from the worker, or, when the worker died over it, from here. Where
workers live is said elsewhere: in processes of this machine (processes.py) or on the machines of a Ray cluster
(ray_crew.py).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from hypervla.contracts import UserError
from hypervla.evaluation.film import Filmstrip, save_filmstrip
from hypervla.evaluation.results import TrialRecord
from hypervla.evaluation.trial import Ticket
from hypervla.evaluation.workers import Job, Made, Model, Refusal


class Died(Exception):
    """A worker is gone; says how."""


class Worker(ABC):
    """Our end of one worker."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.ticket: Ticket | None = None
        self.task: str | None = None
        """The task whose environment it has open."""
        self.since = 0.0
        self.alive = True

    def give(self, ticket: Ticket) -> None:
        self.ticket, self.task, self.since = ticket, ticket.task, time.perf_counter()
        self.send(ticket)

    def hear(self) -> Made | None:
        """What it made, or None when it has just become ready. A worker that died over a ticket failed it."""
        try:
            message = self.receive()
        except Died as death:
            self.alive = False
            if self.ticket is None:
                raise UserError(
                    f"While loading the checkpoint, {str(death).rstrip('.')}. Is there memory for so many workers? "
                    "Ask for fewer."
                ) from death
            return Made(self.ticket.record(started=self.since, error=str(death)), None)
        if isinstance(message, Refusal):
            raise UserError(message.message)
        if isinstance(message, Model):
            self.model = message
            return None
        return message

    @abstractmethod
    def send(self, ticket: Ticket) -> None:
        """A dead worker is noticed when it is listened to, not here."""

    @abstractmethod
    def receive(self) -> Model | Made | Refusal:
        """Its next message: first its model, then what each ticket came to. Raises Died."""

    @abstractmethod
    def stop(self, *, kindly: bool) -> None:
        """End it; kindly means that it may close its environment first."""


AnyWorker = TypeVar("AnyWorker", bound=Worker)


class Crew(ABC, Generic[AnyWorker]):
    """Several workers on one job: `size` of them or as many as there is room for, at most one for each trial. Leaving
    the `with` block stops them all."""

    def __init__(self, job: Job, size: int | None, trials: int, films: Path) -> None:
        self.job, self.trials, self.films = job, trials, films
        self._asked = size
        self.workers: list[AnyWorker] = []

    @property
    @abstractmethod
    def room(self) -> int:
        """How many workers suit the place."""

    @abstractmethod
    def about(self) -> Mapping[str, Any]:
        """The place, for the provenance."""

    @abstractmethod
    def hire(self) -> AnyWorker: ...

    @abstractmethod
    def heard(self, workers: Sequence[AnyWorker]) -> Sequence[AnyWorker]:
        """Wait until some of these have something to say: which."""

    @property
    def size(self) -> int:
        return min(self._asked or self.room, self.trials)

    def __enter__(self) -> Crew[AnyWorker]:
        try:
            for _ in range(self.size):
                self.workers.append(self.hire())
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
        """Make the trials, several at once; records come as they end, their films lie in FILMS/TASK."""
        pending: dict[str, deque[Ticket]] = {}
        for ticket in tickets:
            pending.setdefault(ticket.task, deque()).append(ticket)
        for worker in self.workers:
            _give_next(worker, pending)
        while any(worker.ticket for worker in self.workers) or any(pending.values()):
            for worker in self.heard([worker for worker in self.workers if worker.ticket or worker.model is None]):
                made = worker.hear()
                worker.ticket = None
                if worker.alive:
                    _give_next(worker, pending)
                elif any(pending.values()):
                    worker.stop(kindly=False)
                    self.workers[self.workers.index(worker)] = self.hire()
                if made is not None:
                    if made.film is not None:
                        self._keep(made.film, made.record.trial.task)
                    yield made.record

    def _keep(self, film: Filmstrip, task: str) -> None:
        try:
            save_filmstrip(film, self.films / task)
        except OSError as error:
            raise UserError(f"The film of {task} could not be written to {self.films}: {error}.") from error


def _give_next(worker: Worker, pending: Mapping[str, deque[Ticket]]) -> None:
    """Hand out a trial of the task the worker has open, or of the task with most trials left."""
    left = {task: queue for task, queue in pending.items() if queue}
    if left:
        task = worker.task if worker.task in left else max(left, key=lambda task: len(left[task]))
        worker.give(left[task].popleft())
