"""SIMPLER's Google-robot tasks, through a stand-in for SimplerEnv's interface: doubles/simpler_env.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from tests.conformance.environment import check_environment

from hypervla.contracts import ActionChunk, UserError
from hypervla.embodiment import GOOGLE_ROBOT
from hypervla.evaluation.suites import suite
from hypervla.evaluation.trial import roll_out, tickets
from hypervla.runtime.execution import OpenLoop
from hypervla.runtime.task_policy import Timing
from hypervla.simulation import simpler_google
from hypervla.simulation.homes import interpreter
from hypervla.simulation.simpler_google import COLOURS, SETS, STICKY, TASKS, SimplerGoogleEnvironment, StickyGripper

GRID = 1_000_000
PHOTOGRAPHS = ["google_coke_can_real_eval_1", "google_move_near_real_eval_1"]
PHOTOGRAPHS += [f"open_drawer_{row}{column}" for row in "abc" for column in "012"]
SIZES = {"pick": 100, "move": 240, "open": 36, "close": 36}
"""Scenes by the task's verb: 25 places, 60 layouts or nine places at the cabinet, in four colours."""

Open = Callable[[str], SimplerGoogleEnvironment]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """SimplerEnv's stand-in can be imported, and has photographs, each of another grey."""
    folder = tmp_path / "real_inpainting"
    folder.mkdir()
    for place, name in enumerate(PHOTOGRAPHS):
        Image.new("RGB", (64, 48), (20 * place,) * 3).save(folder / f"{name}.png")
    monkeypatch.setenv("MS2_REAL2SIM_ASSET_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(Path(__file__).parent / "doubles")
    yield folder
    sys.modules.pop("simpler_env", None)


@pytest.fixture
def opened(stand_in: Path) -> Open:
    return lambda task: SimplerGoogleEnvironment(task, GRID)


def solve(environment: SimplerGoogleEnvironment) -> ActionChunk:
    """The next action of picking the can up."""
    world = environment.simulator.unwrapped
    left = world.thing - world.tcp
    move = np.array([0, 0, 0.05]) if world.hand > 0.8 else np.clip(left, -0.1, 0.1)
    opening = 0.0 if np.linalg.norm(left) < 0.15 else 1.0
    return ActionChunk(np.array([[*move, 0, 0, 0, opening]], np.float32))


def test_it_keeps_the_contract(opened: Open) -> None:
    check_environment(lambda: opened("google-pick-standing-coke-can"), solve, limit=80)


def scene(environment: SimplerGoogleEnvironment) -> tuple:
    """All that the stand-in knows of where things are, and how they look."""
    world = environment.simulator.unwrapped
    numbers = (*world.base, *world.thing, float(world.rgb_overlay_img[0, 0, 0]))
    return (world.urdf, environment.instructions[0], world.layout, *np.round(numbers, 6).tolist())


@pytest.mark.parametrize("task", SETS["simpler-google"])
def test_evaluation_seeds_go_around_the_grid_in_its_order(opened: Open, task: str) -> None:
    environment = opened(task)
    assert environment.grid == SIZES[task.split("-")[1]]
    scenes = []
    for seed in range(GRID, GRID + environment.grid):
        environment.reset(seed)
        scenes.append(scene(environment))
    assert len(set(scenes)) == environment.grid
    assert [row[0] for row in scenes[:: len(TASKS[task].scenes)]] == [
        f"google_robot{colour and '_' + colour}.urdf" for colour in COLOURS
    ]
    environment.reset(5)
    environment.reset(GRID + environment.grid + 1)
    assert scene(environment) == scenes[1]


@pytest.mark.parametrize(
    "task", ["google-pick-horizontal-coke-can", "google-move-near", "google-open-top-drawer", "google-close-top-drawer"]
)
def test_the_grid_is_what_simpler_draws_from(opened: Open, task: str) -> None:
    """Of scenes that the simulator drew by itself: robot, colour, photograph, layout, and what is asked for."""
    environment = opened(task)
    thing = slice(9, 12) if "pick" in task else slice(0, 0)
    grid, drawn = set(), set()
    for found, seeds in ((grid, range(GRID, GRID + environment.grid)), (drawn, range(300))):
        for seed in seeds:
            environment.reset(seed)
            row = list(scene(environment))
            del row[thing]
            found.add(tuple(row))
    assert drawn <= grid
    assert len(drawn) > len(grid) / 2


def test_a_can_is_drawn_inside_the_area_of_the_grid(opened: Open) -> None:
    environment = opened("google-pick-vertical-coke-can")
    places = {}
    for first, count in ((0, 50), (GRID, 25)):
        rows = []
        for seed in range(first, first + count):
            environment.reset(seed)
            rows.append(environment.simulator.unwrapped.thing[:2])
        places[first] = np.array(rows)
    low, high = places[GRID].min(0), places[GRID].max(0)
    np.testing.assert_allclose([low, high], [[-0.35, -0.02], [-0.12, 0.42]])
    assert ((places[0] >= low) & (places[0] <= high)).all()
    assert len(np.unique(places[0], axis=0)) == 50


def test_a_task_without_scenes_is_drawn_from_every_seed(opened: Open) -> None:
    environment = opened("google-pick-object")
    assert environment.grid == 0
    asked = set()
    for seed in range(GRID, GRID + 20):
        environment.reset(seed)
        asked.add(environment.instructions[0])
    assert len(asked) == 3


def test_hypervlas_variant_draws_all_but_the_layouts(opened: Open) -> None:
    drawer, near = (
        SimplerGoogleEnvironment(task, GRID, drawn=True) for task in ("google-close-top-drawer", "google-move-near")
    )
    scenes = []
    for seed in range(GRID, GRID + 60):
        drawer.reset(seed)
        scenes.append(scene(drawer))
    assert len(set(scenes)) > 20, "drawn among 36, and not the first colour's nine"
    assert len({row[0] for row in scenes[:9]}) > 1
    layouts, colours = [], set()
    for seed in range(GRID, GRID + 60):
        near.reset(seed)
        layouts.append(near.simulator.unwrapped.layout)
        colours.add(near.simulator.unwrapped.urdf)
    pinned = opened("google-move-near")
    for seed, layout in zip(range(GRID, GRID + 60), layouts, strict=True):
        pinned.reset(seed)
        assert pinned.simulator.unwrapped.layout == layout
    assert len(colours) == len(COLOURS)


def test_actions_reach_the_simulator_in_its_units(opened: Open) -> None:
    environment = opened("google-close-top-drawer")
    environment.reset(GRID)
    actions = np.float32([[0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 1.0], [0, 0, 0, 0, 0, 0, 0.0]])
    outcome = environment.execute(ActionChunk(actions))
    assert (outcome.success, outcome.steps) == (False, 2)
    moved, closing = environment.simulator.unwrapped.commands
    np.testing.assert_allclose(moved[:3], [0.01, -0.02, 0.03], atol=1e-7)
    about_x, about_y, about_z = (Rotation.from_rotvec(np.eye(3)[axis] * actions[0, 3 + axis]) for axis in range(3))
    wanted = (about_z * about_y * about_x).as_matrix()
    np.testing.assert_allclose(Rotation.from_rotvec(moved[3:6]).as_matrix(), wanted, atol=1e-6)
    np.testing.assert_allclose([moved[6], *closing], [0, 0, 0, 0, 0, 0, 0, 1])


def test_the_gripper_goes_on_with_what_it_was_asked_for() -> None:
    gripper = StickyGripper()

    def changes(*openings: float) -> list[float]:
        return [gripper.change(float(opening)) for opening in openings]

    assert changes(1, 1, 1) == [0, 0, 0]
    assert changes(*[0] * 7, *[1, 0] * 4) == [1] * STICKY, "whatever is commanded meanwhile"
    assert changes(0, 0) == [0, 0]
    assert changes(*[1] * 16) == [-1] * STICKY + [0]
    assert changes(0.75, 0.75) == [0.25, 0], "half a change or less is done once"


def test_the_gripper_forgets_the_last_episode(opened: Open) -> None:
    environment = opened("google-close-top-drawer")
    for _ in range(2):
        environment.reset(GRID)
        environment.execute(ActionChunk(np.float32([[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]])))
        assert [command[6] for command in environment.simulator.unwrapped.commands] == [0, 1]


class Listening:
    """A compiler whose policies do nothing, and which remembers what it was asked."""

    embodiment = GOOGLE_ROBOT
    digest, provenance, last_timing = "none", {}, Timing(0.0, 0.0, 0.0)

    def __init__(self) -> None:
        self.heard: list[str] = []

    def compile(self, instruction: str, images: object) -> Listening:
        self.heard.append(instruction)
        return self

    def act(self, observation: object) -> ActionChunk:
        return ActionChunk(np.zeros((1, 7), np.float32))


def test_a_trial_asks_for_what_its_scene_asks_for(opened: Open) -> None:
    found = suite("simpler-google").only(["google-move-near"])
    environment, listening = opened("google-move-near"), Listening()
    asked = tickets(found, trials=7, seed=0, instructions="canonical")
    records = [roll_out(ticket, environment, listening, OpenLoop(), max_steps=1) for ticket in asked]
    assert [record.trial.error for record in records] == [None] * 7
    assert [record.trial.instruction for record in records] == listening.heard
    assert listening.heard[:2] == ["move bottle near can", "move bottle near orange"]
    assert listening.heard[6] == listening.heard[0], "the same pair, arranged in another way"
    with pytest.raises(UserError, match="no sentences kept out of training"):
        tickets(found, trials=1, seed=0, instructions="held_out")


def test_the_suites_are_simplers_and_hypervlas() -> None:
    found, theirs = suite("simpler-google"), suite("simpler-google-hypervla")
    assert [found.steps_of(task) for task in found.tasks] == [80] * 4 + [113] * 6
    assert [theirs.steps_of(task) for task in theirs.tasks] == [80] * 2 + [113] * 3
    assert "never been run against the real SimplerEnv" in found.scene
    assert found.embodiment.control_hz == 3


def test_what_is_missing_is_named(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Google robot has no task 'juggle' here"):
        SimplerGoogleEnvironment("juggle", GRID)
    (stand_in / "google_move_near_real_eval_1.png").unlink()
    with pytest.raises(UserError, match=r"cannot make its scene \(.*eval_1.png is not found.\): it needs"):
        SimplerGoogleEnvironment("google-move-near", GRID)
    monkeypatch.setattr(simpler_google, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="SimplerEnv is not installed here: install SimplerEnv with"):
        SimplerGoogleEnvironment("google-move-near", GRID)


def test_its_environment_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERVLA_SIMPLER_GOOGLE_PYTHON", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="install SimplerEnv .*, or HYPERVLA_SIMPLER_GOOGLE_PYTHON names the Python"):
        interpreter("simpler_env")
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setenv("HYPERVLA_SIMPLER_GOOGLE_PYTHON", str(python))
    assert interpreter("simpler_env") == python
