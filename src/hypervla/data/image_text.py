"""Pictures and what is said about them, in LLaVA's format: one JSON list beside a folder of images (spec 5)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from hypervla.contracts import UserError
from hypervla.data.augment import resize
from hypervla.data.encoded_image import decode_image, image_size

IMAGE_MARK = "<image>"
"""Where a question names its picture; it is taken out, since the picture has a place of its own."""
GREY = 127
"""What letterboxing pads with: SigLIP's mean. The released code pads for each encoder with that encoder's mean."""


class Turn(NamedTuple):
    question: str
    answer: str


@dataclass(frozen=True)
class Pair:
    """A conversation about a picture, or about none."""

    image: UInt8[np.ndarray, "S S 3"] | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Entry:
    """What the list says of one pair."""

    name: str
    """How messages call it."""
    image: str | None
    turns: tuple[Turn, ...]


class ImageText:
    """Pairs by position. All but the pixels is checked when it is opened; a picture is decoded when asked for."""

    def __init__(
        self, path: Path, folder: Path, image_size: int, fit: Literal["letterbox", "naive"] = "letterbox"
    ) -> None:
        """`path` is the JSON list, `folder` what its images are relative to. `letterbox` pads a picture to a square
        before it is resized, `naive` does not mind its shape. Raises UserError naming the entry that is unfit."""
        self.path, self.folder, self.size, self.fit = path, folder, image_size, fit
        data = _read(path)
        self.entries = tuple(_entry(row, f"{path} entry {i}") for i, row in enumerate(_rows(data, path)))
        digest = hashlib.sha256(f"{fit} {image_size} ".encode() + data)
        for entry in self.entries:
            digest.update(f"{self._bytes(entry)} ".encode())
        self.digest = digest.hexdigest()
        """sha256 of the list, the sizes of its image files and how they are resized."""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Pair:
        """Raises UserError for a picture that is damaged or has gone."""
        entry = self.entries[index]
        return Pair(None if entry.image is None else self._picture(entry.image, entry.name), entry.turns)

    def _picture(self, image: str, name: str) -> UInt8[np.ndarray, "S S 3"]:
        what = f"{name}: {self.folder / image}"
        data = _read(self.folder / image)
        pixels = decode_image(data, image_size(data, what), what)
        return resize(letterbox(pixels) if self.fit == "letterbox" else pixels, self.size)

    def _bytes(self, entry: Entry) -> int:
        """Size of its image file, 0 without one."""
        if entry.image is None:
            return 0
        path = self.folder / entry.image
        if not path.is_file():
            raise UserError(f"{entry.name} names the image {path}, which is missing: copy the image folder again.")
        return path.stat().st_size


def letterbox(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
    """The picture in the middle of a grey square; an odd row or column more lies below or to the right."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), GREY, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path, or copy the file again.") from error


def _rows(data: bytes, path: Path) -> list[Any]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON ({error}): a list of image-text pairs in LLaVA's format is wanted."
        ) from error
    if not isinstance(rows, list) or not rows:
        came = "an empty list" if rows == [] else type(rows).__name__
        raise UserError(f"{path} should be a list of image-text pairs in LLaVA's format, but {came} came.")
    return rows


def _entry(row: Any, name: str) -> Entry:
    if not isinstance(row, dict):
        raise UserError(f"{name} should be an object with 'image' and 'conversations', but {type(row).__name__} came.")
    if isinstance(row.get("id"), str | int):
        name = f"{name} (id {row['id']})"
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise UserError(f"{name} should have 'conversations', a list of questions each with an answer: mend the entry.")
    said = [_text(turn, ("human", "gpt")[i % 2], f"{name} turn {i}") for i, turn in enumerate(conversation)]
    image = row.get("image")
    if image is not None and not _is_inside(image):
        raise UserError(f"{name} should name an image inside of the image folder, but 'image' is {image!r}.")
    if image is None and any(IMAGE_MARK in text for text in said[::2]):
        raise UserError(f"{name} asks about {IMAGE_MARK} but has no 'image': name it, or take the mark out.")
    clean = [text.replace(IMAGE_MARK, "").strip() for text in said]
    if not all(clean[1::2]):
        raise UserError(f"{name} has an empty answer: fill it in, or take the entry out.")
    return Entry(name, image, tuple(map(Turn, clean[::2], clean[1::2])))


def _text(turn: Any, speaker: str, name: str) -> str:
    if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
        raise UserError(
            f"{name} should be {{'from': '{speaker}', 'value': text}}, since questions and answers alternate."
        )
    return turn["value"]


def _is_inside(image: Any) -> bool:
    """Whether this is a relative path that does not climb out of its folder."""
    if not isinstance(image, str) or not image or "\0" in image or "\\" in image:
        return False
    path = PurePosixPath(image)
    return not path.is_absolute() and ".." not in path.parts
