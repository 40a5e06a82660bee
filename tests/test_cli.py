"""The command line: bad input ends in one line that names what was wanted, what came and what to do."""

from __future__ import annotations

import errno
import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from hypervla import __version__, cli
from hypervla.arguments import OVERRIDABLE
from hypervla.contracts import UserError

COMMANDS = ["demo", "record", "data", "train", "compile", "act", "eval", "info"]


def ends_in_one_line(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """Run a command that must fail with this code and one line on stderr; give the line."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    line = capsys.readouterr().err
    assert end.value.code == code, line
    assert line.startswith("hypervla: "), line
    assert line.count("\n") == 1, line
    return line


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"hypervla {__version__}\n"


def test_a_demonstration_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "metaworld" else name)
    line = ends_in_one_line(capsys, "demo", "--out", str(tmp_path))
    assert "needs the package 'metaworld': pip install 'hypervla[demo]'" in line


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"• {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "data info", "data check", "data convert", "data stats"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    if command != "data":
        assert f"Example: hypervla {command}" in text


def test_the_command_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "hypervla.cli", "no-such-command"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_unknown_recipe_names_near_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ends_in_one_line(capsys, "train", "metaworld_smal", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert "metaworld_small" in line


def test_an_unknown_suite_names_near_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ends_in_one_line(capsys, "eval", str(tmp_path), "--suite", "metaworld-mt1")
    assert "metaworld-mt10" in line


def test_an_unknown_task_names_near_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "act",
        str(tmp_path),
        "--task",
        "draw-open-v3",
        "--instruction",
        "open",
        "--video",
        str(tmp_path / "o.mp4"),
    ]
    assert "drawer-open-v3" in ends_in_one_line(capsys, *words)
    line = ends_in_one_line(
        capsys, "record", "--task", "draw-open-v3", "--out", str(tmp_path / "data"), "--workers", "1"
    )
    assert "drawer-open-v3" in line


def test_an_unknown_model_names_near_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert "paper" in ends_in_one_line(capsys, "info", "papr")


def test_an_unknown_checkpoint_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = ends_in_one_line(capsys, "compile", "embeded", "--instruction", "open", "--image", "x.png", "-o", "x.policy")
    assert "embedded" in line


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_in_one_line(capsys, "compile", str(tmp_path), "--instruction", "x", "--image", "x.png", "-o", "x.policy")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_in_one_line(capsys, "data", "info", str(tmp_path))
    ends_in_one_line(capsys, "data", "info", str(tmp_path / "missing"))
    ends_in_one_line(capsys, "train", "metaworld_small", "--data", str(tmp_path), "--out", str(tmp_path / "run"))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "metaworld_small", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--device"]
    assert "cpu" in ends_in_one_line(capsys, *words, "gpu")
    assert "cpu" in ends_in_one_line(capsys, *words, "cuda:99")


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_time_that_never_ends_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    for table in ("table3", "evla"):
        assert "--seconds" in ends_in_one_line(capsys, "bench", table, "--scale", "small", f"--seconds={seconds}")


def test_training_wants_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data FOLDER" in ends_in_one_line(capsys, "train", "small", "--out", str(tmp_path / "run"))


def test_record_wants_a_suite_or_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--suite" in ends_in_one_line(capsys, "record", "--out", str(tmp_path))
    other = ["--suite", "metaworld-mt10", "--task", "sweep-v3"]
    assert "no task of suite metaworld-mt10 called" in ends_in_one_line(
        capsys, "record", "--out", str(tmp_path), *other
    )
    nobody = ["--suite", "metaworld-shared-scene"]
    assert "Nobody demonstrates" in ends_in_one_line(capsys, "record", "--out", str(tmp_path), *nobody)
    tested = ("--task", "reach-v3", "--seed", "1000000")
    assert "seeds below 100,000" in ends_in_one_line(capsys, "record", "--out", str(tmp_path), *tested)
    line = ends_in_one_line(
        capsys, "record", "--out", str(tmp_path), "--task", "reach-v3", "--seed", "99999", "--episodes", "2"
    )
    assert "may take those up to 100,029" in line
    assert not list(tmp_path.iterdir())


def test_a_demonstration_leaves_evaluations_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_text("hours of work\n")
    assert "holds an evaluation" in ends_in_one_line(capsys, "demo", "--out", str(tmp_path))
    assert (tmp_path / "results.jsonl").read_text() == "hours of work\n"


def test_datasets_stay_as_they_are(tmp_path: Path, point_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(point_data.rglob("*"))
    for words in (("info", "--sheet", point_data / "frames.png"), ("convert", "--out", point_data / "new")):
        line = ends_in_one_line(capsys, "data", words[0], str(point_data), *map(str, words[1:]))
        assert "is inside the dataset" in line
    assert sorted(point_data.rglob("*")) == before


def test_a_run_is_not_kept_in_its_data(point_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, data = sorted(point_data.rglob("*")), ("train", "small", "--data", str(point_data))
    inside = str(point_data / "run")
    for words in (("--out", inside), ("--out", str(tmp_path / "run"), "--pictures", inside)):
        assert "is inside the dataset" in ends_in_one_line(capsys, *data, *words)
    many = ends_in_one_line(capsys, *data, "--out", str(tmp_path / "run"), "--seed", str(2**63))
    assert "--seed must be below 9,223,372,036,854,775,808" in many
    few = ends_in_one_line(capsys, *data, "--out", str(tmp_path / "run"), "--workers", "-1")
    assert "--workers must be 0 or more" in few
    assert sorted(point_data.rglob("*")) == before
    assert not (tmp_path / "run").exists()


def test_a_camera_is_named_once(tmp_path: Path, point_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = ("--camera", "camera", "--camera", "camera")
    assert "A camera came twice" in ends_in_one_line(capsys, "data", "info", str(point_data), *twice)
    line = ends_in_one_line(capsys, "data", "convert", str(tmp_path / "no"), "--drop-no-ops", "--out", str(tmp_path))
    assert "is not here" in line


def test_trace_and_no_trace_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_in_one_line(capsys, "train", "paper", "--data", "x", "--out", str(tmp_path), "--trace", "--no-trace")


def test_the_listed_fields_and_no_others_can_be_overridden() -> None:
    from hypervla.training.recipe import Recipe

    options = set(inspect.signature(cli.train).parameters) - {
        "recipe",
        "data",
        "out",
        "resume",
        "initial",
        "device",
        "no_trace",
        "mixture",
        "cameras",
        "robot",
        "rows",
        "paraphrases",
        "workers",
        "leave_out",
        "minutes",
        "pictures",
        "vision_only",
        "new_statistics",
    }
    assert options == set(OVERRIDABLE) == {"steps", "batch_contexts", "seed", "trace"}
    assert options <= {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (UserError("no statistics:\n run hypervla record"), "no statistics: run hypervla record"),
        (OSError(errno.ENOSPC, "No space left on device", "data/mt10"), "disk is full (writing data/mt10)"),
        (RuntimeError("Io error: No space left on device (os error 28)"), "disk is full"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "fewer --batch-contexts"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't"), "memory"),
        (FileNotFoundError(errno.ENOENT, "No such file", "first.png"), "first.png"),
        (PermissionError(errno.EACCES, "Permission denied", "data"), "data"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "notes.txt"), "notes.txt"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), "hypervla[train]"),
        (ModuleNotFoundError("No module named 'metaworld'", name="metaworld"), "hypervla[metaworld]"),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(
    error: Exception, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.app, "cli", raiser(error))
    line = ends_in_one_line(capsys, "demo")
    assert line.startswith("hypervla: error: ")
    assert word in line


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), ModuleNotFoundError(name="hypervla.nothing")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.app, "cli", raiser(error))
    with pytest.raises(type(error)):
        cli.main(["demo"])


@pytest.mark.parametrize("message", ["", "Interrupted: 3 of 10 episodes are kept; the same command continues."])
def test_an_interrupt_ends_in_one_line(
    message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.app, "cli", raiser(KeyboardInterrupt(message)))
    line = ends_in_one_line(capsys, "demo", code=130)
    assert line == f"hypervla: {message or 'Interrupted.'}\n"


def raiser(error: BaseException) -> Any:
    def fails(**_: Any) -> None:
        raise error

    return fails
