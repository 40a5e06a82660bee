"""Evaluations: every trial accounted for, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.point_suite import (
    DIGEST,
    PointCompiler,
    die_loading,
    load_going,
    load_point,
    point_suite,
    refuse_to_load,
)
from tests.fakes import POINT, PointWorld

from hypervla.contracts import UserError
from hypervla.embodiment import METAWORLD_SAWYER
from hypervla.evaluation.film import load_filmstrips
from hypervla.evaluation.journal import Journal
from hypervla.evaluation.results import Conditions, Results
from hypervla.evaluation.rollout import act, evaluate
from hypervla.evaluation.smoothness import smoothness
from hypervla.evaluation.suites import Suite
from hypervla.evaluation.trial import Ticket, roll_out
from hypervla.evaluation.workers import adjust
from hypervla.runtime.execution import OpenLoop, RecedingHorizon

SEED = 1_000_000


def run(out: Path, suite: Suite, **changes) -> Results:
    asked = {"trials": 3, "seed": 0, "execution": OpenLoop(), "out": out, "workers": 2, "load": load_point}
    return evaluate(Path("point"), suite, **asked | changes)


def outcomes(results: Results) -> list[tuple]:
    """What happened, without how long it took."""
    return [replace(trial, compile_seconds=None, wall_seconds=0.0) for trial in results.trials]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """An evaluation in which nothing goes wrong."""
    out = tmp_path_factory.mktemp("quiet")
    return out, run(out, point_suite())


def test_every_trial_is_there_in_order(quiet: tuple[Path, Results]) -> None:
    out, results = quiet
    assert [trial.name for trial in results.trials] == [(task, i) for task in ("find", "flee") for i in range(3)]
    assert [trial.environment_seed for trial in results.trials] == [SEED, SEED + 1, SEED + 2] * 2
    assert all(trial.success and trial.error is None and 0 < trial.steps <= 30 for trial in results.trials)
    assert results.conditions.checkpoint == DIGEST
    assert Results.load(out / "results.json") == results


def test_latency_is_that_of_every_act(quiet: tuple[Path, Results]) -> None:
    _, results = quiet
    assert results.latency["backbone"].p50 == pytest.approx(0.002)
    assert set(results.latency) == {"preprocessing", "backbone", "policy", "total", "compile"}
    assert all(trial.acts == -(-trial.steps // 2) for trial in results.trials), "chunks of two, one look per chunk"


def test_what_every_trial_would_meet_is_no_trials_failure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="longer than the 2 actions"):
        run(tmp_path / "long", point_suite(), execution=RecedingHorizon(99))
    with pytest.raises(UserError, match="server is gone"):
        run(tmp_path / "gone", point_suite(), load=load_going, workers=1)
    lines = (tmp_path / "gone" / "results.jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + 2, "the conditions, and the trials before"
    assert not (tmp_path / "gone" / "results.json").exists()
    assert run(tmp_path / "gone", point_suite()).overall.successes == 6


def test_the_step_limit_is_that_of_the_tasks(quiet: tuple[Path, Results], tmp_path: Path) -> None:
    assert quiet[1].conditions.step_limit == "30"
    suite = replace(point_suite(), task_steps={"flee": 20})
    results = run(tmp_path / "both", suite, trials=1)
    assert results.conditions.task_steps == (30, 20)
    assert Results.load(tmp_path / "both" / "results.json").conditions.step_limit == "20 to 30"
    assert run(tmp_path / "one", suite.only(["flee"]), trials=1).conditions.step_limit == "20"


def test_the_first_trial_of_each_task_is_filmed(quiet: tuple[Path, Results]) -> None:
    out, results = quiet
    strips = load_filmstrips(out / "films")
    assert set(strips) == {"find", "flee"}
    for task, strip in strips.items():
        steps = [step for step, _ in strip.frames]
        assert steps[0] == 0
        assert steps[-1] == results.trials_by_task[task][0].steps
        assert steps == sorted(set(steps))
        assert all(image.startswith(b"\xff\xd8") for _, image in strip.frames)
        assert strip.video is None or strip.video[4:8] == b"ftyp"


def test_the_same_seed_gives_the_same_results_with_any_number_of_workers(
    quiet: tuple[Path, Results], tmp_path: Path
) -> None:
    assert outcomes(run(tmp_path, point_suite(), workers=1)) == outcomes(quiet[1])


def test_a_resumed_evaluation_is_the_uninterrupted_one(quiet: tuple[Path, Results], tmp_path: Path) -> None:
    lines = (quiet[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    heard = []
    results = run(tmp_path, point_suite(), on_trial=lambda trial, done, total: heard.append((done, total)))
    assert outcomes(results) == outcomes(quiet[1])
    assert heard == [(4, 6), (5, 6), (6, 6)]


def test_another_evaluation_in_the_same_folder_is_refused(quiet: tuple[Path, Results]) -> None:
    before = (quiet[0] / "results.jsonl").read_bytes()
    with pytest.raises(UserError, match="seed is 0 there, 1 here"):
        run(quiet[0], point_suite(), seed=1)
    assert (quiet[0] / "results.jsonl").read_bytes() == before


def test_crashes_and_dead_workers_are_failures_that_keep_their_error(tmp_path: Path) -> None:
    suite = point_suite(crash=(SEED + 1,), die=(SEED + 2,))
    results = run(tmp_path, suite, trials=5)
    assert len(results.trials) == 10
    for task in suite.tasks:
        errors = [trial.error for trial in results.trials_by_task[task]]
        assert errors[1] == "FloatingPointError: the simulation diverged"
        assert "died (exit code 9)" in str(errors[2])
        assert [errors[0], *errors[3:]] == [None] * 3
        assert [trial.success for trial in results.trials_by_task[task]] == [True, False, False, True, True]
        assert [trial.failure for trial in results.trials_by_task[task]] == [None, "crashed", "crashed", None, None]
    assert results.errors == 4


def test_when_every_worker_dies_every_trial_is_still_a_row(tmp_path: Path) -> None:
    results = run(tmp_path, point_suite(die=(SEED, SEED + 1)).only(["find"]), trials=2)
    assert [trial.success for trial in results.trials] == [False, False]
    assert not results.latency


def test_steps_are_limited_and_instructions_matter(tmp_path: Path) -> None:
    results = run(tmp_path, point_suite(max_steps=7), instructions="held_out", trials=2)
    assert [(trial.success, trial.steps, trial.instruction) for trial in results.trials] == [(False, 7, "dance")] * 4


def test_an_environment_that_says_how_things_stand_tells_why_trials_failed(tmp_path: Path) -> None:
    """The dot stands still when it was not compiled for the sentence; without a situation nobody knows why."""
    asked = {"instructions": "held_out", "trials": 1, "workers": 1}
    told = run(tmp_path / "told", point_suite(max_steps=8, situated=True), **asked)
    untold = run(tmp_path / "untold", point_suite(max_steps=8), **asked)
    assert [trial.failure for trial in told.trials] == ["stuck"] * 2
    assert [trial.failure for trial in untold.trials] == [None] * 2
    success = run(tmp_path / "success", point_suite(situated=True), trials=1, workers=1)
    assert [trial.failure for trial in success.trials] == [None] * 2


def test_smoothness_is_that_of_the_actions_carried_out() -> None:
    steered = replace(POINT, action_kind="velocity")
    world, compiler = PointWorld("flee"), PointCompiler()
    world.embodiment = steered
    ticket = Ticket("flee", 0, SEED, "flee to the corner", filmed=False)
    trial = roll_out(ticket, world, compiler, OpenLoop(), max_steps=30).trial
    assert trial.success
    assert trial.smoothness == smoothness(np.stack(world.executed), steered)
    assert len(world.executed) == trial.steps
    world.embodiment = POINT
    assert roll_out(ticket, world, compiler, OpenLoop(), max_steps=30).trial.smoothness is None


def test_execution_decides_how_often_the_policy_looks(tmp_path: Path) -> None:
    results = run(tmp_path, point_suite().only(["flee"]), execution=RecedingHorizon(1), trials=1, workers=1)
    assert results.trials[0].acts == results.trials[0].steps


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"load": refuse_to_load}, UserError, "no checkpoint called point"),
        ({"load": die_loading}, UserError, "While loading the checkpoint, the worker process died"),
        ({"suite": replace(point_suite(), embodiment=METAWORLD_SAWYER)}, UserError, "checkpoint drives point"),
        ({"trials": 0}, UserError, "at least 1 trial"),
        ({"workers": 0}, UserError, "at least 1 worker"),
        ({"seed": -1}, UserError, "0 or more"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, change: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        run(tmp_path, **({"suite": point_suite(), "workers": 1} | change))
    assert not list(tmp_path.iterdir())


INTERRUPTED = """
from pathlib import Path
from tests.evaluation.point_suite import point_suite
from tests.evaluation.test_rollout import run
print("began", flush=True)
try:
    run(Path({out!r}), point_suite(pause=0.03), trials=20, on_trial=lambda trial, done, total: print(done, flush=True))
except KeyboardInterrupt as stop:
    print("stopped:", stop, flush=True)
"""


def alive(group: int) -> list[str]:
    """Processes of this group that have not ended."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            stats.append(path.read_text())
    fields = [(stat, stat.rpartition(")")[2].split()) for stat in stats]
    return [stat for stat, (state, _, of, *_) in fields if int(of) == group and state not in "ZX"]


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path: Path, repository: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(out=str(tmp_path))],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.stdout.readline().strip() != "3":
        pass
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: every process of the group
    printed, complained = child.communicate(timeout=30)
    (stopped,) = [line for line in printed.splitlines() if line.startswith("stopped:")]
    assert "of 40 trials kept" in stopped
    assert "the same command goes on" in stopped
    assert complained == ""
    while alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child.pid), "no worker is left"
    assert not (tmp_path / "results.json").exists()
    conditions = json.loads((tmp_path / "results.jsonl").read_bytes().splitlines()[0])["conditions"]
    assert len(Journal(tmp_path / "results.jsonl", Conditions.from_json(conditions)).records) >= 3


def test_acting_once_films_your_own_sentence(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    trial = act(
        Path("point"),
        point_suite(),
        "flee",
        instruction="flee to the corner",
        seed=0,
        execution=OpenLoop(),
        video=tmp_path / "new" / "out.mp4",
        load=load_point,
    )
    assert trial.success
    with av.open(str(tmp_path / "new" / "out.mp4")) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        assert film.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert sum(1 for _ in film.decode(video=0)) > trial.steps // 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.mp4"]


def test_a_sentence_no_policy_can_be_compiled_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instruction is empty"):
        act(
            Path("point"),
            point_suite(),
            "flee",
            instruction="  ",
            seed=0,
            execution=OpenLoop(),
            video=tmp_path / "out.mp4",
            load=load_point,
        )


def test_cameras_are_adjusted_to_the_policy_or_refused() -> None:
    class Adjusting(PointWorld):
        def look_through(self, cameras) -> None:
            self.looked = tuple(cameras)

    other = replace(POINT, cameras=(replace(POINT.cameras[0], height=48, width=48, crop=None),))
    adjusting, fixed = Adjusting("find"), PointWorld("find")
    adjust(adjusting, POINT)
    adjust(fixed, POINT)
    assert not hasattr(adjusting, "looked")
    adjust(adjusting, other)
    assert adjusting.looked == other.cameras
    with pytest.raises(UserError, match="looks at top 48×48, but the cameras of point deliver top"):
        adjust(fixed, other)
