"""JPEG and PNG images inside of records: looked at before they are unpacked, then decoded to uint8 RGB."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from hypervla.contracts import UserError

try:
    import simplejpeg
except ModuleNotFoundError as error:
    raise UserError("Reading datasets needs simplejpeg: pip install 'hypervla[data]'.") from error

JPEG = b"\xff\xd8"
"""How a JPEG begins."""
MODES = ("RGB", "L", "RGBA", "P", "1")
"""Pixel layouts of a PNG whose 8-bit RGB reading is not a guess."""


def image_size(data: bytes, what: str) -> tuple[int, int]:
    """Height and width by the header alone. Raises UserError, naming `what`, when it is no JPEG or PNG."""
    if data.startswith(JPEG):
        return _jpeg_header(data, what)[:2]
    with _png(data, what) as image:
        return image.height, image.width


def decode_image(
    data: bytes, size: tuple[int, int], what: str, *, fast: bool = False
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels. Raises UserError, naming `what`, for a damaged image or, before unpacking it, one of another size.

    `fast` takes libjpeg's fast cosine transform, as TensorFlow does: its pixels, which differ from Pillow's by some 2
    of 255 on average. Without it they are Pillow's.
    """
    try:
        if data.startswith(JPEG):
            height, width, layout = _jpeg_header(data, what)
            _check(size, (height, width), layout, layout in ("YCbCr", "Gray", "RGB"), what)
            return simplejpeg.decode_jpeg(data, "RGB", fastdct=fast)
        with _png(data, what) as image:
            _check(size, (image.height, image.width), image.mode, image.mode in MODES, what)
            return np.asarray(image.convert("RGB"))
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{what} is a damaged image ({error}): copy or write the dataset again.") from error


def _check(wanted: tuple[int, int], came: tuple[int, int], layout: str, usable: bool, what: str) -> None:
    if came != wanted or not usable:
        raise UserError(
            f"{what} should be an image of {wanted[0]} × {wanted[1]} pixels in 8-bit RGB, but {came[0]} × {came[1]} in "
            f"{layout} came: copy or write the dataset again."
        )


def _jpeg_header(data: bytes, what: str) -> tuple[int, int, str]:
    """Height, width and colour layout."""
    try:
        height, width, layout, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise UserError(f"{what} is a damaged JPEG image ({error}): copy or write the dataset again.") from error
    return int(height), int(width), str(layout)


def _png(data: bytes, what: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=("PNG",))
    except Image.DecompressionBombError as error:
        raise UserError(f"{what} is an image too large to unpack: copy or write the dataset again.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{what} is no JPEG or PNG image: copy or write the dataset again.") from error
