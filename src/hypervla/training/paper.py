"""HyperVLA as published."""

from __future__ import annotations

from hypervla.data.augment import OCTO
from hypervla.data.stream import Sampling
from hypervla.embodiment import WIDOWX, Embodiment
from hypervla.models.backbones import DinoV2
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLAConfig, PolicyConfig
from hypervla.models.instruction_encoders import T5_BASE
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.recipe import Recipe, head_for


def hypervla(robot: Embodiment) -> HyperVLAConfig:
    """The published model for a robot: DINOv2-base, T5-base, 201,500 generated weights for seven actions."""
    return HyperVLAConfig(
        backbone=DinoV2(),
        instruction_encoder=T5_BASE,
        hypernetwork=HypernetworkConfig(),
        policy=PolicyConfig(),
        head=head_for(robot, horizon=4),
        cameras=len(robot.cameras),
    )


def paper(robot: Embodiment = WIDOWX) -> Recipe:
    """HyperVLA as published, on Open X-Embodiment.

    hypervla train paper --mixture oxe_hypervla --data OXE --out runs/paper

    Published: 100,000 steps of 256 samples, less than a day on four A5000; SIMPLER 63 % (Google robot), 40 % (WidowX).
    Here: sizes, losses and optimizer only are verified; nobody has trained it with this code yet.
    """
    return Recipe(
        name="paper",
        model=hypervla(robot),
        sampling=Sampling(augmentation=OCTO),
        optimizer=OptimizerConfig(),
        steps=100_000,
        batch_contexts=256,
        seed=2025,
        memory_gb=0.0,
        precision="float32",
        trace=False,
        checkpoint_dtype="float32",
    )
