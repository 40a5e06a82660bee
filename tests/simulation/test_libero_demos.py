"""The reader of LIBERO's HDF5 files against LIBERO: its own reader of them, and its simulator. Runs in LIBERO's own
environment (make test)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.data.hdf5_files import TASK, Motion, motion, write

from hypervla.data.libero_hdf5 import LiberoDemos
from hypervla.simulation import libero
from hypervla.simulation.libero import LiberoEnvironment

STEPS = 12


@pytest.fixture(autouse=True)
def assets(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("libero") is None:
        pytest.skip("LIBERO lives in an environment of its own: make env-libero")
    monkeypatch.setenv(libero.ASSETS, str(shared_data / "libero" / "assets"))


def moved() -> Motion:
    """Random motion in the simulator, written down as LIBERO's scripts do: states, and what robosuite says is seen."""
    environment = LiberoEnvironment("object", TASK, 0)
    try:
        environment.reset(0)
        random = np.random.default_rng(0)
        actions = random.uniform(-1, 1, (STEPS, 7))
        states, joints, proprio, images = [], [], [], []

        def look() -> None:
            states.append(environment.simulator.sim.get_state().flatten())
            joints.append(environment._seen["robot0_joint_pos"])
            observation = environment.observe()
            proprio.append(observation.proprio)
            images.append(observation.images)

        look()
        for action in actions:
            environment._step(action)
            look()
    finally:
        environment.close()
    seen = np.array(proprio, np.float64)
    return Motion(
        actions=actions,
        states=np.array(states),
        poses=seen[:, :6],
        fingers=seen[:, 6:],
        images={
            key: np.stack([each[camera] for each in images])
            for camera, key in (("image", "agentview_rgb"), ("wrist_image", "eye_in_hand_rgb"))
        },
        seen_joints=np.array(joints),
    )


def test_the_simulators_states_tell_which_observation_belongs_to_an_action(tmp_path: Path) -> None:
    wanted = moved()
    assert np.abs(wanted.joints - wanted.states[:, 1:8]).max() > 0, "observations are a little older than states"
    for after in (True, False):
        reader = LiberoDemos(write(tmp_path / str(after) / f"{TASK}_demo.hdf5", [wanted], after=after))
        assert reader.episode(0).source["lag"] == int(after)
        np.testing.assert_array_equal(reader.actions, wanted.actions[after:].astype(np.float32))
        np.testing.assert_array_equal(reader.episode(0).images["image"], wanted.images["agentview_rgb"][after:-1])


def test_liberos_own_reader_finds_the_same_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import import_module

    path = write(tmp_path / "demo.hdf5", [motion(length, length) for length in (5, 9)], after=True)
    import_module("libero.libero.utils.dataset_utils").get_dataset_info(str(path))
    said = capsys.readouterr().out
    assert "total transitions: 14" in said
    assert "total trajectories: 2" in said
    reader = LiberoDemos(path)
    assert len(reader.actions) == 14 - 2, "each without the action before whose result nothing was seen"
    assert f"language instruction: {reader.instruction(0)}" in said


def test_liberos_own_pictures_come_as_ours_do() -> None:
    from importlib import import_module

    environment = LiberoEnvironment("object", TASK, 0)
    try:
        environment.reset(0)
        state, seen = environment.simulator.sim.get_state().flatten(), environment.observe().images
    finally:
        environment.close()
    description = libero._package() / "bddl_files" / "libero_object" / f"{TASK}.bddl"
    theirs = import_module("libero.libero.envs").OffScreenRenderEnv(
        bddl_file_name=str(description), camera_heights=256, camera_widths=256
    )
    try:
        theirs.seed(0)
        theirs.reset()
        own = theirs.set_init_state(state)
    finally:
        theirs.close()
    for camera, name in libero.CAMERAS.items():
        off = {
            (down, right): np.abs(own[f"{name}_image"][::down, ::right].astype(int) - seen[camera]).mean()
            for down in (1, -1)
            for right in (1, -1)
        }
        assert min(off, key=lambda turn: off[turn]) == (1, 1), off
