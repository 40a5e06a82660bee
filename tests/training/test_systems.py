"""Every system, from a recipe over a checkpoint to a policy: what any of them must do to be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.conformance.policy import check_policy

from hypervla import checkpoint
from hypervla.baselines.octo import OctoCamera, OctoConfig, SmallStem
from hypervla.baselines.openvla import OpenVLAConfig
from hypervla.baselines.rt1 import RT1Config, RT1Transformer
from hypervla.baselines.rt1_actions import ActionTokens
from hypervla.baselines.rt1_sentence import SentenceEncoder
from hypervla.baselines.rt1_vision import FilmEfficientNet
from hypervla.data.opening import open_mixture
from hypervla.data.stream import SampleStream
from hypervla.models.backbones import ConvNet
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.evla import EvlaConfig
from hypervla.models.hypervla import PolicyConfig
from hypervla.models.instruction_encoders import InstructionEncoder
from hypervla.models.interface import Batch, ModelConfig
from hypervla.models.monolithic import MonolithicConfig
from hypervla.models.vision_language import LLAMA_2_7B, QWEN2_05B, VisionLanguage
from hypervla.runtime.compiler import load
from hypervla.training.batches import to_tensors
from hypervla.training.loop import train
from hypervla.training.metrics import LOG
from hypervla.training.recipe import Recipe

SIDE, ACTIONS = 24, 3
ENCODER = ConvNet(SIDE, (4, 8), 4)
POLICY = PolicyConfig(width=8, layers=1, heads=2, mlp=16)
HEAD = DiffusionHead(horizon=2, action_size=ACTIONS, steps=10, time=4, hidden=8, blocks=1)


def hypervla(text: Path) -> ModelConfig:
    return tiny.convolutional(text)


def hypervla_diffusion(text: Path) -> ModelConfig:
    return replace(tiny.convolutional(text), head=HEAD)


def hypervla_words_only(text: Path) -> ModelConfig:
    return replace(tiny.convolutional(text), context_image="none")


def hypervla_patches(text: Path) -> ModelConfig:
    return replace(tiny.convolutional(text), context_feature="patches")


def alone(text: Path) -> ModelConfig:
    return MonolithicConfig(ENCODER, POLICY, HEAD)


def rt1(text: Path) -> ModelConfig:
    return RT1Config(
        sentence=SentenceEncoder(InstructionEncoder("t5", str(text), tiny.LENGTH, 16), width=8),
        vision=FilmEfficientNet(32, width=0.2, depth=0.1, features=16, tokens=2, source=None),
        transformer=RT1Transformer(layers=1, heads=2, key=8),
        actions=ActionTokens(columns=("world_vector_x", "world_vector_y", "gripper_closedness"), bins=16),
        window=2,
    )


def octo(text: Path) -> ModelConfig:
    return OctoConfig(
        instruction_encoder=InstructionEncoder("t5", str(text), tiny.LENGTH, 16),
        views=(OctoCamera("camera", SIDE),),
        head=HEAD,
        width=8,
        layers=1,
        heads=2,
        mlp=16,
        stem=SmallStem(channels=(4, 8, 8), features=8, groups=2),
    )


def openvla(text: Path) -> ModelConfig:
    sizes = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "mlp": 24, "vocabulary": 320, "context": 128}
    model = VisionLanguage(ENCODER, (8,), replace(LLAMA_2_7B, **sizes, tokenizer=str(text)))
    return OpenVLAConfig(model, ACTIONS, above_actions=320, end=2, before_answer=None, source=None)


def recipe_of(model: ModelConfig) -> Recipe:
    recipe = tiny.recipe(model)
    sampling = replace(
        recipe.sampling, image_size=model.image_size, horizon=model.horizon, window=model.window, view_shift=0
    )
    return replace(recipe, sampling=sampling)


def evla(text: Path) -> ModelConfig:
    sizes = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 24, "vocabulary": 64, "context": 128}
    model = VisionLanguage(ENCODER, (8,), replace(QWEN2_05B, **sizes, tokenizer=str(text)))
    return EvlaConfig(model, ACTIONS)


def evla_autoregressive(text: Path) -> ModelConfig:
    return replace(evla(text), mode="ar_causal")


VARIANTS = [hypervla, hypervla_diffusion, hypervla_words_only, hypervla_patches]
SYSTEMS = [*VARIANTS, alone, rt1, octo, openvla, evla, evla_autoregressive]


@pytest.mark.parametrize("make", SYSTEMS)
def test_a_system_trains_and_its_checkpoint_is_a_policy(
    make: Callable[[Path], ModelConfig], text_folder: Path, point_data: Path, tmp_path: Path
) -> None:
    model = make(text_folder)
    train(recipe_of(model), point_data, tmp_path / "out")
    about = checkpoint.read_card(tmp_path / "out")
    assert about.config == model
    report = json.loads((tmp_path / "out" / LOG).read_text().splitlines()[-1])
    assert ("action_token_accuracy" in report) == (make in (openvla, evla, evla_autoregressive))
    loaded = load(tmp_path / "out")
    first = tiny.observation().images
    check_policy(lambda: loaded.compile(tiny.INSTRUCTIONS[0], first), tiny.observation, trained=False)


@pytest.mark.parametrize("make", SYSTEMS)
def test_a_system_learns_from_what_it_is_shown(
    make: Callable[[Path], ModelConfig], text_folder: Path, point_data: Path
) -> None:
    recipe = recipe_of(make(text_folder))
    mixture = open_mixture([point_data])
    robots = mixture.robots(recipe.sampling.normalisation)
    stream = SampleStream(mixture, robots, recipe.sampling, seed=0, reads_proprio=recipe.model.proprio_size > 0)
    batch = to_tensors(stream.batch(0, 8))
    model = tiny.seeded(recipe.model.build).eval()
    with torch.no_grad():
        for value in model.trained_parameters().values():  # zeros at the start would hide what lies behind them
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))

    def loss(batch: Batch) -> float:
        torch.manual_seed(0)
        return float(model.loss(batch))

    assert loss(batch) == loss(batch)
    assert loss(replace(batch, images=255 - batch.images)) != loss(batch)
    assert loss(replace(batch, actions=batch.actions.flip(0))) != loss(batch)


@pytest.mark.parametrize("make", SYSTEMS)
def test_a_resumed_system_is_the_uninterrupted_one(
    make: Callable[[Path], ModelConfig], text_folder: Path, point_data: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(make(text_folder))
    train(replace(recipe, steps=4), point_data, tmp_path / "whole")
    train(replace(recipe, steps=2), point_data, tmp_path / "parts")
    train(replace(recipe, steps=4), point_data, tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / name / checkpoint.WEIGHTS).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("make", [system for system in SYSTEMS if system not in VARIANTS])
def test_the_example_can_be_inferred_from(make: Callable[[Path], ModelConfig], text_folder: Path) -> None:
    config = make(text_folder)
    model = tiny.seeded(config.build).eval()
    assert sum(model.parts().values()) == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        assert model.infer(*model.example(2)).shape == (2, config.horizon, config.action_size)
