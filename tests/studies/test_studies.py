"""Studies: which runs and evaluations they are, how they go on, and the tables they come to."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from tests.evaluation.test_results import CONDITIONS, all_records

from hypervla.contracts import UserError
from hypervla.evaluation.intervals import Estimate, PairedDifference
from hypervla.evaluation.results import Results
from hypervla.evaluation.suites import suite
from hypervla.studies import table
from hypervla.studies.catalogue import STUDIES, study
from hypervla.studies.conduct import Conductor, begun
from hypervla.studies.study import Budget, Cell, Column, Part, Pretraining, Study, System, cells, slug
from hypervla.training.recipes import RECIPES

STUDY = Study(
    name="toy",
    question="Which is better?",
    systems=(
        System("one", "small_hypervla"),
        System("other, pretrained", "small_alone", start="elsewhere", vision_only=True, published="9"),
    ),
    parts=(
        Part(
            "points",
            ("points",),
            (Column("seen", "metaworld-mt10"), Column("not seen", "metaworld-mt10", ("reach-v3",), True, False)),
            leave_out=("run",),
        ),
    ),
    recordings={"points": "hypervla record --suite points", "others": "hypervla record --suite others"},
    pretrainings={"elsewhere": Pretraining("small_hypervla", ("others",))},
)
BAR = np.array([0x2B, 0x57, 0x97]) / 255
"""The colour of the first system's bars."""
SUCCESSES = {"one": (3, 1), "other-pretrained": (2, 2)}
"""Of the two tasks of CONDITIONS, by system."""


class Hypervla:
    """Writes what the commands would leave behind, and remembers them; the one of that number fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.said: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, words: Sequence[str]) -> None:
        self.said.append(list(words))
        if len(self.said) == self.fails_at:
            raise SystemExit(1)
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        if words[0] == "train":
            (out / "metrics.jsonl").write_text('{"step": 50, "processor_seconds": 90}\n')
            return
        assert words[0] == "eval"
        system, seed = Path(words[1]).parts[-2:]
        found = [min(3, s + (seed == "seed-1")) for s in SUCCESSES[system]]
        failed = [(task, k) for task, n in zip(CONDITIONS.tasks, found, strict=True) for k in range(n, 3)]
        records = all_records(*failed)
        Results.of(CONDITIONS, records, {}).save(out / "results.json")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in STUDY.recordings:
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def conducted(data: Path, out: Path, hypervla: Hypervla, seeds: int = 1) -> Conductor:
    conductor = Conductor(STUDY, Budget(minutes=2.0, trials=3, seeds=seeds), data, out, hypervla=hypervla)
    todo = cells(STUDY, seeds)
    conductor.check(todo)
    for cell in todo:
        conductor.make(cell)
    return conductor


def rows(conductor: Conductor) -> list[list[str]]:
    return table.rows(STUDY, table.entries(conductor))


def test_every_run_is_the_command_a_person_would_type(data: Path, tmp_path: Path) -> None:
    hypervla, out = Hypervla(), tmp_path / "out"
    conducted(data, out, hypervla)
    one, other = out / "points/one/seed-0", out / "points/other-pretrained/seed-0"
    length = ["--steps", "1000000", "--pictures", str(out / "pictures"), "--minutes", "2"]
    points = ["--data", str(data / "points"), "--leave-out", "run"]
    judged = ["--suite", "metaworld-mt10", "--trials", "3"]
    unseen = [*judged, "--task", "reach-v3", "--held-out-instructions"]
    elsewhere = str(out / "pretraining/elsewhere")
    assert hypervla.said == [
        ["train", "small_hypervla", "--seed", "0", "--out", str(one), *length, *points],
        ["eval", str(one), *judged, "--out", str(one / "seen")],
        ["eval", str(one), *unseen, "--out", str(one / "not-seen")],
        ["train", "small_hypervla", "--out", elsewhere, *length, "--data", str(data / "others")],
        ["train", "small_alone", "--seed", "0", "--init", elsewhere, "--vision-only", "--out", str(other), *length,
         *points],
        ["eval", str(other), *judged, "--out", str(other / "seen")],
        ["eval", str(other), *unseen, "--out", str(other / "not-seen")],
    ]  # fmt: skip


@pytest.mark.parametrize("fails_at", [1, 2, 4, 6])
def test_a_study_that_was_stopped_goes_on_and_comes_to_the_same(data: Path, tmp_path: Path, fails_at: int) -> None:
    whole = conducted(data, tmp_path / "whole", Hypervla())
    with pytest.raises(SystemExit):
        conducted(data, tmp_path / "out", first := Hypervla(fails_at))
    again = conducted(data, tmp_path / "out", second := Hypervla())
    assert len(first.said) + len(second.said) == 7 + 1  # the one that failed twice, no other
    assert table.to_json(again) == table.to_json(whole)
    assert rows(again) == rows(whole)


def test_an_interrupted_training_is_resumed(data: Path, tmp_path: Path) -> None:
    state = tmp_path / "out/points/one/seed-0/resume/state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    conducted(data, tmp_path / "out", hypervla := Hypervla())
    assert ["--resume" in words for words in hypervla.said[:2]] == [True, False]


def test_the_table_says_how_sure_it_is(data: Path, tmp_path: Path) -> None:
    single = rows(conducted(data, tmp_path / "out", Hypervla()))
    assert single[0] == ["system", "activated parameters", "seen", "against the first",
                         "not seen (out of distribution, unseen instructions)", "against the first",
                         "published"]  # fmt: skip
    assert single[1][:4] == ["one", "1,202,944", "66.7 % (30–90 %)", ""]
    assert single[2][0] == "other, pretrained"
    assert single[2][3].startswith("+0.0 (−")
    assert single[2][-1] == "9"
    conductor = conducted(data, tmp_path / "out", Hypervla(), seeds=2)
    first = table.entry(conductor, STUDY.parts[0], STUDY.systems[0], STUDY.parts[0].columns[0])
    assert {seed: results.overall.successes for seed, results in first.seeds.items()} == {0: 4, 1: 5}
    assert isinstance(first.value, Estimate)
    assert math.isclose(first.value.standard_error, 1 / 12)
    assert str(first) == "75 % ± 8.3 (0–100 %)"
    page = table.markdown(conductor, table.entries(conductor))
    assert "2 minutes of one core. 3 trials" in page
    assert page.count("\n| ") == 2 + len(STUDY.systems)


def test_runs_are_compared_with_the_run_of_the_same_seed(data: Path, tmp_path: Path) -> None:
    conductor = conducted(data, tmp_path / "out", Hypervla(), seeds=2)
    part, (first, other) = STUDY.parts[0], STUDY.systems
    shutil.rmtree(conductor.out / Cell(part, other, 0).folder)
    one, two = (table.entry(conductor, part, system, part.columns[0]) for system in (first, other))
    assert (list(one.seeds), list(two.seeds)) == ([0, 1], [1])
    change = two.against(one)
    assert isinstance(change, PairedDifference)
    assert (change.pairs, change.gained, change.lost) == (6, 1, 0)
    assert table.Entry({0: one.seeds[0]}).against(two) is None


def test_what_has_come_so_far_is_shown_as_it_was_begun(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    conducted(data, out, Hypervla(), seeds=2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shown = Conductor(*begun(STUDY, out), tmp_path / "elsewhere", out)
    assert shown.budget.minutes == 2.0
    assert len(table.to_json(shown)["runs"]) == 4
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="holds no study, but toy was wanted"):
        begun(STUDY, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for damaged in ("{", "[]", "{}"):
        (out / "budget.json").write_text(damaged)
        with pytest.raises(UserError, match=r"budget.json is damaged: choose another --out"):
            begun(STUDY, out)


def test_more_scenes_than_a_suite_has_are_refused_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    conductor = Conductor(STUDY, Budget(trials=20_000), data, tmp_path / "out", hypervla=Hypervla())
    with pytest.raises(UserError, match="10,000 trials"):
        conductor.check(cells(STUDY, 1))
    assert not (tmp_path / "out").exists()


def test_a_study_is_drawn_as_far_as_it_has_come(data: Path, tmp_path: Path) -> None:
    conductor = Conductor(STUDY, Budget(minutes=2.0, trials=3), data, tmp_path / "out", hypervla=Hypervla())
    sizes = []
    for cell in [None, *cells(STUDY, 1)]:
        if cell is None:
            conductor.check([])
        else:
            conductor.make(cell)
        table.save(conductor)
        picture = pyplot.imread(conductor.out / "study.png")
        sizes.append(int((np.abs(picture[..., :3] - BAR).max(axis=-1) < 0.02).sum()))
    assert sizes[0] == 0
    assert sizes[1] > 1000
    assert sizes[2] == sizes[1], "the other system has another colour"


def test_results_keep_every_trial(data: Path, tmp_path: Path) -> None:
    found = table.to_json(conducted(data, tmp_path / "out", Hypervla()))
    assert found["runs"][0]["minutes"] == 1.5
    assert found["runs"][1]["columns"]["seen"]["successes"] == {
        task: [1] * n + [0] * (3 - n)
        for task, n in zip(CONDITIONS.tasks, SUCCESSES["other-pretrained"], strict=True)
    }  # fmt: skip
    assert json.loads(json.dumps(found)) == found


def test_missing_data_is_named_with_what_records_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record it: hypervla record --suite points --out .*points"):
        conducted(tmp_path / "data", tmp_path / "out", Hypervla())
    assert not (tmp_path / "out").exists()


def test_a_folder_holds_one_budget(data: Path, tmp_path: Path) -> None:
    conducted(data, tmp_path / "out", Hypervla())
    other = Conductor(STUDY, Budget(minutes=3.0, trials=3), data, tmp_path / "out", hypervla=Hypervla())
    with pytest.raises(UserError, match="another budget"):
        other.check([])


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_can_be_made(name: str) -> None:
    found = study(name)
    assert found.name == name
    for system in found.systems:
        assert system.recipe in RECIPES
        assert system.start is None or system.start in found.pretrainings or system.start == "embedded"
    for part in found.parts:
        assert set(part.data) <= set(found.recordings)
        assert len({slug(column.name) for column in part.columns}) == len(part.columns)
        asked = {suite(c.suite).instruction(t, "canonical", 0): c for c in part.columns for t in c.tasks}
        for sentence in part.leave_out:
            assert not asked[sentence].in_distribution
    for wanted in found.pretrainings.values():
        assert wanted.recipe in RECIPES
        assert set(wanted.data) <= set(found.recordings)
    assert len({slug(system.name) for system in found.systems}) == len(found.systems)
    assert found.steps or all(RECIPES[s.recipe]().optimizer.schedule == "constant" for s in found.systems)


def test_only_some_cells_may_be_made() -> None:
    assert [(c.system.name, c.seed) for c in cells(STUDY, 2, ["one"])] == [("one", 0), ("one", 1)]
    assert len(cells(STUDY, 2, ["points"])) == 4
    assert len(cells(replace(STUDY, parts=()), 2)) == 0


def test_an_unknown_study_is_refused_with_near_names() -> None:
    with pytest.raises(UserError, match="did you mean few-shot"):
        study("few-shots")
