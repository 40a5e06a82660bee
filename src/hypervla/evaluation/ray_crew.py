"""A crew of actors on the machines of a Ray cluster. Each machine has the same hypervla and the suite's simulator; the
checkpoint is sent to them, records and films come back."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError
from hypervla.evaluation.crew import Crew, Died, Worker
from hypervla.evaluation.trial import Ticket
from hypervla.evaluation.workers import Job, Made, Model, Refusal, TrialMaker
from hypervla.failures import explain
from hypervla.runtime.provenance import code_commit

PATIENCE_SECONDS = 10
"""For a cluster's address to answer; Ray itself would wait for minutes."""


class Actor:
    """A worker's own side, in a process that Ray starts."""

    def open(self, commit: str, job: bytes, files: Mapping[str, bytes]) -> Model | Refusal:
        """Load the checkpoint, of these files by their paths in its folder if there are any. The job comes pickled, as
        another hypervla might not know how to read it."""
        if (here := code_commit()) != commit:
            return Refusal(
                f"The machine {platform.node()} of the Ray cluster runs {here}, but {commit} runs here: install the "
                "same hypervla on both."
            )
        asked: Job = pickle.loads(job)
        try:
            with tempfile.TemporaryDirectory(prefix="hypervla-checkpoint-") as folder:
                if files:
                    asked = replace(asked, checkpoint=_unpack(files, Path(folder) / Path(asked.checkpoint).name))
                self.maker = TrialMaker(asked)
        except Exception as error:
            if (message := explain(error)) is None:
                raise
            return Refusal(message)
        return self.maker.model

    def make(self, ticket: Ticket) -> Made | Refusal:
        try:
            return self.maker.make(ticket)
        except UserError as error:
            return Refusal(str(error))

    def close(self) -> None:
        self.maker.close()


class RayWorker(Worker):
    """The driver's end of one actor."""

    def __init__(self, told: Sequence[Any], gpus: float) -> None:
        """`told` is what Actor.open takes, large things by their place in Ray's object store."""
        import ray

        super().__init__()
        self.actor: Any = ray.remote(Actor).options(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD").remote()
        self.coming = self.actor.open.remote(*told)

    def send(self, ticket: Ticket) -> None:
        self.coming = self.actor.make.remote(ticket)

    def receive(self) -> Model | Made | Refusal:
        import ray
        from ray.exceptions import RayActorError, RayError

        try:
            return ray.get(self.coming)
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:  # all that fails there is its import
                why = str(error).splitlines()[-1]
                return Refusal(f"A machine of the Ray cluster lacks this hypervla ({why}): install there what is here.")
            words, _, _ = " ".join(str(error).split()).partition(" Some common causes include")
            raise Died(f"the worker died: {words}") from error

    def stop(self, *, kindly: bool) -> None:
        import ray

        if kindly and self.alive and self.model is not None:
            ray.wait([self.actor.close.remote()], timeout=5)
        ray.kill(self.actor)


class RayCrew(Crew[RayWorker]):
    """One actor for each worker, each on a processor core of its own and on a share of a GPU where the job wants one.

    `address` is what ray.init takes (HOST:PORT, auto, local); an empty one leaves the choice to Ray: the cluster that
    RAY_ADDRESS names or that runs on this machine, else this machine alone.
    """

    def __init__(self, job: Job, size: int | None, trials: int, films: Path, address: str) -> None:
        """Raises UserError for a device that Ray cannot give."""
        super().__init__(job, size, trials, films)
        if job.device not in ("cpu", "cuda"):
            raise UserError(f"Ray chooses the GPU of each worker, but '{job.device}' was asked for: say cpu or cuda.")
        self.address = address

    def __enter__(self) -> RayCrew:
        """Raises UserError where there is no such cluster, or no room for the workers on it."""
        import ray

        _connect(self.address)
        try:
            self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.gpus = self._share()
            self.told = code_commit(), ray.put(pickle.dumps(self.job)), ray.put(_pack(self.job.checkpoint))
            super().__enter__()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import ray

        super().__exit__(kind, error, trace)
        ray.shutdown()

    @property
    def room(self) -> int:
        return sum(cores for cores, _ in self._usable())

    def about(self) -> Mapping[str, Any]:
        return {"threads_per_worker": 1, "ray_nodes": len(self.nodes)}

    def hire(self) -> RayWorker:
        return RayWorker(self.told, self.gpus)

    def heard(self, workers: Sequence[RayWorker]) -> Sequence[RayWorker]:
        import ray

        ready, _ = ray.wait([worker.coming for worker in workers])
        return [worker for worker in workers if worker.coming in ready]

    def _usable(self) -> list[tuple[int, int]]:
        """Cores and GPUs of each machine that has what the job wants."""
        machines = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in self.nodes]
        return [(cores, gpus) for cores, gpus in machines if cores and (gpus or self.job.device == "cpu")]

    def _share(self) -> float:
        """The share of a GPU that each worker gets. Raises UserError where there is no room for all workers."""
        if not self.room or self.size > self.room:
            what = "cores beside a GPU" if self.job.device == "cuda" else "cores"
            raise UserError(
                f"This Ray cluster has {self.room} {what}, but {self.size or 1} workers were asked for: say fewer "
                "--workers, or add machines."
            )
        return gpu_share(self._usable(), self.size) if self.job.device == "cuda" else 0.0


def gpu_share(machines: Sequence[tuple[int, int]], workers: int) -> float:
    """The largest share of a GPU with which this many workers of a core each find room on machines of these cores and
    GPUs; rounded down to Ray's four digits."""
    each = next(each for each in count(1) if sum(min(cores, gpus * each) for cores, gpus in machines) >= workers)
    return 10_000 // each / 10_000


def _connect(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    host, separator, port = (address or os.environ.get("RAY_ADDRESS", "")).removeprefix("ray://").rpartition(":")
    try:
        if separator:
            socket.create_connection((host, int(port)), PATIENCE_SECONDS).close()
        ray.init(address or None, include_dashboard=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"There is no Ray cluster to work with at '{address or 'this machine'}' ({words}): ray start --head starts "
            "one and says its address."
        ) from error


def _pack(checkpoint: Path | str) -> dict[str, bytes]:
    """The files of a folder by their paths in it; of what is none, nothing."""
    files = Path(checkpoint).rglob("*") if isinstance(checkpoint, Path) else ()
    return {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in files if path.is_file()}


def _unpack(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
