"""Batches as tensors, one after another, made here or in worker processes: the same for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hypervla.contracts import UserError
from hypervla.data.stream import ContextBatch, SampleStream
from hypervla.models.interface import Batch

B = TypeVar("B")


def to_tensors(batch: ContextBatch) -> Batch:
    """NumPy → torch, without copies."""

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))

    return Batch(
        instructions=batch.instructions,
        initial_images=tensor(batch.initial_images),
        images=tensor(batch.images),
        timestep_mask=tensor(batch.timestep_mask),
        proprio=None if batch.proprio is None else tensor(batch.proprio),
        actions=tensor(batch.actions),
        mask=tensor(batch.mask),
        goal_images=None if batch.goal_images is None else tensor(batch.goal_images),
        goal_shown=tensor(batch.goal_shown),
    )


def from_stream(stream: SampleStream, contexts: int) -> Callable[[int], Batch]:
    """The batch of a step, of so many contexts. Can be sent to another process."""
    return partial(_from_stream, stream, contexts)


def _from_stream(stream: SampleStream, contexts: int, step: int) -> Batch:
    return to_tensors(stream.batch(step, contexts))


class _Steps(Dataset[Any], Generic[B]):
    """Batches by step, as the data loader wants them."""

    def __init__(self, make: Callable[[int], B]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> B | UserError:
        """Damaged data is handed over as what it is: raised in a worker it would arrive as text, with a traceback."""
        try:
            return self.make(step)
        except UserError as error:
            return error


@contextmanager
def batches(make: Callable[[int], B], steps: Sequence[int], workers: int) -> Iterator[Iterator[B]]:
    """`make(step)` for these steps in order. Raises UserError for damaged data, wherever it was found."""
    if workers < 0:
        raise UserError(f"Batches are made by 0 or more worker processes, but {workers} came.")
    source = _Steps(make)
    if workers == 0:
        yield map(_whole, (source[step] for step in steps))
        return
    # Of its own generator the loader draws seeds that nobody uses; PyTorch's global one would go on by one for it.
    options: dict[str, Any] = {"prefetch_factor": 2, "worker_init_fn": _quiet, "generator": torch.Generator()}
    loader = DataLoader(source, batch_size=None, sampler=list(steps), num_workers=workers, **options)
    yield map(_whole, iter(loader))


def _whole(batch: B | UserError) -> B:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _quiet(worker: int) -> None:
    """A worker computes on its own core, and leaves Ctrl-C, which reaches the whole group, to its parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
