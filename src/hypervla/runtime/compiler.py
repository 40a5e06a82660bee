"""Context → task policy: the only place where the large networks run outside training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from hypervla import checkpoint
from hypervla.contracts import Image, TaskContext
from hypervla.data.normalize import Robot
from hypervla.models.hypervla import HyperVLA
from hypervla.remembered import Remembered
from hypervla.runtime.monolithic import Teller
from hypervla.runtime.task_policy import TaskPolicy, TaskPolicyCard, preprocess
from hypervla.runtime.torch_engine import TorchEngine


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
        remember: int = 256,
    ) -> None:
        self.model, self.device = model, device
        self.digest, self.provenance = about.digest, about.provenance
        own = Robot.from_json(about.robot(robot))
        self.embodiment, self.normalizer = own.embodiment, own.normalizer
        self.engine = TorchEngine(model.backbone, about.hypervla(), backbone_digest, device)
        self.remembered: Remembered[str, Float32[np.ndarray, " W"]] = Remembered(remember)

    def compile(self, instruction: str, images: Image | Mapping[str, Image]) -> TaskPolicy:
        """The task policy for an instruction and the episode's first image, of the only camera or by camera name.

        Raises UserError for an empty or over-long instruction, or images the robot's cameras do not deliver.
        """
        (policy,) = self.compile_many([TaskContext(instruction, self.embodiment.by_camera(images))])
        return policy

    def compile_many(self, contexts: Sequence[TaskContext]) -> list[TaskPolicy]:
        """One task policy per context; those not remembered are generated in one call."""
        for context in contexts:
            for camera in self.embodiment.cameras:
                self.embodiment.check_image(camera.name, context.images.get(camera.name))
        keys = [self._key(context) for context in contexts]
        weights = self.remembered.many(keys, lambda missing: self._generate([contexts[i] for i in missing]))
        return [
            TaskPolicy(flat, self._card(context), self.engine) for flat, context in zip(weights, contexts, strict=True)
        ]

    @torch.inference_mode()
    def _generate(self, contexts: Sequence[TaskContext]) -> list[Float32[np.ndarray, " W"]]:
        first = [preprocess(context.images, self.embodiment, self.engine.image_size) for context in contexts]
        pixels = torch.from_numpy(np.stack(first)).to(self.device)
        weights = self.model.generate([context.instruction for context in contexts], pixels).float().cpu().numpy()
        weights.flags.writeable = False  # several task policies may share a row
        return list(weights)

    def _key(self, context: TaskContext) -> str:
        """sha256 of all that the weights depend on besides this compiler's own checkpoint and robot."""
        digest = hashlib.sha256(context.instruction.encode())
        for camera in self.embodiment.cameras:
            digest.update(np.ascontiguousarray(context.images[camera.name]).data)
        return digest.hexdigest()

    def _card(self, context: TaskContext) -> TaskPolicyCard:
        return TaskPolicyCard(
            instruction=context.instruction,
            embodiment=self.embodiment,
            normalizer=self.normalizer,
            backbone_digest=self.engine.backbone_digest,
            checkpoint_digest=self.digest,
        )


def load(name: str | Path, device: str = "cpu", robot: str | None = None) -> Compiler | Teller:
    """Load a checkpoint: a folder, the name of a shipped one, or a Hugging Face hub id.

    A HyperVLA comes as a Compiler; every other model as a Teller, whose policies are that model with the instruction.
    `robot` names one of the robots it was trained on, when there are several. Raises UserError.
    """
    model, about, weights = checkpoint.load(checkpoint.locate(name), device)
    if isinstance(model, HyperVLA):
        return Compiler(model, about, about.backbone_digest(weights, model.backbone), device, robot)
    return Teller(model, about, device, robot)


def load_compiler(name: str | Path, device: str = "cpu", robot: str | None = None) -> Compiler:
    """`load` for what only a HyperVLA can do. Raises UserError for another model."""
    checkpoint.read_card(checkpoint.locate(name)).hypervla()
    compiler = load(name, device, robot)
    assert isinstance(compiler, Compiler)
    return compiler
