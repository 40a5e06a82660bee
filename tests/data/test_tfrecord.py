"""TFRecord files: what is read is what was written, and no damaged byte gets through."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.data.rlds_files import crc32c, example, frame

from hypervla.contracts import UserError
from hypervla.data.tfrecord import FRAME, Example, masked_crc, parse, records

PAYLOADS = [b"one", b"", b"x" * 300, bytes(range(256))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(map(frame, PAYLOADS)))
    return path


def test_records_are_read_as_they_were_written(file: Path) -> None:
    found = list(records(file))
    assert [payload for _, payload in found] == PAYLOADS
    content = file.read_bytes()
    assert [content[start : start + len(payload)] for start, payload in found] == PAYLOADS
    assert file.stat().st_size == sum(map(len, PAYLOADS)) + FRAME * len(PAYLOADS)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert list(records(tmp_path / "a")) == []


@pytest.mark.parametrize("data", [b"", b"123456789", b"\x00" * 32, bytes(range(256)) * 3])
def test_the_checksum_is_castagnolis_crc(data: bytes) -> None:
    assert crc32c(b"123456789") == 0xE3069283  # its check value (RFC 3720, appendix B.4, in other words)
    assert frame(b"", crc32c)[8:12] == struct.pack("<I", masked_crc(bytes(8)))
    assert masked_crc(data) == struct.unpack("<I", frame(data, crc32c)[-4:])[0]


@pytest.mark.parametrize("part", ["length", "checksum of the length", "payload", "checksum of the payload"])
def test_every_flipped_bit_is_refused(part: str, file: Path) -> None:
    begins = {"length": 0, "checksum of the length": 8, "payload": 12, "checksum of the payload": 12 + 300}
    sizes = {"length": 8, "checksum of the length": 4, "payload": 300, "checksum of the payload": 4}
    third = len(PAYLOADS[0]) + len(PAYLOADS[1]) + 2 * FRAME
    content, random = file.read_bytes(), np.random.default_rng(0)
    bits = 8 * sizes[part]
    for bit in range(bits) if bits < 100 else random.choice(bits, 300, replace=False):
        damaged = bytearray(content)
        damaged[third + begins[part] + bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"record 2 of .*a\.tfrecord"):
            list(records(file))


def test_a_file_cut_anywhere_but_between_records_is_refused(file: Path) -> None:
    content = file.read_bytes()
    ends = np.cumsum([0] + [len(payload) + FRAME for payload in PAYLOADS])
    for size in range(len(content)):
        file.write_bytes(content[:size])
        if size in ends:  # the number of records is dataset_info.json's to check
            assert [payload for _, payload in records(file)] == PAYLOADS[: int(np.searchsorted(ends, size))]
        else:
            with pytest.raises(UserError, match="copy the file again"):
                list(records(file))


@pytest.mark.parametrize("length", [101, 1 << 29, 1 << 40])
def test_a_length_beyond_the_file_is_refused_before_memory_is_taken(length: int, tmp_path: Path) -> None:
    head = struct.pack("<Q", length)
    (tmp_path / "a").write_bytes(head + struct.pack("<I", masked_crc(head)) + b"x" * 100)
    tracemalloc.start()
    with pytest.raises(UserError, match=f"should have {length} bytes, but 96 are left"):
        list(records(tmp_path / "a"))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_record_of_more_than_the_limit_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervla.data.tfrecord.LARGEST_RECORD", 299)
    with pytest.raises(UserError, match="record 2 .* 300 bytes, more than the 299"):
        list(records(file))


def test_one_record_is_held_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(frame(b"x" * (1 << 20)) * 30)
    tracemalloc.start()
    assert sum(len(payload) for _, payload in records(tmp_path / "a")) == 30 << 20
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is missing"):
        list(records(tmp_path / "nowhere"))


def test_messages_written_by_hand_are_understood() -> None:
    numbers = [1, -1, 2**62, -(2**63)]
    found = parse(example({"i": numbers, "f": [0.5, -2.0], "b": [b"", b"\xff"], "none": []}), "here")
    assert list(found["i"].int64_list.value) == numbers
    assert list(found["f"].float_list.value) == [0.5, -2.0]
    assert list(found["b"].bytes_list.value) == [b"", b"\xff"]
    assert found["none"].WhichOneof("kind") is None


def test_a_message_survives_the_round_trip() -> None:
    message = Example()
    message.features.feature["f"].float_list.value.extend([1.0, 2.0])
    assert list(parse(message.SerializeToString(), "here")["f"].float_list.value) == [1.0, 2.0]


def test_unpacked_numbers_are_read_too() -> None:
    single = bytes([0x08, 5, 0x08, 7])  # Int64List.value twice, each with its own tag
    body = bytes([0x0A, 1]) + b"k" + bytes([0x12, 6, 0x1A, 4]) + single
    data = bytes([0x0A, len(body) + 2, 0x0A, len(body)]) + body
    assert list(parse(data, "here")["k"].int64_list.value) == [5, 7]


@pytest.mark.parametrize("payload", [b"no message", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05\x0a\x03\x0a\x01\xff"])
def test_what_is_no_example_is_refused(payload: bytes) -> None:
    with pytest.raises(UserError, match="record 7 of x is no tf.train.Example"):
        parse(payload, "record 7 of x")
