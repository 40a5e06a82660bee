"""Context → task policy: the only place where the large networks run outside training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from hypervla import checkpoint
from hypervla.contracts import Image, TaskContext, UserError
from hypervla.data.normalize import Robot
from hypervla.models.familiarity import KnownContexts
from hypervla.models.hypervla import HyperVLA
from hypervla.remembered import Remembered
from hypervla.runtime.monolithic import Teller
from hypervla.runtime.task_policy import Engine, TaskPolicy, TaskPolicyCard, preprocess
from hypervla.runtime.torch_engine import TorchEngine


@dataclass(frozen=True)
class Written:
    """What was generated for a task context."""

    weights: Float32[np.ndarray, " W"]
    distance: float | None
    """Of the context from those of the training, where the checkpoint knows."""


class Compiler:
    """A loaded model. Its task policies keep the backbone alive and need nothing else of it.

    Asked again for the same sentence and first image, it gives the weights it has written before: `remembered` holds
    the latest `remember` of them and counts how often that was so. The model's instruction encoder remembers sentences
    of its own accord.
    """

    def __init__(
        self,
        model: HyperVLA,
        about: checkpoint.Checkpoint,
        backbone_digest: str,
        device: str,
        robot: str | None,
        known: KnownContexts | None = None,
        remember: int = 256,
    ) -> None:
        self.model, self.device = model, device
        self.digest, self.provenance = about.digest, about.provenance
        own = Robot.from_json(about.robot(robot))
        self.embodiment, self.normalizer = own.embodiment, own.normalizer
        self.engine = TorchEngine(model.backbone, about.hypervla(), backbone_digest, device)
        self.acts_on: Engine = self.engine
        self.known, self.refuse_unfamiliar = known, False
        self.remembered: Remembered[str, Written] = Remembered(remember)

    def see_middle(self, area: float) -> None:
        """From now on, look at the middle of the cameras' views, of this share of the area: how policies are evaluated
        that were trained on random crops (HyperVLA's released code: 0.9)."""
        self.embodiment = self.embodiment.middle(area)

    def use(self, engine: Engine) -> None:
        """Task policies that are compiled from now on act on this engine. Raises UserError for another backbone's."""
        if engine.backbone_digest != self.engine.backbone_digest:
            raise UserError(
                f"The engine runs the backbone {engine.backbone_digest[:12]}…, but this checkpoint's is "
                f"{self.engine.backbone_digest[:12]}…: export it again."
            )
        self.acts_on = engine

    def compile(self, instruction: str, images: Image | Mapping[str, Image]) -> TaskPolicy:
        """The task policy for an instruction and the episode's first image, of the only camera or by camera name.

        Raises UserError for an empty or over-long instruction, images the robot's cameras do not deliver, and with
        `refuse_unfamiliar` for a context unlike those of the training.
        """
        (policy,) = self.compile_many([TaskContext(instruction, self.embodiment.by_camera(images))])
        return policy

    def compile_many(self, contexts: Sequence[TaskContext]) -> list[TaskPolicy]:
        """One task policy per context; those not remembered are generated in one call."""
        if self.refuse_unfamiliar and self.known is None:
            raise UserError(
                "This checkpoint does not know the contexts of its training, so none can be refused as unlike them: "
                "hypervla contexts makes them known, from the data."
            )
        for context in contexts:
            for camera in self.embodiment.cameras:
                self.embodiment.check_image(camera.name, context.images.get(camera.name))
        keys = [self._key(context) for context in contexts]
        written = self.remembered.many(keys, lambda missing: self._write([contexts[i] for i in missing]))
        pairs = zip(written, contexts, strict=True)
        return [TaskPolicy(one.weights, self._card(context, one.distance), self.acts_on) for one, context in pairs]

    @torch.inference_mode()
    def _write(self, contexts: Sequence[TaskContext]) -> list[Written]:
        first = [preprocess(context.images, self.embodiment, self.engine.image_size) for context in contexts]
        pixels = torch.from_numpy(np.stack(first)).to(self.device)
        embeddings = self.model.embed([context.instruction for context in contexts], pixels)
        weights = self.model.hypernetwork.generate(embeddings).float().cpu().numpy()
        weights.flags.writeable = False  # several task policies may share a row
        distances: list[Any] = [None] * len(contexts)
        if self.known is not None:
            distances = self.known.distance(embeddings.cpu()).tolist()
        return [Written(flat, distance) for flat, distance in zip(weights, distances, strict=True)]

    def _key(self, context: TaskContext) -> str:
        """sha256 of all that the weights depend on besides this compiler's own checkpoint and robot: sentence, images,
        and what of them is looked at."""
        digest = hashlib.sha256(context.instruction.encode() + repr(self.embodiment.cameras).encode())
        for camera in self.embodiment.cameras:
            digest.update(np.ascontiguousarray(context.images[camera.name]).data)
        return digest.hexdigest()

    def _card(self, context: TaskContext, distance: float | None) -> TaskPolicyCard:
        card = TaskPolicyCard(
            instruction=context.instruction,
            embodiment=self.embodiment,
            normalizer=self.normalizer,
            backbone_digest=self.engine.backbone_digest,
            checkpoint_digest=self.digest,
            context_distance=distance,
            context_limit=None if self.known is None else self.known.limit,
        )
        if self.refuse_unfamiliar and card.unfamiliar:
            raise UserError(
                f"'{context.instruction}' with this first image is {distance:.1f} from the contexts of the training; "
                f"99.9 % of those are within {card.context_limit:.1f}: say it as the training did, or do not refuse."
            )
        return card


def load(name: str | Path, device: str = "cpu", robot: str | None = None) -> Compiler | Teller:
    """Load a checkpoint: a folder, the name of a shipped one, or a Hugging Face hub id.

    A HyperVLA comes as a Compiler; every other model as a Teller, whose policies are that model with the instruction.
    `robot` names one of the robots it was trained on, when there are several. Raises UserError.
    """
    folder = checkpoint.locate(name)
    model, about, weights = checkpoint.load(folder, device)
    if isinstance(model, HyperVLA):
        digest, known = about.backbone_digest(weights, model.backbone), checkpoint.read_contexts(folder, about)
        return Compiler(model, about, digest, device, robot, known)
    return Teller(model, about, device, robot)


def load_compiler(name: str | Path, device: str = "cpu", robot: str | None = None) -> Compiler:
    """`load` for what only a HyperVLA can do. Raises UserError for another model."""
    checkpoint.read_card(checkpoint.locate(name)).hypervla()
    compiler = load(name, device, robot)
    assert isinstance(compiler, Compiler)
    return compiler
