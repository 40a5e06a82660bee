"""What engines are timed with: a HyperVLA's control step with random weights, and noise to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hypervla.data.normalize import Normalizer
from hypervla.embodiment import Embodiment
from hypervla.models.generated import initial_weight
from hypervla.models.hypervla import HyperVLAConfig
from hypervla.runtime.folding import folded_shapes
from hypervla.runtime.frames import Frames
from hypervla.runtime.graph import ControlStep
from hypervla.runtime.torch_engine import TorchEngine

NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Subject:
    """What `export` needs of a compiler."""

    engine: TorchEngine
    embodiment: Embodiment
    normalizer: Normalizer
    digest: str = "random weights"

    @staticmethod
    def make(config: HyperVLAConfig, robot: Embodiment, device: str) -> Subject:
        torch.manual_seed(0)
        backbone = config.backbone.build(pretrained=False).to(device).eval().requires_grad_(False)
        ones, zeros = np.ones, np.zeros
        sizes = robot.action_size, robot.proprio_size
        normalizer = Normalizer(*(f(n, np.float32) for n in sizes for f in (zeros, ones)), gripper=robot.gripper)
        return Subject(TorchEngine(backbone, config, NO_DIGEST, device), robot, normalizer)

    def frames(self, count: int, seed: int = 0) -> Frames:
        """Noise under as many task policies with ordinary random weights."""
        random, size = np.random.default_rng(seed), self.engine.image_size
        torch.manual_seed(seed)
        specs = self.engine.layout.specs
        flat = [torch.cat([initial_weight(spec).flatten() for spec in specs]) for _ in range(count)]
        cameras, states = len(self.embodiment.cameras), self.embodiment.proprio_size
        return Frames(
            layout=self.engine.layout,
            weights=torch.stack(flat).numpy(),
            images=random.integers(0, 256, (count, cameras, size, size, 3), np.uint8),
            proprio=random.normal(size=(count, states)).astype(np.float32) if self.engine.reads_proprio else None,
            of=f"{count} images of noise",
        )


def step_on_meta(config: HyperVLAConfig, batch: int) -> tuple[ControlStep, tuple[Any, ...]]:
    """The step that engines run, without memory for its numbers, and its inputs."""
    with torch.device("meta"):
        engine = TorchEngine(config.backbone.build(pretrained=False).eval(), config, NO_DIGEST, "cpu")
        images = torch.empty(batch, config.cameras, config.image_size, config.image_size, 3, dtype=torch.uint8)
        shapes = folded_shapes(engine.layout, config.policy.heads)
        inputs: list[Any] = [images, {name: torch.empty(batch, *shape) for name, shape in shapes.items()}]
        if config.proprio_size:
            inputs.append(torch.empty(batch, config.proprio_size))
        return ControlStep(engine), tuple(inputs)
