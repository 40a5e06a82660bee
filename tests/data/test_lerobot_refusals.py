"""What is no intact dataset is refused in a sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.data.damage import DATA, EPISODES, VIDEO, change, cut, edit, episode_row, rewrite
from tests.data.numbered import numbered_images

from hypervla.contracts import UserError
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_check import check
from hypervla.data.video import encode


def read_all(root: Path) -> None:
    dataset = LeRobotDataset(root)
    dataset.statistics()
    for _ in dataset:
        pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "Not a LeRobot dataset: .* is not a folder; record one with `hypervla record`"),
        (lambda root: (root / "meta/info.json").unlink(), "Not a LeRobot dataset: .* has no meta/info.json"),
        (
            lambda root: edit(root / "meta/info.json", codebase_version="v1.6"),
            r"LeRobot v1.6, but v3.0, v2.1, v2.0 are",
        ),
        (lambda root: edit(root / "meta/info.json", codebase_version="v2.1"), "'data_path' should be a path"),
        (
            lambda root: edit(root / "meta/info.json", data_path="/etc/{file_index}"),
            "'data_path' should be a path",
        ),
        (
            lambda root: edit(root / "meta/info.json", data_path="{file_index.real}"),
            "'data_path' should be a path",
        ),
        (lambda root: edit(root / "meta/info.json", fps=0), "'fps' should be a number above 0, but is 0"),
        (lambda root: edit(root / "meta/info.json", fps=12), "'timestamp' is not frame_index / 12|frames, but"),
        (lambda root: cut(root / "meta/info.json"), "info.json is damaged"),
        (
            lambda root: edit(root / "meta/hypervla.json", embodiment={}),
            "hypervla.json is damaged",
        ),
        (lambda root: (root / "meta/stats.json").unlink(), "stats.json is missing"),
        (lambda root: edit(root / "meta/stats.json", action={"mean": [0]}), "lacks std, min, max of 'action'"),
        (lambda root: (root / VIDEO).unlink(), "file-000.mp4 is missing"),
        (lambda root: cut(root / VIDEO), "file-000.mp4 (is damaged|should hold)"),
        (lambda root: (root / VIDEO).write_bytes(encode(numbered_images(0, 20), 10)), "should hold .* its end comes"),
        (lambda root: (root / VIDEO).write_bytes(encode(numbered_images(0, 29), 5)), "should hold .* the next one is"),
        (
            lambda root: (root / VIDEO).write_bytes(encode(np.zeros((29, 16, 32, 3), np.uint8), 10)),
            "has frames of 16×32 pixels, but meta/info.json says 32×32",
        ),
        (lambda root: (root / DATA).unlink(), "file-000.parquet is missing"),
        (lambda root: cut(root / DATA), "file-000.parquet is damaged"),
        (lambda root: shutil.copy(root / DATA, root / "data/chunk-000/file-001.parquet"), "belongs to no episode"),
        (lambda root: cut(root / EPISODES), "file-000.parquet is damaged"),
        (lambda root: edit(root / "meta/info.json", total_episodes=5), "describes 4 episodes"),
        (lambda root: edit(root / "meta/info.json", total_frames=28), "29 frames in all, but info.json speaks of 28"),
        (lambda root: edit(root / "meta/info.json", total_tasks=2), "tasks.parquet holds 3 rows"),
        (lambda root: edit(root / "meta/info.json", features={}), "describes no features"),
        (change("index", 5, 6), "'index' does not count on in episode 0, frame 5"),
        (change("frame_index", 8, 0), "'frame_index' does not count on in episode 1, frame 1"),
        (change("episode_index", 8, 0), "'episode_index' does not count on in episode 1"),
        (change("timestamp", 20, 0.35), "'timestamp' is not frame_index / 10 in episode 3, frame 0"),
        (change("task_index", 20, 7), "'task_index' names no task in episode 3, frame 0"),
        (change("task_index", 20, 0), "frames of episode 3 have other tasks"),
        (change("action", 20, [1.0, float("nan"), 0.0]), "'action' is NaN or infinite in episode 3, frame 0"),
        (change("action", 20, None), "'action' has empty cells"),
        (lambda root: rewrite(root / DATA, "action", [[1.0, 2.0]] * 29), "column 'action' of list.*says float32"),
        (
            lambda root: rewrite(root / DATA, "index", list(map(float, range(29)))),
            "'index' of double, but .* int64",
        ),
        (episode_row(1, length=13), "episode 1 does not follow on episode 0"),
        (episode_row(1, dataset_from_index=8), "episode 1 does not follow on episode 0"),
        (episode_row(2, length=2**40), "does not follow|holds|frames in all"),
        (episode_row(1, from_timestamp=0.5), "episode 1 has 12 frames, but 1.400 s"),
        (episode_row(1, from_timestamp=0.0, to_timestamp=1.2), "cannot hold episodes 0 and 1 both from"),
        (episode_row(1, data__file_index=3), "jump between data files"),
    ],
)
def test_a_damaged_dataset_is_refused_in_one_sentence_that_names_the_file(copy: Path, damage, message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message) as refusal:
        read_all(copy)
    assert "\n" not in str(refusal.value)
    assert re.search(str(copy), str(refusal.value))


@pytest.mark.parametrize("path", [VIDEO, DATA, EPISODES, Path("meta/stats.json"), Path("meta/info.json")])
def test_with_a_manifest_no_changed_byte_goes_unseen(dataset: LeRobotDataset, tmp_path: Path, path: Path) -> None:
    root = shutil.copytree(dataset.root, tmp_path / "copy")
    content = bytearray((root / path).read_bytes())
    content[len(content) // 2] ^= 1
    (root / path).write_bytes(content)
    for reading in (read_all, check, lambda root: LeRobotDataset(root).digest):
        with pytest.raises(UserError, match=f"{path.name} is damaged"):
            reading(root)


def test_the_digest_follows_every_byte(dataset: LeRobotDataset, copy: Path) -> None:
    assert LeRobotDataset(copy).digest == dataset.digest
    content = bytearray((copy / VIDEO).read_bytes())
    content[-1] ^= 1
    (copy / VIDEO).write_bytes(content)
    assert LeRobotDataset(copy).digest != dataset.digest


def test_a_video_longer_than_its_episodes_fails_the_check(old_copy: Path) -> None:
    path = old_copy / "videos/chunk-000/observation.images.top/episode_000000.mp4"
    path.write_bytes(encode(numbered_images(0, 9), 10))
    with pytest.raises(UserError, match="holds 9 frames, but the metadata speaks of 7"):
        check(old_copy)
