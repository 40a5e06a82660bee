"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A file is a row of records: length (uint64), masked CRC32C of the length, payload, masked CRC32C of the payload, all
little-endian (TensorFlow's documentation of the format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError

try:
    import google_crc32c
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
except ModuleNotFoundError as error:
    raise UserError("Reading RLDS datasets needs protobuf and google-crc32c: pip install 'hypervla[data]'.") from error

FRAME = 16
"""Bytes of a record around its payload."""
LARGEST_RECORD = 1 << 30
"""Payloads beyond this are refused: one record is held in memory at a time."""


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum."""
    return google_crc32c.value(data)


def masked_crc(data: bytes) -> int:
    """CRC32C, rotated and shifted as TFRecord stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The position of each payload in the file, and the payload; both checksums of every record are checked.

    Raises UserError naming the file and the record.
    """
    try:
        with open(path, "rb") as file:
            size, position, number = path.stat().st_size, 0, 0
            while position < size:
                payload = _record(file, size - position, f"record {number} of {path}")
                yield position + 12, payload
                position += len(payload) + FRAME
                number += 1
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy the dataset again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the disk or copy the file again.") from error


def _record(file: Any, left: int, where: str) -> bytes:
    """The next payload of a file of which so many bytes are left."""
    head = file.read(12)
    if left < FRAME or len(head) < 12:
        raise UserError(f"{where} is cut short after {min(left, FRAME)} bytes: copy the file again.")
    length, crc = struct.unpack("<QI", head)
    if masked_crc(head[:8]) != crc:
        raise UserError(f"{where} is damaged (checksum of its length): copy the file again.")
    if length > left - FRAME:
        raise UserError(f"{where} should have {length} bytes, but {left - FRAME} are left: copy the file again.")
    if length > LARGEST_RECORD:
        raise UserError(f"{where} has {length} bytes, more than the {LARGEST_RECORD} that are read in one piece.")
    payload = file.read(length)
    tail = file.read(4)
    if len(payload) < length or len(tail) < 4 or masked_crc(payload) != int.from_bytes(tail, "little"):
        raise UserError(f"{where} is damaged (checksum of its data): copy the file again.")
    return payload


def _example() -> Any:
    """The message class tf.train.Example, defined here so that no generated code is needed."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="hypervla/example.proto", package="tensorflow", syntax="proto3")

    def add(owner: Any, name: str, number: int, kind: Any, *, many: bool = False) -> Any:
        """A field of a scalar type, or of the message of that name."""
        typed = {"type": field.TYPE_MESSAGE, "type_name": kind} if isinstance(kind, str) else {"type": kind}
        label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
        return owner.field.add(name=name, number=number, label=label, **typed)

    lists = (
        ("BytesList", "bytes_list", field.TYPE_BYTES),
        ("FloatList", "float_list", field.TYPE_FLOAT),
        ("Int64List", "int64_list", field.TYPE_INT64),
    )
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, member, kind) in enumerate(lists, start=1):
        add(file.message_type.add(name=name), "value", 1, kind, many=True)
        add(feature, member, number, f".tensorflow.{name}").oneof_index = 0
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, ".tensorflow.Feature")
    add(features, "feature", 1, ".tensorflow.Features.FeatureEntry", many=True)
    add(file.message_type.add(name="Example"), "features", 1, ".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example: Any = _example()
"""tf.train.Example: `features.feature` maps a name to a list of bytes, floats or integers."""


def parse(payload: bytes, where: str) -> Mapping[str, Any]:
    """The features of an Example by name. Raises UserError, naming `where`, for anything else."""
    try:
        return Example.FromString(payload).features.feature
    except message.DecodeError as error:
        raise UserError(f"{where} is no tf.train.Example ({error}): write or copy the dataset again.") from error
