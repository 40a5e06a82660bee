"""A picture of a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fakes import POINT, NumberedReader

from hypervla.contracts import UserError
from hypervla.data.contact_sheet import FRAMES, GAP, LINE, SIZE, contact_sheet
from hypervla.embodiment import Camera


class Halves(NumberedReader):
    """Images that are white above and black below."""

    def images(self, camera: str, rows) -> list[np.ndarray]:
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[: SIZE // 2] = 255
        return [image for _ in rows]


def test_frames_are_shown_as_a_policy_sees_them(tmp_path: Path) -> None:
    turned = replace(POINT, cameras=(Camera("top", SIZE, SIZE, flip="vertical"),))
    contact_sheet(Halves([3, 9], robot=turned), tmp_path / "new/sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "new/sheet.png"))
    assert sheet.shape == (2 * (LINE + SIZE + GAP) + GAP, FRAMES * (SIZE + GAP) + GAP, 3)
    first = sheet[LINE : LINE + SIZE, GAP : GAP + SIZE]
    assert (first[: SIZE // 2] == 0).all()
    assert (first[SIZE // 2 :] == 255).all()


def test_what_is_no_picture_or_has_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a PNG picture, but the file to write is"):
        contact_sheet(NumberedReader([3]), tmp_path / "sheet.txt")
    with pytest.raises(UserError, match="numbers has no camera to show"):
        contact_sheet(NumberedReader([3], robot=replace(POINT, cameras=())), tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())
