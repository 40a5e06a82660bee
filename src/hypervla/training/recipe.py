"""What a recipe is: one complete training configuration, frozen. The recipes themselves are in recipes.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypervla.data.stream import Sampling
from hypervla.embodiment import Embodiment
from hypervla.models.action_head import ActionHead, LinearHead, ReleasedHead
from hypervla.models.interface import ModelConfig
from hypervla.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training run is told, whatever it learns from."""

    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    steps: int
    seed: int
    precision: Literal["float32", "bfloat16"]
    """Of activations; parameters stay in float32."""
    trace: bool
    """Compile the training step with torch.compile (needs a C++ compiler on a CPU)."""
    checkpoint_dtype: Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """One complete configuration of learning actions from demonstrations."""

    sampling: Sampling
    batch_contexts: int
    memory_gb: float
    """All images are decoded once and held in memory when they need no more than this; else decoded step by step."""


def head_for(robot: Embodiment, horizon: int) -> ActionHead:
    """The released code's head for a robot with a gripper; one without has nothing for its second part to decide."""
    if robot.gripper is None:
        return LinearHead(horizon, robot.action_size)
    return ReleasedHead(horizon, robot.action_size, robot.gripper.index)
