"""An evaluation or a recording whose simulator lives elsewhere: it goes on there, and the policy stays here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.evaluation.point_suite import point_suite

from hypervla import cli
from hypervla.contracts import UserError
from hypervla.evaluation import suites
from hypervla.evaluation.expert import EXPERT
from hypervla.evaluation.rollout import evaluate
from hypervla.runtime.compiler import load
from hypervla.runtime.execution import OpenLoop
from hypervla.runtime.provenance import COMMAND, command
from hypervla.serving.server import PolicyServer

ELSEWHERE = """#!{python}
import json, os, sys
from pathlib import Path
words = sys.argv[3:]
heard = {{"words": words, "command": os.environ["HYPERVLA_COMMAND"]}}
if "--server" in words:
    sys.path.insert(0, {source!r})
    from hypervla.runtime.client import Connection
    connection = Connection(words[words.index("--server") + 1])
    heard["checkpoint"], heard["robot"] = connection.metadata["checkpoint"], connection.metadata["embodiment"]["name"]
    connection.close()
Path({heard!r}).write_text(json.dumps(heard))
sys.exit({status})
"""


PYTORCHLESS = """
import sys
sys.modules["torch"] = None
from hypervla.arguments import driver_options
from tests.fakes import POINT
options = driver_options("{address}", POINT)
assert options["driver"]
options["make_driver"]()
"""


@pytest.fixture
def elsewhere(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python of another environment, which writes down what it is asked; returns where."""
    return make_elsewhere(tmp_path, repository, monkeypatch, status=0)


def make_elsewhere(folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> Path:
    heard, program = folder / "heard.json", folder / "python"
    about = {"python": sys.executable, "source": str(repository / "src"), "heard": str(heard), "status": status}
    program.write_text(ELSEWHERE.format(**about))
    program.chmod(0o755)
    monkeypatch.setenv("HYPERVLA_LIBERO_PYTHON", str(program))
    return heard


TASK = "pick_up_the_milk_and_place_it_in_the_basket"


def test_a_recording_goes_on_there(elsewhere: Path) -> None:
    words = ["record", "--suite", "libero-object", "--task", TASK, "--episodes", "3", "--noise", "0.2", "--out", "data"]
    cli.main(words)
    heard = json.loads(elsewhere.read_text())
    assert heard["words"][:5] == ["record", "--out", "data", "--suite", "libero-object"]
    assert "--task" in heard["words"]
    assert heard["words"][heard["words"].index("--episodes") + 1] == "3"


def test_a_checkpoint_drives_from_here(elsewhere: Path, checkpoint_folder: Path) -> None:
    words = ["record", "--suite", "libero-object", "--task", TASK, "--episodes", "3", "--out", "data"]
    cli.main([*words, "--driver", str(checkpoint_folder)])
    heard = json.loads(elsewhere.read_text())["words"]
    assert heard[heard.index("--driver") + 1].startswith("ws://127.0.0.1:")
    assert str(checkpoint_folder) not in heard


def test_a_server_drives_where_there_is_no_pytorch(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LIBERO's environment has none."""
    with PolicyServer(load(checkpoint_folder), port=0) as server:
        program = PYTORCHLESS.format(address=f"ws://127.0.0.1:{server.port}")
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_expert_is_evaluated_there(elsewhere: Path) -> None:
    cli.main(["eval", "expert", "--suite", "libero-goal", "--trials", "2", "--workers", "1", "-o", "runs/x"])
    words = json.loads(elsewhere.read_text())["words"]
    assert words[:4] == ["eval", "expert", "--suite", "libero-goal"]
    assert words[words.index("--out") + 1] == "runs/x"


def test_a_checkpoint_answers_from_here(elsewhere: Path, checkpoint_folder: Path) -> None:
    cli.main(["eval", str(checkpoint_folder), "--suite", "libero-object"])
    heard = json.loads(elsewhere.read_text())
    assert heard["robot"] == "point"
    assert heard["words"][:2] == ["eval", "--server"]
    assert str(checkpoint_folder) not in heard["words"]


def test_its_failure_is_ours(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_elsewhere(tmp_path, repository, monkeypatch, status=3)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "expert", "--suite", "libero-object"])
    assert stopped.value.code == 3


def test_nowhere_to_go_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYPERVLA_LIBERO_PYTHON", "/nowhere/python")
    with pytest.raises(SystemExit):
        cli.main(["eval", "no-such-checkpoint", "--suite", "libero-object"])
    assert "HYPERVLA_LIBERO_PYTHON names '/nowhere/python'" in capsys.readouterr().err


def test_the_command_is_what_a_person_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, json.dumps(["hypervla", "eval", "mine"]))
    assert command() == ["hypervla", "eval", "mine"]
    monkeypatch.delenv(COMMAND)
    assert command()[1:] == sys.argv[1:]


# Demonstrators in place of a checkpoint


def test_the_expert_solves_its_suite(tmp_path: Path) -> None:
    results = evaluate(
        EXPERT, point_suite(demonstrated=True), trials=2, seed=0, execution=OpenLoop(), out=tmp_path, workers=1
    )
    assert [trial.success for trial in results.trials] == [True] * 4
    assert results.conditions.checkpoint == EXPERT


def test_nobody_demonstrates_this_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nobody demonstrates suite 'point': evaluate a checkpoint on it"):
        evaluate(EXPERT, point_suite(), trials=1, seed=0, execution=OpenLoop(), out=tmp_path, workers=1)


def test_libero_has_its_protocols() -> None:
    steps = {name: suites.suite(name).max_steps for name in suites.SUITES if name.startswith("libero")}
    assert steps == {
        "libero-spatial": 220,
        "libero-object": 280,
        "libero-goal": 300,
        "libero-10": 520,
        "libero-spatial-lerobot": 280,
        "libero-object-lerobot": 280,
        "libero-goal-lerobot": 300,
        "libero-10-lerobot": 520,
        "libero-spatial-hypervla": 520,
        "libero-object-hypervla": 520,
        "libero-goal-hypervla": 520,
        "libero-10-hypervla": 520,
    }
    libero = suites.suite("libero-object")
    assert libero.instruction(TASK, "canonical", 7) == "pick up the milk and place it in the basket"
    with pytest.raises(UserError, match="no sentences kept out of training"):
        libero.instruction(TASK, "held_out", 0)


def test_simpler_ends_each_task_after_its_own_steps() -> None:
    simpler = suites.suite("simpler-widowx")
    assert [simpler.steps_of(task) for task in simpler.tasks] == [60, 60, 60, 120]
    assert suites.suite("metaworld-mt10").steps_of("reach-v3") == 400


def test_in_liberos_own_environment(
    shared_data: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    if not (repository / ".envs" / "libero" / ".ready").is_file():
        pytest.skip("there is no environment for LIBERO: make env-libero")
    monkeypatch.setenv("HYPERVLA_LIBERO_ASSETS", str(shared_data / "libero" / "assets"))
    cli.main(["eval", "expert", "--suite", "libero-object", "--task", TASK, "--trials", "1", "-o", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["overall"]["successes"] == 1
    assert "stand-in visuals" in found["conditions"]["scene"]
    assert "stand-in visuals" in " ".join(capfd.readouterr().out.split())
    assert os.environ.get(COMMAND) is None
    with pytest.raises(SystemExit):
        cli.main(["eval", "embedded", "--suite", "libero-object", "-o", str(tmp_path / "other")])
    assert "drives metaworld-sawyer, but libero-panda was wanted" in " ".join(capfd.readouterr().err.split())
