"""LIBERO keeps the contract, and its experts reach its goals. Runs in LIBERO's own environment (make test)."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.environment import check_environment

from hypervla.contracts import ActionChunk, UserError
from hypervla.embodiment import LIBERO_PANDA
from hypervla.evaluation.taxonomy import failure
from hypervla.simulation import libero
from hypervla.simulation.demonstrators.libero import LiberoExpert, next_primitive
from hypervla.simulation.demonstrators.libero_primitives import Insert, PickAndPlace, Pull
from hypervla.simulation.demonstrators.libero_scene import Scene
from hypervla.simulation.libero import LiberoEnvironment, axis_angle, sentence, stored_states, tasks

STORED = 1_000_000


@pytest.fixture
def assets(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if find_spec("libero") is None:
        pytest.skip("LIBERO lives in an environment of its own: make env-libero")
    folder = shared_data / "libero" / "assets"
    monkeypatch.setenv(libero.ASSETS, str(folder))
    return folder


Open = Callable[[str, int], LiberoEnvironment]


@pytest.fixture
def opened(assets: Path) -> Iterator[Open]:
    """Opens the n-th task of a suite; whatever was opened is closed."""
    environments = []

    def make(suite: str, number: int) -> LiberoEnvironment:
        environments.append(LiberoEnvironment(suite, tasks()[suite][number], STORED))
        return environments[-1]

    yield make
    for environment in environments:
        environment.close()


def test_there_are_forty_tasks_and_as_many_ways_to_ask() -> None:
    assert {suite: len(names) for suite, names in tasks().items()} == {
        "spatial": 10,
        "object": 10,
        "goal": 10,
        "10": 10,
    }
    sentences = [sentence(name) for names in tasks().values() for name in names]
    assert len(set(sentences)) == 40
    assert sentence("KITCHEN_SCENE8_put_both_moka_pots_on_the_stove") == "put both moka pots on the stove"
    assert all(word == word.lower() for word in sentences)


def test_a_rotation_is_an_axis_times_an_angle() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([0, 0, half, half])), [0, 0, np.pi / 2])
    np.testing.assert_allclose(axis_angle(np.array([0, 0, 0, 1.0])), [0, 0, 0])
    np.testing.assert_allclose(axis_angle(np.array([1.0, 0, 0, 0])), [np.pi, 0, 0])


def test_stand_ins_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libero.ASSETS, str(tmp_path / "assets"))
    (tmp_path / "assets").mkdir()
    assert libero.scene() == ""
    (tmp_path / "assets" / libero.STAND_INS).touch()
    assert "LIBERO with stand-in visuals" in libero.scene()


class Plain(pickle.Unpickler):
    """Reads an array as NumPy pickles it, and nothing else."""

    def find_class(self, module: str, name: str):
        assert (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
        return super().find_class(module, name)


@pytest.mark.usefixtures("assets")
def test_stored_states_are_those_that_unpickling_gives() -> None:
    package = libero._package() / "init_files"
    for suite, names in tasks().items():
        for name in names:
            path = package / f"libero_{suite}" / f"{name}.pruned_init"
            found = stored_states(path)
            assert len(found) == 50
            with zipfile.ZipFile(path) as archive:
                wanted = Plain(io.BytesIO(archive.read("archive/data.pkl"))).load()
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("suite", "number"), [("object", 0), ("spatial", 4), ("goal", 3), ("10", 3)])
def test_it_keeps_the_contract(opened: Open, suite: str, number: int) -> None:
    experts = {}

    def solve(environment: LiberoEnvironment) -> ActionChunk:
        expert = experts.setdefault(id(environment), LiberoExpert(environment))
        return ActionChunk(expert.action()[None])

    check_environment(lambda: opened(suite, number), solve, limit=400)


@pytest.mark.parametrize(("opening", "word"), [(0, "missed"), (60, "dropped")])
def test_what_the_fingers_do_is_told_from_the_simulators_state(opened: Open, opening: int, word: str) -> None:
    environment = opened("object", 7)
    expert = LiberoExpert(environment)
    environment.reset(STORED)
    seen = [environment.situation()]
    assert seen[0].to_hold == {"milk_1_joint0"}
    for step in range(110):
        action = expert.action()
        action[6] = -1.0 if step >= opening else action[6]
        action[:3] = action[:3] if step < opening or opening == 0 else (0, 0, 0.5)
        assert not environment.execute(ActionChunk(action[None])).success
        seen.append(environment.situation())
    assert failure(seen) == word


def test_what_a_description_asks_for_is_asked_for_until_it_holds(opened: Open) -> None:
    cabinet, plate, stove = opened("goal", 3), opened("goal", 5), opened("10", 2)
    asked = {}
    for environment in (cabinet, plate, stove):
        environment.reset(STORED)
        seen = environment.situation()
        asked[environment.task] = (seen.to_hold, seen.to_move)
    assert [tuple(map(set, sets)) for sets in asked.values()] == [
        ({"akita_black_bowl_1_joint0"}, set()),
        (set(), {"plate_1_joint0"}),
        ({"moka_pot_1_joint0"}, {"flat_stove_1_button"}),
    ]
    knob = stove.simulator.sim.model._model.joint("flat_stove_1_button").qposadr[0]
    before = stove.situation()
    stove.simulator.sim.data.qpos[knob] = 1.5
    stove.simulator.sim.forward()
    after = stove.situation()
    assert np.linalg.norm(after.things["flat_stove_1_button"] - before.things["flat_stove_1_button"]) > 0.02
    assert np.linalg.norm(after.things["moka_pot_1_joint0"] - before.things["moka_pot_1_joint0"]) < 1e-6


def test_seeds_go_around_the_stored_states(opened: Open) -> None:
    environment = opened("spatial", 0)
    scenes = []
    for seed in (STORED, STORED + 1, STORED + 50):
        environment.reset(seed)
        scenes.append(environment.environment_state())
    np.testing.assert_array_equal(scenes[0], scenes[2])
    assert np.abs(scenes[0] - scenes[1]).max() > 0.005


@pytest.mark.parametrize("number", [4, 6, 7, 9])
def test_what_a_scene_begins_with_is_where_its_description_says(opened: Open, number: int) -> None:
    environment = opened("spatial", number)
    task = environment.simulator.env
    begun = [row for row in task.parsed_problem["initial_state"] if row[0] in ("on", "in")]
    on_fixtures = [row for row in begun if row[-1].startswith(("wooden_cabinet_1", "flat_stove_1"))]
    assert on_fixtures
    for seed in (0, 1, 2, STORED):
        environment.reset(seed)
        for row in on_fixtures:
            assert task._eval_predicate(row), f"seed {seed}: {row}"


def test_pictures_come_upside_down_and_are_turned_upright_and_mirrored(opened: Open) -> None:
    environment = opened("object", 0)
    environment.reset(STORED)
    raw, seen = environment.observe().images["image"], environment.render(256)
    np.testing.assert_array_equal(raw[::-1], seen)
    view = environment.embodiment.camera("image").view(raw)
    np.testing.assert_array_equal(view, seen[:, ::-1])


@pytest.mark.parametrize(
    ("suite", "number"),
    [
        pytest.param("spatial", 4, id="out of a drawer"),
        pytest.param("object", 1, id="among other things"),
        pytest.param("goal", 1, id="onto the stove"),
        pytest.param("goal", 2, id="onto the cabinet"),
        pytest.param("goal", 3, id="a drawer opened, and into it"),
        pytest.param("goal", 5, id="pushed along the table"),
        pytest.param("goal", 7, id="a knob turned"),
        pytest.param("10", 5, id="into the caddy"),
        pytest.param("10", 9, id="into the microwave, and its door shut"),
    ],
)
def test_the_expert_reaches_the_goal_from_a_stored_state(opened: Open, suite: str, number: int) -> None:
    environment = opened(suite, number)
    expert, scene = LiberoExpert(environment), Scene(environment)
    environment.reset(STORED)
    assert not all(map(scene.holds, scene.goals))
    for _ in range(300 if suite == "goal" else 520):
        if environment.execute(ActionChunk(expert.action()[None])).success:
            break
    assert all(map(scene.holds, scene.goals))


def test_what_is_left_to_do_is_done_in_an_order_that_can_be_done(opened: Open) -> None:
    bowl, cabinet = "akita_black_bowl_1", "wooden_cabinet_1_top_region"
    environment = opened("goal", 3)
    environment.reset(STORED)
    scene = Scene(environment)
    assert next_primitive(scene) == Pull(cabinet), "its goal says only that the bowl is in the drawer"
    environment.simulator.env.object_states_dict[cabinet].set_joint(-0.155)
    environment.simulator.sim.forward()
    assert next_primitive(scene) == PickAndPlace(bowl, cabinet)


def test_a_door_is_shut_last(opened: Open) -> None:
    environment = opened("10", 9)
    environment.reset(STORED)
    assert next_primitive(Scene(environment)) == Insert("white_yellow_mug_1", "microwave_1_heating_region")


def test_cameras_deliver_what_a_policy_wants(opened: Open) -> None:
    environment = opened("object", 0)
    environment.reset(STORED)
    whole = environment.observe().images
    small = replace(LIBERO_PANDA.camera("wrist_image"), height=128, width=128)
    environment.look_through([small])
    seen = environment.observe().images
    assert {name: image.shape for name, image in seen.items()} == {"wrist_image": (128, 128, 3)}
    blocks = whole["wrist_image"].reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(seen["wrist_image"] - blocks).mean() < 8, "the same view"
    with pytest.raises(UserError, match="has no camera 'top'"):
        environment.look_through([replace(small, name="top")])


def test_protocols_differ_as_published(assets: Path) -> None:
    name = tasks()["object"][0]
    openness = {}
    for whose, protocol in libero.PROTOCOLS.items():
        environment = LiberoEnvironment("object", name, STORED, protocol)
        environment.reset(STORED)
        openness[whose] = environment.proprio()[6]
        assert [camera.flip for camera in environment.embodiment.cameras] == [protocol.flip] * 2
        environment.close()
    assert openness[""] == openness["-lerobot"] > openness["-hypervla"] + 0.005


@pytest.mark.usefixtures("assets")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = tasks()["object"][0]
    with pytest.raises(UserError, match="suite 'object' has no task 'juggle'"):
        LiberoEnvironment("object", "juggle", STORED)
    monkeypatch.setenv(libero.ASSETS, str(tmp_path))
    with pytest.raises(UserError, match="there is no folder scenes in"):
        LiberoEnvironment("object", name, STORED)
    monkeypatch.delenv(libero.ASSETS)
    with pytest.raises(
        UserError, match="HYPERVLA_LIBERO_ASSETS has to name the folder of LIBERO's assets, but it is not"
    ):
        LiberoEnvironment("object", name, STORED)
    assert os.environ.get("MUJOCO_GL") == "egl"
