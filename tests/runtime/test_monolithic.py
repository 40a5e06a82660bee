"""Models that read the instruction at every step, run under the contract of a Policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.conformance.policy import check_policy
from tests.fakes import POINT
from tests.models.test_monolithic import config
from torch import Tensor

from hypervla import checkpoint
from hypervla.contracts import UserError
from hypervla.data.normalize import Robot
from hypervla.models.interface import Inputs
from hypervla.models.monolithic import MonolithicPolicy
from hypervla.runtime.compiler import load, load_compiler
from hypervla.runtime.monolithic import InstructedPolicy, Teller

SENTENCE = tiny.INSTRUCTIONS[0]


@pytest.fixture
def folder(text_folder: Path, tmp_path: Path) -> Path:
    shape = config(text_folder)
    model = tiny.seeded(MonolithicPolicy, shape)
    robots = {POINT.name: Robot(POINT, tiny.NORMALIZER).to_json()}
    about = {"config": shape, "robots": robots, "provenance": {}}
    checkpoint.save(tmp_path, model.trained_parameters(), **about, dtype=torch.float32)
    return tmp_path


def test_a_monolithic_model_is_a_policy(folder: Path) -> None:
    teller = load(folder)
    assert isinstance(teller, Teller)
    first = tiny.observation().images
    check_policy(lambda: teller.compile(SENTENCE, first), tiny.observation)


def test_a_compiled_policy_is_a_policy(checkpoint_folder: Path) -> None:
    compiler = load(checkpoint_folder)
    check_policy(lambda: compiler.compile(SENTENCE, tiny.observation().images), tiny.observation)


def test_acting_is_the_models_own_forward_pass(folder: Path) -> None:
    teller, seen = load(folder), tiny.observation(3)
    chunk = teller.compile(SENTENCE, seen.images).act(seen).actions
    images = torch.from_numpy(np.stack([POINT.cameras[0].view(seen.images[POINT.cameras[0].name])]))
    assert images.shape[1:3] == (24, 24)
    proprio = torch.from_numpy(tiny.NORMALIZER.forward_proprio(seen.proprio))
    inputs = Inputs([SENTENCE], images[None, None], torch.ones(1, 1, dtype=torch.bool), proprio[None, None])
    normalised = teller.model.infer(*teller.model.prepare(inputs))[0].detach().numpy()
    wanted = np.clip(tiny.NORMALIZER.inverse_actions(normalised), POINT.action_low, POINT.action_high)
    np.testing.assert_allclose(chunk, wanted, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class WindowConfig:
    image_size: int = 24
    cameras: int = 1
    proprio_size: int = 2
    window: int = 3
    horizon: int = 1
    action_size: int = 3


class Remembering:
    """Keeps what it was given."""

    config = WindowConfig()

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        self.inputs = inputs
        return (torch.zeros(1, 1, 3),)

    def infer(self, chunk: Tensor) -> Tensor:
        return chunk


def test_the_window_holds_the_last_observations_and_repeats_the_first_to_the_left() -> None:
    model, robot = Remembering(), Robot(POINT, tiny.NORMALIZER)
    policy = InstructedPolicy(model, robot, SENTENCE, "cpu")
    views = [POINT.cameras[0].view(tiny.observation(i).images[POINT.cameras[0].name]) for i in range(5)]
    windows = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    for now, wanted in enumerate(windows):
        policy.act(tiny.observation(now))
        np.testing.assert_array_equal(model.inputs.images[0, :, 0].numpy(), np.stack([views[i] for i in wanted]))
        assert model.inputs.timestep_mask.tolist() == [[now >= 2, now >= 1, True]]
        states = np.stack([tiny.observation(i).proprio for i in wanted])
        np.testing.assert_allclose(model.inputs.proprio[0], tiny.NORMALIZER.forward_proprio(states), rtol=1e-5)


def test_what_only_a_hypernetwork_can_do_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="holds the model Monolithic, which generates no task policies"):
        load_compiler(folder)


def test_an_empty_instruction_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="instruction is empty"):
        load(folder).compile(" ", tiny.observation().images)
