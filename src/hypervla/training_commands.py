"""`hypervla train` and `hypervla pretrain`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from hypervla.options import Cameras, Device, Flag, Initial, Out, Robot, Rows

LeaveOut = UseAppendAction[
    Annotated[
        tuple[str, ...],
        arg(
            help="Train on no episode with this instruction (its numbers do count in the statistics); several may be "
            "given."
        ),
    ]
]


def train(
    recipe: Positional[str],
    /,
    *,
    data: UseAppendAction[tuple[str, ...]],
    out: Out,
    mixture: str | None = None,
    cameras: Cameras = (),
    robot: Robot = None,
    rows: Rows = None,
    paraphrases: Path | None = None,
    resume: Flag = False,
    initial: Initial = None,
    vision_only: Flag = False,
    new_statistics: Flag = False,
    device: Device = "cpu",
    workers: int = 0,
    pictures: Path | None = None,
    leave_out: LeaveOut = (),
    minutes: float | None = None,
    steps: int | None = None,
    batch_contexts: int | None = None,
    seed: int | None = None,
    trace: Flag = False,
    no_trace: Flag = False,
) -> None:
    """Train a recipe on a dataset or a mixture of datasets (LeRobot, RLDS, LIBERO's HDF5 files).

    Example: hypervla train small --data data/kitchen:1.0 --data data/desk:0.3 --out runs/both

    Args:
        recipe: Name of the recipe.
        data: A dataset as FOLDER or FOLDER:WEIGHT; given several times, they are mixed by weight × size.
        out: Folder for checkpoints and logs.
        mixture: A named mixture whose datasets lie in the folder --data, such as oxe_hypervla.
        paraphrases: JSON with other ways to say instructions, as scripts/convert_paraphrases.py writes it.
        resume: Continue the interrupted run in --out, bit for bit.
        initial: A checkpoint to start from, with a fresh optimizer; what does not fit starts afresh and is listed.
        vision_only: Of --init, take the shared vision backbone alone.
        new_statistics: Of --init, do not take the statistics of robots it knows: this data is from elsewhere.
        workers: Processes that decode and augment images beside the training process.
        pictures: Keep decoded images in this folder, so that the next run on the same data need not decode them.
        minutes: End after so many minutes of one core, if the steps have not ended before.
        steps: Override the recipe's number of steps.
        batch_contexts: Override the recipe's task contexts per batch.
        seed: Override the recipe's seed.
        trace: Compile the training step with torch.compile, whatever the recipe says.
        no_trace: Run eagerly, whatever the recipe says.
    """
    from hypervla.arguments import check_device, check_outside, choose_one, find_checkpoint, override, told
    from hypervla.contracts import UserError
    from hypervla.data.opening import open_mixture
    from hypervla.display import show_mixture
    from hypervla.training.recipes import recipe as find_recipe

    traced = choose_one("--trace", trace, "--no-trace", no_trace)
    changes = {"steps": steps, "batch_contexts": batch_contexts, "seed": seed, "trace": traced}
    override(find_recipe(recipe), changes)  # what is wrong is refused before any data is read
    start = None if initial is None else find_checkpoint(initial)
    for flag, given in (("--vision-only", vision_only), ("--new-statistics", new_statistics)):
        if given and start is None:
            raise UserError(f"{flag} says what to take of a checkpoint: name it with --init.")
    options: dict[str, Any] = {"resume": resume, "device": check_device(device), "workers": workers}
    _check_numbers(minutes, workers)
    options |= {"minutes": minutes, "keep_pictures": pictures}
    options |= {"initial": start, "vision_only": vision_only, "new_statistics": new_statistics}
    datasets = open_mixture(data, named=mixture, told=told(robot, rows, cameras, paraphrases))
    for root in (getattr(reader, "root", None) for reader in datasets.readers):
        check_outside(root, out, pictures)
    show_mixture(datasets)
    from hypervla.training.loop import train as train_recipe

    chosen = override(find_recipe(recipe, datasets.readers[0].embodiment), changes)
    chosen = replace(chosen, sampling=replace(chosen.sampling, leave_out=leave_out))
    train_recipe(chosen, datasets, out, **options)


def _check_numbers(minutes: float | None, workers: int) -> None:
    from hypervla.contracts import UserError

    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be above 0, and finite, but {minutes} came.")
    if workers < 0:
        raise UserError(f"--workers must be 0 or more, but {workers} came.")


def contexts(
    checkpoint: Positional[Path],
    /,
    *,
    data: UseAppendAction[tuple[str, ...]],
    cameras: Cameras = (),
    robot: Robot = None,
    rows: Rows = None,
    paraphrases: Path | None = None,
    device: Device = "cpu",
) -> None:
    """Keep in a checkpoint what task contexts it was trained with, so that others are told apart; train does it too.

    Example: hypervla contexts runs/mt10 --data data/mt10

    Args:
        checkpoint: Folder of a checkpoint of HyperVLA.
        data: The data of its training, as train takes it.
        paraphrases: JSON with other ways to say instructions, as train takes it.
    """
    from hypervla.arguments import check_device, told
    from hypervla.contracts import UserError
    from hypervla.data.opening import open_mixture
    from hypervla.training.contexts import keep_contexts

    if not checkpoint.is_dir():
        raise UserError(f"Contexts are written into the folder of a checkpoint of yours, and {checkpoint} is none.")
    mixture = open_mixture(data, named=None, told=told(robot, rows, cameras, paraphrases))
    known = keep_contexts(checkpoint, mixture, check_device(device))
    if known is None:
        raise UserError(
            "There are too few different contexts in the data (pairs of a sentence and a first image) to tell others "
            "from them."
        )
    print(f"99.9 % of the contexts are within a distance of {known.limit:.1f}; compile says what is farther.")


def pretrain(
    recipe: Positional[str],
    /,
    *,
    data: Path,
    images: Path,
    out: Out,
    initial: Initial = None,
    resume: Flag = False,
    fit: Literal["letterbox", "naive"] = "letterbox",
    epochs: int = 1,
    batch: int = 32,
    rate: float = 2e-5,
    device: Device = "cpu",
    workers: int = 0,
) -> None:
    """Teach EVLA's language model to talk about pictures, before train --init teaches it to act.

    Example: hypervla pretrain evla --data llava.json --images coco --init runs/evla-parts --out runs/evla-vlm

    Args:
        recipe: Name of a recipe of EVLA.
        data: Image-text pairs: a JSON list in LLaVA's format.
        images: Folder that the list's image names are relative to.
        out: Folder for checkpoints and logs.
        initial: A checkpoint to start from, such as hypervla weights import makes of published parts.
        resume: Continue the interrupted run in --out, bit for bit.
        fit: Whether pictures are padded to a square or pressed into one.
        epochs: How often to go through the pairs.
        batch: Pairs in a step.
        rate: Learning rate after the warm-up.
        workers: Processes that decode pictures beside the training process.
    """
    from hypervla.arguments import check_device, find_checkpoint
    from hypervla.data.image_text import ImageText
    from hypervla.training.pretrain import pretrain as pretrain_recipe
    from hypervla.training.pretrain import text_recipe
    from hypervla.training.recipes import recipe as find_recipe

    model = find_recipe(recipe)
    start = None if initial is None else find_checkpoint(initial)
    pairs = ImageText(data, images, model.sampling.image_size, fit)
    chosen = text_recipe(model, len(pairs), epochs=epochs, batch=batch, rate=rate)
    options = {"resume": resume, "device": check_device(device), "workers": workers}
    pretrain_recipe(chosen, pairs, out, initial=start, **options)
