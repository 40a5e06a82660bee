"""LIBERO in its own environment, its policy in ours: openpi's client between them, and evaluations that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests import tiny

from hypervla.data.normalize import Normalizer, Robot
from hypervla.embodiment import LIBERO_PANDA
from hypervla.evaluation.results import Results
from hypervla.models.action_head import ReleasedHead
from hypervla.models.hypervla import PolicyConfig
from hypervla.runtime.compiler import load
from hypervla.serving.server import PolicyServer

TASK = "pick_up_the_milk_and_place_it_in_the_basket"
EPISODE = """
import json, sys
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from hypervla.contracts import ActionChunk
from hypervla.simulation.libero import LiberoEnvironment

environment = LiberoEnvironment("object", sys.argv[2], 1_000_000)
client = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]))
environment.reset(1_000_000)
ids, moved = [], []
for _ in range(10):
    seen = environment.observe()
    images = {f"observation/{name}": image for name, image in seen.images.items()}
    asked = {**images, "observation/state": seen.proprio, "prompt": environment.instructions[0]}
    answer = client.infer(asked)
    ids.append(answer["policy_id"])
    environment.execute(ActionChunk(answer["actions"][:1]))
    moved.append(float(abs(environment.observe().proprio[:3] - seen.proprio[:3]).max()))
print(json.dumps({"ids": ids, "shape": answer["actions"].shape, "moved": moved}))
"""


@pytest.fixture
def home(repository: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python of LIBERO's environment."""
    if not (repository / ".envs" / "libero" / ".ready").is_file():
        pytest.skip("there is no environment for LIBERO: make env-libero")
    monkeypatch.setenv("HYPERVLA_LIBERO_ASSETS", str(shared_data / "libero" / "assets"))
    return repository / ".envs" / "libero" / "bin" / "python"


def test_openpis_client_runs_an_episode_in_libero(home: Path, text_folder: Path, tmp_path: Path) -> None:
    """An untrained policy that moves the arm."""
    config = tiny.convolutional(
        text_folder, cameras=2, policy=PolicyConfig(width=8, layers=1, heads=2, mlp=16, proprio_size=8),
        head=ReleasedHead(horizon=4, action_size=7, gripper_index=6),
    )  # fmt: skip
    numbers = {"action_mean": np.full(7, 0.5, np.float32), "action_std": np.ones(7, np.float32)}
    proprio = {"proprio_mean": np.zeros(8, np.float32), "proprio_std": np.ones(8, np.float32)}
    robot = Robot(LIBERO_PANDA, Normalizer(**numbers, **proprio, gripper=LIBERO_PANDA.gripper))
    tiny.save_checkpoint(tmp_path, config, robots={LIBERO_PANDA.name: robot.to_json()})
    with PolicyServer(load(tmp_path), port=0) as server:
        words = [str(home), "-c", EPISODE, str(server.port), TASK]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [4, 7]
    assert len(set(found["ids"])) == 1
    assert max(found["moved"]) > 0.002


def test_a_killed_evaluation_goes_on_to_the_same_trials(home: Path, tmp_path: Path) -> None:
    def words(out: Path) -> list[str]:
        asked = ["--suite", "libero-object", "--task", TASK, "--trials", "3", "--workers", "1", "-o", str(out)]
        return [sys.executable, "-m", "hypervla.cli", "eval", "expert", *asked]

    subprocess.run(words(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL, timeout=300)
    journal = tmp_path / "killed" / "results.jsonl"
    first = subprocess.Popen(words(tmp_path / "killed"), stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 300
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 2:  # the conditions, and a trial
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = journal.read_bytes()
    assert not (tmp_path / "killed" / "results.json").exists()
    subprocess.run(words(tmp_path / "killed"), check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert journal.read_bytes().startswith(kept[: kept.rindex(b"\n")])
    whole, killed = (Results.load(tmp_path / name / "results.json") for name in ("whole", "killed"))
    assert [(t.environment_seed, t.success, t.steps) for t in killed.trials] == [
        (t.environment_seed, t.success, t.steps) for t in whole.trials
    ]
    assert whole.overall.successes == 3
