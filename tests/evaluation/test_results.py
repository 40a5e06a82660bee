"""Results and their journal: nothing lost, nothing mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hypervla import cli
from hypervla.contracts import UserError
from hypervla.evaluation import rollout
from hypervla.evaluation.journal import Journal
from hypervla.evaluation.results import Conditions, Results, Trial, TrialRecord, paired

CONDITIONS = Conditions(
    suite="point",
    tasks=("find", "flee"),
    trials=3,
    seed=0,
    instructions="canonical",
    execution="open-loop",
    max_steps=30,
    success_rule="The dot touches its goal.",
    scene="",
    embodiment="point",
    checkpoint="0123",
    device="cpu",
    commit="abc",
)


def record(task: str, trial: int, success: bool = True) -> TrialRecord:
    row = Trial(task, trial, 1_000_000 + trial, "go", success, 7, None, 0.05, 2, 0.5)
    return TrialRecord(row, np.array([[1, 2, 3, 7], [2, 3, 4, 10]], np.float32) / 1000)


def all_records(*failures: tuple[str, int]) -> list[TrialRecord]:
    return [record(task, trial, (task, trial) not in failures) for task in CONDITIONS.tasks for trial in range(3)]


def test_saved_results_are_loaded_unchanged(tmp_path: Path) -> None:
    results = Results.of(CONDITIONS, all_records(("find", 1)), {"machine": {"cores": 2}})
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_of_before_there_was_a_column_are_loaded_without_it(tmp_path: Path) -> None:
    results = Results.of(CONDITIONS, all_records(("find", 1)), {})
    data = results.to_json()
    for row in data["trials"]:
        del row["smoothness"], row["failure"]
    assert Results.from_json(data) == results
    del data["trials"][0]["steps"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="results.json is not a results file"):
        Results.load(tmp_path / "results.json")


def test_smoothness_and_failures_are_kept(tmp_path: Path) -> None:
    first, *others = all_records(("find", 0))
    trial = replace(first.trial, smoothness=-7.123456, failure="missed")
    results = Results.of(CONDITIONS, [TrialRecord(trial, first.seconds), *others], {})
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").trials[0] == trial
    journal = Journal(tmp_path / "results.jsonl", CONDITIONS)
    journal.append(TrialRecord(trial, first.seconds))
    journal.close()
    assert Journal(tmp_path / "results.jsonl", CONDITIONS).records["find", 0].trial == trial
    assert trial.ending == "missed after 7 steps"
    assert results.to_json()["overall"]["failures"] == {"missed": 1}


def test_rates_are_counted_from_the_trials() -> None:
    results = Results.of(CONDITIONS, all_records(("find", 1), ("flee", 0)), {})
    assert (results.overall.successes, results.overall.trials) == (4, 6)
    assert {task: rate.successes for task, rate in results.by_task.items()} == {"find": 2, "flee": 2}
    assert results.latency["total"].p50 == pytest.approx(0.0085)
    assert results.latency["compile"].p99 == pytest.approx(0.05)


def test_the_order_trials_ended_in_does_not_matter() -> None:
    assert Results.of(CONDITIONS, all_records()[::-1], {}) == Results.of(CONDITIONS, all_records(), {})


def test_a_missing_trial_is_noticed() -> None:
    with pytest.raises(AssertionError, match="accounted for"):
        Results.of(CONDITIONS, all_records()[1:], {})


def test_a_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "results.jsonl", CONDITIONS)
    journal.append(record("find", 0))
    journal.append(record("flee", 2, success=False))
    journal.close()
    again = Journal(tmp_path / "results.jsonl", CONDITIONS)
    assert list(again.records) == [("find", 0), ("flee", 2)]
    assert again.records["find", 0].trial == record("find", 0).trial
    np.testing.assert_allclose(again.records["find", 0].seconds, record("find", 0).seconds, atol=1e-6)


def test_a_line_torn_by_a_kill_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    journal = Journal(path, CONDITIONS)
    journal.append(record("find", 0))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task":"find","tri')
    again = Journal(path, CONDITIONS)
    assert list(again.records) == [("find", 0)]
    again.append(record("find", 1))
    again.close()
    assert [json.loads(line)["trial"] for line in path.read_bytes()[len(whole) :].splitlines()] == [1]


def test_a_torn_first_line_starts_the_journal_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"format":1,"cond')
    Journal(path, CONDITIONS).close()
    assert json.loads(path.read_bytes())["conditions"]["suite"] == "point"


@pytest.mark.parametrize("change", [{"seed": 1}, {"execution": "receding-horizon:steps=2"}, {"checkpoint": "4567"}])
def test_a_journal_of_another_evaluation_is_refused(tmp_path: Path, change: dict) -> None:
    Journal(tmp_path / "results.jsonl", CONDITIONS).close()
    with pytest.raises(UserError, match=f"{next(iter(change))} is .* there"):
        Journal(tmp_path / "results.jsonl", replace(CONDITIONS, **change))


@pytest.mark.parametrize("content", [b'{"a": 1}\n', b"not json\n", b"[]\n", b"\xe9\n"])
def test_a_foreign_file_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="not the journal"):
        Journal(tmp_path / "results.jsonl", CONDITIONS)
    assert (tmp_path / "results.jsonl").read_bytes() == content


def test_a_journal_with_a_damaged_trial_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "results.jsonl", CONDITIONS)
    journal.append(record("find", 0))
    journal.close()
    row = {**record("find", 1).to_json(), "act_microseconds": [1, 2, 3]}
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="not the journal"):
        Journal(tmp_path / "results.jsonl", CONDITIONS)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(provenance=[]),
        lambda found: found["provenance"].update(machine="x"),
        lambda found: found["trials"].pop(),
        lambda found: found["trials"][0].update(task="fly"),
        lambda found: found.update(trials=[]),
    ],
)
def test_results_that_are_not_whole_are_refused(tmp_path: Path, change: Callable[[dict], object]) -> None:
    found = Results.of(CONDITIONS, all_records(), {}).to_json()
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert Results.load(tmp_path / "results.json").overall.trials == 6
    change(found)
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="is not a results file"):
        Results.load(tmp_path / "results.json")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_foreign_results_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError):
        Results.load(path)


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        Journal(tmp_path / "file" / "results.jsonl", CONDITIONS)
    with pytest.raises(UserError, match="could not be written"):
        Results.of(CONDITIONS, all_records(), {}).save(tmp_path / "file" / "results.json")


def test_pairs_are_the_same_scene_twice() -> None:
    first = Results.of(CONDITIONS, all_records(("find", 0), ("find", 1)), {})
    second = Results.of(replace(CONDITIONS, instructions="held_out"), all_records(("find", 1), ("flee", 0)), {})
    difference = paired(first, second)
    assert (difference.pairs, difference.gained, difference.lost) == (6, 1, 1)
    other = Results.of(replace(CONDITIONS, suite="other"), all_records(), {})
    with pytest.raises(UserError, match="the same scenes twice, but point and other have others"):
        paired(first, other)
    assert difference.mean == 0


def test_other_scenes_make_no_pairs() -> None:
    first = Results.of(CONDITIONS, all_records(), {})
    fewer = replace(CONDITIONS, trials=2)
    second = Results.of(fewer, [row for row in all_records() if row.trial.trial < 2], {})
    with pytest.raises(UserError, match="same scenes"):
        paired(first, second)


def test_what_cannot_be_paired_is_refused_before_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tried(*_: object, **__: object) -> None:
        raise AssertionError("an evaluation was begun")

    monkeypatch.setattr(rollout, "evaluate", tried)
    Results.of(CONDITIONS, all_records(), {}).save(tmp_path / "results.json")
    words = [
        "eval",
        "embedded",
        "--suite",
        "metaworld-mt10",
        "--against",
        str(tmp_path),
        "--out",
        str(tmp_path / "new"),
    ]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "point and metaworld-mt10 have others" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
