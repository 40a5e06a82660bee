"""Policies that read the instruction at every step: the systems HyperVLA is compared with, under its contract."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hypervla.checkpoint import Checkpoint
from hypervla.contracts import ActionChunk, Image, Observation, TaskContext, UserError
from hypervla.data.normalize import Robot
from hypervla.models.interface import Inputs
from hypervla.runtime.task_policy import Timing, preprocess


class InstructedPolicy:
    """A Monolithic model with one instruction and its memory of the last observations; a Policy."""

    def __init__(self, model: Any, robot: Robot, instruction: str, device: str, digest: str = "") -> None:
        """`digest` is the checkpoint's."""
        self.model, self.instruction, self.device = model, instruction, device
        self.embodiment, self.normalizer = robot.embodiment, robot.normalizer
        self.last_timing = Timing(0.0, 0.0, 0.0)
        about = json.dumps([digest, self.embodiment.to_json(), self.normalizer.digest, instruction], sort_keys=True)
        self.policy_id = hashlib.sha256(about.encode()).hexdigest()[:16]
        """Sixteen letters that stand for checkpoint, robot and instruction, which the model is told at every step."""
        self._seen: list[tuple[np.ndarray, np.ndarray | None]] = []
        """The observations of this episode that the window still holds, the newest last: images and proprio."""

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionChunk:
        """The next H actions in the robot's units. Raises UserError for an observation this robot cannot have made."""
        began = time.perf_counter()
        config = self.model.config
        reads_proprio = config.proprio_size > 0
        self.embodiment.check_observation(observation, needs_proprio=reads_proprio)
        images, proprio = preprocess(observation.images, self.embodiment, config.image_size), None
        if reads_proprio:
            proprio = self.normalizer.forward_proprio(np.asarray(observation.proprio, np.float32))
        self._seen = [*self._seen, (images, proprio)][-config.window :]
        tensors = self.model.prepare(self._inputs())
        self._finish()
        middle = time.perf_counter()
        chunk = self.model.infer(*tensors)[0].float().cpu().numpy()
        self.last_timing = Timing(middle - began, 0.0, time.perf_counter() - middle)
        if not np.isfinite(chunk).all():
            raise UserError("The policy's actions hold NaN or infinite numbers: stop the robot and check the inputs.")
        return self.embodiment.clip(self.normalizer.inverse_actions(chunk))

    def _inputs(self) -> Inputs:
        """The window as a sample of its own, the first observation repeated to the left."""
        missing = self.model.config.window - len(self._seen)
        window = [self._seen[0]] * missing + self._seen
        images = torch.from_numpy(np.stack([images for images, _ in window])).unsqueeze(0)
        states = [state for _, state in window if state is not None]
        return Inputs(
            instructions=[self.instruction],
            images=images.to(self.device),
            timestep_mask=torch.arange(len(window), device=self.device).unsqueeze(0) >= missing,
            proprio=torch.from_numpy(np.stack(states)).unsqueeze(0).to(self.device) if states else None,
        )

    def _finish(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


class Teller:
    """A loaded Monolithic model. It has nothing to compile: a policy is the model that was told the instruction."""

    def __init__(self, model: Any, about: Checkpoint, device: str, robot: str | None) -> None:
        self.model, self.device = model, device
        self.digest, self.provenance = about.digest, about.provenance
        self.robot = Robot.from_json(about.robot(robot))
        self.embodiment = self.robot.embodiment

    def see_middle(self, area: float) -> None:
        """From now on, look at the middle of the cameras' views, of this share of the area (Compiler.see_middle)."""
        self.embodiment = self.embodiment.middle(area)
        self.robot = replace(self.robot, embodiment=self.embodiment)

    def compile(self, instruction: str, images: Image | Mapping[str, Image]) -> InstructedPolicy:
        """A policy for a new episode, which has seen nothing yet. The first image is checked and not otherwise used.

        Raises UserError for an empty or over-long instruction, or images the robot's cameras do not deliver.
        """
        context = TaskContext(instruction, self.embodiment.by_camera(images))
        for camera in self.embodiment.cameras:
            self.embodiment.check_image(camera.name, context.images.get(camera.name))
        return InstructedPolicy(self.model, self.robot, instruction, self.device, self.digest)
