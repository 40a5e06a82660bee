"""`hypervla weights`: published weights of the original codes into checkpoints, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from tyro.conf import Positional

from hypervla.options import Out

if TYPE_CHECKING:
    from hypervla.data.normalize import Robot
    from hypervla.training.recipe import Recipe

weights_app = tyro.extras.SubcommandApp()


@weights_app.command(name="import")
def import_(
    source: Positional[str],
    /,
    *,
    recipe: str,
    out: Out,
    robot: str | None = None,
    data: str | None = None,
    statistics: Path | None = None,
    key: str | None = None,
) -> None:
    """Make a checkpoint of published weights, so that eval, act and train --init take them.

    Example: hypervla weights import octo-small.npz --recipe octo_small --data bridge_dataset --out runs/octo-small

    Args:
        source: An npz that scripts/octo_to_npz.py or scripts/hypervla_to_npz.py wrote, RT-1-X's npz, OpenVLA's
            folder of safetensors, or for EVLA a folder with the folders dino, siglip and language.
        recipe: The recipe whose model it is, such as paper, octo_small, rt1_x, openvla or evla.
        out: Folder of the checkpoint.
        robot: Name of a known robot that the weights move; none for EVLA's parts, which have yet to learn to act.
        data: A dataset of the robot that the weights move, in place of --robot; its statistics are used unless others
            are given.
        statistics: The published action statistics: Octo's dataset_statistics.json or OpenVLA's config.json.
        key: Which dataset's statistics, when there are several.
    """
    from hypervla.training.published import import_weights
    from hypervla.training.recipes import recipe as find_recipe

    moved, chosen = None, find_recipe(recipe)
    if robot or data or statistics or key:
        moved, chosen = _robot(recipe, robot, data, statistics, key)
    count = import_weights(chosen.model, source, moved, out)
    print(f"Wrote {out}: {count} tensors of {recipe}{f' for {moved.embodiment.name}' if moved else ''}.")


def _robot(
    recipe: str, name: str | None, data: str | None, statistics: Path | None, key: str | None
) -> tuple[Robot, Recipe]:
    """The robot that the weights move, with its statistics, and the recipe for it."""
    from hypervla.contracts import UserError
    from hypervla.data.normalize import Normalizer, Robot
    from hypervla.data.opening import open_dataset
    from hypervla.data.published_statistics import read_statistics
    from hypervla.embodiment import find_embodiment
    from hypervla.training.published import published_normalizer
    from hypervla.training.recipes import recipe as find_recipe

    if (name is None) == (data is None):
        raise UserError("Say which robot the weights move: either --robot NAME or --data DIR.")
    reader = None if data is None else open_dataset(data)
    body = reader.embodiment if reader is not None else find_embodiment(name or "")
    chosen = find_recipe(recipe, body)
    if (own := published_normalizer(chosen.model, body)) is not None:
        if statistics is not None:
            raise UserError(f"The weights of {recipe} have units of their own: leave out --statistics.")
        return Robot(body, own), chosen
    if statistics is not None:
        found = read_statistics(statistics, key)
    elif reader is not None:
        found = reader.statistics()
    else:
        raise UserError("Action statistics are missing: give --statistics FILE, or a dataset with --data DIR.")
    return Robot(body, Normalizer.from_statistics(found, body, chosen.sampling.normalisation)), chosen


@weights_app.command(name="export")
def export(checkpoint: Positional[str], /, *, out: Out) -> None:
    """Write a checkpoint of HyperVLA or Octo as the npz of the original code's parameters.

    Example: hypervla weights export runs/paper --out paper.npz

    Args:
        checkpoint: Folder of a checkpoint.
        out: File to write.
    """
    from hypervla.arguments import find_checkpoint
    from hypervla.training.published import export_weights

    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"Wrote {out}: {export_weights(find_checkpoint(checkpoint), out)} arrays.")
