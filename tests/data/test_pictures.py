"""Pictures are unpacked to the same pixels whoever does it, and damaged ones are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hypervla.contracts import UserError
from hypervla.data.pictures import decode_picture, encode_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 44, 3), np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("level", [0, 6])
def test_every_kind_of_png_gives_pillows_pixels(mode: str, level: int) -> None:
    picture = Image.fromarray(PIXELS).convert(mode)
    wanted = np.array(picture.convert("RGB"))
    for _ in range(2):  # a decoder that kept the picture before would show
        np.testing.assert_array_equal(decode_picture(saved(picture, compress_level=level), (30, 44), "x"), wanted)


def test_what_is_encoded_is_decoded() -> None:
    np.testing.assert_array_equal(decode_picture(encode_picture(PIXELS), (30, 44), "x"), PIXELS)
    grey = np.full((30, 44, 3), 90, np.uint8)
    jpeg = saved(Image.fromarray(grey), "JPEG", quality=95)
    assert np.abs(decode_picture(jpeg, (30, 44), "x").astype(int) - grey).max() < 3


def test_damaged_pictures_and_those_of_another_size_are_refused() -> None:
    whole = encode_picture(PIXELS)
    with pytest.raises(UserError, match="cell 7 should be an image of 30 × 45 pixels"):
        decode_picture(whole, (30, 45), "cell 7")
    for place in range(8, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 16
        with pytest.raises(UserError, match="cell 7"):
            decode_picture(bytes(flipped), (30, 44), "cell 7")
        with pytest.raises(UserError, match="cell 7"):
            decode_picture(whole[:place], (30, 44), "cell 7")


def test_a_header_that_promises_a_huge_picture_is_refused_before_unpacking() -> None:
    body = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(UserError, match="cell 7"):
        decode_picture(b"\x89PNG\r\n\x1a\n" + chunk + encode_picture(PIXELS)[33:], (30, 44), "cell 7")
