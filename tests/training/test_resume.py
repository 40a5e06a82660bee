"""A resumed run is the uninterrupted run, wherever and however it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hypervla import checkpoint
from hypervla.contracts import UserError
from hypervla.data import manifest
from hypervla.training import loop, resume
from hypervla.training.loop import train
from hypervla.training.metrics import LOG
from hypervla.training.recipe import Recipe

STATE = "resume/00000012-state.safetensors"


def assert_same_run(out: Path, other: Path) -> None:
    """Averaged weights, and with the state weights, average, moments and random state: bit for bit. The log too,
    but for the times in it."""
    for name in (checkpoint.WEIGHTS, STATE):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name
    assert log(out) == log(other)
    leftovers = [path.name for path in (out / "resume").iterdir() if path.name not in (STATE[7:], "state.json")]
    assert leftovers == []


def log(out: Path) -> list[dict]:
    timeless = ("time", "samples_per_second", "processor_seconds")
    reports = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in timeless} for row in reports]


def continued(recipe: Recipe, data: Path, out: Path) -> Path:
    torch.manual_seed(999)  # the process that resumes has a random state of its own
    train(recipe, data, out, save_every=3, resume=True)
    return out


KILLED = """
import os, signal, sys
from pathlib import Path
from tests import tiny
from hypervla.training.loop import train

text, data, out, step = sys.argv[1:]

def kill(done, model):
    if done == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

train(tiny.recipe(tiny.convolutional(Path(text))), Path(data), Path(out), save_every=3, on_step=kill)
"""


def test_a_resumed_run_is_the_uninterrupted_run(
    uninterrupted: Path, recipe: Recipe, text_folder: Path, point_data: Path, tmp_path: Path
) -> None:
    """The process is killed between two saves, at a step after the moving average has begun."""
    out, tests = tmp_path / "killed", Path(__file__).parents[1]
    source = Path(loop.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(text_folder), str(point_data), str(out), "8"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(tests.parent)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert json.loads((out / "resume/state.json").read_text())["step"] == 6
    assert_same_run(continued(recipe, point_data, out), uninterrupted)


class Killed(BaseException):
    """Stands for a SIGKILL where one cannot be timed: nothing may catch it."""


@pytest.mark.parametrize("after", range(5))
def test_a_run_killed_anywhere_in_a_save_resumes(
    uninterrupted: Path, recipe, point_data: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save moves four files into place (state and card, weights and card); the run dies before the nth of the
    second save, or before the first of the third."""
    out, left, replace_file = tmp_path / "killed", [4 + after], os.replace

    def replace_or_die(source: str, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        with pytest.raises(Killed):
            train(recipe, point_data, out, save_every=3)
    assert_same_run(continued(recipe, point_data, out), uninterrupted)


def interrupt_at(step: int) -> Callable[[int, object], None]:
    """Ctrl-C while someone looks on after this step, as an evaluation does for minutes."""

    def on_step(done: int, model: object) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


@pytest.mark.parametrize("step", [2, 3, 7])
def test_ctrl_c_saves_all_that_was_done_and_the_run_goes_on_from_there(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt, match=r"Stopped after step \d+; the same command with --resume continues"):
        train(recipe, point_data, out, save_every=3, on_step=interrupt_at(step))
    stopped = json.loads((out / "resume/state.json").read_text())["step"]
    assert step <= stopped <= step + 1
    assert checkpoint.read_card(out).provenance["step"] == stopped
    continued(recipe, point_data, out)
    for name in (checkpoint.WEIGHTS, STATE):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    steps = [row["step"] for row in log(out)]
    assert steps == sorted({3, 6, 9, 12, stopped})


def test_a_finished_run_resumed_with_more_steps_is_the_longer_run(recipe, point_data: Path, tmp_path: Path) -> None:
    steady = replace(recipe, optimizer=replace(recipe.optimizer, schedule="inverse sqrt"))
    train(steady, point_data, tmp_path / "long", save_every=3)
    train(replace(steady, steps=6), point_data, tmp_path / "short", save_every=3)
    assert_same_run(continued(steady, point_data, tmp_path / "short"), tmp_path / "long")


def test_a_finished_run_resumed_is_left_as_it_is(uninterrupted: Path, recipe, point_data, tmp_path: Path) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "copy")
    assert_same_run(continued(recipe, point_data, out), uninterrupted)


def test_a_line_of_the_log_that_a_kill_cut_short_is_dropped(uninterrupted: Path, recipe, point_data, tmp_path) -> None:
    out = tmp_path / "short"
    train(replace(recipe, steps=6), point_data, out, save_every=3)
    with (out / LOG).open("a") as file:
        file.write(json.dumps({"step": 8, "loss": 1.0}) + '\n{"step": 9, "lo')
    train(recipe, point_data, out, save_every=3, resume=True)
    assert [row["step"] for row in log(out)] == [3, 6, 9, 12]


# Refusals


def test_another_recipes_run_is_not_resumed(uninterrupted: Path, recipe: Recipe, point_data: Path) -> None:
    for change, what in (
        ({"seed": 1}, "seed is 0, this command's is 1"),
        ({"batch_contexts": 8}, "batch_contexts is 4, this command's is 8"),
        ({"optimizer": replace(recipe.optimizer, clip=2.0)}, "optimizer.clip is 1.0, this command's is 2.0"),
        ({"model": replace(recipe.model, context_image_dropout=0.25)}, "model.context_image_dropout is 0.5"),
    ):
        with pytest.raises(UserError, match=f"holds another run: its recipe.{what}.* Resume with the same command"):
            train(replace(recipe, **change), point_data, uninterrupted, resume=True)


def test_another_datasets_run_is_not_resumed(uninterrupted: Path, recipe, point_data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(point_data, tmp_path / "other")
    paraphrases = other / "meta/paraphrases.json"
    paraphrases.write_text(paraphrases.read_text() + "\n")
    manifest.write(other)
    with pytest.raises(UserError, match="holds another run: its dataset is"):
        train(recipe, other, uninterrupted, resume=True)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda out: flip(out / STATE), "damaged or foreign"),
        (lambda out: os.truncate(out / STATE, 100), "damaged or foreign"),
        (lambda out: (out / STATE).unlink(), "is missing"),
        (lambda out: os.truncate(out / "resume/state.json", 50), r"state\.json is damaged"),
        (lambda out: (out / "resume/state.json").write_text("{}"), r"state\.json is damaged"),
        (lambda out: (out / "resume/state.json").write_text("[]"), r"state\.json is damaged"),
        (lambda out: shutil.rmtree(out / "resume"), "holds no run to resume"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_is_lost(
    uninterrupted: Path, recipe: Recipe, point_data: Path, tmp_path: Path, damage: Callable[[Path], None], match: str
) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    damage(out)
    with pytest.raises(UserError, match=match) as error:
        train(recipe, point_data, out, resume=True)
    assert "\n" not in str(error.value)
    assert (out / checkpoint.WEIGHTS).read_bytes() == (uninterrupted / checkpoint.WEIGHTS).read_bytes()
    assert log(out) == log(uninterrupted)


def test_there_is_nothing_to_resume_in_an_empty_folder(recipe: Recipe, point_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to resume .* leave out --resume to start one"):
        train(recipe, point_data, tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_forgetting_a_run_leaves_its_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    resume.forget(out)
    assert not (out / "resume").exists()
    checkpoint.load(out)
