"""What is written as a LeRobot v3.0 dataset is what is read, and what is not one is refused."""

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
from tests.fakes import POINT

from hypervla.contracts import Episode, EpisodeReader, UserError
from hypervla.data.lerobot import LeRobotDataset, load_frames
from hypervla.data.lerobot_writer import (
    LeRobotWriter,
    column_statistics,
    histogram_statistics,
    image_histogram,
    stage_episode,
)
from hypervla.data.video import encode

LENGTHS = (7, 12, 1, 9)
INSTRUCTIONS = ("go left", "go right", "go left", "go up")
VIDEO = Path("videos/observation.images.top/chunk-000/file-000.mp4")


def numbered_images(first: int, count: int) -> np.ndarray:
    """Frames that carry their number as eight black or white blocks."""
    numbers = np.arange(first, first + count)
    bits = (numbers[:, None] >> np.arange(8)) & 1
    blocks = bits.reshape(count, 2, 4, 1).repeat(16, axis=1).repeat(8, axis=2)
    return np.broadcast_to(blocks * 255, (count, 32, 32, 3)).astype(np.uint8)


def number_in(image: np.ndarray) -> int:
    bits = image.reshape(2, 16, 4, 8, 3).mean(axis=(1, 3, 4)).ravel() > 127
    return int((bits << np.arange(8)).sum())


def episode(index: int) -> Episode:
    random, length = np.random.default_rng(index), LENGTHS[index]
    success = np.zeros(length, bool)
    success[-1] = True
    return Episode(
        instruction=INSTRUCTIONS[index],
        images={"top": numbered_images(sum(LENGTHS[:index]), length)},
        actions=random.normal(size=(length, 3)).astype(np.float32),
        proprio=random.normal(size=(length, 2)).astype(np.float32),
        success=success,
        environment_state=random.normal(size=(length, 5)).astype(np.float32),
        source={"seed": index},
    )


def write(root: Path, staging: Path, **options: int) -> LeRobotDataset:
    writer = LeRobotWriter(root, POINT, **options)
    for index in range(len(LENGTHS)):
        stage_episode(staging / str(index), episode(index), writer.fps)
        writer.add(staging / str(index))
    writer.finish(paraphrases={"go left": ["go left", "left please"]}, about={"command": "test"})
    return LeRobotDataset(root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    folder = tmp_path_factory.mktemp("lerobot")
    return write(folder / "dataset", folder / "staging")


def test_a_colon_in_a_folders_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(load_frames(write(Path("noise:0.3"), Path("staging:1")))) == sum(LENGTHS)


@pytest.fixture
def copy(dataset: LeRobotDataset, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return shutil.copytree(dataset.root, tmp_path / "copy")


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
    wanted = [frame for index in (2, 0, 3, 1) for frame in range(*dataset.episode_starts[index : index + 2])]
    assert numbers == wanted


@pytest.mark.parametrize("workers", [1, 3])
def test_all_frames_at_once_equal_the_episodes_one_by_one(
    dataset: LeRobotDataset, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypervla.data.lerobot.FRAMES_PER_SPAN", 19)
    frames = load_frames(dataset, workers=workers)
    episodes = [dataset.episode(index, crop=True) for index in range(len(dataset))]
    np.testing.assert_array_equal(frames.images["top"], np.concatenate([each.images["top"] for each in episodes]))
    np.testing.assert_array_equal(frames.actions, np.concatenate([each.actions for each in episodes]))
    np.testing.assert_array_equal(frames.proprio, np.concatenate([each.proprio for each in episodes]))
    assert frames.images["top"].shape == (sum(LENGTHS), 24, 24, 3)
    assert frames.episode_starts.tolist() == [0, *np.cumsum(LENGTHS)]
    assert frames.episode_instruction == list(INSTRUCTIONS)


def test_a_crop_is_a_part_of_the_whole_image(dataset: LeRobotDataset) -> None:
    whole, part = dataset.episode(1).images["top"], dataset.episode(1, crop=True).images["top"]
    np.testing.assert_array_equal(part, whole[:, 4:28, 4:28])


def test_cameras_that_are_not_asked_for_are_not_decoded(dataset: LeRobotDataset) -> None:
    assert dataset.episode(0, cameras=()).images == {}
    with pytest.raises(UserError, match="no camera 'wrist'"):
        dataset.episode(0, cameras=("wrist",))


def test_the_data_is_split_over_files_without_a_trace(dataset: LeRobotDataset, tmp_path: Path) -> None:
    split = write(tmp_path / "split", tmp_path / "staging", data_file_mb=0, video_file_mb=0)
    assert len(list(split.root.glob("data/*/*.parquet"))) == len(list(split.root.glob("videos/*/*/*.mp4"))) == 4
    one, many = load_frames(dataset), load_frames(split)
    both = load_frames(dataset, split)
    np.testing.assert_array_equal(both.actions, np.concatenate([one.actions, many.actions]))
    np.testing.assert_array_equal(both.images["top"], np.concatenate([one.images["top"], many.images["top"]]))
    assert both.episode_starts.tolist() == [*one.episode_starts, *(len(one) + many.episode_starts[1:])]
    np.testing.assert_array_equal(one.images["top"], many.images["top"])
    np.testing.assert_array_equal(one.actions, many.actions)


# The format


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


def test_global_statistics_are_those_of_all_frames(dataset: LeRobotDataset) -> None:
    actions = np.concatenate([episode(index).actions for index in range(len(LENGTHS))])
    statistics = dataset.statistics()["action"]
    assert set(statistics) == {"mean", "std", "min", "max", "q01", "q99"}
    np.testing.assert_allclose(statistics["mean"], actions.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["std"], actions.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-5)


def test_statistics_from_a_histogram_equal_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 10, 3), np.uint8)
    counted, direct = (
        histogram_statistics(image_histogram(images)),
        column_statistics(images.reshape(-1, 3) / 255),
    )
    assert counted.pop("count") == [9]
    for name, value in counted.items():
        np.testing.assert_allclose(np.ravel(value), direct[name], atol=1e-12, err_msg=name)


def test_the_digest_follows_every_byte(dataset: LeRobotDataset, copy: Path) -> None:
    assert LeRobotDataset(copy).digest == dataset.digest
    content = bytearray((copy / VIDEO).read_bytes())
    content[-1] ^= 1
    (copy / VIDEO).write_bytes(content)
    assert LeRobotDataset(copy).digest != dataset.digest


# Refusals


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read_all(root: Path) -> None:
    dataset = LeRobotDataset(root)
    dataset.statistics()
    load_frames(dataset)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "Not a LeRobot dataset: .* is not a folder; record one with `hypervla record`"),
        (lambda root: (root / "meta/info.json").unlink(), "Not a LeRobot dataset: .* has no meta/info.json"),
        (lambda root: edit(root / "meta/info.json", codebase_version="v2.1"), "LeRobot v2.1, but v3.0 is read"),
        (lambda root: cut(root / "meta/info.json"), "info.json is damaged"),
        (lambda root: (root / "meta/hypervla.json").unlink(), "hypervla.json is missing"),
        (lambda root: (root / "meta/stats.json").unlink(), "stats.json is missing"),
        (lambda root: edit(root / "meta/stats.json", action={"mean": [0]}), "lacks std, min, max, q01, q99"),
        (lambda root: (root / VIDEO).unlink(), "file-000.mp4 is missing"),
        (lambda root: cut(root / VIDEO), "file-000.mp4 (is damaged|should hold)"),
        (lambda root: (root / VIDEO).write_bytes(encode(numbered_images(0, 20), 10)), "should hold .* but holds 20"),
        (lambda root: (root / "data/chunk-000/file-000.parquet").unlink(), "file-000.parquet is missing"),
        (lambda root: cut(root / "data/chunk-000/file-000.parquet"), "file-000.parquet is damaged"),
        (lambda root: cut(root / "meta/episodes/chunk-000/file-000.parquet"), "file-000.parquet is damaged"),
        (lambda root: edit(root / "meta/info.json", total_episodes=5), "describes 4 episodes"),
        (lambda root: edit(root / "meta/info.json", features={}), "needs a feature 'action' of shape"),
    ],
)
def test_a_damaged_dataset_is_refused_in_one_sentence_that_names_the_file(copy: Path, damage, message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message) as refusal:
        read_all(copy)
    assert "\n" not in str(refusal.value)
    assert re.search(str(copy), str(refusal.value))


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
