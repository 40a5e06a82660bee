"""From words on the command line to objects: checkpoints, images, devices, overrides. Errors name near matches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypervla.contracts import Image, UserError, unknown
from hypervla.embodiment import Embodiment

if TYPE_CHECKING:
    from hypervla.data.opening import Told
    from hypervla.models.interface import ModelConfig
    from hypervla.training.recipe import Recipe

SERVED = "ws://"
"""How the address of a policy server begins."""
MOST_SEED = 2**63
"""Random generators take no larger ones."""
OVERRIDABLE = ("steps", "batch_contexts", "seed", "trace")
"""The fields of a recipe that the command line may override; anything else is a new recipe."""


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint, given as a path, the name of a shipped one, `embedded`, or a hub id."""
    from hypervla.checkpoint import locate

    return locate(name)


def driver_options(driver: str | None, robot: Embodiment) -> dict[str, Any]:
    """What `record` needs to know of the checkpoint, or the policy server, that drives the first steps of each episode,
    if one does."""
    if driver is None:
        return {}
    from hypervla.evaluation.driver import PolicyDriver
    from hypervla.runtime.client import RemoteCompiler

    if driver.startswith(SERVED):  # which takes no PyTorch
        return {"make_driver": partial(PolicyDriver, driver, robot), "driver": RemoteCompiler(driver, robot).digest}
    from hypervla.checkpoint import read_card

    path = find_checkpoint(driver)
    return {"make_driver": partial(PolicyDriver, path, robot), "driver": read_card(path).digest}


def find_model(name: str) -> ModelConfig:
    """The model of a recipe or of a checkpoint. Raises UserError when there is neither."""
    from hypervla.checkpoint import locate, read_card, shipped
    from hypervla.training.recipes import RECIPES

    if name in RECIPES:
        return RECIPES[name]().model
    if Path(name).is_dir() or name == "embedded" or name in shipped() or "/" in name:
        return read_card(locate(name)).config
    raise unknown(name, [*RECIPES, *shipped(), "embedded"], "recipe or checkpoint")


def choose_one(yes: str, said: bool, no: str, denied: bool) -> bool | None:
    """What two opposite flags say; None when neither was given. Raises UserError for both."""
    if said and denied:
        raise UserError(f"Choose one of {yes} and {no}.")
    return said if said or denied else None


def override(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe with the fields that were given on the command line; None means not given."""
    assert set(given) <= set(OVERRIDABLE)
    for field, least in (("seed", 0), ("steps", 1), ("batch_contexts", 1)):
        if given.get(field) is not None and given[field] < least:
            raise UserError(f"--{field.replace('_', '-')} must be {least} or more, but {given[field]} came.")
    if (given.get("seed") or 0) >= MOST_SEED:
        raise UserError(f"--seed must be below {MOST_SEED:,}, but {given['seed']} came.")
    return replace(recipe, **{field: value for field, value in given.items() if value is not None})


def check_device(name: str) -> str:
    """The device, if PyTorch knows it and this machine has it. Raises UserError otherwise."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"There is no device '{name}': say cpu, cuda or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(
                f"'{name}' was asked for, but PyTorch {torch.__version__} sees {count} CUDA devices here: "
                f"say --device cpu, or install a CUDA build of PyTorch."
            )
    return name


def check_seconds(seconds: float) -> float:
    """How long to measure. Raises UserError for a time that never ends or has been."""
    if not 0 <= seconds < math.inf:
        raise UserError(f"--seconds must be 0 or more, and finite, but {seconds} came.")
    return seconds


def read_images(words: Sequence[str], embodiment: Embodiment) -> dict[str, Image]:
    """The first image of each camera, from FILE (a robot with one camera) or NAME=FILE.

    Raises UserError for a camera the robot lacks, a camera left out, or an image of another size than the camera's.
    """
    images: dict[str, Image] = {}
    for word in words:
        name, separator, file = word.partition("=")
        if not separator or Path(word).exists():
            if len(embodiment.cameras) != 1:
                cameras = ", ".join(camera.name for camera in embodiment.cameras)
                raise UserError(f"{embodiment.name} has several cameras ({cameras}): say --image NAME={word}.")
            name, file = embodiment.cameras[0].name, word
        if name in images:
            raise UserError(f"The camera '{name}' has two images: say --image once for each camera.")
        images[name] = embodiment.check_image(name, read_image(Path(file)))
    missing = [camera.name for camera in embodiment.cameras if camera.name not in images]
    if missing:
        raise UserError(f"{embodiment.name} needs an image of camera {', '.join(missing)}: give --image NAME=FILE.")
    return images


def read_image(path: Path) -> Image:
    """An 8-bit image file as uint8 RGB. Raises UserError when it is missing, broken or of another depth."""
    import numpy as np
    from PIL import Image as ImageFile
    from PIL import UnidentifiedImageError

    if not path.is_file():
        raise UserError(f"There is no image file '{path}'.")
    try:
        with ImageFile.open(path) as file:
            if file.mode not in ("RGB", "RGBA", "L", "P"):
                raise UserError(f"'{path}' holds pixels of mode {file.mode}; convert it to 8-bit RGB.")
            return np.asarray(file.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"'{path}' is not an image that can be read ({error}): save it as PNG or JPEG.") from error


def check_outside(dataset: str | Path | None, *places: Path | None) -> None:
    """Datasets stay as they are. Raises UserError for a place inside of one that is a folder here."""
    for place in filter(None, places):
        if dataset and Path(dataset).is_dir() and place.resolve().is_relative_to(Path(dataset).resolve()):
            raise UserError(f"{place} is inside the dataset {dataset}, which stays as it is: write to another place.")


def told(robot: Path | None, rows: Path | None, cameras: tuple[str, ...], paraphrases: Path | None = None) -> Told:
    """What the options of these names say of data."""
    from hypervla.data.opening import Told
    from hypervla.data.robot_file import read_robot

    if len(set(cameras)) < len(cameras):
        raise UserError(f"A camera came twice ({', '.join(cameras)}): say --camera once for each.")
    return Told(None if robot is None else read_robot(robot), rows, paraphrases, cameras)
