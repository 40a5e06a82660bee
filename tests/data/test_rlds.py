"""RLDS datasets as training reads them: numbers from the index, images from their places in the shards."""

from __future__ import annotations

import hashlib
import os
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conformance.reader import check_reader
from tests.data.rlds_files import (
    BRIDGE,
    bridge,
    bridge_episode,
    group,
    huge_picture,
    image,
    picture,
    steps,
    tensor,
    write_dataset,
)

from hypervla.contracts import UserError
from hypervla.data import manifest, oxe, rlds_index
from hypervla.data.encoded_image import decode_image, image_size
from hypervla.data.rlds import RldsDataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("HYPERVLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def sample(shared_data: Path) -> RldsDataset:
    """The sample of BridgeData: 25 episodes of 10 steps."""
    return RldsDataset(shared_data / "bridge_dataset")


def settle(folder: Path) -> None:
    """Give all files a time stamp that is old enough to be believed."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 100, time.time() - 100))


def index_of(dataset: RldsDataset) -> list[np.ndarray]:
    index = dataset._index
    arrays = [index.starts, index.actions, index.proprio, index.instruction_of, index.records, index.shards]
    return arrays + [array for images in index.images.values() for array in vars(images).values()]


def equal(one: RldsDataset, other: RldsDataset) -> bool:
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(index_of(one), index_of(other), strict=True)
    ) and (one._index.instructions, one._index.empty) == (other._index.instructions, other._index.empty)


def test_the_bridge_sample_is_a_reader(sample: RldsDataset) -> None:
    check_reader(sample)
    assert (len(sample), len(sample.actions), sample.left_out) == (25, 25 * 9, ["val"])
    assert len({sample.instruction(row) for row in range(225)}) == 4
    assert sample.validation_episodes.tolist() == [24], "without val here: the last 5 %, as train[95%:] cuts them"


def test_images_from_their_places_are_those_of_the_records(sample: RldsDataset) -> None:
    (split,) = sample.folder.choose("train")
    for camera, key in sample.row.cameras.items():
        stored = [
            decode_image(data, (64, 64), "it", fast=True)
            for record in split
            for data in record.features[f"steps/observation/{key}"].bytes_list.value[:9]
        ]
        order = np.random.default_rng(0).permutation(225)
        for row, found in zip(order, sample.images(camera, order.tolist()), strict=True):
            np.testing.assert_array_equal(found, stored[row])


def test_pixels_are_tensorflows(sample: RldsDataset) -> None:
    camera = next(camera for camera, key in sample.row.cameras.items() if key == "image_0")
    pixels = np.stack(sample.images(camera, range(225)))
    # sha256 of tf.io.decode_image's pixels of these images, TensorFlow 2.21 on x86-64
    wanted = "52d9db66e20b6e902a39b77aef26217466204c89e1b264ff13387ebdf9c9bc68"
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == wanted


def test_bridge_actions_are_the_differences_of_states(sample: RldsDataset) -> None:
    record = next(iter(sample.folder.choose("train")[0]))
    states = np.array(record.features["steps/observation/state"].float_list.value, np.float32).reshape(10, 7)
    np.testing.assert_array_equal(sample.actions[:9, :6], states[1:, :6] - states[:-1, :6])
    assert set(np.unique(sample.actions[:, 6])) <= {0.0, 1.0}


def test_threads_read_what_one_reader_reads(tmp_path: Path) -> None:
    dataset = RldsDataset(bridge(tmp_path, (9, 8, 7, 6), shards=3))
    camera, rows = dataset.embodiment.cameras[0].name, [[k, 25 - k, 3] for k in range(26)]
    alone = [np.stack(dataset.images(camera, row)) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: np.stack(dataset.images(camera, row)), rows))
    np.testing.assert_array_equal(together, alone)
    assert len({image.tobytes() for row in alone for image in row}) == 26, "every image is another one"


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 20, 29, 30, 31])
def test_the_last_twentieth_is_held_back_where_there_is_no_val(count: int, tmp_path: Path) -> None:
    dataset = RldsDataset(bridge(tmp_path, [2] * count))
    boundary = round(95 * count / 100)  # TFDS's rounding of percentages: "closest"
    assert dataset.validation_episodes.tolist() == list(range(boundary, count))


def test_val_is_held_back_where_it_is_here_and_nothing_of_train(tmp_path: Path) -> None:
    episodes = [bridge_episode(2 + seed, seed) for seed in range(5)]
    parts = {"test": [episodes[4:]], "val": [episodes[3:4]], "train": [episodes[:1], episodes[1:3]]}
    folder = write_dataset(tmp_path, steps(BRIDGE), parts)
    dataset = RldsDataset(folder)
    check_reader(dataset)
    assert np.diff(dataset.starts).tolist() == [1, 2, 3, 4, 5]
    assert dataset.validation_episodes.tolist() == [3, 4]
    assert RldsDataset(folder, split="train").validation_episodes.tolist() == []
    only = RldsDataset(folder, split="val")
    assert (len(only), only.validation_episodes.tolist()) == (1, [])
    np.testing.assert_array_equal(only.actions, dataset.actions[6:10])
    assert only.digest == dataset.digest


def test_episodes_of_which_no_step_is_left_are_left_out(tmp_path: Path) -> None:
    dataset = RldsDataset(bridge(tmp_path, (3, 1, 2)))
    assert (dataset.starts.tolist(), dataset._index.empty) == ([0, 2, 3], 1)
    assert dataset.episode(1).source["record"] == 2


def test_an_index_from_the_cache_is_the_one_that_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bridge(tmp_path, (4, 3, 5), shards=2)
    settle(folder)
    built = RldsDataset(folder)
    monkeypatch.setattr(rlds_index, "build", _never)
    cached = RldsDataset(folder)
    assert equal(built, cached)
    check_reader(cached)


def _never(*_: object) -> None:
    raise AssertionError("the shards were read again")


def test_a_cache_that_is_damaged_stale_or_young_is_built_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bridge(tmp_path)
    built = RldsDataset(folder)
    assert not list(cache.rglob("*.index")), "files this young may change under the same time stamp"
    settle(folder)
    RldsDataset(folder)
    (path,) = cache.rglob("*.index")
    content = path.read_bytes()
    for position in [*range(0, len(content), 97), len(content) - 1]:
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert equal(RldsDataset(folder), built)
        assert path.read_bytes() == content, "and mended"
    for size in (0, 10, 64, len(content) - 1):
        path.write_bytes(content[:size])
        assert equal(RldsDataset(folder), built)
    monkeypatch.setattr(rlds_index, "build", _never)
    for change in (lambda: os.utime(next(folder.glob("*.tfrecord-*"))), lambda: _touch(folder / "features.json")):
        change()
        with pytest.raises(AssertionError, match="read again"):
            RldsDataset(folder)


def _touch(path: Path) -> None:
    path.write_text(path.read_text() + " ")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, cache: Path) -> None:
    folder = bridge(tmp_path)
    settle(folder)
    cache.write_text("no folder")
    assert len(RldsDataset(folder)) == 3


def test_images_that_change_after_opening_are_refused(tmp_path: Path) -> None:
    dataset = RldsDataset(bridge(tmp_path))
    camera = dataset.embodiment.cameras[0].name
    path = dataset.folder.choose("train")[0].shards[0]
    images = dataset._index.images[camera]
    content = bytearray(path.read_bytes())
    content[images.offsets[4] + images.lengths[4] - 3] ^= 1
    path.write_bytes(content)
    dataset.images(camera, [0, 3, 5])
    with pytest.raises(UserError, match=rf"Camera '{camera}' at step 1 of episode 1 in .*has changed since"):
        dataset.images(camera, [0, 4])
    path.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        dataset.images(camera, [0])


def _number(name: str, value: float) -> Callable[[dict], None]:
    return lambda episode: episode[name].__setitem__(8, value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_number("steps/observation/state", float("nan")), "of episode 1 .* holds NaN or infinity"),
        (_number("steps/observation/state", float("inf")), "of episode 1 .* holds NaN or infinity"),
        (lambda episode: episode.pop("steps/action"), "'steps/action' of episode 1 .* is missing"),
        (lambda episode: episode["steps/observation/image_0"].pop(), "should have 3 values, but has 2"),
        (lambda episode: episode["steps/is_first"].pop(), "of episode 1"),
        (lambda episode: episode.update({"steps/action": [1] * 21}), "should be a float_list"),
    ],
)
def test_episodes_that_are_not_as_announced_are_refused(change: Callable, complaint: str, tmp_path: Path) -> None:
    episodes = [bridge_episode(3, seed) for seed in range(3)]
    change(episodes[1])
    with pytest.raises(UserError, match=complaint):
        RldsDataset(write_dataset(tmp_path, steps(BRIDGE), {"train": [episodes]}))


KUKA = {
    "action": group(
        {
            "world_vector": tensor("float32", 3),
            "rotation_delta": tensor("float32", 3),
            "gripper_closedness_action": tensor("float32", 1),
        }
    ),
    "is_first": tensor("bool"),
    "observation": group(
        {
            "image": image(8, 8, 3),
            "clip_function_input/base_pose_tool_reached": tensor("string"),
            "gripper_closed": tensor("string"),
        }
    ),
}


def kuka_episode(length: int, size: int = 7) -> dict[str, list]:
    """An episode whose states are zlib streams inside of plain strings."""
    states = np.arange(length * size, dtype="<f4").reshape(length, size)
    return {
        "steps/action/world_vector": np.arange(3 * length, dtype=np.float32).tolist(),
        "steps/action/rotation_delta": [0.5] * (3 * length),
        "steps/action/gripper_closedness_action": [1.0] + [0.0] * (length - 1),
        "steps/is_first": [1] + [0] * (length - 1),
        "steps/observation/image": [picture(8, 8, t) for t in range(length)],
        "steps/observation/clip_function_input/base_pose_tool_reached": [zlib.compress(s.tobytes()) for s in states],
        "steps/observation/gripper_closed": [zlib.compress(np.float32(0.25).tobytes())] * length,
    }


def test_a_dataset_with_packed_states_and_no_words_is_a_reader(tmp_path: Path) -> None:
    episodes = [kuka_episode(3), kuka_episode(2)]
    dataset = RldsDataset(write_dataset(tmp_path, steps(KUKA), {"train": [episodes]}, name="kuka"))
    check_reader(dataset)
    assert dataset.proprio is not None
    assert dataset.proprio[1].tolist() == [7, 8, 9, 10, 11, 12, 13, 0.25]
    assert dataset.actions[1].tolist() == [3, 4, 5, 0.5, 0.5, 0.5, 0]
    assert [dataset.instruction(row) for row in range(5)] == [""] * 5


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (b"no zlib", r"episode 1 \(.*is no zlib stream"),
        (zlib.compress(bytes(1 << 26)), r"episode 1 \("),
        (zlib.compress(bytes(20)), r"episode 1 \(.*should unpack to 28 bytes"),
    ],
)
def test_a_packed_state_that_is_none_is_refused_with_its_episode(state: bytes, complaint: str, tmp_path: Path) -> None:
    episodes = [kuka_episode(3), kuka_episode(2)]
    episodes[1]["steps/observation/clip_function_input/base_pose_tool_reached"][0] = state
    with pytest.raises(UserError, match=complaint):
        RldsDataset(write_dataset(tmp_path, steps(KUKA), {"train": [episodes]}, name="kuka"))


def test_episodes_of_another_proprio_are_refused(tmp_path: Path) -> None:
    episodes = [kuka_episode(3), kuka_episode(2, size=6)]
    with pytest.raises(UserError, match=r"episode 1 \(.*should unpack to 28 bytes, but 24 came"):
        RldsDataset(write_dataset(tmp_path, steps(KUKA), {"train": [episodes]}, name="kuka"))


def test_a_row_with_fewer_cameras_reads_fewer(tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    dataset = RldsDataset(folder, oxe.row("bridge_dataset").seeing("secondary"))
    check_reader(dataset)
    assert [(camera.name, camera.view_size) for camera in dataset.embodiment.cameras] == [("secondary", (20, 16))]
    np.testing.assert_array_equal(dataset.actions, RldsDataset(folder).actions)


def test_a_picture_bomb_is_refused_at_once(tmp_path: Path) -> None:
    episodes = [bridge_episode(3, 0)]
    episodes[0]["steps/observation/image_0"][1] = huge_picture()
    dataset = RldsDataset(write_dataset(tmp_path, steps(BRIDGE), {"train": [episodes]}))
    began = time.monotonic()
    with pytest.raises(UserError, match="too large to unpack"):
        dataset.images("primary", [0, 1])
    assert time.monotonic() - began < 2


def test_a_dataset_without_a_row_or_its_camera_is_refused(tmp_path: Path) -> None:
    episodes = [bridge_episode(3, 0)]
    folder = write_dataset(tmp_path / "a", steps(BRIDGE), {"train": [episodes]}, name="unheard_of")
    with pytest.raises(UserError, match="unheard_of"):
        RldsDataset(folder)
    blind = {**BRIDGE, "observation": group({"state": tensor("float32", 7), "image_9": image(24, 32, 3)})}
    folder = write_dataset(tmp_path / "b", steps(blind), {"train": [episodes]})
    with pytest.raises(UserError, match="has the images steps/observation/image_9: correct the dataset's row"):
        RldsDataset(folder)


def test_a_manifest_is_compared_before_anything_is_read(tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    manifest.write(folder)
    RldsDataset(folder)
    _touch(folder / "features.json")
    with pytest.raises(UserError, match=r"features.json has \d+ bytes"):
        RldsDataset(folder)


def test_the_digest_changes_with_any_byte(tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    before = RldsDataset(folder).digest
    assert RldsDataset(folder).digest == before
    _touch(folder / "features.json")
    assert RldsDataset(folder).digest != before


def test_indexing_holds_one_record_at_a_time(tmp_path: Path) -> None:
    episode = bridge_episode(20, 0)
    episode["steps/observation/image_0"] = [picture(24, 32) + bytes(100_000)] * 20  # 2 MB an episode
    folder = write_dataset(tmp_path, steps(BRIDGE), {"train": [[episode] * 30]})
    tracemalloc.start()
    RldsDataset(folder)
    assert tracemalloc.get_traced_memory()[1] < 12 << 20, "60 MB in all"
    tracemalloc.stop()


def _images() -> Iterator[tuple[str, str]]:
    return (
        (form, mode)
        for form in ("JPEG", "PNG")
        for mode in ("RGB", "L", "P", "RGBA")
        if form == "PNG" or mode in "RGB L"
    )


@pytest.mark.parametrize(("form", "mode"), list(_images()))
def test_every_kind_of_picture_becomes_the_rgb_that_pillow_makes_of_it(form: str, mode: str) -> None:
    data = picture(20, 30, 1, form, mode)
    assert image_size(data, "it") == (20, 30)
    found = decode_image(data, (20, 30), "it")
    assert (found.shape, found.dtype) == ((20, 30, 3), np.uint8)
    wanted = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(found, wanted)
    fast = decode_image(data, (20, 30), "it", fast=True)
    assert np.abs(fast.astype(int) - wanted).mean() < 3


JPEG = picture(90, 90)
DAMAGED = [b"", b"GIF89a" + bytes(40), picture(90, 90, form="BMP"), picture(90, 91), picture(90, 91, form="PNG")]
DAMAGED += [JPEG[:2], JPEG[:100], JPEG[:-80], JPEG[:-300] + bytes(300), picture(90, 90, form="PNG")[:-80]]
DAMAGED += [picture(90, 90, mode="CMYK"), huge_picture()]


@pytest.mark.parametrize("data", DAMAGED)
def test_what_is_no_whole_picture_of_its_size_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="step 3 .*copy or write the dataset again"):
        decode_image(data, (90, 90), "step 3")
