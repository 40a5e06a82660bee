"""A HyperVLA that trains in a second, with encoders made here and read from local folders: nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hypervla import checkpoint
from hypervla.contracts import Observation
from hypervla.data.normalize import Normalizer, Robot
from hypervla.data.record import record
from hypervla.data.stream import Sampling
from hypervla.embodiment import Camera, Embodiment
from hypervla.models.action_head import ReleasedHead
from hypervla.models.backbones import ConvNet, DinoV2
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLA, HyperVLAConfig, PolicyConfig
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch
from hypervla.training.optimizer import OptimizerConfig
from hypervla.training.recipe import Recipe
from tests.fakes import POINT, SAYINGS, make_point_world

INSTRUCTIONS = [sentence for sayings in SAYINGS.values() for sentence in sayings]
LENGTH = 8
"""Tokens of an instruction."""


def write_text_encoder(folder: Path) -> Path:
    """A random T5 encoder of 2 layers with a tokenizer that knows PointWorld's words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = sorted({word for sentence in INSTRUCTIONS for word in sentence.split()})
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1} | {w: 2 + i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_input_names=inputs
    ).save_pretrained(folder)
    shape = T5Config(vocab_size=2 + len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    seeded(T5EncoderModel, shape).save_pretrained(folder)
    return folder


def write_vision_encoder(folder: Path) -> Path:
    """A random DINOv2 of 2 layers whose position table was made for larger images than it will see."""
    from transformers import Dinov2Config, Dinov2Model

    shape = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=40)
    seeded(Dinov2Model, shape).save_pretrained(folder)
    return folder


def seeded(make, *arguments, seed: int = 0):
    """`make(*arguments)` with this random state, leaving the test's own as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(*arguments)


def loud(model):
    """The model with weights so large that everything that can be seen is felt; norms stay."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name:
                value.normal_(std=0.3, generator=random)
    return model


def convolutional(text: Path, **changes) -> HyperVLAConfig:
    """The shape of metaworld_small, for PointWorld."""
    config = HyperVLAConfig(
        backbone=ConvNet(image_size=24, widths=(4, 8), stride=4),
        instruction_encoder=InstructionEncoder("t5", str(text), LENGTH, 16),
        hypernetwork=HypernetworkConfig(width=8, layers=1, heads=2, mlp=16),
        policy=PolicyConfig(width=8, layers=2, heads=2, mlp=16, proprio_size=2),
        head=ReleasedHead(horizon=2, action_size=3, gripper_index=2),
        context_image="shared",
        context_image_dropout=0.5,
    )
    return replace(config, **changes)


def paper_shaped(text: Path, vision: Path, **changes) -> HyperVLAConfig:
    """The shape of the paper's model, for PointWorld: DINOv2 twice, T5, no proprio."""
    return convolutional(
        text,
        **{
            "backbone": DinoV2(image_size=24, width=16, layers=2, heads=2, patch=8, grid=5, source=str(vision)),
            "policy": PolicyConfig(width=8, layers=2, heads=2, mlp=16),
            "context_image": "frozen copy",
            "context_image_dropout": 0.0,
            **changes,
        },
    )


def recipe(model: HyperVLAConfig, **changes) -> Recipe:
    """Twelve steps that pass through warm-up, the moving average and the schedule's tail."""
    optimizer = OptimizerConfig(
        rate=1e-2, backbone_rate=1e-2, warmup=3, schedule="linear tail", ema_decay=0.9, ema_start=5
    )
    complete = Recipe(
        name="tiny",
        model=model,
        sampling=Sampling(
            image_size=24,
            horizon=2,
            frames_per_context=2,
            frames_per_episode=2,
            action_mask="pad_only",
            view_shift=1,
        ),
        optimizer=optimizer,
        steps=12,
        batch_contexts=4,
        seed=0,
        memory_gb=1.0,
        precision="float32",
        trace=False,
        checkpoint_dtype="float16",
    )
    return replace(complete, **changes)


def write_dataset(out: Path) -> Path:
    """36 episodes of PointWorld in LeRobot format; one of them is held back for validation."""
    record(
        out, ["find", "flee"], (20, 16), make=make_point_world, noise=0.02, seed=7, workers=1, max_steps=12,
        suite="points", command="hypervla record",
    )  # fmt: skip
    return out


def random_batch(config: HyperVLAConfig, contexts: int = 3, frames: int = 2, seed: int = 0) -> Batch:
    """Random images, chunks and sentences of the shapes that `config` reads; nothing is masked."""
    random = torch.Generator().manual_seed(seed)
    size, head, proprio = config.backbone.image_size, config.head, config.policy.proprio_size

    def images(*lead: int) -> torch.Tensor:
        return torch.randint(256, (*lead, config.cameras, size, size, 3), dtype=torch.uint8, generator=random)

    actions = torch.randn(contexts, frames, 1, head.horizon, head.action_size, generator=random)
    if isinstance(head, ReleasedHead):
        actions[..., head.gripper_index] = (actions[..., head.gripper_index] > 0).float()
    return Batch(
        instructions=[INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(contexts)],
        initial_images=images(contexts),
        images=images(contexts, frames, 1),
        timestep_mask=torch.ones(contexts, frames, 1, dtype=torch.bool),
        proprio=torch.randn(contexts, frames, 1, proprio, generator=random) if proprio else None,
        actions=actions,
        mask=torch.ones_like(actions, dtype=torch.bool),
    )


NORMALIZER = Normalizer(
    action_mean=np.float32([0.01, -0.02, 0.0]),
    action_std=np.float32([0.05, 0.04, 1.0]),
    proprio_mean=np.float32([0.5, 0.4]),
    proprio_std=np.float32([0.2, 0.3]),
    gripper=POINT.gripper,
)


def save_checkpoint(folder: Path, config: HyperVLAConfig, *, seed: int = 0, dtype=torch.float32, **changes) -> HyperVLA:
    """A model with this random state, and its checkpoint in `folder`."""
    model = seeded(HyperVLA, config, seed=seed).eval()
    robots = {POINT.name: Robot(POINT, NORMALIZER).to_json()}
    about = {"config": config, "robots": robots, "provenance": {"step": 0}}
    checkpoint.save(folder, model.trained_parameters(), **{**about, **changes}, dtype=dtype)
    return model


def cameras(count: int) -> Embodiment:
    """PointWorld's robot with this many cameras."""
    return replace(POINT, cameras=tuple(Camera(f"camera{i}", 32, 32, (4, 4, 24, 24)) for i in range(count)))


def observation(seed: int = 0, embodiment: Embodiment = POINT) -> Observation:
    """Noise, as this robot's cameras would deliver it."""
    random = np.random.default_rng(seed)
    return Observation(
        images={c.name: random.integers(256, size=(c.height, c.width, 3), dtype=np.uint8) for c in embodiment.cameras},
        proprio=random.uniform(size=embodiment.proprio_size).astype(np.float32),
    )
