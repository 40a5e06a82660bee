"""SIMPLER's WidowX tasks keep the contract. Runs in their own environment: make test-simpler, which takes
Vulkan to draw."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.environment import check_environment

from hypervla.contracts import ActionChunk, Episode, UserError
from hypervla.data.staged import columns_of, read_staged, stage_episode
from hypervla.evaluation.taxonomy import failure
from hypervla.simulation import simpler
from hypervla.simulation.demonstrators.simpler import SimplerExpert
from hypervla.simulation.simpler import TASKS, SimplerEnvironment

GRID = 1_000_000


@pytest.fixture
def assets(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("mani_skill") is None:
        pytest.skip("SIMPLER lives in an environment of its own: make env-simpler")
    monkeypatch.setenv(simpler.ASSETS, str(shared_data / "simpler"))


@pytest.mark.usefixtures("assets")
def test_it_keeps_the_contract() -> None:
    experts = {}

    def solve(environment: SimplerEnvironment) -> ActionChunk:
        expert = experts.setdefault(id(environment), SimplerExpert(environment))
        return ActionChunk(expert.action()[None])

    check_environment(lambda: SimplerEnvironment("widowx-carrot-on-plate", GRID), solve, limit=60)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.usefixtures("assets")
def test_the_expert_solves_the_first_scene_of_the_grid(task: str) -> None:
    environment = SimplerEnvironment(task, GRID)
    try:
        expert = SimplerExpert(environment)
        environment.reset(GRID)
        actions = (ActionChunk(expert.action()[None]) for _ in range(TASKS[task].steps))
        assert any(environment.execute(action).success for action in actions)
    finally:
        environment.close()


@pytest.mark.parametrize(("holding", "word"), [(0, "missed"), (6, "dropped")])
@pytest.mark.usefixtures("assets")
def test_what_the_fingers_do_is_told_from_the_simulators_state(holding: int, word: str) -> None:
    environment = SimplerEnvironment("widowx-carrot-on-plate", GRID)
    try:
        expert = SimplerExpert(environment)
        environment.reset(GRID)
        seen = [environment.situation()]
        for _ in range(25):
            action = expert.action()
            if sum(situation.held is not None for situation in seen) >= holding:
                action[6] = 1.0
            assert not environment.execute(ActionChunk(action[None])).success
            seen.append(environment.situation())
        assert failure(seen) == word
    finally:
        environment.close()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.usefixtures("assets")
def test_seeds_go_around_the_benchmarks_grid_and_others_are_elsewhere(task: str) -> None:
    environment = SimplerEnvironment(task, GRID)
    try:
        assert environment.grid == simpler.SCENES
        assert environment.simulator.get_language_instruction() == list(environment.instructions)
        scenes = {}
        for seed in (GRID, GRID + environment.grid, GRID + environment.grid - 1, 3, 4):
            environment.reset(seed)
            scenes[seed] = environment.environment_state()
        np.testing.assert_allclose(scenes[GRID], scenes[GRID + environment.grid], atol=1e-5)
        assert np.abs(scenes[GRID] - scenes[GRID + environment.grid - 1]).max() > 0.01
        assert np.abs(scenes[3] - scenes[4]).max() > 0.01
        outcome = environment.execute(ActionChunk(np.zeros((2, 7), np.float32)))
        assert (outcome.success, outcome.steps) == (False, 2)
    finally:
        environment.close()


@pytest.mark.usefixtures("assets")
def test_the_eggplant_lies_in_simplers_eight_places_and_three_turns() -> None:
    """ManiSkill has turns all around; SIMPLER's are within 45°."""
    environment = SimplerEnvironment("widowx-eggplant-in-basket", GRID)
    try:
        assert (len(environment._places), len(environment._turns)) == (8, 3)
        places = set()
        for seed in range(GRID, GRID + 24):
            environment.reset(seed)
            places.add(tuple(environment._places[environment._number(seed) // 3, 0].tolist()))
        assert len(places) == 8
    finally:
        environment.close()


@pytest.mark.usefixtures("assets")
def test_scenes_that_are_drawn_are_the_grids() -> None:
    drawn, pinned = (SimplerEnvironment("widowx-carrot-on-plate", GRID, drawn) for drawn in (True, False))
    try:
        numbers = [drawn._number(seed) for seed in range(GRID, GRID + 200)]
        assert set(numbers) == set(range(24))
        assert numbers[:24] != sorted(numbers[:24])
        drawn.reset(GRID + 3)
        pinned.reset(GRID + numbers[3])
        np.testing.assert_allclose(drawn.environment_state(), pinned.environment_state(), atol=1e-5)
    finally:
        drawn.close()
        pinned.close()


@pytest.mark.usefixtures("assets")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SIMPLER has no task 'juggle' here"):
        SimplerEnvironment("juggle", GRID)
    monkeypatch.setenv(simpler.ASSETS, str(tmp_path))
    with pytest.raises(UserError, match="there is no data/real_inpainting in"):
        SimplerEnvironment("widowx-stack-cube", GRID)
    monkeypatch.delenv(simpler.ASSETS)
    with pytest.raises(UserError, match="HYPERVLA_SIMPLER_ASSETS has to name .*, but it is not set"):
        SimplerEnvironment("widowx-stack-cube", GRID)


def test_a_table_that_is_no_scan_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(simpler.ASSETS, str(tmp_path))
    assert simpler.scene() == ""
    table = tmp_path / "data" / "hab2_bench_assets" / "stages" / "bridge_table_1_v1.glb"
    table.parent.mkdir(parents=True)
    table.write_bytes(bytes(simpler.SCANNED))
    assert simpler.scene() == ""
    table.write_bytes(b"box")
    assert "SIMPLER with stand-in visuals" in simpler.scene()


def test_an_episode_without_proprio_is_staged_as_it_is(tmp_path: Path) -> None:
    """Also by the NumPy that ManiSkill wants."""
    images = {simpler.CAMERA: np.zeros((3, 64, 64, 3), np.uint8)}
    actions = np.arange(21, dtype=np.float32).reshape(3, 7)
    episode = Episode("put it there", images, actions, None, np.array([False, False, True]), None, {})
    stage_episode(tmp_path, episode, 5)
    columns = read_staged(tmp_path).columns
    assert columns.keys() == columns_of(episode).keys()
    for name, values in columns_of(episode).items():
        np.testing.assert_array_equal(columns[name], values)


def test_a_turn_about_the_vertical() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(simpler._turned(np.array([1.0, 0, 0, 0]), np.pi / 2), [half, 0, 0, half])
    np.testing.assert_allclose(simpler._turned(np.array([0, 1.0, 0, 0]), np.pi), [0, 0, 1, 0], atol=1e-12)
