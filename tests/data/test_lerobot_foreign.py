"""Other people's datasets are read too: any robot, any names, any version."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conformance.reader import check_reader
from tests.data.damage import DATA, EPISODES, edit, rewrite
from tests.data.numbered import LENGTHS, episode, number_in
from tests.fakes import POINT

from hypervla.contracts import UserError
from hypervla.data.hub import locate
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_check import check
from hypervla.data.lerobot_statistics import write_statistics
from hypervla.embodiment import Camera


def test_a_robot_that_nobody_describes_is_inferred(copy: Path) -> None:
    (copy / "meta/hypervla.json").unlink()
    robot = LeRobotDataset(copy).embodiment
    assert robot.cameras == (Camera("top", 32, 32),)
    assert (robot.name, robot.control_hz, robot.gripper, robot.action_kind) == ("point", 10.0, None, "unknown")
    assert (robot.action_names, robot.proprio_names) == (POINT.action_names, POINT.proprio_names)
    actions = np.concatenate([episode(index).actions for index in range(len(LENGTHS))])
    assert robot.action_low == tuple(actions.min(axis=0).tolist())
    edit(copy / "meta/info.json", robot_type=None)
    assert LeRobotDataset(copy).embodiment.name == "copy"
    mine = replace(robot, name="mine", cameras=())
    assert LeRobotDataset(copy, embodiment=mine).embodiment == mine


def test_features_of_other_names_are_found_or_mapped(old_copy: Path) -> None:
    (old_copy / "meta/hypervla.json").unlink()
    names = {"action": "actions", "observation.state": "state", "observation.images.top": "wrist_image"}
    rename_features(old_copy, names)
    dataset = LeRobotDataset(old_copy)
    np.testing.assert_array_equal(dataset.episode(1).proprio, episode(1).proprio)
    assert [camera.name for camera in dataset.embodiment.cameras] == ["wrist_image"]
    assert {"action", "observation.state"} == set(dataset.statistics())
    mapped = LeRobotDataset(old_copy, features={"observation.images.hand": "wrist_image"})
    check_reader(mapped)
    assert [camera.name for camera in mapped.embodiment.cameras] == ["hand"]
    rename_features(old_copy, {"actions": "torque"})
    with pytest.raises(UserError, match=r"no feature 'action' or 'actions', only .*torque.*\[features\]"):
        LeRobotDataset(old_copy)
    assert LeRobotDataset(old_copy, features={"action": "torque"}).actions.shape == (29, 3)
    with pytest.raises(UserError, match="no feature 'torques', which was to be 'action'"):
        LeRobotDataset(old_copy, features={"action": "torques"})


def rename_features(root: Path, names: dict[str, str]) -> None:
    """Rename features of a v2.1 dataset, everywhere."""
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] = {names.get(name, name): feature for name, feature in info["features"].items()}
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in root.glob("data/*/*.parquet"):
        table = pq.ParquetFile(path).read()
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    for folder in root.glob("videos/*/*"):
        folder.rename(folder.with_name(names.get(folder.name, folder.name)))
    lines = [json.loads(line) for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines()]
    for line in lines:
        line["stats"] = {names.get(name, name): stats for name, stats in line["stats"].items()}
    (root / "meta/episodes_stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("names", [["channels", "height", "width"], None])
def test_images_with_the_channels_first_are_images(copy: Path, names: list[str] | None) -> None:
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.images.top"] |= {"shape": [3, 32, 32], "names": names}
    (copy / "meta/info.json").write_text(json.dumps(info))
    assert number_in(LeRobotDataset(copy).images("top", [5])[0]) == 5


def test_both_forms_of_the_task_table_are_read(copy: Path) -> None:
    path = copy / "meta/tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["task_index", "__index_level_0__"]), path)
    assert LeRobotDataset(copy).instructions == ["go left", "go right", "go up"]


def test_version_2_0_has_one_table_of_statistics(old_copy: Path, dataset: LeRobotDataset) -> None:
    edit(old_copy / "meta/info.json", codebase_version="v2.0")
    (old_copy / "meta/episodes_stats.jsonl").unlink()
    shutil.copy(dataset.root / "meta/stats.json", old_copy / "meta/stats.json")
    check_reader(LeRobotDataset(old_copy))
    (old_copy / "meta/stats.json").unlink()
    write_statistics(old_copy)
    check_reader(LeRobotDataset(old_copy))


def test_rates_may_be_fractions(copy: Path) -> None:
    path, fps = copy / DATA, 29.97
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    rewrite(path, "timestamp", np.float32(frame / fps))
    edit(copy / "meta/info.json", fps=fps)
    table = pq.ParquetFile(copy / EPISODES).read()
    rows = table.to_pylist()
    for row in rows:
        for name in ("from_timestamp", "to_timestamp"):
            row[f"videos/observation.images.top/{name}"] *= 10 / fps
    pq.write_table(pa.Table.from_pylist(rows, table.schema), copy / EPISODES)
    (copy / "meta/hypervla.json").unlink()
    dataset = LeRobotDataset(copy)
    assert (dataset.fps, dataset.embodiment.control_hz) == (fps, fps)
    with pytest.raises(UserError, match="should hold a frame at 0.0334 s"):
        dataset.images("top", [1])


def test_a_split_for_validation_is_kept_from_training(copy: Path) -> None:
    assert LeRobotDataset(copy).validation_episodes.tolist() == []
    edit(copy / "meta/info.json", splits={"train": "0:2", "val": "2:3", "test": "3:4"})
    assert LeRobotDataset(copy).validation_episodes.tolist() == [2, 3]
    edit(copy / "meta/info.json", splits={"train": "0:2", "val": "2:9"})
    with pytest.raises(UserError, match="the split 'val' is 2:9 of 4 episodes"):
        LeRobotDataset(copy)


def test_a_hub_id_without_a_network_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'nobody/nothing-here' is neither a folder here nor to be had"):
        locate("nobody/nothing-here")
    assert locate(tmp_path) == tmp_path
    assert locate("no such/folder here") == Path("no such/folder here")


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_statistics_of_other_data_are_refused_and_made_anew(copy: Path, old_copy: Path, version: str) -> None:
    root = copy if version == "v3.0" else old_copy
    before = LeRobotDataset(root).statistics()
    path = root / ("meta/stats.json" if version == "v3.0" else "meta/episodes_stats.jsonl")
    whole = path.read_text()
    for damage, message in (
        (lambda: path.unlink(), "is missing: make it with `hypervla data stats"),
        (
            lambda: path.write_text(re.sub(r'"mean": \[(\s*)-?\d', r'"mean": [\g<1>17', whole)),
            "is of other data: its mean",
        ),
        (lambda: path.write_text(whole.replace('"std"', '"spread"')), "lacks"),
    ):
        path.write_text(whole)
        damage()
        with pytest.raises(UserError, match=message):
            LeRobotDataset(root).statistics()
    assert write_statistics(root) == path
    after = LeRobotDataset(root).statistics()
    for name, stats in before.items():
        for key, value in stats.items():
            np.testing.assert_array_equal(after[name][key], value)
    assert json.loads(path.read_text().splitlines()[0] if version == "v2.1" else path.read_text())


def test_making_statistics_keeps_the_manifest_true(dataset: LeRobotDataset, tmp_path: Path) -> None:
    root = shutil.copytree(dataset.root, tmp_path / "copy")
    write_statistics(root)
    assert "sha256" in check(root)[0]
