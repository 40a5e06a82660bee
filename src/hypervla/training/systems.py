"""The systems HyperVLA is compared with, at their published sizes and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypervla.baselines.octo import OCTO_BASE, OCTO_SMALL, OctoConfig
from hypervla.baselines.openvla import OPENVLA_7B, PRISMATIC_7B
from hypervla.baselines.rt1 import RT1, RT1_X, RT1Config
from hypervla.data.augment import OCTO, OPENVLA
from hypervla.data.stream import Sampling
from hypervla.embodiment import WIDOWX, Camera, Embodiment
from hypervla.models.evla import EVLA_1B, EvlaConfig
from hypervla.models.lora import LoRA
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.recipe import Recipe

OCTO_ROBOT = replace(WIDOWX, name="two cameras", cameras=(Camera("primary", 256, 256), Camera("wrist", 128, 128)))
"""Whom the published weights are for."""
CONSTANT = OptimizerConfig(rate=1e-4, backbone_rate=1e-4, decay=0.0, warmup=0, schedule="constant", ema_start=None)
"""No warm-up, no decay, no average."""


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
        optimizer=CONSTANT,
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


def _octo(name: str, model: OctoConfig, robot: Embodiment) -> Recipe:
    """The released pretraining: half of the samples are told their goal by an image, half of the episodes rephrased."""
    views = model.views[: len(robot.cameras)]
    return Recipe(
        name=name,
        model=replace(model, views=views, head=replace(model.head, action_size=robot.action_size)),
        sampling=Sampling(
            image_size=model.image_size,
            window=model.window,
            horizon=model.horizon,
            rephrase=0.5,
            goal_images=0.5,
            unlabelled=True,
            augmentation=OCTO,
        ),
        optimizer=OptimizerConfig(rate=3e-4, decay=0.1, ema_start=None),
        steps=300_000,
        batch_contexts=512,
        seed=42,
        memory_gb=0.0,
        precision="float32",
        trace=False,
        checkpoint_dtype="float32",
    )


def octo_small(robot: Embodiment | None = None) -> Recipe:
    """Octo-small 1.5, 27 M parameters without T5.

    hypervla train octo_small --mixture oxe_hypervla --data OXE --out runs/octo_small

    Published on 25 datasets, of which oxe_hypervla has the 13 with language. Without a robot it has both published
    cameras, primary and wrist. Nobody has trained it with this code.
    """
    return _octo("octo_small", OCTO_SMALL, robot or OCTO_ROBOT)


def octo_base(robot: Embodiment | None = None) -> Recipe:
    """Octo-base 1.5, 93 M parameters without T5; else as octo_small."""
    return _octo("octo_base", OCTO_BASE, robot or OCTO_ROBOT)


def openvla(robot: Embodiment = WIDOWX) -> Recipe:
    """OpenVLA-7B, all of it trained from the published weights.

    hypervla train openvla --data DIR --out runs/openvla

    Published: batch 2,048 on 64 A100, at a constant rate without decay or augmentation.
    """
    model = replace(OPENVLA_7B, action_size=robot.action_size)
    return Recipe(
        name="openvla",
        model=model,
        sampling=Sampling(image_size=model.image_size, horizon=1, normalisation="bounds", rephrase=0.0),
        optimizer=replace(CONSTANT, rate=2e-5, backbone_rate=2e-5),
        steps=100_000,
        batch_contexts=2048,
        seed=7,
        memory_gb=0.0,
        precision="bfloat16",
        trace=False,
        checkpoint_dtype="float32",
    )


def openvla_lora(robot: Embodiment = WIDOWX) -> Recipe:
    """OpenVLA-7B fine-tuned by adapters of rank 32 beside every linear map, as published for LIBERO: batch 128, 50,000
    steps and more. Checkpoints hold the adapters alone.

    hypervla train openvla_lora --data DIR --out runs/openvla_lora
    """
    recipe = openvla(robot)
    return replace(
        recipe,
        name="openvla_lora",
        model=replace(OPENVLA_7B, action_size=robot.action_size, lora=LoRA()),
        sampling=replace(recipe.sampling, augmentation=OPENVLA),
        optimizer=replace(recipe.optimizer, rate=5e-4, backbone_rate=5e-4),
        steps=50_000,
        batch_contexts=128,
    )


def evla(robot: Embodiment = WIDOWX) -> Recipe:
    """EVLA as its paper says: all action dimensions in one pass that looks in both directions, vision frozen.

    hypervla train evla --mixture oxe_hypervla --data OXE --init runs/evla_vlm --out runs/evla

    Published: batch 1,280 on 80 GPUs, 2 epochs, at a constant rate without decay.
    """
    model = replace(EVLA_1B, action_size=robot.action_size)
    return Recipe(
        name="evla",
        model=model,
        sampling=Sampling(image_size=model.image_size, horizon=1, normalisation="bounds", rephrase=0.0),
        optimizer=replace(CONSTANT, rate=2e-5, backbone_rate=2e-5),
        steps=100_000,
        batch_contexts=1280,
        seed=7,
        memory_gb=0.0,
        precision="bfloat16",
        trace=False,
        checkpoint_dtype="float32",
    )


def evla_autoregressive(robot: Embodiment = WIDOWX) -> Recipe:
    """EVLA's parts decoded as OpenVLA does, one dimension after another: what the paper compares with."""
    recipe = evla(robot)
    model = replace(EVLA_1B, action_size=robot.action_size, mode="ar_causal")
    return replace(recipe, name="evla_autoregressive", model=model)


def openvla_joint(robot: Embodiment = WIDOWX) -> Recipe:
    """OpenVLA's size with EVLA's joint decoding, to tell apart what each of the two saves."""
    recipe = evla(robot)
    model = EvlaConfig(PRISMATIC_7B, robot.action_size, frozen_vision=True)
    return replace(recipe, name="openvla_joint", model=model)


def evla_released(robot: Embodiment = WIDOWX) -> Recipe:
    """EVLA as its released code computes it: the causal mask stays, and nobody sees the action columns."""
    recipe = evla(robot)
    model = replace(EVLA_1B, action_size=robot.action_size, mode="evla_released")
    return replace(recipe, name="evla_released", model=model)


RECIPES: tuple[Callable[..., Recipe], ...] = (
    rt1,
    rt1_x,
    octo_small,
    octo_base,
    openvla,
    openvla_lora,
    evla,
    evla_autoregressive,
    evla_released,
    openvla_joint,
)
