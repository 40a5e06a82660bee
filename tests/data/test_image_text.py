"""Image-text pairs in LLaVA's format: read as written, and refused by name when they are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hypervla.contracts import UserError
from hypervla.data.image_text import GREY, ImageText, Turn, letterbox

SAID = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A mug."}]
MORE = [{"from": "human", "value": "Red?"}, {"from": "gpt", "value": "No."}]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "image": "one/a.png", "conversations": [*SAID, *MORE]},
    {"id": 7, "image": "b.jpg", "conversations": SAID},
    {"id": "text", "conversations": MORE},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "one").mkdir()
    for name, shape in (("one/a.png", (10, 30, 3)), ("b.jpg", (24, 24, 3))):
        Image.fromarray(random.integers(256, size=shape, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def opened(folder: Path, rows: Any = ROWS, **options: Any) -> ImageText:
    (folder / "pairs.json").write_text(json.dumps(rows))
    return ImageText(folder / "pairs.json", folder, 12, **options)


def test_a_pair_is_a_picture_and_its_turns_without_the_mark(folder: Path) -> None:
    pairs = opened(folder)
    assert len(pairs) == 3
    assert pairs[0].turns == (Turn("What is this?", "A mug."), Turn("Red?", "No."))
    assert [None if pairs[i].image is None else pairs[i].image.shape for i in range(3)] == [(12, 12, 3)] * 2 + [None]


def test_pairs_are_the_same_in_any_order(folder: Path) -> None:
    pairs = opened(folder)
    last_first = [pairs[i] for i in (2, 1, 0)][::-1]
    for a, b in zip(last_first, (pairs[i] for i in range(3)), strict=True):
        assert a.turns == b.turns
        np.testing.assert_array_equal(a.image, b.image)


def test_letterboxing_keeps_the_shape_and_pads_with_grey() -> None:
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    square = letterbox(image)
    np.testing.assert_array_equal(square[1:3], image)
    assert (square[[0, 3, 4]] == GREY).all()


def test_a_naive_fit_fills_the_square(folder: Path) -> None:
    boxed, filled = opened(folder)[0].image, opened(folder, fit="naive")[0].image
    assert boxed is not None
    assert filled is not None
    assert (boxed[0] == GREY).all()
    assert not (filled[0] == GREY).all()


def test_the_digest_changes_with_the_list_the_pictures_and_the_fit(folder: Path) -> None:
    digests = [opened(folder).digest, opened(folder).digest, opened(folder, fit="naive").digest]
    digests.append(opened(folder, ROWS[:2]).digest)
    Image.new("RGB", (64, 64)).save(folder / "b.jpg")
    digests.append(opened(folder).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "gone.png"}, "which is missing"),
        ({"image": "../secret.png"}, "inside of the image folder"),
        ({"image": "/etc/passwd"}, "inside of the image folder"),
        ({"image": 3}, "inside of the image folder"),
        ({"image": None}, "has no 'image'"),
        ({"conversations": SAID[:1]}, "each with an answer"),
        ({"conversations": []}, "each with an answer"),
        ({"conversations": "hello"}, "each with an answer"),
        ({"conversations": SAID[::-1]}, "turn 0 should be"),
        ({"conversations": [SAID[0], {"from": "gpt"}]}, "turn 1 should be"),
        ({"conversations": [SAID[0], {"from": "gpt", "value": 3}]}, "turn 1 should be"),
        ({"conversations": [SAID[0], {"from": "gpt", "value": " "}]}, "has an empty answer"),
    ],
)
def test_an_unfit_entry_is_refused_by_its_name(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"entry 1 \(id 7\).*{message}"):
        opened(folder, [ROWS[0], ROWS[1] | change])


@pytest.mark.parametrize("rows", [{}, [], "text", None, ["text"]])
def test_what_is_no_list_of_pairs_is_refused(folder: Path, rows: Any) -> None:
    with pytest.raises(UserError, match=r"pairs\.json"):
        opened(folder, rows)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(folder: Path, data: bytes) -> None:
    (folder / "pairs.json").write_bytes(data)
    with pytest.raises(UserError, match="is no JSON"):
        ImageText(folder / "pairs.json", folder, 12)


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        ImageText(tmp_path / "pairs.json", tmp_path, 12)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8 nothing", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_damaged_picture_is_refused_by_its_entry(folder: Path, data: bytes) -> None:
    pairs = opened(folder)
    (folder / "b.jpg").write_bytes(data)
    with pytest.raises(UserError, match=r"entry 1 \(id 7\)"):
        pairs[1]
