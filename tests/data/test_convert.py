"""A converted dataset holds what the source held, and appears only when it is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.reader import check_reader
from tests.data.numbered import INSTRUCTIONS, LENGTHS, episode, number_in, write
from tests.fakes import POINT

from hypervla.contracts import Episode, Image, UserError
from hypervla.data.convert import convert
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_check import check

ROWS = range(sum(LENGTHS))


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.parametrize(("before", "after"), [("v3.0", "v2.1"), ("v2.1", "v3.0"), ("v3.0", "v3.0")])
def test_versions_become_each_other_without_changing_a_pixel(
    tmp_path: Path, before: str, after: str, codec: str
) -> None:
    source = write(tmp_path / "source", tmp_path / "staging", version=before, codec=codec)
    convert(source, tmp_path / "out", version=after)
    check(tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    check_reader(found)
    assert found.version == after
    np.testing.assert_array_equal(found.images("top", ROWS), source.images("top", ROWS))
    for name in source.features:
        if name != "observation.images.top":
            np.testing.assert_array_equal(found.column(name), source.column(name))
    assert found.features == source.features
    assert [each.source for each in found] == [each.source for each in source]
    assert (found.episode_instructions, found.paraphrases) == (source.episode_instructions, source.paraphrases)
    assert found.embodiment == source.embodiment


@pytest.mark.parametrize(("before", "after"), [("video", "image"), ("image", "image"), ("image", "video")])
def test_videos_and_images_become_each_other(tmp_path: Path, before: str, after: str) -> None:
    source = write(tmp_path / "source", tmp_path / "staging", images=before)
    convert(source, tmp_path / "out", version="v2.1", images=after)
    check(tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    assert found.features["observation.images.top"]["dtype"] == after
    assert [number_in(image) for image in found.images("top", ROWS)] == list(ROWS)
    if after == "image":
        np.testing.assert_array_equal(found.images("top", ROWS), source.images("top", ROWS))


class InMemory:
    """Four episodes, the last for validation, whose instruction changes on the way; an EpisodeReader."""

    name, digest, embodiment = "memory", "0" * 64, POINT
    starts = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    actions = np.concatenate([episode(index).actions for index in range(len(LENGTHS))])
    proprio = np.concatenate([episode(index).proprio for index in range(len(LENGTHS))])
    paraphrases: dict[str, Sequence[str]] = {}  # noqa: RUF012
    validation_episodes = np.array([3], np.int64)

    def __len__(self) -> int:
        return len(LENGTHS)

    def instruction(self, row: int) -> str:
        e = int(np.searchsorted(self.starts, row, side="right")) - 1
        return "stop" if row == self.starts[e + 1] - 1 and e else INSTRUCTIONS[e]

    def images(self, camera: str, rows: Sequence[int]) -> list[Image]:
        return [self.episode(e).images[camera][0] for e in rows]

    def statistics(self) -> dict:
        return {}

    def episode(self, index: int) -> Episode:
        if index == getattr(self, "broken", None):
            raise UserError("the source is damaged")
        return episode(index)


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_any_reader_becomes_a_lerobot_dataset(tmp_path: Path, version: str) -> None:
    source = InMemory()
    convert(source, tmp_path / "out", version=version, images="image")
    check(tmp_path / "out")
    found = LeRobotDataset(tmp_path / "out")
    check_reader(found, episodes=range(len(LENGTHS)))
    for index in range(len(LENGTHS)):
        wanted, came = episode(index), found.episode(index)
        np.testing.assert_array_equal(came.images["top"], wanted.images["top"])
        for name in ("actions", "proprio", "success", "environment_state"):
            np.testing.assert_array_equal(getattr(came, name), getattr(wanted, name))
    assert [found.instruction(row) for row in ROWS] == [source.instruction(row) for row in ROWS]
    assert found.validation_episodes.tolist() == [3]
    about = json.loads((tmp_path / "out/meta/hypervla.json").read_text())
    assert about["converted_from"] == {"name": "memory", "digest": "0" * 64}


def test_nothing_is_left_of_a_conversion_that_failed(tmp_path: Path) -> None:
    source = InMemory()
    source.broken = 2
    with pytest.raises(UserError, match="the source is damaged"):
        convert(source, tmp_path / "out/new")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(InMemory(), tmp_path / "out", images="image")
    with pytest.raises(UserError, match="out exists and is not empty: convert into a new folder"):
        convert(InMemory(), tmp_path / "out", images="image")


def test_a_rate_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    source = InMemory()
    source.embodiment = replace(POINT, control_hz=12.5)
    with pytest.raises(UserError, match="whole number of frames per second"):
        convert(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
