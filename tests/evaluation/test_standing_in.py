"""What learned a robot from its dataset drives its twin in the simulator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hypervla import checkpoint
from hypervla.contracts import ActionChunk, Observation, UserError
from hypervla.data import oxe
from hypervla.data.augment import resize
from hypervla.embodiment import GOOGLE_ROBOT, WIDOWX, Camera, Gripper
from hypervla.evaluation.standing_in import DATASETS, StandingIn, about_turning_axes, robot_in
from hypervla.evaluation.suites import suite
from hypervla.evaluation.trial import check_robot
from hypervla.runtime.client import RemoteCompiler
from hypervla.runtime.task_policy import Timing
from hypervla.serving.server import PolicyServer

BRIDGE = replace(
    WIDOWX,
    name="bridge_dataset",
    cameras=(Camera("primary", 256, 256),),
    gripper=Gripper(6, open=1.0, closed=0.0),
    proprio_names=tuple("xyzrpyg"),
    action_low=(-1.0,) * 7,
    action_high=(1.0,) * 7,
)


class Bridge:
    """A compiler whose policies remember what they saw, and say what they are told to."""

    embodiment, digest, provenance = BRIDGE, "0123", {}
    policy_id, last_timing = "one", Timing(0.0, 0.0, 0.001)

    def __init__(self, actions: np.ndarray) -> None:
        self.actions, self.seen = actions, []

    def compile(self, instruction: str, images: dict) -> Bridge:
        self.seen.append(images)
        return self

    def act(self, observation: Observation) -> ActionChunk:
        self.embodiment.check_observation(observation, needs_proprio=False)
        self.seen.append(observation.images)
        return ActionChunk(self.actions)


ACTIONS = np.float32([[0.01, -0.02, 0.03, 0, 0.2, 0, 0.9], [0.3, 0, 0, 0, 0, 0, 0.2]])
TOLD = np.float32([[0.01, -0.02, 0.03, 0, 0.2, 0, 1.0], [0.05, 0, 0, 0, 0, 0, -1.0]])
"""The same for the twin: its limits, and a gripper that is told +1 or −1."""


def picture() -> np.ndarray:
    ramp = np.linspace(0, 255, 640)[None, :, None] * np.ones((480, 1, 3))
    return ramp.astype(np.uint8)


def test_it_sees_what_the_datasets_camera_would_have_delivered() -> None:
    bridge = Bridge(ACTIONS)
    images = {"3rd_view_camera": picture()}
    policy = StandingIn(bridge, WIDOWX).compile("put it there", images)
    np.testing.assert_allclose(policy.act(Observation(images)).actions, TOLD, atol=1e-6)
    wanted = resize(picture(), 256)
    for seen in bridge.seen:
        np.testing.assert_array_equal(seen["primary"], wanted)
    with pytest.raises(UserError, match=r"delivers uint8 images of shape \(480, 640, 3\)"):
        policy.act(Observation({"3rd_view_camera": picture()[:256]}))


def test_turns_are_the_same_as_the_controller_reads_them() -> None:
    """SIMPLER's WidowX is moved by ManiSkill's controller, which reads angles about axes that turn (pd_ee_pose.py)."""
    spatial = pytest.importorskip("scipy.spatial.transform")
    angles = np.random.default_rng(0).uniform(-1.5, 1.5, (200, 3)).astype(np.float32)
    meant = spatial.Rotation.from_euler("xyz", angles)
    read = spatial.Rotation.from_euler("XYZ", about_turning_axes(angles))
    assert (meant.inv() * read).magnitude().max() < 1e-5


def test_a_gripper_that_is_told_the_same_is_told_the_same() -> None:
    fractal = Bridge(ACTIONS)
    fractal.embodiment = replace(BRIDGE, name="fractal20220817_data", cameras=(Camera("primary", 512, 640),))
    images = {"overhead_camera": np.zeros((512, 640, 3), np.uint8)}
    told = StandingIn(fractal, GOOGLE_ROBOT).compile("open it", images).act(Observation(images)).actions
    np.testing.assert_array_equal(told[:, 6], ACTIONS[:, 6])


def test_it_is_served_as_the_suites_robot() -> None:
    twin = StandingIn(Bridge(ACTIONS), WIDOWX)
    check_robot(twin, suite("simpler-widowx").embodiment)
    with PolicyServer(twin, port=0) as server:
        remote = RemoteCompiler(f"ws://127.0.0.1:{server.port}", WIDOWX)
        policy = remote.compile("put it there", {})
        np.testing.assert_allclose(policy.act(Observation({"3rd_view_camera": picture()})).actions, TOLD, atol=1e-6)
        assert remote.digest == "0123"


def test_the_robot_is_found_among_a_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    def knows(*names: str, proprio: int = 0) -> None:
        card = SimpleNamespace(robots=dict.fromkeys(names), config=SimpleNamespace(proprio_size=proprio))
        monkeypatch.setattr(checkpoint, "read_card", lambda folder: card)

    for robots, found in (
        (("fractal20220817_data", "bridge_dataset"), "bridge_dataset"),
        (("bridge_orig",), "bridge_orig"),
        (("widowx", "bridge_dataset"), "widowx"),
        (("somebody",), None),
    ):
        knows(*robots)
        assert robot_in(Path("runs/paper"), WIDOWX) == found
    knows("bridge_dataset", proprio=7)
    with pytest.raises(UserError, match="reads the proprio of bridge_dataset, which widowx does not give"):
        robot_in(Path("runs/paper"), WIDOWX)
    two = Bridge(ACTIONS)
    two.embodiment = replace(BRIDGE, cameras=(*BRIDGE.cameras, Camera("secondary", 256, 256)))
    with pytest.raises(UserError, match="looks through primary, secondary: choose a checkpoint"):
        StandingIn(two, WIDOWX)


def test_the_datasets_are_as_fast_as_their_twins() -> None:
    for robot in (WIDOWX, GOOGLE_ROBOT):
        assert {oxe.row(name).control_hz for name in DATASETS[robot.name]} == {robot.control_hz}
