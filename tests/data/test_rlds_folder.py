"""The folder of an RLDS dataset: found, counted and measured before anything in it is believed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.rlds_files import BRIDGE, bridge, bridge_episode, frame, picture, steps, write_dataset

from hypervla.contracts import UserError
from hypervla.data import manifest
from hypervla.data.rlds_check import check
from hypervla.data.rlds_features import decode, length
from hypervla.data.rlds_folder import RldsFolder
from hypervla.data.tfrecord import Example, records


def edit_info(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "dataset_info.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tfrecord-*"))


def rewrite(folder: Path, change: Callable[[Any], Any], number: int = 1) -> None:
    """Change the message of a record of the first shard, and the sizes with it, so that only the content is wrong."""
    path = shards(folder)[0]
    payloads = [payload for _, payload in records(path)]
    example = Example.FromString(payloads[number])
    change(example.features.feature)
    payloads[number] = example.SerializeToString()
    path.write_bytes(b"".join(map(frame, payloads)))
    total = sum(map(len, payloads))
    edit_info(folder, lambda about: about["splits"][0].update(numBytes=str(total)))


def test_the_bridge_sample_reads_whole(shared_data: Path) -> None:
    folder = RldsFolder(shared_data / "bridge_dataset")
    (train,) = folder.choose(None)
    path = train.shards[0]
    assert (folder.name, len(train), folder.left_out) == ("bridge_dataset", 25, ["val"])
    assert path.stat().st_size - 16 * 25 == train.size == 3_474_742
    seen = 0
    for record in train:
        assert set(record.features) == set(folder.features), "every feature is stored, and nothing else"
        assert length(folder.features, record.features, record.where) == 10
        for name, feature in folder.features.items():
            values = decode(feature, record.features, 10, record.where)
            assert len(values) == (10 if feature.in_steps else 1), name
            if feature.kind == "number":
                assert isinstance(values, np.ndarray)
                assert values.shape[1:] == feature.shape
            seen += 1
    assert seen == 25 * 20
    assert check(shared_data / "bridge_dataset") == [
        "train: 25 episodes, 250 steps, 1000 images in 1 shards",
        "not here: the shards of val",
    ]


def test_a_split_whose_shards_are_elsewhere_is_refused_by_name(shared_data: Path) -> None:
    folder = RldsFolder(shared_data / "bridge_dataset/1.0.0")
    with pytest.raises(UserError, match="Split 'val' lacks 1 of its 1 shards, bridge_dataset-val.tfrecord-00000"):
        folder.choose("val")
    with pytest.raises(UserError, match="has no split 'test'; it has train, val"):
        folder.choose("test")


def test_one_dataset_is_found_from_above_and_several_are_refused(tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    for path in (folder, folder.parent, tmp_path):
        assert RldsFolder(path).root == folder
    shutil.copytree(folder, folder.parent / "2.0.0")
    with pytest.raises(UserError, match="2 datasets or versions .*1.0.0.*2.0.0"):
        RldsFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no dataset_info.json"):
        RldsFolder(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        RldsFolder(tmp_path / "nowhere")


def test_episodes_are_counted_through_shards_and_splits(tmp_path: Path) -> None:
    episodes = [bridge_episode(2, seed) for seed in range(6)]
    parts = {"val": [episodes[5:]], "extra": [episodes[4:5]], "train": [episodes[:1], episodes[1:4]]}
    folder = RldsFolder(write_dataset(tmp_path, steps(BRIDGE), parts))
    chosen = folder.choose(None)
    assert [split.name for split in chosen] == ["train", "val", "extra"]
    assert [(record.number, record.shard) for record in chosen[0]] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    first = list(chosen[0])[1]
    stored = first.features["steps/action"].float_list.value
    np.testing.assert_array_equal(stored, episodes[1]["steps/action"])
    content = chosen[0].shards[1].read_bytes()
    assert content[first.offset : first.offset + len(first.payload)] == first.payload


def test_sizes_counted_with_their_frames_are_believed_too(tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    edit_info(folder, lambda about: about["splits"][0].update(numBytes=str(shards(folder)[0].stat().st_size)))
    assert len(RldsFolder(folder).choose(None)[0]) == 3


def test_shards_are_named_by_the_template(tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    edit_info(folder, lambda about: about["splits"][0].update(filepathTemplate="{SPLIT}.{SHARD_INDEX}-{NUM_SHARDS}"))
    shards(folder)[0].rename(folder / "train.00000-00001")
    assert len(list(RldsFolder(folder).choose("train")[0])) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("name"),
        lambda about: about.pop("splits"),
        lambda about: about.update(splits=7),
        lambda about: about.update(fileFormat="riegeli"),
        lambda about: about.update(name="../x"),
        lambda about: about["splits"][0].pop("name"),
        lambda about: about["splits"][0].pop("numBytes"),
        lambda about: about["splits"][0].update(numBytes="x"),
        lambda about: about["splits"][0].update(numBytes="1"),
        lambda about: about["splits"][0].update(shardLengths=[]),
        lambda about: about["splits"][0].update(shardLengths=["-1"]),
        lambda about: about["splits"][0].update(shardLengths=["2"]),
        lambda about: about["splits"][0].update(shardLengths=["4"]),
        lambda about: about["splits"][0].update(shardLengths=["3", "0"]),
        lambda about: about["splits"][0].update(shardLengths=[str(2**60)]),
        lambda about: about["splits"][0].update(filepathTemplate="/etc/passwd"),
        lambda about: about["splits"][0].update(filepathTemplate="../{SPLIT}"),
        lambda about: about["splits"][0].update(filepathTemplate="{WHAT}"),
    ],
)
def test_metadata_that_tfds_cannot_have_written_is_refused(change: Callable, tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    edit_info(folder, change)
    with pytest.raises(UserError):
        check(folder)


def test_a_shard_with_too_many_or_too_few_records_is_refused(tmp_path: Path) -> None:
    folder = bridge(tmp_path, (2, 2, 2, 2), shards=2)
    edit_info(folder, lambda about: about["splits"][0].update(shardLengths=["1", "3"]))
    with pytest.raises(UserError, match="00000-of-00002 has more than the 1 records"):
        check(folder)
    edit_info(folder, lambda about: about["splits"][0].update(shardLengths=["3", "1"]))
    with pytest.raises(UserError, match="00000-of-00002 has 2 records, not 3"):
        check(folder)


def test_a_split_with_some_of_its_shards_is_refused_and_so_is_one_without_train(tmp_path: Path) -> None:
    episodes = [bridge_episode(2, seed) for seed in range(3)]
    folder = write_dataset(tmp_path, steps(BRIDGE), {"train": [episodes[:1], episodes[1:2]], "val": [episodes[2:]]})
    first, second, _ = shards(folder)
    first.unlink()
    with pytest.raises(UserError, match="Split 'train' lacks 1 of its 2 shards"):
        check(folder)
    second.unlink()
    with pytest.raises(UserError, match="Split 'train' lacks 2 of its 2 shards"):
        check(folder)
    assert len(RldsFolder(folder).choose("val")[0]) == 1


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shard_of_another_size_is_refused_before_it_is_read(shift: int, tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    content = shards(folder)[0].read_bytes()
    shards(folder)[0].write_bytes(content[:shift] if shift < 0 else content + b"x")
    with pytest.raises(UserError, match="copy them again"):
        RldsFolder(folder).choose(None)


def _end_it_elsewhere(feature: Any) -> None:
    feature["steps/is_last"].int64_list.value[:] = [1, 0, 0]


def _begin_twice(feature: Any) -> None:
    feature["steps/is_first"].int64_list.value[:] = [1, 1, 0]


def _empty(feature: Any) -> None:
    for name in feature:
        values = getattr(feature[name], feature[name].WhichOneof("kind")).value
        del values[:]


def _image(data: bytes) -> Callable[[Any], None]:
    return lambda feature: feature["steps/observation/image_0"].bytes_list.value.__setitem__(1, data)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_end_it_elsewhere, r"episode 1 .*marks the steps \[0\] of 3 as is_last"),
        (_begin_twice, r"episode 1 .*marks the steps \[0, 1\] of 3 as is_first"),
        (_empty, "episode 1 .*has no steps"),
        (lambda feature: feature.pop("steps/action"), "'steps/action' of episode 1 .*is missing"),
        (lambda feature: feature["steps/action"].float_list.value.pop(), "'steps/action' of episode 1"),
        (
            lambda feature: feature["steps/action"].float_list.value.__setitem__(3, float("nan")),
            "'steps/action' of episode 1 .*holds NaN or infinity",
        ),
        (_image(b"no image"), "step 1 of 'steps/observation/image_0' of episode 1 .*no JPEG or PNG"),
        (_image(picture(32, 24)), "should be an image of 24 × 32 pixels in 8-bit RGB, but 32 × 24"),
        (_image(picture(24, 32)[:-20]), "damaged image"),
    ],
)
def test_contents_that_contradict_themselves_are_refused(change: Callable, complaint: str, tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    assert check(folder) == ["train: 3 episodes, 12 steps, 24 images in 1 shards"]
    rewrite(folder, change)
    with pytest.raises(UserError, match=complaint):
        check(folder)


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_manifest_finds_what_checksums_that_fit_cannot(above: int, tmp_path: Path) -> None:
    folder = bridge(tmp_path)
    manifest.write((folder, *folder.parents)[above])
    for path in (folder, *folder.parents[:2]):
        assert check(path)[0] == "3 files are those of the manifest"
    rewrite(folder, lambda feature: feature["steps/action"].float_list.value.__setitem__(3, 0.25))
    with pytest.raises(UserError, match="is damaged: its sha256"):
        check(folder)


def test_a_manifest_of_other_datasets_above_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    manifest.write(tmp_path)
    folder = bridge(tmp_path)
    assert "manifest" not in check(folder)[0]
