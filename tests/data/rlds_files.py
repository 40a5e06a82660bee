"""Writes small RLDS datasets for tests: TFRecord framing, Example messages, dataset_info.json and features.json."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from PIL import Image

POLYNOMIAL = 0x82F63B78
"""Castagnoli's, its bits reversed."""
PACKAGE = "tensorflow_datasets.core.features"


def crc32c(data: bytes) -> int:
    """Bit by bit, as its definition reads; slow, but no copy of what it checks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def fast_crc32c(data: bytes) -> int:
    return google_crc32c.value(data)


def frame(payload: bytes, crc: Callable[[bytes], int] = fast_crc32c) -> bytes:
    """One TFRecord."""

    def masked(data: bytes) -> bytes:
        value = crc(data)
        return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


def example(features: Mapping[str, Sequence[Any]]) -> bytes:
    """A tf.train.Example of lists of bytes, floats or integers, written by hand: no message class is asked."""
    entries = b""
    for name, values in features.items():
        if not values:
            entries += field(1, field(1, name.encode()) + field(2, b""))
            continue
        if all(isinstance(value, bytes) for value in values):
            kind, body = 1, b"".join(field(1, value) for value in values)
        elif any(isinstance(value, float | np.floating) for value in values):
            kind, body = 2, field(1, np.array(values, "<f4").tobytes())
        else:
            kind, body = 3, field(1, b"".join(varint(int(value) % (1 << 64)) for value in values))
        entries += field(1, field(1, name.encode()) + field(2, field(kind, body)))
    return field(1, entries)


def field(number: int, body: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def picture(height: int, width: int, seed: int = 0, form: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded image of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height)).convert(mode).save(out, form)
    return out.getvalue()


def huge_picture() -> bytes:
    """The beginning of a PNG of 30,000² pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes(1 << 20))
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {
        "pythonClassName": f"{PACKAGE}.tensor_feature.Tensor",
        "tensor": {"shape": dimensions, "dtype": dtype, "encoding": encoding},
    }


def text() -> dict[str, Any]:
    return {"pythonClassName": f"{PACKAGE}.text_feature.Text", "text": {}}


def image(*shape: int, form: str = "jpeg") -> dict[str, Any]:
    about = {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": "uint8", "encodingFormat": form}
    return {"pythonClassName": f"{PACKAGE}.image_feature.Image", "image": about}


def group(features: Mapping[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": f"{PACKAGE}.features_dict.FeaturesDict", "featuresDict": {"features": dict(features)}}


def sequence(feature: Mapping[str, Any], made: str = "sequence_feature.Sequence", length: int = -1) -> dict[str, Any]:
    return {"pythonClassName": f"{PACKAGE}.{made}", "sequence": {"feature": dict(feature), "length": str(length)}}


def steps(features: Mapping[str, Any]) -> dict[str, Any]:
    """The root of an RLDS dataset whose steps have these features."""
    return group({"steps": sequence(group(features), "dataset_feature.Dataset")})


BRIDGE = {
    "action": tensor("float32", 7),
    "is_first": tensor("bool"),
    "is_last": tensor("bool"),
    "language_instruction": text(),
    "observation": group({"state": tensor("float32", 7), "image_0": image(24, 32, 3), "image_1": image(20, 16, 3)}),
}
"""Features like those of BridgeData: enough for a policy."""


def bridge_episode(length: int, seed: int, instruction: str = "put the pot in the sink") -> dict[str, Sequence[Any]]:
    """An episode of `BRIDGE` with random numbers and images."""
    random = np.random.default_rng(seed)
    actions = random.normal(size=(length, 7)).astype(np.float32)
    actions[:, 6] = random.integers(0, 2, length)
    return {
        "steps/action": actions.ravel().tolist(),
        "steps/is_first": [int(t == 0) for t in range(length)],
        "steps/is_last": [int(t == length - 1) for t in range(length)],
        "steps/language_instruction": [instruction.encode()] * length,
        "steps/observation/state": random.normal(size=7 * length).astype(np.float32).tolist(),
        "steps/observation/image_0": [picture(24, 32, 1000 * seed + t) for t in range(length)],
        "steps/observation/image_1": [picture(20, 16, 1000 * seed + t) for t in range(length)],
    }


def write_dataset(
    root: Path,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Sequence[Mapping[str, Sequence[Any]]]]],
    *,
    name: str = "bridge_dataset",
    version: str = "1.0.0",
) -> Path:
    """A dataset below `root`: for each split its shards, for each shard its episodes. Gives the version's folder."""
    folder = root / name / version
    folder.mkdir(parents=True)
    about = []
    for split, shards in splits.items():
        size = 0
        for number, episodes in enumerate(shards):
            payloads = [example(episode) for episode in episodes]
            size += sum(map(len, payloads))
            path = folder / f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            path.write_bytes(b"".join(frame(payload) for payload in payloads))
        about.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(size),
                "shardLengths": [str(len(episodes)) for episodes in shards],
            }
        )
    info = {"fileFormat": "tfrecord", "name": name, "splits": about, "version": version}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def bridge(root: Path, lengths: Sequence[int] = (4, 3, 5), shards: int = 1) -> Path:
    """A dataset like BridgeData with episodes of these lengths, the last shard taking what is left."""
    episodes = [bridge_episode(length, seed) for seed, length in enumerate(lengths)]
    part = len(episodes) // shards
    cuts = [slice(k * part, None if k == shards - 1 else (k + 1) * part) for k in range(shards)]
    return write_dataset(root, steps(BRIDGE), {"train": [episodes[cut] for cut in cuts]})
