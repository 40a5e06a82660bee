"""What LeRobot datasets hold is what is read."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.reader import check_reader
from tests.data.damage import edit_lines, rewrite
from tests.data.numbered import LENGTHS, episode, number_in, write
from tests.fakes import POINT

from hypervla.contracts import EpisodeReader, UserError
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_check import check
from hypervla.data.memory import InMemory
from hypervla.data.mixture import Mixture

KINDS = [("v3.0", "video"), ("v3.0", "image"), ("v2.1", "video"), ("v2.1", "image")]


@pytest.mark.parametrize(("version", "images"), KINDS)
def test_it_is_a_reader_of_episodes(tmp_path: Path, version: str, images: str) -> None:
    dataset = write(tmp_path / "data", tmp_path / "staging", version=version, images=images)
    check_reader(dataset, episodes=range(len(LENGTHS)))
    assert dataset.version == version
    assert len(check(dataset.root)) == 4


def test_what_is_read_is_what_was_written(dataset: LeRobotDataset) -> None:
    assert isinstance(dataset, EpisodeReader)
    assert len(dataset) == len(LENGTHS)
    for index, read in enumerate(dataset):
        written = episode(index)
        assert read.instruction == written.instruction
        assert read.source == written.source
        for name in ("actions", "proprio", "success", "environment_state"):
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        difference = np.abs(read.images["top"].astype(int) - written.images["top"])
        assert difference.mean() < 4
    assert dataset.embodiment == POINT
    assert dataset.instructions == ["go left", "go right", "go up"]
    assert dataset.paraphrases == {"go left": ["go left", "left please"]}


def test_every_frame_is_the_frame_of_its_number(dataset: LeRobotDataset) -> None:
    numbers = [number_in(image) for index in (2, 0, 3, 1) for image in dataset.episode(index).images["top"]]
    wanted = [frame for index in (2, 0, 3, 1) for frame in range(*dataset.starts[index : index + 2])]
    assert numbers == wanted


def test_the_data_is_split_over_files_without_a_trace(dataset: LeRobotDataset, tmp_path: Path) -> None:
    split = write(tmp_path / "split", tmp_path / "staging", data_file_mb=0, video_file_mb=0)
    assert len(list(split.root.glob("data/*/*.parquet"))) == len(list(split.root.glob("videos/*/*/*.mp4"))) == 4
    rows = range(sum(LENGTHS))
    np.testing.assert_array_equal(split.images("top", rows), dataset.images("top", rows))
    np.testing.assert_array_equal(split.actions, dataset.actions)
    np.testing.assert_array_equal(split.column("next.success"), dataset.column("next.success"))


@pytest.mark.parametrize("threads", [1, 3])
def test_all_frames_in_memory_are_the_episodes_one_by_one(
    dataset: LeRobotDataset, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypervla.data.memory.ROWS", 5)
    held = InMemory(Mixture([dataset]), 24, 0, threads=threads)
    episodes = [dataset.episode(index, crop=True).images["top"] for index in range(len(dataset))]
    np.testing.assert_array_equal(held(0, 0, range(sum(LENGTHS))), np.concatenate(episodes))


def test_a_crop_is_a_part_of_the_whole_image(dataset: LeRobotDataset) -> None:
    whole, part = dataset.episode(1).images["top"], dataset.episode(1, crop=True).images["top"]
    np.testing.assert_array_equal(part, whole[:, 4:28, 4:28])


def test_cameras_that_are_not_asked_for_are_not_decoded(dataset: LeRobotDataset) -> None:
    assert dataset.episode(0, cameras=()).images == {}
    with pytest.raises(UserError, match="no camera 'wrist'"):
        dataset.episode(0, cameras=("wrist",))


def test_global_statistics_are_those_of_all_frames(dataset: LeRobotDataset) -> None:
    actions = np.concatenate([episode(index).actions for index in range(len(LENGTHS))])
    statistics = dataset.statistics()["action"]
    assert set(statistics) == {"mean", "std", "min", "max", "q01", "q99", "count"}
    np.testing.assert_allclose(statistics["mean"], actions.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["std"], actions.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-5)


def test_rows_of_any_order_come_from_the_fewest_seeks_and_in_that_order(dataset: LeRobotDataset) -> None:
    rows = [28, 3, 3, 0, 17, 4, 18, 19, 0]
    assert [number_in(image) for image in dataset.images("top", rows)] == rows


def test_instructions_may_change_within_an_episode(old_copy: Path) -> None:
    path = old_copy / "data/chunk-000/episode_000001.parquet"
    rewrite(path, "task_index", [1] * 5 + [2] * 7)
    edit_lines(old_copy / "meta/episodes.jsonl", 1, tasks=["go right", "go up"])
    dataset = LeRobotDataset(old_copy)
    assert [dataset.instruction(row) for row in (6, 7, 11, 12, 18)] == ["go left", *["go right"] * 2, *["go up"] * 2]
    edit_lines(old_copy / "meta/episodes.jsonl", 1, tasks=[])
    assert LeRobotDataset(old_copy).instruction(7) == "", "where nobody said"


def test_windows_are_clamped_to_the_episode_and_say_so(dataset: LeRobotDataset) -> None:
    seen = dataset.window(8, {"action": [-0.3, 0.0, 0.2, 2.0], "observation.images.top": [-0.2, 0.1]})
    np.testing.assert_array_equal(seen["action"], dataset.actions[[7, 8, 10, 18]])
    assert seen["action_is_pad"].tolist() == [True, False, False, True]
    assert [number_in(image) for image in seen["observation.images.top"]] == [7, 9]
    assert seen["observation.images.top_is_pad"].tolist() == [True, False]
    assert seen["observation.images.top"].dtype == np.uint8
    with pytest.raises(UserError, match=r"whole numbers of frames at 10 per second, but 0\.15 s came"):
        dataset.window(8, {"action": [0.0, 0.15]})


def test_frames_are_found_by_two_processes_in_shuffled_order(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(2, 9, 200).tolist()
    dataset = write(tmp_path / "data", tmp_path / "staging", lengths=lengths, video_file_mb=1 / 64)
    files = len(list(dataset.root.glob("videos/*/*/*.mp4")))
    assert files >= 5
    wanted = np.random.default_rng(1).permutation(dataset.frames)
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        pieces = list(pool.map(numbers_read, [dataset] * 8, np.array_split(wanted, 8)))
    assert np.concatenate(pieces).tolist() == wanted.tolist()
    assert [number_in(image) for each in dataset for image in each.images["top"]] == list(range(dataset.frames))


def numbers_read(dataset: LeRobotDataset, rows: np.ndarray) -> list[int]:
    """In another process: single frames, then the same ones in groups."""
    single = [number_in(dataset.images("top", [row])[0]) for row in rows.tolist()[:40]]
    grouped = [number_in(image) for part in np.array_split(rows, 9) for image in dataset.images("top", part.tolist())]
    assert single == grouped[: len(single)]
    return grouped


def test_a_sent_reader_opens_its_files_itself(dataset: LeRobotDataset) -> None:
    dataset.images("top", [0])
    assert len(pickle.dumps(dataset)) < 20_000
