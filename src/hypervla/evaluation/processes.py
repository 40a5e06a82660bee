"""A crew of processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from hypervla.child import interrupts_kept_from_children
from hypervla.evaluation.crew import Crew, Died, Worker
from hypervla.evaluation.trial import Ticket
from hypervla.evaluation.workers import Job, Made, Model, Refusal, TrialMaker
from hypervla.failures import explain
from hypervla.runtime.provenance import cores

THREADS = "OMP_NUM_THREADS"


class ProcessWorker(Worker):
    """The parent's end of one worker process."""

    def __init__(self, job: Job, threads: int) -> None:
        super().__init__()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, job, threads), daemon=True)
        with interrupts_kept_from_children():
            self.process.start()
        theirs.close()

    def send(self, ticket: Ticket) -> None:
        with suppress(BrokenPipeError):
            self.connection.send(ticket)

    def receive(self) -> Model | Made | Refusal:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise Died(f"the worker process died (exit code {self.process.exitcode})") from None

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


class ProcessCrew(Crew[ProcessWorker]):
    """One process for each worker, which share this machine's cores."""

    @property
    def room(self) -> int:
        return cores()

    @property
    def threads(self) -> int:
        return max(1, cores() // self.size)

    def about(self) -> Mapping[str, Any]:
        return {"threads_per_worker": int(os.environ.get(THREADS, self.threads))}

    def hire(self) -> ProcessWorker:
        return ProcessWorker(self.job, self.threads)

    def heard(self, workers: Sequence[ProcessWorker]) -> Sequence[ProcessWorker]:
        connections = wait([worker.connection for worker in workers])
        return [worker for worker in workers if worker.connection in connections]


def _work(connection: Connection, job: Job, threads: int) -> None:
    """A worker's life: load, then make trials until told to stop or the parent is gone."""
    os.environ.setdefault(THREADS, str(threads))  # before PyTorch is imported
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            with closing(TrialMaker(job)) as maker:
                connection.send(maker.model)
                while (ticket := connection.recv()) is not None:
                    connection.send(maker.make(ticket))
        except Exception as error:
            if (message := explain(error)) is None:
                raise
            connection.send(Refusal(message))
