"""The report: self-contained, complete, safe to open."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.evaluation.test_results import CONDITIONS, all_records
from tests.fakes import PointWorld

from hypervla.evaluation.film import Film, caption, filmstrip, load_filmstrips, save_filmstrip
from hypervla.evaluation.intervals import points
from hypervla.evaluation.page import figure, milliseconds, percent, probability, seconds
from hypervla.evaluation.report import table, write
from hypervla.evaluation.results import Results, TrialRecord


class Page(HTMLParser):
    """Collects what a browser would fetch, which tags are left open, and the text."""

    FETCHING = ("src", "href", "poster", "data", "action", "srcset")
    EMPTY = frozenset(("meta", "br", "img", "link", "input", "hr", "wbr"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.fetched += [
            value for name, value in attrs if name in ("src", "href", "poster", "data", "action", "srcset")
        ]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def film(steps: int) -> Film:
    world = PointWorld("find")
    world.reset(0)
    seen = Film(world)
    for step in range(steps + 1):
        seen.look(step, last=step == steps)
    return seen


@pytest.fixture
def results() -> Results:
    records = all_records(("find", 1))
    crashed = replace(records[4].trial, success=False, error="<script>alert('boom')</script>", compile_seconds=None)
    records[4] = TrialRecord(crashed, np.zeros((0, 4), np.float32))
    provenance = {"checkpoint": {"digest": "0123", "recipe": "scripted"}, "command": ["hypervla", "eval"]}
    return Results.of(CONDITIONS, records, provenance)


@pytest.fixture
def text(results: Results, tmp_path: Path) -> str:
    save_filmstrip(filmstrip(film(37), "go", "success after 37 steps"), tmp_path / "films" / "find")
    return write(results, load_filmstrips(tmp_path / "films"), tmp_path).read_text()


def test_the_report_fetches_nothing(text: str) -> None:
    page = Page(text)
    assert page.fetched
    assert all(uri.startswith("data:") for uri in page.fetched)
    assert not re.search(r"https?://|@import|url\((?!data:)", text)
    assert page.open == []


def test_the_report_holds_every_trial_and_condition(text: str, results: Results) -> None:
    words = " ".join(" ".join(Page(text).words).split())
    assert words.count("✓ success") == 5, "four trials, and the film of the first"
    assert words.count("✕ not done") == 1
    assert "<script>alert('boom')</script>" in words, "shown as text"
    assert "<script" not in text
    facts = ["66.7 %", "4 of 6 trials", "open-loop", "0123", "scripted", "1,000,000 to 1,000,002", "hypervla eval"]
    assert [fact for fact in facts if fact not in words] == []


def test_the_filmstrip_runs_from_the_first_step_to_the_last(text: str) -> None:
    assert "find at step 0" in text
    assert "find at step 37" in text
    assert text.count("data:image/jpeg") == 9  # eight frames and the poster


def test_why_trials_failed_is_counted_by_task_and_overall(results: Results, tmp_path: Path) -> None:
    assert "Why trials failed" not in write(results, {}, tmp_path).read_text(), "nobody knows it of these"
    known = replace(
        results,
        trials=tuple(
            trial if trial.success else replace(trial, failure="crashed" if trial.error else "dropped", smoothness=-9.5)
            for trial in results.trials
        ),
    )
    words = " ".join(" ".join(Page(write(known, {}, tmp_path).read_text()).words).split())
    assert "Why trials failed" in words
    assert "task dropped crashed find 1 flee 1 all tasks 1 1" in words
    assert "let go of it where it does not belong" in words
    assert "✕ dropped" in words
    assert "−9.50" in words
    console = Console(record=True, width=100, force_terminal=False)
    console.print(table(known))
    assert "failures: 1 dropped, 1 crashed" in console.export_text()
    rows = known.to_json()
    assert rows["overall"]["failures"] == {"dropped": 1, "crashed": 1}
    assert [row["failures"] for row in rows["tasks"]] == [{"dropped": 1}, {"crashed": 1}]


def test_a_demonstrator_is_not_called_a_policy(results: Results, tmp_path: Path) -> None:
    shown = replace(results, conditions=replace(CONDITIONS, checkpoint="expert"))
    assert "compiled into a small policy" in write(results, {}, tmp_path).read_text()
    page = write(shown, {}, tmp_path).read_text()
    assert "compiled into a small policy" not in page
    assert "demonstrator moved the robot" in page


def test_a_success_takes_its_steps_on_the_robots_own_clock(results: Results, tmp_path: Path) -> None:
    assert results.to_json()["overall"]["completion_seconds"] is None, "a robot that is not known"
    known = replace(results, conditions=replace(CONDITIONS, embodiment="metaworld-sawyer"))
    assert known.to_json()["overall"]["completion_seconds"] == 7 / 80
    assert "0.09 s" in write(known, {}, tmp_path).read_text()


def test_the_report_needs_neither_films_nor_latency(results: Results, tmp_path: Path) -> None:
    bare = replace(results, latency={}, provenance={})
    assert Page(write(bare, {}, tmp_path).read_text()).open == []


def test_the_terminal_table_says_the_same(results: Results) -> None:
    console = Console(record=True, width=100, force_terminal=False)
    console.print(table(results))
    printed = console.export_text()
    for said in ("find", "flee", "66.7 %", "4/6", "1 crashed"):
        assert said in printed


def test_numbers_are_printed_with_the_digits_that_matter() -> None:
    assert [percent(share) for share in (1.0, 0.975, 0.9, 2 / 3)] == ["100 %", "97.5 %", "90 %", "66.7 %"]
    assert [milliseconds(value) for value in (0.12345, 0.0123, 0.00123)] == ["123", "12.3", "1.23"]
    assert [seconds(value) for value in (0.7375, 12.34, None)] == ["0.74 s", "12.3 s", "–"]
    assert [figure(value) for value in (-5.321, None)] == ["−5.32", "–"]
    assert [points(value) for value in (0.051, -0.2)] == ["+5.1", "−20.0"]
    assert [probability(value) for value in (0.0312, 0.0002)] == ["= 0.031", "< 0.001"]


def test_a_caption_goes_below_the_picture() -> None:
    frame = np.full((192, 192, 3), 200, np.uint8)
    captioned = caption(frame, "a sentence " * 40, "step 3")
    np.testing.assert_array_equal(captioned[:192], frame)
    assert captioned.shape[0] > 192
    assert captioned[192:].max() > 200, "something is written there"


def test_the_film_says_what_was_asked_and_how_it_ended() -> None:
    seen = film(5)
    seen.frames = [np.zeros((240, 240, 3), np.uint8)] * 3
    frames = seen.captioned("go to the goal", "dropped after 5 steps")
    bars = [frame[240:] for frame in frames]
    assert len({bar.shape for bar in bars}) == 1
    sentence = [bar[:20] for bar in bars]
    assert all(np.array_equal(rows, sentence[0]) for rows in sentence), "the sentence stays"
    assert not np.array_equal(bars[0], bars[1]), "the step does not"
    np.testing.assert_array_equal(frames[-1], frames[2], "the end is held")
    assert len(frames) > 3


def test_a_short_film_shows_each_frame_once(tmp_path: Path) -> None:
    save_filmstrip(filmstrip(film(5), "go", "success after 5 steps"), tmp_path / "find")
    assert [step for step, _ in load_filmstrips(tmp_path)["find"].frames] == [0, 4, 5]


def test_a_colon_in_a_folders_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_filmstrip(filmstrip(film(5), "go", "success after 5 steps"), Path("horizon:steps=2") / "find")
    assert load_filmstrips(Path("horizon:steps=2"))["find"].frames


@pytest.mark.parametrize(("chunk", "hz"), [(1, 2.5), (5, 2.0), (20, 1.0)])
def test_a_film_runs_as_fast_as_the_robot_did(chunk: int, hz: float) -> None:
    world = PointWorld("find")  # 10 steps a second, filmed every 4
    world.reset(0)
    seen = Film(world)
    for step in range(0, 41, chunk):
        seen.look(step, last=step == 40)
    assert seen.hz == hz
