"""Learning actions from demonstrations: datasets and a recipe into a checkpoint."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from hypervla import checkpoint
from hypervla.contracts import UserError
from hypervla.data.memory import InMemory, bytes_needed
from hypervla.data.mixture import Mixture
from hypervla.data.normalize import Robot
from hypervla.data.opening import open_mixture
from hypervla.data.robot_file import write_robot
from hypervla.data.stream import SampleStream
from hypervla.embodiment import Embodiment
from hypervla.models.action_head import ReleasedHead
from hypervla.models.hypervla import HyperVLAConfig
from hypervla.models.interface import Batch, Model, WritesTokens
from hypervla.training.batches import from_stream
from hypervla.training.contexts import keep_contexts
from hypervla.training.recipe import Recipe
from hypervla.training.run import SAVE_EVERY, OnStep, begin, check_out, learn


def train(
    recipe: Recipe,
    data: Mixture | Path | Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    initial: Path | None = None,
    vision_only: bool = False,
    new_statistics: bool = False,
    device: str = "cpu",
    on_step: OnStep | None = None,
    save_every: int = SAVE_EVERY,
    workers: int = 0,
    minutes: float | None = None,
    keep_pictures: Path | None = None,
) -> None:
    """Train `recipe` on the datasets in `data`; the checkpoint in `out` holds the averaged weights.

    `initial` is a checkpoint to start from, with a fresh optimizer: robots it knows keep their statistics (but with
    `new_statistics` have this data's), tensors that do not fit start afresh and are listed; with `vision_only` its
    shared vision backbone alone is taken. With `minutes` the run ends after so much processor time, if its steps have
    not ended it before. Batches are made by `workers` processes beside this one, or here when 0; they are the same for
    any number. All images are decoded first when they fit the recipe's memory; `keep_pictures` is a folder that keeps
    them, however many, for the next run.
    `on_step(step, model)` is called after each step. At the end the task contexts of the training are kept with the
    checkpoint of a HyperVLA. With `resume` the run in `out` continues bit for bit (on the same machine and thread
    count). Raises UserError for unfit data or folders; Ctrl-C saves and raises KeyboardInterrupt.
    """
    mixture = data if isinstance(data, Mixture) else open_mixture([data] if isinstance(data, Path) else list(data))
    for embodiment in mixture.embodiments.values():
        check_fit(recipe, embodiment)
    check_left_out(recipe, mixture)
    check_out(out, resume)
    robots = robots_of(recipe, mixture, None if vision_only or new_statistics else initial)
    size, margin, pictures = recipe.sampling.image_size, recipe.sampling.view_shift, None
    if keep_pictures is not None or bytes_needed(mixture, size, margin) <= recipe.memory_gb * 2**30:
        pictures = InMemory(mixture, size, margin, folder=keep_pictures)

    def stream(validation: bool) -> SampleStream:
        return SampleStream(
            mixture,
            robots,
            recipe.sampling,
            seed=recipe.seed,
            reads_proprio=recipe.model.proprio_size > 0,
            pictures=pictures,
            validation=validation,
        )

    training, validation, datasets = stream(validation=False), stream(validation=True), mixture.to_json()
    run = begin(
        recipe,
        out,
        loss_of=lambda model, batch: model.loss(batch),
        measures_of=measures,
        identity={
            "dataset": "+".join(f"{row['digest']}:{row['weight']:g}" for row in datasets),
            "conventions": conventions(mixture),
            "statistics": {name: robot.normalizer.digest for name, robot in robots.items()},
        },
        resume=resume,
        initial=initial,
        vision_only=vision_only,
        device=device,
        training=from_stream(training, recipe.batch_contexts),
        validation=from_stream(validation, recipe.batch_contexts) if validation.episodes else None,
        samples=recipe.batch_contexts * recipe.sampling.frames_per_context,
        robots=robots,
        facts={"datasets": datasets},
    )
    for name, robot in robots.items():
        write_robot(out / "robots" / f"{quote(name, safe='')}.toml", robot.embodiment, mixture.features(name))
    learn(run, workers=workers, save_every=save_every, on_step=on_step, minutes=minutes)
    if isinstance(recipe.model, HyperVLAConfig):
        keep_contexts(out, mixture, device)


def measures(model: Model, batch: Batch) -> Mapping[str, Tensor]:
    """What is reported of a batch held back from training: the loss, and where actions are tokens the share of them
    that are the most likely ones."""
    found = {"validation_loss": model.loss(batch)}
    if isinstance(model, WritesTokens):
        found["action_token_accuracy"] = model.action_token_accuracy(batch)
    return found


def robots_of(recipe: Recipe, mixture: Mixture, initial: Path | None) -> Mapping[str, Robot]:
    """The robots of the data and how their numbers are normalised: as in the initial checkpoint if it knows them and
    normalises as the recipe does (the published RT-1-X does not)."""
    start = {} if initial is None else checkpoint.read_card(initial).robots
    known = {name: Robot.from_json(robot) for name, robot in start.items()}
    bounded = recipe.sampling.normalisation == "bounds"
    known = {name: robot for name, robot in known.items() if (robot.normalizer.clip is not None) == bounded}
    return mixture.robots(recipe.sampling.normalisation, known)


def conventions(mixture: Mixture) -> str:
    """sha256 of how the data is seen and spoken of: cameras and their views, grippers, paraphrases."""
    facts = [[reader.embodiment.to_json(), dict(reader.paraphrases)] for reader in mixture.readers]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_left_out(recipe: Recipe, mixture: Mixture) -> None:
    """Refuse to leave out an instruction that no episode begins with. Raises UserError."""
    if not recipe.sampling.leave_out:
        return
    known = {reader.instruction(int(row)) for reader in mixture.readers for row in reader.starts[:-1]}
    for sentence in recipe.sampling.leave_out:
        if sentence not in known:
            near = difflib.get_close_matches(sentence, known, n=3) or sorted(known)[:3]
            raise UserError(
                f"No episode of the data is asked to '{sentence}', so none can be left out; there is "
                f"{', '.join(repr(asked) for asked in near)}."
            )


def check_fit(recipe: Recipe, embodiment: Embodiment) -> None:
    """Refuse data whose robot is not the one the recipe's shapes are made for. Raises UserError."""
    model, gripper = recipe.model, embodiment.gripper
    if not embodiment.cameras:
        raise UserError(f"{embodiment.name} has no camera, but every policy here looks through one.")
    if gripper is not None and embodiment.action_size == 1:
        raise UserError(f"All that {embodiment.name} moves is its gripper, which is not enough to learn a policy from.")
    facts = [
        ("cameras", model.cameras, len(embodiment.cameras)),
        ("action dimensions", model.action_size, embodiment.action_size),
    ]
    if model.proprio_size:
        facts.append(("proprio numbers", model.proprio_size, embodiment.proprio_size))
    for what, wanted, came in facts:
        if wanted != came:
            raise UserError(
                f"The recipe {recipe.name} is made for {wanted} {what}, but {embodiment.name} has {came}: choose a "
                f"recipe for this robot, such as small."
            )
    head = getattr(model, "head", None)
    if isinstance(head, ReleasedHead) and (gripper is None or gripper.index != head.gripper_index):
        there = "is not known" if gripper is None else f"is action {gripper.index}"
        raise UserError(
            f"The recipe {recipe.name} decides on a gripper that is action {head.gripper_index}, but the gripper of "
            f"{embodiment.name} {there}: say what it is with --robot FILE.toml, or choose a recipe for this robot."
        )
