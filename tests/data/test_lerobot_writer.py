"""What is written has the form that LeRobot's versions 3.0 and 2.1 have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.numbered import INSTRUCTIONS, LENGTHS, episode, number_in, write
from tests.fakes import POINT

from hypervla.contracts import UserError
from hypervla.data.lerobot import LeRobotDataset
from hypervla.data.lerobot_layout import read_json_lines
from hypervla.data.lerobot_writer import LeRobotWriter
from hypervla.data.staged import stage_episode
from hypervla.data.video import encode


def test_info_has_the_keys_of_lerobot_in_its_order(dataset: LeRobotDataset) -> None:
    assert list(dataset.info) == [
        "codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks", "chunks_size",
        "data_files_size_in_mb", "video_files_size_in_mb", "fps", "splits", "data_path", "video_path", "features",
    ]  # fmt: skip
    assert (dataset.info["codebase_version"], dataset.info["fps"]) == ("v3.0", 10)
    assert isinstance(dataset.info["fps"], int)
    assert dataset.info["splits"] == {"train": "0:4"}
    features = dataset.features
    assert {name: (feature["dtype"], feature["shape"]) for name, feature in features.items()} == {
        "observation.images.top": ("video", [32, 32, 3]),
        "observation.state": ("float32", [2]),
        "action": ("float32", [3]),
        "observation.environment_state": ("float32", [5]),
        "next.reward": ("float32", [1]),
        "next.done": ("bool", [1]),
        "next.success": ("bool", [1]),
        "timestamp": ("float32", [1]),
        "frame_index": ("int64", [1]),
        "episode_index": ("int64", [1]),
        "index": ("int64", [1]),
        "task_index": ("int64", [1]),
    }
    assert features["observation.images.top"]["names"] == ["height", "width", "channels"]
    assert features["observation.images.top"]["info"]["video.codec"] == "h264"
    assert features["action"]["names"] == list(POINT.action_names)


def test_data_parquet_has_a_row_group_an_episode_and_lists_of_fixed_size(dataset: LeRobotDataset) -> None:
    file = pq.ParquetFile(dataset.root / "data/chunk-000/file-000.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == list(LENGTHS)
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    schema = file.schema_arrow
    assert schema.names == [name for name, feature in dataset.features.items() if feature["dtype"] != "video"]
    assert pa.types.is_fixed_size_list(schema.field("action").type)
    assert (schema.field("action").type.list_size, schema.field("action").type.value_type) == (3, pa.float32())
    assert schema.field("next.success").type == pa.bool_()
    assert schema.field("timestamp").type == pa.float32()
    assert {schema.field(name).type for name in ("index", "frame_index", "episode_index", "task_index")} == {pa.int64()}
    assert dataset.column("task_index").tolist() == [0] * 7 + [1] * 12 + [0] * 1 + [2] * 9
    np.testing.assert_array_equal(dataset.column("timestamp")[:7], np.float32(np.arange(7) / 10))


def test_episode_rows_say_where_data_and_video_lie(dataset: LeRobotDataset) -> None:
    table = pq.read_table(dataset.root / "meta/episodes/chunk-000/file-000.parquet")
    video = "videos/observation.images.top/"
    assert table.schema.names[:11] == [
        "episode_index", "tasks", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
        "dataset_to_index", video + "chunk_index", video + "file_index", video + "from_timestamp",
        video + "to_timestamp",
    ]  # fmt: skip
    assert table.schema.names[-2:] == ["meta/episodes/chunk_index", "meta/episodes/file_index"]
    assert table.schema.field("tasks").type.value_type == pa.string()
    ends = np.cumsum(LENGTHS)
    np.testing.assert_allclose(table[video + "to_timestamp"].to_numpy(), ends / 10)
    np.testing.assert_allclose(table[video + "from_timestamp"].to_numpy(), (ends - LENGTHS) / 10)
    for name in ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"):
        assert len(table[f"stats/action/{name}"][0].as_py()) == (1 if name == "count" else 3)
        assert np.shape(table[f"stats/observation.images.top/{name}"][0].as_py()) in [(1,), (3, 1, 1)]


def test_the_task_table_has_the_index_that_pandas_looks_for(dataset: LeRobotDataset) -> None:
    table = pq.read_table(dataset.root / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1, 2], "task": ["go left", "go right", "go up"]}
    described = json.loads(table.schema.metadata[b"pandas"])
    assert described["index_columns"] == ["task"]
    assert [column["name"] for column in described["columns"]] == ["task_index", "task"]


# Version 2.1


def test_version_2_1_has_its_own_keys_and_a_file_an_episode(older: LeRobotDataset) -> None:
    assert list(older.info) == [
        "codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks", "total_videos",
        "total_chunks", "chunks_size", "fps", "splits", "data_path", "video_path", "features",
    ]  # fmt: skip
    assert (older.info["total_videos"], older.info["total_chunks"]) == (4, 1)
    for number, length in enumerate(LENGTHS):
        path = older.root / f"data/chunk-000/episode_{number:06d}.parquet"
        assert pq.ParquetFile(path).metadata.num_rows == length
        assert (older.root / f"videos/chunk-000/observation.images.top/episode_{number:06d}.mp4").is_file()
    meta = older.root / "meta"
    assert read_json_lines(meta / "tasks.jsonl", ()) == [
        {"task_index": number, "task": task} for number, task in enumerate(dict.fromkeys(INSTRUCTIONS))
    ]
    assert read_json_lines(meta / "episodes.jsonl", ()) == [
        {"episode_index": n, "tasks": [task], "length": length}
        for n, (task, length) in enumerate(zip(INSTRUCTIONS, LENGTHS, strict=True))
    ]
    lines = read_json_lines(meta / "episodes_stats.jsonl", ("episode_index", "stats"))
    assert [line["episode_index"] for line in lines] == [0, 1, 2, 3]
    assert set(lines[1]["stats"]) == set(older.features)
    assert set(lines[1]["stats"]["action"]) == {"min", "max", "mean", "std", "count"}
    assert not (meta / "stats.json").exists()


def test_images_lie_in_the_data_as_pngs_that_the_datasets_library_knows(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", tmp_path / "staging", images="image")
    assert dataset.info["video_path"] is None
    assert dataset.features["observation.images.top"]["dtype"] == "image"
    table = pq.read_table(dataset.root / "data/chunk-000/file-000.parquet")
    cell = table["observation.images.top"][8].as_py()
    assert cell["bytes"].startswith(b"\x89PNG")
    assert cell["path"] == "frame-000001.png"
    described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert described["observation.images.top"] == {"_type": "Image"}
    assert set(described) == set(dataset.features)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_every_codec_keeps_the_frames_and_says_its_name(tmp_path: Path, codec: str) -> None:
    dataset = write(tmp_path / "data", tmp_path / "staging", codec=codec)
    assert dataset.features["observation.images.top"]["info"]["video.codec"] == codec
    assert [number_in(image) for image in dataset.images("top", range(29))] == list(range(29))


# Refusals


def test_a_folder_without_info_is_no_dataset_however_complete_the_rest(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "half", POINT)
    stage_episode(tmp_path / "staged", episode(0), 10)
    writer.add(tmp_path / "staged")
    with pytest.raises(UserError, match=r"has no meta/info\.json"):
        LeRobotDataset(tmp_path / "half")


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whole number of frames per second"):
        LeRobotWriter(tmp_path, replace(POINT, control_hz=12.5))
    with pytest.raises(UserError, match="even height and width"):
        encode(np.zeros((2, 31, 32, 3), np.uint8), 10)
    with pytest.raises(UserError, match="episodes 0 to"):
        write(tmp_path / "dataset", tmp_path / "staging").episode(4)
