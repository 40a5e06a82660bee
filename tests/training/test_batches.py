"""Batches are the same, wherever they are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.fakes import NumberedReader

from hypervla.contracts import UserError
from hypervla.data.augment import OCTO
from hypervla.data.mixture import Mixture
from hypervla.data.stream import SampleStream, Sampling
from hypervla.models.hypervla import Batch
from hypervla.training.batches import batches, from_stream
from hypervla.training.loop import train


def stream(reader: NumberedReader | None = None) -> SampleStream:
    mixture = Mixture([reader or NumberedReader([5, 9, 3, 8, 7])])
    sampling = Sampling(image_size=24, frames_per_context=2, augmentation=OCTO)
    return SampleStream(mixture, mixture.robots("normal"), sampling, seed=0, reads_proprio=True)


def equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers_and_from_any_step(workers: int, first: int) -> None:
    with batches(from_stream(stream(), 4), range(8), 0) as here:
        wanted = list(here)[first:]
    with batches(from_stream(stream(), 4), range(first, 8), workers) as there:
        came = list(there)
    assert len(came) == len(wanted)
    assert all(equal(one, other) for one, other in zip(wanted, came, strict=True))


class Damaged(NumberedReader):
    """One of its images cannot be read."""

    def images(self, camera: str, rows):
        if 7 in rows:
            raise UserError("The video top.mp4 is damaged at frame 7: copy the dataset again.")
        return super().images(camera, rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_found_by_a_worker_is_said_as_if_it_were_found_here(workers: int) -> None:
    with (
        pytest.raises(UserError, match=r"^The video top.mp4 is damaged at frame 7: copy the dataset again.$"),
        batches(from_stream(stream(Damaged([5, 9, 3, 8, 7])), 4), range(8), workers) as source,
    ):
        list(source)


def test_a_run_with_workers_resumes_as_one_without(uninterrupted: Path, recipe, point_data: Path, tmp_path) -> None:
    def stop(step: int, model: object) -> None:
        if step == 8:
            raise KeyboardInterrupt

    decoding = replace(recipe, memory_gb=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(decoding, point_data, tmp_path / "run", save_every=3, workers=2, on_step=stop)
    train(decoding, point_data, tmp_path / "run", save_every=3, resume=True)
    train(decoding, point_data, tmp_path / "whole", save_every=3)
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "run" / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_fewer_workers_than_none_are_refused() -> None:
    with (
        pytest.raises(UserError, match="0 or more worker processes, but -1 came"),
        batches(from_stream(stream(), 4), range(2), -1),
    ):
        pass
