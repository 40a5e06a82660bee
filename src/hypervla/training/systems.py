"""The systems HyperVLA is compared with, at their published sizes and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypervla.baselines.rt1 import RT1, RT1_X, RT1Config
from hypervla.data.stream import Sampling
from hypervla.embodiment import WIDOWX, Embodiment
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.recipe import Recipe


def _rt1(name: str, model: RT1Config) -> Recipe:
    """Adam at 1e-4 for everything; batch and length are a guess, since the published code does not say. Actions are
    normalised to bounds, so that one set of bins serves every robot."""
    unit = (-1.0, 1.0)
    return Recipe(
        name=name,
        model=replace(model, actions=replace(model.actions, world_vector=unit, rotation_delta=unit)),
        sampling=Sampling(
            image_size=model.image_size,
            horizon=model.horizon,
            window=model.window,
            normalisation="bounds",
            rephrase=0.0,
        ),
        optimizer=OptimizerConfig(rate=1e-4, backbone_rate=1e-4, decay=0.0, warmup=0, schedule="constant"),
        steps=1_000_000,
        batch_contexts=256,
        seed=0,
        memory_gb=0.0,
        precision="float32",
        trace=False,
        checkpoint_dtype="float32",
    )


def rt1(robot: Embodiment = WIDOWX) -> Recipe:
    """RT-1 as in google-research's code: 6 frames of 8 tokens, 256 bins, instructions as USE embeddings.

    hypervla train rt1 --mixture oxe_hypervla --data OXE --out runs/rt1

    Needs use_large_v5.safetensors in the working folder: write_embeddings in baselines/rt1_sentence.py makes it from
    vectors you have. Here: counts and arithmetic are verified; nobody has trained it with this code.
    """
    return _rt1("rt1", RT1)


def rt1_x(robot: Embodiment = WIDOWX) -> Recipe:
    """RT-1-X as in open_x_embodiment's code: 15 frames of 81 tokens, 512 bins; else as rt1."""
    return _rt1("rt1_x", RT1_X)


RECIPES: tuple[Callable[..., Recipe], ...] = (rt1, rt1_x)
