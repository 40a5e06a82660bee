"""Images to the size a network reads, and the random changes they go through in training (Octo's pipeline)."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes, in the order they are made. They have no inverse."""

    area: tuple[float, float] = (0.8, 1.0)
    """Share of the image's area that a crop keeps."""
    ratio: tuple[float, float] = (0.9, 1.1)
    """Width by height of the crop."""
    brightness: float = 0.1
    contrast: tuple[float, float] = (0.9, 1.1)
    saturation: tuple[float, float] = (0.9, 1.1)
    hue: float = 0.05


OCTO = Augmentation()
"""What Octo was trained with, and HyperVLA."""
OCTO_BASE = Augmentation(brightness=0.2, contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=0.1)
"""The base configuration of Octo's code, which no released model used."""
OPENVLA = Augmentation((0.9, 0.9), (1.0, 1.0), brightness=0.2, contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=0.05)
"""What OpenVLA is fine-tuned with."""


def resize(image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Lanczos with three lobes, antialiased, rounded once at the end as the published pipelines do; it has no inverse.

    `size` is a square's, or height and width. Pillow's own way with RGB images also rounds and clips between rows and
    columns: up to 40 off at hard edges.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image  # here, since a robot whose camera already has the size needs none

    out = np.empty((height, width, 3), np.float32)
    for channel, band in enumerate(Image.fromarray(np.ascontiguousarray(image)).split()):
        out[..., channel] = np.asarray(band.convert("F").resize((width, height), Image.Resampling.LANCZOS))
    return np.clip(np.rint(out, out=out), 0, 255, out=out).astype(np.uint8)


@dataclass(frozen=True)
class Drawn:
    """The numbers of one augmentation: an observation and its initial image share them."""

    box: tuple[float, float, float, float]
    """Top, left, height, width as shares of the image."""
    brightness: float
    contrast: float
    saturation: float
    hue: float


def draw(augmentation: Augmentation, seed: int | tuple[int, ...]) -> Drawn:
    """One uniform number decides everything: the published pipelines give every operation the same stateless seed, so
    that scale, ratio, offsets and colours are perfectly correlated."""
    return drawn_by(augmentation, float(np.random.default_rng(seed).random()))


def drawn_by(augmentation: Augmentation, u: float) -> Drawn:
    """What follows from u between 0 and 1."""

    def between(low: float, high: float) -> float:
        return low + u * (high - low)

    area = between(*augmentation.area)
    ratio = float(np.exp(between(*np.log(augmentation.ratio))))
    height, width = min(1.0, (area / ratio) ** 0.5), min(1.0, (area * ratio) ** 0.5)
    return Drawn(
        box=(u * (1 - height), u * (1 - width), height, width),
        brightness=between(-augmentation.brightness, augmentation.brightness),
        contrast=between(*augmentation.contrast),
        saturation=between(*augmentation.saturation),
        hue=between(-augmentation.hue, augmentation.hue),
    )


def augment(
    image: UInt8[np.ndarray, "h w 3"],
    augmentation: Augmentation,
    seed: int | tuple[int, ...],
    out: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Random resized crop, brightness, contrast, saturation, hue, each kept in [0, 1]. It has no inverse.

    Written into `out` when it is given.
    """
    drawn, room = draw(augmentation, seed), _workspace(*image.shape[:2])
    planes = _crop(image, drawn.box, room)
    planes += np.float32(drawn.brightness)
    np.clip(planes, 0, 1, out=planes)
    mean = planes.reshape(3, -1).mean(axis=1)[:, None, None]
    planes -= mean
    planes *= np.float32(drawn.contrast)
    planes += mean
    np.clip(planes, 0, 1, out=planes)
    _turn_and_saturate(planes, drawn.hue, drawn.saturation, room)
    planes *= np.float32(255.5)
    np.copyto(room.bytes, planes, casting="unsafe")
    out = np.empty_like(image) if out is None else out
    out[...] = room.bytes.transpose(2, 1, 0)
    return out


class _Workspace:
    """Arrays for one image size that every image goes through: fresh ones would cost more than the arithmetic."""

    def __init__(self, height: int, width: int) -> None:
        self.rows = np.empty((3, height, width, 3), np.float32)
        self.planes = np.empty((3, 3, width, height), np.float32)
        self.planar = np.empty((6, width, height), np.float32)
        self.bits = np.empty((width, height), bool)
        self.bytes = np.empty((3, width, height), np.uint8)


_room = threading.local()


def _workspace(height: int, width: int) -> _Workspace:
    """This thread's workspace for images of this size; it keeps that of the latest size."""
    if getattr(_room, "size", None) != (height, width):
        _room.size, _room.workspace = (height, width), _Workspace(height, width)
    return _room.workspace


def _crop(
    image: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float, float], room: _Workspace
) -> Float32[np.ndarray, "3 w h"]:
    """The box brought back to the image's size, bilinear with aligned corners, as planes in [0, 1]."""
    height, width = image.shape[:2]
    top, left, tall, wide = box
    y, x = top * (height - 1) + tall * np.arange(height), left * (width - 1) + wide * np.arange(width)
    above, before = y.astype(np.intp), x.astype(np.intp)
    down, right = (y - above).astype(np.float32), (x - before).astype(np.float32)
    pixels, upper, rows = room.rows
    columns, lower, planes = room.planes
    pixels[...] = image
    np.take(pixels, above, axis=0, out=upper, mode="clip")
    np.take(pixels, above + 1, axis=0, out=rows, mode="clip")
    _between(rows, upper, down[:, None, None])
    columns[...] = rows.transpose(2, 1, 0)  # whole columns are then moved in one piece
    np.take(columns, before, axis=1, out=lower, mode="clip")
    np.take(columns, before + 1, axis=1, out=planes, mode="clip")
    _between(planes, lower, right[:, None])
    planes *= np.float32(1 / 255)
    return planes


def _between(upper: np.ndarray, lower: np.ndarray, share: np.ndarray) -> None:
    """lower + (upper − lower) × share, in place of `upper`."""
    upper -= lower
    upper *= share
    upper += lower


def _turn_and_saturate(planes: Float32[np.ndarray, "3 w h"], hue: float, saturation: float, room: _Workspace) -> None:
    """Scale saturation (at most to 1) and turn hue by a part of the circle; value stays. In place.

    HSV in closed form: value is the largest channel, chroma = value × saturation the distance to the smallest. Hue
    follows from the channels in order of size, of which `first` and `second` say how they were exchanged.
    """
    red, green, blue = planes
    second, smaller, value, middle, turn, chroma = room.planar
    first = turn
    high = second
    np.maximum(green, blue, out=high)
    np.minimum(green, blue, out=smaller)
    np.maximum(red, high, out=value)
    np.minimum(red, high, out=middle)
    first[...] = np.less(green, blue, out=room.bits)
    second[...] = np.less(red, high, out=room.bits)
    np.minimum(middle, smaller, out=chroma)
    np.subtract(value, chroma, out=chroma)
    middle -= smaller
    place = np.multiply(first, np.float32(2), out=smaller)
    place -= np.float32(1 / 3)
    place *= second
    np.subtract(place, first, out=turn)
    divisor = np.multiply(chroma, np.float32(6), out=smaller)
    divisor += np.float32(1e-20)
    middle /= divisor
    turn += middle
    np.abs(turn, out=turn)
    turn += np.float32(hue)
    turn *= np.float32(6)
    for outside, bound, lap in ((np.less, 0, 6), (np.greater_equal, 6, -6)):
        second[...] = outside(turn, bound, out=room.bits)
        second *= np.float32(lap)
        turn += second
    chroma *= np.float32(saturation)
    np.minimum(chroma, value, out=chroma)
    smallest = np.subtract(value, chroma, out=smaller)
    for plane, centre, sign, shift in ((red, 3, 1, -1), (green, 2, -1, 2), (blue, 4, -1, 2)):
        np.subtract(turn, np.float32(centre), out=plane)
        np.abs(plane, out=plane)
        plane *= np.float32(sign)
        plane += np.float32(shift)
        np.clip(plane, 0, 1, out=plane)
        plane *= chroma
        plane += smallest
