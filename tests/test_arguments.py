"""From words on the command line to objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hypervla import arguments, checkpoint
from hypervla.contracts import UserError
from hypervla.embodiment import WIDOWX, Camera
from hypervla.runtime.compiler import load
from hypervla.serving.server import PolicyServer
from hypervla.training.recipes import recipe
from tests import tiny
from tests.fakes import POINT

ROBOT = replace(WIDOWX, cameras=(Camera("front", height=4, width=6),))
TWO_CAMERAS = replace(WIDOWX, cameras=(Camera("front", height=4, width=6), Camera("wrist", height=2, width=2)))


def save(path: Path, height: int, width: int, mode: str = "RGB") -> str:
    Image.new(mode, (width, height), color=7).save(path)
    return str(path)


def test_an_unknown_name_brings_its_near_matches() -> None:
    error = arguments.unknown("metaword-mt10", ["metaworld-mt10", "libero-goal"], "suite")
    assert str(error) == "There is no suite 'metaword-mt10'; did you mean metaworld-mt10?"


def test_an_unknown_name_without_near_matches_brings_all() -> None:
    assert "there is a, b" in str(arguments.unknown("zzzz", ["b", "a"], "suite"))
    assert "there is none" in str(arguments.unknown("zzzz", [], "suite"))


def test_a_checkpoint_is_a_folder_or_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped" / checkpoint.EMBEDDED
    monkeypatch.setattr(checkpoint, "shipped", lambda: {checkpoint.EMBEDDED: shipped})
    assert arguments.find_checkpoint(str(tmp_path)) == tmp_path
    assert arguments.find_checkpoint("embedded") == shipped
    assert arguments.find_checkpoint(checkpoint.EMBEDDED) == shipped
    with pytest.raises(UserError, match="metaworld_small"):
        arguments.find_checkpoint("metaworld_smal")


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is a file"):
        arguments.find_checkpoint(str(tmp_path / "model.safetensors"))


def test_a_recording_without_a_driver_needs_to_know_nothing_of_one() -> None:
    assert arguments.driver_options(None, POINT) == {}


def test_a_checkpoint_and_a_server_that_has_it_drive_alike(checkpoint_folder: Path) -> None:
    compiler = load(checkpoint_folder)
    with PolicyServer(compiler, port=0) as server:
        here, there = (
            arguments.driver_options(d, POINT) for d in (str(checkpoint_folder), f"ws://127.0.0.1:{server.port}")
        )
        assert here["driver"] == there["driver"] == compiler.digest
        actions = []
        for options in (here, there):
            driver = options["make_driver"]()
            driver.start("find the goal", tiny.observation(0))
            actions.append([driver.action(tiny.observation(i)) for i in range(3)])
        np.testing.assert_allclose(actions[0], actions[1], atol=1e-6)


def test_a_model_is_a_recipe_or_a_checkpoint() -> None:
    assert arguments.find_model("paper") == recipe("paper").model
    with pytest.raises(UserError, match="metaworld_small"):
        arguments.find_model("metaworld_smal")


@dataclass(frozen=True)
class SmallRecipe:
    steps: int = 10
    batch_contexts: int = 4
    seed: int = 0
    trace: bool = True


def test_only_what_was_given_is_overridden() -> None:
    recipe: Any = SmallRecipe()
    assert arguments.override(recipe, {"steps": None, "seed": None, "trace": None}) == recipe
    assert arguments.override(recipe, {"steps": 3, "seed": 0, "trace": False}) == replace(recipe, steps=3, trace=False)
    with pytest.raises(AssertionError):
        arguments.override(recipe, {"learning_rate": 1.0})


def test_the_processor_is_always_a_device() -> None:
    assert arguments.check_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="cpu"):
        arguments.check_device(name)


def test_an_image_comes_as_the_camera_delivers_it(tmp_path: Path) -> None:
    images = arguments.read_images([save(tmp_path / "a=b.png", 4, 6)], ROBOT)
    assert images["front"].shape == (4, 6, 3)
    assert images["front"].dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_other_eight_bit_images_become_rgb(mode: str, tmp_path: Path) -> None:
    assert arguments.read_image(Path(save(tmp_path / "a.png", 4, 6, mode))).shape == (4, 6, 3)


def test_several_cameras_are_named(tmp_path: Path) -> None:
    front, wrist = save(tmp_path / "front.png", 4, 6), save(tmp_path / "wrist.png", 2, 2)
    assert set(arguments.read_images([f"front={front}", f"wrist={wrist}"], TWO_CAMERAS)) == {"front", "wrist"}
    with pytest.raises(UserError, match="several cameras"):
        arguments.read_images([front], TWO_CAMERAS)
    with pytest.raises(UserError, match="camera wrist"):
        arguments.read_images([f"front={front}"], TWO_CAMERAS)
    with pytest.raises(UserError, match="no camera 'top'"):
        arguments.read_images([f"top={front}"], TWO_CAMERAS)


def test_a_wrong_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shape \(4, 6, 3\)"):
        arguments.read_images([save(tmp_path / "large.png", 8, 8)], ROBOT)
    with pytest.raises(UserError, match="8-bit"):
        arguments.read_image(Path(save(tmp_path / "deep.png", 4, 6, "I;16")))
    with pytest.raises(UserError, match="no image file"):
        arguments.read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match="not an image"):
        arguments.read_image(tmp_path / "text.png")
    whole = Path(save(tmp_path / "whole.png", 200, 200)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not an image"):
        arguments.read_image(tmp_path / "half.png")
