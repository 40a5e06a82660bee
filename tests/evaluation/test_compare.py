"""Comparisons: runs side by side, what changed scene by scene, and what is not the same."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.evaluation.test_report import Page
from tests.evaluation.test_results import CONDITIONS, all_records, record

from hypervla.cli import main
from hypervla.contracts import UserError
from hypervla.evaluation.compare import changes, conditions, load_runs, table, write
from hypervla.evaluation.results import Conditions, Results, TrialRecord

KNOWN = replace(CONDITIONS, embodiment="metaworld-sawyer")


def save(folder: Path, records: list[TrialRecord], conditions: Conditions = KNOWN) -> Path:
    Results.of(conditions, records, {"machine": {"processor": "abacus"}}).save(folder / "results.json")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A run that fails once, and one that fails twice, for reasons that are known."""
    for name in ("first", "second", "fewer"):
        (tmp_path / name).mkdir()
    failed = [
        TrialRecord(replace(row.trial, smoothness=-12.5, failure=None if row.trial.success else "missed"), row.seconds)
        for row in all_records(("find", 0), ("flee", 2))
    ]
    scene = "with stand-in visuals: not comparable."
    fewer = [record("find", trial, success=trial == 0) for trial in range(2)]
    return [
        save(tmp_path / "first", all_records(("find", 1))),
        save(tmp_path / "second", failed, replace(KNOWN, execution="temporal-ensemble", scene=scene)),
        save(tmp_path / "fewer", fewer, replace(KNOWN, tasks=("find",), trials=2)),
    ]


def words(path: Path) -> str:
    return " ".join(" ".join(Page(path.read_text()).words).split())


def test_a_comparison_fetches_nothing_and_holds_every_run(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "compare.html"
    write(load_runs(folders), out)
    page = Page(out.read_text())
    assert (page.fetched, page.open) == ([], [])
    assert not re.search(r"https?://|@import|url\(|<script", out.read_text())
    said = words(out)
    for fact in ("first", "second", "fewer", "83.3 %", "5/6", "66.7 %", "44–97 %", "0.09 s", "−12.50", "missed"):
        assert fact in said, fact
    assert [path.name for path in out.parent.iterdir()] == ["compare.html"]


def test_pairs_are_told_where_the_scenes_are_the_same_and_why_not_elsewhere(folders: list[Path]) -> None:
    change, refusal = changes(load_runs(folders))
    assert (change.gained, change.lost, change.pairs) == (1, 2, 6)
    assert "same scenes twice, but 2 of 6 and 2 are shared" in refusal


def test_what_is_not_the_same_is_said(folders: list[Path], tmp_path: Path) -> None:
    rows = {row.title: row for row in conditions(load_runs(folders)) if row.differs}
    assert set(rows) == {"tasks", "trials a task", "execution mode", "scene"}
    assert rows["execution mode"].cells == ("open-loop", "temporal-ensemble", "open-loop")
    write(load_runs(folders), tmp_path / "different.html")
    assert "Not everything is the same" in words(tmp_path / "different.html")
    write(load_runs([folders[0], copy(folders[0])]), tmp_path / "same.html")
    assert "Not everything is the same" not in words(tmp_path / "same.html")


def copy(folder: Path) -> Path:
    """The same results in another file."""
    path = folder.parent / "copy.json"
    path.write_bytes((folder / "results.json").read_bytes())
    return path


def test_nothing_is_said_of_what_no_run_knows(folders: list[Path], tmp_path: Path) -> None:
    write(load_runs([folders[0], copy(folders[0])]), tmp_path / "compare.html")
    said = words(tmp_path / "compare.html")
    assert "Why trials failed" not in said
    assert "Smoothness" not in said
    assert "Time to success" in said


def test_runs_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
        save(tmp_path / name, all_records())
    assert [run.name for run in load_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])] == ["a/run", "b/run"]
    with pytest.raises(UserError, match="came twice"):
        load_runs([tmp_path / "a" / "run", tmp_path / "a" / "run" / "results.json"])


def test_what_cannot_be_compared_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 evaluations, but 1"):
        load_runs(folders[:1])
    other = tmp_path / "other.json"
    data = json.loads((folders[0] / "results.json").read_text())
    other.write_text(json.dumps(data | {"conditions": data["conditions"] | {"suite": "line"}}))
    with pytest.raises(UserError, match="of one suite can be compared, but these are of point and line"):
        load_runs([folders[0], other])
    with pytest.raises(UserError, match="There are no results at .*nowhere"):
        load_runs([folders[0], tmp_path / "nowhere"])


def test_results_of_before_smoothness_and_failures_are_still_read(repository: Path) -> None:
    names = ("mt10-onnx-fp32.json", "mt10-openvino-fp32.json")
    runs = load_runs([repository / "docs" / "results" / name for name in names])
    assert all(run.results.trials for run in runs)
    assert not any(run.results.explained for run in runs)


def test_the_terminal_says_the_same(folders: list[Path]) -> None:
    console = Console(record=True, width=140, force_terminal=False)
    console.print(table(load_runs(folders)))
    printed = console.export_text()
    for said in ("first", "second", "83.3 % (44–97 %)", "p = 1.000", "other scenes", "8.50 / 10.0", "0.09 s", "missed"):
        assert said in printed, said


def test_the_command_writes_the_page(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *map(str, folders), "--out", str(tmp_path / "compare.html")])
    assert (tmp_path / "compare.html").read_text().startswith("<!doctype html>")
    assert "The execution mode differs: open-loop | temporal-ensemble | open-loop" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(folders[0]), "--out", str(tmp_path / "one.html")])
    assert stopped.value.code == 2
    assert not (tmp_path / "one.html").exists()
