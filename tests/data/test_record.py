"""A recording is the same data however many processes make it and however often it is interrupted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import POINT, PointExpert, PointWorld, make_point_world, seek_goal

from hypervla.alone import alone_in
from hypervla.contracts import Observation, UserError
from hypervla.data import record as record_module
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.record import demonstrate, record

COMMAND = {"tasks": ("find", "flee"), "episodes": (5, 3), "noise": 0.5, "seed": 7, "max_steps": 4}


def recorded(out: Path, *, make=make_point_world, workers: int = 1, **changes) -> Path:
    record(out, make=make, workers=workers, suite="points", command="hypervla record", **{**COMMAND, **changes})
    return out


def contents(root: Path) -> dict[str, str]:
    """The sha256 of every file by its path."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("record") / "dataset")


class Interruption:
    """Makes worlds that raise after so many actions."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def __call__(self, task: str) -> tuple[PointWorld, PointExpert]:
        world, expert = make_point_world(task)
        execute = world.execute

        def execute_or_raise(chunk):
            self.left -= 1
            if self.left < 0:
                raise self.error
            return execute(chunk)

        world.execute = execute_or_raise
        return world, expert


# One attempt


def test_labels_are_the_experts_actions_while_noise_moved_the_robot() -> None:
    world, expert = make_point_world("find")
    said: list[np.ndarray] = []
    act = expert.action
    expert.action = lambda: said.append(act()) or said[-1]
    episode = demonstrate(world, expert, seed=3, noise=0.5, max_steps=50)
    assert episode is not None
    np.testing.assert_array_equal(episode.actions, said)
    executed = np.stack(world.executed)
    assert (executed[:, :2] != episode.actions[:, :2]).any(axis=1).mean() > 0.5
    assert (np.abs(executed[:, :2]) <= 0.1 + 1e-6).all()
    np.testing.assert_array_equal(executed[:, POINT.gripper.index], episode.actions[:, POINT.gripper.index])
    np.testing.assert_allclose(np.diff(episode.proprio, axis=0), executed[:-1, :2], atol=1e-6)


class AwayFromGoal:
    """Walks the wrong way; a Driver."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, instruction: str, observation: Observation) -> None:
        self.started.append(instruction)

    def action(self, observation: Observation) -> np.ndarray:
        return -seek_goal(observation)[0]


def test_a_driver_moves_the_robot_while_labels_stay_the_experts_who_then_rescues_it() -> None:
    world, expert = make_point_world("find")
    said: list[np.ndarray] = []
    act = expert.action
    expert.action = lambda: said.append(act()) or said[-1]
    driver = AwayFromGoal()
    episode = demonstrate(world, expert, seed=3, noise=0.0, max_steps=200, driver=driver)
    assert episode is not None
    driven = episode.source["driven"]
    assert 0 < driven < len(episode)
    assert len(driver.started) == 1
    assert driver.started[0] in world.instructions
    np.testing.assert_array_equal(episode.actions, said)
    executed = np.stack(world.executed)
    assert (executed[:driven, :2] != episode.actions[:driven, :2]).any(axis=1).all()
    np.testing.assert_array_equal(executed[driven:], episode.actions[driven:])


def test_a_frame_is_what_was_seen_before_its_action() -> None:
    world, expert = make_point_world("find")
    world.reset(3)
    first = world.observe()
    episode = demonstrate(world, expert, seed=3, noise=0.0, max_steps=50)
    np.testing.assert_array_equal(episode.images["top"][0], first.images["top"])
    np.testing.assert_array_equal(episode.proprio[0], first.proprio)
    np.testing.assert_array_equal(episode.environment_state[0], world.environment_state())
    assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]


def test_each_episode_draws_its_own_noise_below_the_limit() -> None:
    world, expert = make_point_world("find")
    scales = [demonstrate(world, expert, seed=s, noise=0.5, max_steps=99).source["noise"] for s in range(30)]
    assert 0 <= min(scales) < 0.15
    assert 0.35 < max(scales) <= 0.5


def test_noise_is_a_share_of_the_robots_limits() -> None:
    world, expert = make_point_world("find")
    episode = demonstrate(world, expert, seed=3, noise=0.1, max_steps=50)
    assert episode is not None
    off = np.abs(np.stack(world.executed) - episode.actions)[:, :2]
    assert 0 < off.max() < 5 * 0.1 * max(POINT.action_high[:2])


def test_an_attempt_without_success_gives_no_episode() -> None:
    assert demonstrate(*make_point_world("flee"), seed=1, noise=0.0, max_steps=1) is None


# Whole recordings


def test_the_kept_episodes_are_the_first_successes_in_the_order_of_seeds(uninterrupted: Path) -> None:
    dataset = LeRobotDataset(uninterrupted)
    about = json.loads((uninterrupted / "meta/hypervla.json").read_text())
    rows = [(row["task"], row["seed"]) for row in about["episodes"]]
    wanted = []
    for task, count in zip(COMMAND["tasks"], COMMAND["episodes"], strict=True):
        attempts = [
            (seed, demonstrate(*make_point_world(task), seed=seed, noise=0.5, max_steps=4)) for seed in range(7, 107)
        ]
        kept = [seed for seed, episode in attempts if episode is not None][:count]
        wanted += [(task, seed) for seed in kept]
        assert about["failed_attempts"][task] == kept[-1] - 7 + 1 - count
    assert rows == wanted
    assert sum(about["failed_attempts"].values()) > 0
    assert [about[name] for name in ("suite", "command", "format_version")] == ["points", "hypervla record", 1]
    assert about["plan"]["noise"] == COMMAND["noise"]
    assert dataset.episode_instructions == ["go to the goal"] * 5 + ["go to the far corner"] * 3
    assert dataset.paraphrases["go to the goal"] == ["go to the goal", "find the goal"]
    assert not (uninterrupted / ".recording").exists()


def test_two_processes_record_what_one_does(uninterrupted: Path, tmp_path: Path) -> None:
    assert contents(recorded(tmp_path / "two", workers=2)) == contents(uninterrupted)


@pytest.mark.parametrize("after", [0, 14, 30])
def test_an_interrupted_recording_continued_is_the_uninterrupted_one(
    uninterrupted: Path, tmp_path: Path, after: int
) -> None:
    out = tmp_path / "dataset"
    with pytest.raises(KeyboardInterrupt, match=r"Interrupted: \d of 8 episodes are kept; the same command continues"):
        recorded(out, make=Interruption(KeyboardInterrupt(), after))
    with pytest.raises(UserError, match="an unfinished recording: repeat its command"):
        LeRobotDataset(out)
    assert contents(recorded(out)) == contents(uninterrupted)


def test_an_interruption_while_the_dataset_is_put_together_leaves_none(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setattr("hypervla.data.lerobot_files.write_tasks", interrupt)
        with pytest.raises(KeyboardInterrupt, match="8 of 8 episodes are kept"):
            recorded(out)
    with pytest.raises(UserError, match=r"has no meta/info\.json"):
        LeRobotDataset(out)
    assert contents(recorded(out)) == contents(uninterrupted)


def test_a_finished_recording_is_left_as_it_is(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(uninterrupted)
    recorded(uninterrupted, make=Interruption(AssertionError("nothing is to be recorded"), 0))
    assert "already holds this recording" in capsys.readouterr().out
    assert contents(uninterrupted) == before


SLOW_RECORDING = """
import sys, time
from pathlib import Path
from tests.fakes import make_point_world
from hypervla.data.record import record

def make(task):
    world, expert = make_point_world(task)
    observe = world.observe
    world.observe = lambda: (time.sleep(0.05), observe())[1]
    return world, expert

if __name__ == "__main__":
    try:
        record(Path(sys.argv[1]), ["find", "flee"], (5, 3), make=make, noise=0.5, seed=7, workers=2, max_steps=4,
               suite="points", command="hypervla record")
    except KeyboardInterrupt as interruption:
        sys.exit(str(interruption))
"""


def test_ctrl_c_stops_all_processes_quickly_and_quietly_and_loses_no_episode(
    uninterrupted: Path, tmp_path: Path
) -> None:
    script, out = tmp_path / "slow.py", tmp_path / "dataset"
    script.write_text(SLOW_RECORDING)
    tests, source = Path(__file__).parents[1], Path(record_module.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(tests.parent)])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not list(out.glob(".recording/task-*/attempt-?????/attempt.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert said.strip().startswith("Interrupted: ")
    assert said.strip().endswith("the same command continues.")
    assert "Traceback" not in said
    assert not (out / "meta/info.json").exists()
    assert contents(recorded(out)) == contents(uninterrupted)


# Refusals


def no_driver() -> AwayFromGoal:
    raise UserError("The driver drives another robot.")


def test_a_driver_that_cannot_be_had_says_so_from_any_process(tmp_path: Path) -> None:
    for workers in (1, 2):
        with pytest.raises(UserError, match="drives another robot"):
            recorded(tmp_path / str(workers), workers=workers, driver="away", make_driver=no_driver)


@pytest.mark.parametrize(
    "change",
    [
        {"noise": 0.1},
        {"seed": 8},
        {"episodes": 4},
        {"tasks": ("flee", "find")},
        {"driver": "away", "make_driver": AwayFromGoal},
    ],
)
def test_another_command_into_the_same_folder_is_refused(uninterrupted: Path, tmp_path: Path, change: dict) -> None:
    with pytest.raises(UserError, match="already holds another dataset"):
        recorded(uninterrupted, **change)
    out = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        recorded(out, make=Interruption(KeyboardInterrupt(), 20))
    with pytest.raises(UserError, match=f"unfinished recording with other settings .*{next(iter(change))}"):
        recorded(out, **change)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no recording of ours"):
        recorded(tmp_path)
    with pytest.raises(UserError, match=r"thesis.txt cannot be written into"):
        recorded(tmp_path / "thesis.txt")
    assert contents(tmp_path).keys() == {"thesis.txt"}


def test_a_full_disk_is_one_sentence_and_the_same_command_continues(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "dataset"
    for function in ("hypervla.data.record.stage_episode", "hypervla.data.video.JoinedVideo.append"):
        with monkeypatch.context() as patch:
            patch.setattr(function, full)
            with pytest.raises(UserError, match=r"The disk of .* is full: free some space"):
                recorded(out)
        with pytest.raises(UserError, match="Not a LeRobot dataset"):
            LeRobotDataset(out)
    assert contents(recorded(out)) == contents(uninterrupted)


def test_two_recordings_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "dataset"
    with alone_in(out), pytest.raises(UserError, match="Another process writes into"):
        recorded(out)
    assert not list(out.iterdir())


def test_a_demonstrator_that_never_succeeds_ends_the_recording(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="demonstrator of flee succeeded in 0 of"):
        recorded(tmp_path / "dataset", tasks=("flee",), episodes=1, max_steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ()}, "one or more different tasks"),
        ({"tasks": ("find", "find")}, "one or more different tasks"),
        ({"episodes": (5,)}, "2 tasks need as many numbers of episodes, but 1 came"),
        ({"episodes": 0}, "at least 1"),
        ({"workers": 0}, "at least 1"),
        ({"seed": -1}, "seed is a whole number of 0 or more"),
        ({"noise": -0.1}, "action noise is a standard deviation of 0 or more"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recorded(tmp_path / "dataset", **change)
    assert not (tmp_path / "dataset").exists()
