"""The recipes by name. A recipe is a function that returns one frozen value; a variant is `replace`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hypervla.contracts import unknown
from hypervla.data.augment import OCTO
from hypervla.data.stream import Sampling
from hypervla.embodiment import LIBERO_PANDA, METAWORLD_SAWYER, WIDOWX, Embodiment
from hypervla.models.action_head import ReleasedHead
from hypervla.models.backbones import ConvNet
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLAConfig, PolicyConfig
from hypervla.models.instruction_encoders import MINILM
from hypervla.training import ablations, comparison, systems
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.paper import paper
from hypervla.training.recipe import Recipe, head_for


def metaworld_small(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """HyperVLA with a small convolutional encoder, trained from scratch on Metaworld demonstrations on two CPU cores.

    hypervla record --suite metaworld-mt10 --episodes 150 240 300 100 100 60 100 300 80 80 --noise 0.4 \\
        --max-steps 250 --out data/mt10
    hypervla train metaworld_small --data data/mt10 --out runs/metaworld_small
    """
    return Recipe(
        name="metaworld_small",
        model=HyperVLAConfig(
            backbone=ConvNet(image_size=128, widths=(48, 96, 192), stride=4),
            instruction_encoder=MINILM,
            hypernetwork=HypernetworkConfig(width=48, layers=3, heads=4, mlp=192),
            policy=PolicyConfig(width=64, layers=3, heads=4, mlp=128, proprio_size=4),
            head=ReleasedHead(horizon=4, action_size=4, gripper_index=3),
            context_image="shared",
            context_image_dropout=0.5,
        ),
        sampling=Sampling(
            image_size=128, frames_per_context=8, frames_per_episode=8, action_mask="pad_only", view_shift=3
        ),
        optimizer=OptimizerConfig(
            rate=5e-4,
            backbone_rate=1e-3,
            warmup=300,
            schedule="linear tail",
            ema_start=500,
        ),
        steps=10_000,
        batch_contexts=32,
        seed=0,
        memory_gb=16.0,
        precision="bfloat16",
        trace=True,
        checkpoint_dtype="float16",
    )


def small(robot: Embodiment = METAWORLD_SAWYER) -> Recipe:
    """The small model for one's own robot: its shapes follow the data's cameras, proprio and actions.

    hypervla train small --data DIR --out runs/small

    A starting point that two CPU cores can train; chunks are about 0.4 seconds long.
    """
    horizon = min(16, max(4, round(0.4 * robot.control_hz)))
    return Recipe(
        name="small",
        model=HyperVLAConfig(
            backbone=ConvNet(image_size=128, widths=(48, 96, 192), stride=4),
            instruction_encoder=MINILM,
            hypernetwork=HypernetworkConfig(width=48, layers=3, heads=4, mlp=192),
            policy=PolicyConfig(width=64, layers=3, heads=4, mlp=128, proprio_size=robot.proprio_size),
            head=head_for(robot, horizon),
            cameras=len(robot.cameras),
            context_image="shared",
            context_image_dropout=0.5,
        ),
        sampling=Sampling(
            image_size=128,
            horizon=horizon,
            frames_per_context=8,
            action_mask="pad_only",
            unlabelled=True,
            augmentation=OCTO,
        ),
        optimizer=OptimizerConfig(rate=5e-4, backbone_rate=1e-3, warmup=300, schedule="linear tail", ema_start=500),
        steps=10_000,
        batch_contexts=32,
        seed=0,
        memory_gb=8.0,
        precision="float32",
        trace=False,
        checkpoint_dtype="float32",
    )


def libero_small(robot: Embodiment = LIBERO_PANDA) -> Recipe:
    """`small` for one of LIBERO's suites on two CPU cores: both cameras, proprio, chunks of 8 actions.

    hypervla record --suite libero-object --episodes 50 --noise 0.2 --max-steps 280 --out data/libero-object
    hypervla train libero_small --data data/libero-object --out runs/libero-object
    """
    return _simulated("libero_small", robot)


def simpler_small(robot: Embodiment = WIDOWX) -> Recipe:
    """`small` for SIMPLER's WidowX tasks on two CPU cores: one camera, no proprio, chunks of 4 actions.

    hypervla record --suite simpler-widowx --episodes 100 --noise 0.2 --max-steps 120 --out data/simpler-widowx
    hypervla train simpler_small --data data/simpler-widowx --out runs/simpler
    """
    return _simulated("simpler_small", robot)


def _simulated(name: str, robot: Embodiment) -> Recipe:
    """`small` where cameras stand still and colours are what they are: views are shifted and nothing else, in bf16.

    Actions are normalised to their bounds: a hand turns in few steps but fast then, more than five standard deviations,
    which is where the head ends (docs/log.md, 2026-11-27).
    """
    recipe = small(robot)
    seen = {"augmentation": None, "view_shift": 4, "frames_per_episode": 8}
    return replace(
        recipe,
        name=name,
        sampling=replace(recipe.sampling, **seen, normalisation="bounds"),
        steps=3_000,
        memory_gb=16.0,
        precision="bfloat16",
        trace=True,
        checkpoint_dtype="float16",
    )


RECIPES: Mapping[str, Callable[..., Recipe]] = {
    make.__name__: make
    for make in (
        paper,
        metaworld_small,
        small,
        libero_small,
        simpler_small,
        *ablations.RECIPES,
        *systems.RECIPES,
        *comparison.RECIPES,
    )
}


def recipe(name: str, robot: Embodiment | None = None) -> Recipe:
    """The recipe of that name, for a robot (or the one it was made for). Raises UserError naming near matches."""
    if name not in RECIPES:
        raise unknown(name, RECIPES, "recipe")
    return RECIPES[name]() if robot is None else RECIPES[name](robot)
