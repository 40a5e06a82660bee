"""Observations that an exported engine is checked and calibrated on, with the task policy of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import EpisodeReader, Observation, TaskContext, UserError, WeightLayout
from hypervla.runtime.compiler import Compiler
from hypervla.runtime.slots import Form, Slots
from hypervla.runtime.task_policy import preprocess

Inputs = tuple[Slots, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Frames:
    """N observations as an engine takes them."""

    layout: WeightLayout
    weights: Float32[np.ndarray, "N W"]
    images: UInt8[np.ndarray, "N C h w 3"]
    proprio: Float32[np.ndarray, "N P"] | None
    """Normalised."""
    of: str
    """Where they come from, in words."""

    def __len__(self) -> int:
        return len(self.images)

    def row(self, i: int, form: Form = dict) -> Inputs:
        """One of them, as an engine of this form takes it."""
        return self.rows(form, slice(i, i + 1))

    def rows(self, form: Form = dict, which: slice = slice(None)) -> Inputs:
        """Some of them, as a batch."""
        slots = Slots(self.layout.split(self.weights[which]), form)
        return slots, self.images[which], None if self.proprio is None else self.proprio[which]


def recorded_frames(compiler: Compiler, reader: EpisodeReader, count: int, seed: int = 0) -> Frames:
    """Steps of the dataset, each from another episode as long as there are enough, under the task policy of its
    episode's instruction and first images.

    Raises UserError for data of another robot than the checkpoint's.
    """
    for camera in compiler.embodiment.cameras:
        theirs = {(other.name, other.height, other.width) for other in reader.embodiment.cameras}
        if (camera.name, camera.height, camera.width) not in theirs:
            raise UserError(
                f"{reader.name} shows no camera '{camera.name}' of {camera.height}×{camera.width} pixels as the "
                f"checkpoint's robot {compiler.embodiment.name} has it: give a dataset of that robot."
            )
    random = np.random.default_rng(seed)
    episodes = random.permutation(len(reader))[np.arange(count) % len(reader)]
    firsts = reader.starts[episodes]
    rows = random.integers(firsts, reader.starts[episodes + 1])
    seen = {
        camera.name: reader.images(camera.name, [*firsts.tolist(), *rows.tolist()])
        for camera in compiler.embodiment.cameras
    }
    observed = []
    for i, row in enumerate(rows):
        proprio = None if reader.proprio is None else reader.proprio[row]
        observed.append(Observation({name: images[count + i] for name, images in seen.items()}, proprio))
    contexts = [
        TaskContext(reader.instruction(int(first)), {name: images[i] for name, images in seen.items()})
        for i, first in enumerate(firsts)
    ]
    return _frames(compiler, contexts, observed, f"{count} frames of {reader.name}")


def random_frames(compiler: Compiler, count: int, seed: int = 0) -> Frames:
    """Noise, where there is no recording: enough to see a graph that computes something else."""
    random = np.random.default_rng(seed)
    body, observed = compiler.embodiment, []
    for _ in range(count):
        images = {c.name: random.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in body.cameras}
        proprio = compiler.normalizer.inverse_proprio(random.normal(size=body.proprio_size).astype(np.float32))
        observed.append(Observation(images, proprio))
    contexts = [TaskContext(f"task {i}", observation.images) for i, observation in enumerate(observed)]
    return _frames(compiler, contexts, observed, f"{count} images of noise")


def _frames(compiler: Compiler, contexts: Sequence[TaskContext], observed: Sequence[Observation], of: str) -> Frames:
    engine, body = compiler.engine, compiler.embodiment
    for observation in observed:
        body.check_observation(observation, needs_proprio=engine.reads_proprio)
    proprio = None
    if engine.reads_proprio:
        states = [np.asarray(observation.proprio, np.float32) for observation in observed]
        proprio = np.stack([compiler.normalizer.forward_proprio(state) for state in states])
    return Frames(
        layout=engine.layout,
        weights=np.stack([policy.weights for policy in compiler.compile_many(contexts)]),
        images=np.stack([preprocess(observation.images, body, engine.image_size) for observation in observed]),
        proprio=proprio,
        of=of,
    )
