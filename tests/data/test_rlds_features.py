"""features.json and the arrays in records: every type that is read comes back, everything else is refused."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.rlds_files import BRIDGE, bridge_episode, example, group, image, sequence, steps, tensor, text

from hypervla.contracts import UserError
from hypervla.data.rlds_features import Feature, decode, inflate, length, read_features
from hypervla.data.tfrecord import parse


def features_of(tmp_path: Path, tree: Any) -> dict[str, Feature]:
    path = tmp_path / "features.json"
    path.write_text(json.dumps(tree))
    return read_features(path)


def read(tmp_path: Path, feature: dict[str, Any], values: list[Any], count: int = 2) -> Any:
    """The values of one step feature of an episode of `count` steps."""
    features = features_of(tmp_path, steps({"it": feature}))
    return decode(features["steps/it"], parse(example({"steps/it": values}), "x"), count, "episode 5")


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("float32", [0.1, -3e38]),
        ("float64", [0.5, -2.0]),
        ("float16", [0.5, -2.0]),
        ("bool", [0, 1]),
        ("uint8", [0, 255]),
        ("int8", [-128, 127]),
        ("uint16", [0, 65535]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [0, 2**64 - 1]),
    ],
)
@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_numbers_of_every_type_and_encoding_come_back(
    dtype: str, numbers: list[float], encoding: str, tmp_path: Path
) -> None:
    wanted = np.array([numbers, numbers[::-1], [numbers[0]] * 2], dtype)  # T = 3 steps of 2 numbers
    packed = {"none": wanted.ravel().tolist(), "bytes": [row.tobytes() for row in wanted]}
    packed["zlib"] = [zlib.compress(row) for row in packed["bytes"]]
    came = read(tmp_path, tensor(dtype, 2, encoding=encoding), packed[encoding], 3)
    assert came.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(came, wanted)


def test_shapes_names_and_episode_values_follow_the_tree(tmp_path: Path) -> None:
    inside = {"a/b": tensor("int32"), "deep": group({"c": tensor("float32", 2, 3)}), "said": text()}
    tree = steps(inside)
    tree["featuresDict"]["features"] |= {
        "about": group({"id": tensor("int64"), "names": sequence(text()), "rows": tensor("float32", -1, 2)})
    }
    features = features_of(tmp_path, tree)
    assert list(features) == ["steps/a/b", "steps/deep/c", "steps/said", "about/id", "about/names", "about/rows"]
    record = parse(
        example(
            {
                "steps/a/b": [1, 2],
                "steps/deep/c": np.arange(12, dtype=np.float32).tolist(),
                "steps/said": ["grün".encode(), b""],
                "about/id": [7],
                "about/names": [b"x", b"y", b"z"],
                "about/rows": [0.0, 1.0, 2.0, 3.0],
            }
        ),
        "x",
    )
    came = {name: decode(feature, record, 2, "x") for name, feature in features.items()}
    assert came["steps/a/b"].tolist() == [1, 2]
    assert came["steps/deep/c"].shape == (2, 2, 3)
    assert came["steps/said"] == ["grün".encode(), b""]
    assert came["about/id"].tolist() == [7]
    assert came["about/names"].tolist() == [[b"x", b"y", b"z"]]
    assert came["about/rows"].tolist() == [[[0, 1], [2, 3]]]
    assert length(features, record, "x") == 2


def test_the_steps_are_counted_by_is_first_where_it_is_there(tmp_path: Path) -> None:
    features = features_of(tmp_path, steps(BRIDGE))
    record = dict(bridge_episode(4, 0))
    assert length(features, parse(example(record), "x"), "x") == 4
    del record["steps/is_first"]
    assert length(features, parse(example(record), "x"), "x") == 4
    with pytest.raises(UserError, match="episode 3 has no steps/is_first"):
        length(features, parse(example({"other": [1]}), "x"), "episode 3")


@pytest.mark.parametrize(
    ("feature", "values", "complaint"),
    [
        (tensor("float32", 2), [1.0, 2.0, 3.0], r"should have 2 × \(2\) values, but has 3"),
        (tensor("float32", 2), [1, 2, 3, 4], "should be a float_list .* but a int64_list came"),
        (tensor("int32", 2), [1.0, 2.0, 3.0, 4.0], "should be a int64_list .* but a float_list came"),
        (tensor("uint8"), [1, 256], "holds 1 to 256, which is no uint8"),
        (tensor("uint8"), [-1, 2], "holds -1 to 2, which is no uint8"),
        (tensor("bool"), [0, 2], "which is no bool"),
        (tensor("bool", 2, encoding="bytes"), [b"\0\1", b"\0\2"], "holds 2, which is no bool"),
        (tensor("int16", 2, encoding="bytes"), [b"1234", b"123"], "should have 4 bytes, but has 3"),
        (tensor("int16", 2, encoding="zlib"), [b"1234", b"123"], "is no zlib stream"),
        (tensor("int16", 2, encoding="zlib"), [zlib.compress(b"1234")] * 3, "should have 2 values, but has 3"),
        (text(), [b"only one"], "should have 2 values, but has 1"),
        (image(8, 8, 3), [], "should be a bytes_list by features.json, but a None came"),
        (tensor("string", 2), [b"a", b"b", b"c"], r"should have 2 × \(2\) values, but has 3"),
    ],
)
def test_what_features_json_does_not_announce_is_refused(
    feature: dict[str, Any], values: list[Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=complaint) as refusal:
        read(tmp_path, feature, values)
    assert "'steps/it' of episode 5" in str(refusal.value)


def test_a_feature_that_is_not_stored_is_named(tmp_path: Path) -> None:
    features = features_of(tmp_path, steps({"it": text()}))
    with pytest.raises(UserError, match="'steps/it' of episode 5 is missing, though features.json announces it"):
        decode(features["steps/it"], parse(example({"steps/other": [1]}), "x"), 2, "episode 5")


@pytest.mark.parametrize(
    ("feature", "complaint"),
    [
        (sequence(tensor("int32")), "a sequence inside of each step"),
        (sequence(group({"x": text()})), None),
        (tensor("float32", -1), "varies from step to step"),
        (tensor("float32", -1, -1, encoding="zlib"), "varies from step to step"),
        (tensor("complex64", 2), "its type is complex64"),
        (tensor("float32", 2, encoding="gzip"), "its encoding is 'gzip'"),
        (image(8, 8, 3, form="webp"), "stored as 'webp'"),
        ({"pythonClassName": "x.ClassLabel", "classLabel": {"numClasses": "3"}}, "it is a ClassLabel"),
        ({"pythonClassName": "x.Video", "video": {}}, "it is a Video"),
    ],
)
def test_what_cannot_be_read_is_refused_only_when_it_is_asked_for(
    feature: dict[str, Any], complaint: str | None, tmp_path: Path
) -> None:
    features = features_of(tmp_path, steps({"it": feature, "good": tensor("int32")}))
    record = parse(example({"steps/it": [b"", b""], "steps/good": [1, 2]}), "x")
    assert decode(features["steps/good"], record, 2, "x").tolist() == [1, 2]  # type: ignore[union-attr]
    (name,) = features.keys() - {"steps/good"}
    with pytest.raises(UserError, match=f"'{name}' of episode 5 cannot be read: .*{complaint or 'a sequence inside'}"):
        decode(features[name], record, 2, "episode 5")


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        7,
        {"type": "FeaturesDict", "content": {}},
        group({"episode": tensor("int32")}),
        steps({"it": tensor("float32", -7)}),
        steps({"it": tensor("float32", "many")}),  # type: ignore[arg-type]
        steps({"it": {"pythonClassName": "Tensor"}}),
        steps({"a/b": tensor("int32"), "a": group({"b": tensor("int32")})}),
    ],
)
def test_a_features_json_of_another_form_is_refused(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features.json"):
        features_of(tmp_path, tree)


def test_a_damaged_or_missing_features_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_features(tmp_path / "features.json")
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "features.json").write_bytes(content)
        with pytest.raises(UserError, match="features.json is damaged"):
            read_features(tmp_path / "features.json")


def test_a_zlib_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zlib.compress(bytes(1 << 28), 9)
    tracemalloc.start()
    with pytest.raises(UserError, match="should unpack to 28 bytes, but more than 28 came"):
        inflate(bomb, 28, "the state")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"", zlib.compress(b"1234")[:-1], zlib.compress(b"1234") + b"x", zlib.compress(b"123")]
)
def test_a_zlib_stream_must_be_whole(data: bytes) -> None:
    with pytest.raises(UserError, match="should unpack to 4 bytes"):
        inflate(data, 4, "the state")
    assert inflate(zlib.compress(b"1234"), 4, "the state") == b"1234"


def test_more_than_can_be_held_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1 << 22))
    with pytest.raises(UserError, match="would unpack to 40 × 4194304 bytes"):
        read(tmp_path, tensor("uint8", 1 << 22, encoding="zlib"), [packed] * 40, 40)
    with pytest.raises(UserError, match="4398046511104 bytes by features.json, more than"):
        read(tmp_path, tensor("float32", 1 << 20, 1 << 20, encoding="zlib"), [packed] * 2)
