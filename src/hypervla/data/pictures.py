"""Pictures in the cells of a Parquet file: found by row group, and written as PNG."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image as Pillow

from hypervla.contracts import Image
from hypervla.data.encoded_image import decode_image

HEADER = 4096
"""Bytes between two pictures in a Parquet file in which the second one's beginning is looked for."""
PNG = b"\x89PNG\r\n\x1a\n"


def decode_picture(data: bytes, size: tuple[int, int], what: str) -> Image:
    """The pixels of a PNG or JPEG. Raises UserError, naming `what`, for a damaged image or one of another size.

    Plain PNGs are unpacked by FFmpeg, which takes two thirds of Pillow's time, after their checksums were compared.
    """
    plain = struct.pack(">IIBB", size[1], size[0], 8, 2)  # 8-bit RGB of this size
    if data[:8] != PNG or data[16:26] != plain or not _is_whole(data):
        return decode_image(data, size, what)
    from av import CodecContext, Packet

    frames: list[Any] = CodecContext.create("png", "r").decode(Packet(data))
    if len(frames) != 1 or frames[0].is_corrupt:
        return decode_image(data, size, what)
    return frames[0].to_ndarray(format="rgb24")


def _is_whole(data: bytes) -> bool:
    """Whether a PNG's chunks follow each other up to the last, each with its checksum."""
    place, kind = 8, b""
    while place + 12 <= len(data) and kind != b"IEND":
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        place = end + 4
    return kind == b"IEND"


def encode_picture(image: Image) -> bytes:
    """The image as PNG."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class PictureFile:
    """One Parquet file whose rows hold pictures."""

    def __init__(self, path: Path, rows: int) -> None:
        """Raises UserError when the file does not hold so many rows."""
        from hypervla.data.parquet import open_parquet

        self.path, self.file = path, open_parquet(path, rows)
        counts = [self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups)]
        self.starts = np.cumsum([0, *counts])
        self._raw = open(path, "rb")  # noqa: SIM115  (closed by close)

    def group(self, row: int) -> int:
        """The row group of a row."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def cells(self, group: int, key: str, row_bytes: int) -> Cells:
        """The encoded pictures of a row group. Raises UserError for damaged files."""
        import pyarrow as pa

        from hypervla.data.parquet import damaged, read_columns

        column = read_columns(self.file, self.path, [key], row_bytes=row_bytes, groups=[group]).column(0)
        values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
            values = values.field("bytes")
        if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
            raise damaged(self.path, f"'{key}' holds {values.type} instead of images")
        return Cells(values, self._places(group, key, values))

    def read(self, cells: Cells, row: int) -> bytes | None:
        """One of the pictures, None where the file only names another."""
        if cells.places is not None:
            offset, length = cells.places[row]
            return os.pread(self._raw.fileno(), int(length), int(offset))
        return cells.values[row].as_py()

    def _places(self, group: int, key: str, values: Any) -> Int64[np.ndarray, "rows 2"] | None:
        """Offset and length in the file of each picture, where they lie there unpacked, one after another."""
        about = self.file.metadata.row_group(group)
        chunks = [about.column(number) for number in range(about.num_columns)]
        chunk = next((c for c in chunks if c.path_in_schema in (key, f"{key}.bytes")), None)
        if chunk is None or chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or values.null_count:
            return None
        place, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        places = np.empty((len(values), 2), np.int64)
        for row, value in enumerate(values):
            data = value.as_buffer()
            wanted = len(data).to_bytes(4, "little") + data[:64].to_pybytes()
            found = os.pread(self._raw.fileno(), min(HEADER, end - place), place).find(wanted)
            if found < 0:
                return None
            places[row] = place + found + 4, len(data)
            place += found + 4 + len(data)
        return places

    def close(self) -> None:
        self._raw.close()
        self.file.close()


@dataclass(frozen=True)
class Cells:
    """The pictures of a row group: in memory, or only their places in the file."""

    values: Any
    places: Int64[np.ndarray, "rows 2"] | None

    def __post_init__(self) -> None:
        if self.places is not None:
            object.__setattr__(self, "values", None)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes if self.places is None else self.places.nbytes
