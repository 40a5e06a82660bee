"""The training loop, from datasets to a checkpoint. `train` reads downward; `Run` is what it works on."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
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
from hypervla.models.interface import Model
from hypervla.runtime.provenance import code_commit, machine
from hypervla.training import resume as resuming
from hypervla.training.batches import batches, to_tensors
from hypervla.training.initial import start_from
from hypervla.training.metrics import Metrics
from hypervla.training.optimizer import make_optimizer, rate_factor, set_rates, update_average
from hypervla.training.recipe import Recipe

REPORT_EVERY, SAVE_EVERY = 50, 500
VALIDATION_BATCHES = 4

OnStep = Callable[[int, Model], None]


def train(
    recipe: Recipe,
    data: Mixture | Path | Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    initial: Path | None = None,
    device: str = "cpu",
    on_step: OnStep | None = None,
    save_every: int = SAVE_EVERY,
    workers: int = 0,
) -> None:
    """Train `recipe` on the datasets in `data`; the checkpoint in `out` holds the averaged weights.

    `initial` is a checkpoint to start from, with a fresh optimizer: robots it knows keep their statistics, tensors that
    do not fit start afresh and are listed. Batches are made by `workers` processes beside this one, or here when 0;
    they are the same for any number.
    `on_step(step, model)` is called after each step. With `resume` the run in `out` continues bit for bit (on the same
    machine and thread count). Raises UserError for unfit data or folders; Ctrl-C saves and raises KeyboardInterrupt.
    """
    if not isinstance(data, Mixture):
        data = open_mixture([data] if isinstance(data, Path) else list(data))
    run = prepare(recipe, data, out, resume, initial, device)
    model, optimizer, parameters = run.model, run.optimizer, run.model.trained_parameters()
    losses: list[Tensor] = []
    with (
        Metrics(out, recipe.steps, run.step) as metrics,
        stop_on_interrupt() as stop,
        batches(run.training, recipe.batch_contexts, range(run.step, recipe.steps), workers) as stream,
    ):
        began, worked = time.monotonic(), time.process_time()
        for step, batch in enumerate(stream, start=run.step + 1):
            batch = batch.to(run.device)
            set_rates(optimizer, rate_factor(recipe.optimizer, step - 1, recipe.steps))
            with run.autocast():
                loss = model.loss(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.optimizer.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            update_average(run.average, parameters, recipe.optimizer, step)
            run.step = step

            losses.append(loss.detach())
            stopping = stop.is_set()
            saving = step % save_every == 0 or step == recipe.steps or stopping
            if saving or step % REPORT_EVERY == 0:
                run.loss = _finite(torch.stack(losses).mean(), step)
                samples = len(losses) * recipe.batch_contexts * recipe.sampling.frames_per_context
                speed = {
                    "samples_per_second": samples / (time.monotonic() - began),
                    "processor_seconds": time.process_time() - worked,
                }
                extra = {"validation_loss": run.validation_loss()} if saving and run.validation.episodes else {}
                metrics.report(step, loss=run.loss, gradient_norm=float(norm), **speed, **extra)
                losses, began, worked = [], time.monotonic(), time.process_time()
            if on_step is not None:
                on_step(step, model)
            if saving:
                run.save()
            if stopping:
                raise KeyboardInterrupt(f"Stopped after step {step}; the same command with --resume continues.")


@dataclass
class Run:
    """A training run in progress: model, data and everything that changes from step to step."""

    recipe: Recipe
    out: Path
    device: torch.device
    robots: Mapping[str, Robot]
    training: SampleStream
    validation: SampleStream
    model: Any
    """A Model, which is an nn.Module too."""
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    identity: Mapping[str, Any]
    datasets: Sequence[Mapping[str, Any]]
    """What each dataset is and how much it is drawn from, for the checkpoint's provenance."""
    step: int = 0
    loss: float = float("nan")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Loss of the present weights on episodes kept from training, without touching the random state."""
        random = torch.get_rng_state()
        contexts = self.recipe.batch_contexts
        torch.manual_seed(0)  # the same contexts lose their image each time, so that two losses can be compared
        held_back = (to_tensors(self.validation.batch(i, contexts)) for i in range(VALIDATION_BATCHES))
        self.model.eval()
        with self.autocast():
            losses = [self.model.loss(batch.to(self.device)) for batch in held_back]
        self.model.train()
        torch.set_rng_state(random)
        return float(torch.stack(losses).mean())

    def save(self) -> None:
        """The state to resume from, and a checkpoint of the averaged weights."""
        resuming.save(self.out, self.step, self.model, self.average, self.optimizer, self.identity)
        checkpoint.save(
            self.out,
            self.average,
            config=self.recipe.model,
            robots={name: robot.to_json() for name, robot in self.robots.items()},
            provenance={
                "recipe": self.identity["recipe"] | {"steps": self.recipe.steps},
                "step": self.step,
                "contexts": self.step * self.recipe.batch_contexts,
                "loss": self.loss,
                "datasets": self.datasets,
                "initial_checkpoint": self.identity["initial"],
                "command": ["hypervla", *sys.argv[1:]],
                "commit": code_commit(),
                "machine": machine(),
            },
            dtype=getattr(torch, self.recipe.checkpoint_dtype),
        )


def prepare(recipe: Recipe, mixture: Mixture, out: Path, resume: bool, initial: Path | None, device: str) -> Run:
    """Everything in place for the first step, or for the next one of an interrupted run."""
    for embodiment in mixture.embodiments.values():
        check_fit(recipe, embodiment)
    exists = (out / resuming.FOLDER).exists() or (out / checkpoint.CARD).exists()
    if exists and not resume:
        raise UserError(f"{out} already holds a run: continue it with --resume, or choose another --out.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder for the run with --out.")
    start = None if initial is None else checkpoint.read_card(initial)
    known = {} if start is None else {name: Robot.from_json(robot) for name, robot in start.robots.items()}
    robots = mixture.robots(recipe.sampling.normalisation, known)
    size, margin, pictures = recipe.sampling.image_size, recipe.sampling.view_shift, None
    if bytes_needed(mixture, size, margin) <= recipe.memory_gb * 2**30:
        pictures = InMemory(mixture, size, margin)

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

    datasets = mixture.to_json()
    torch.manual_seed(recipe.seed)
    model = recipe.model.build().to(device)
    if initial is not None:
        print(start_from(initial, model))
    run = Run(
        recipe=recipe,
        out=out,
        device=torch.device(device),
        robots=robots,
        training=stream(validation=False),
        validation=stream(validation=True),
        model=model,
        optimizer=make_optimizer(model, recipe.optimizer),
        average={},
        identity={
            "recipe": recipe_to_json(recipe),
            "dataset": "+".join(f"{row['digest']}:{row['weight']:g}" for row in datasets),
            "conventions": conventions(mixture),
            "statistics": {name: robot.normalizer.digest for name, robot in robots.items()},
            "initial": None if start is None else start.digest,
        },
        datasets=datasets,
    )
    if resume:
        run.step = resuming.load(out, model, run.average, run.optimizer, run.identity)
        if run.step >= recipe.steps:
            print(f"{out} is at step {run.step} of {recipe.steps} already: nothing is left to do.")
    if recipe.trace:
        model.trace()
    out.mkdir(parents=True, exist_ok=True)
    for name, robot in robots.items():
        write_robot(out / "robots" / f"{quote(name, safe='')}.toml", robot.embodiment, mixture.features(name))
    return run


def conventions(mixture: Mixture) -> str:
    """sha256 of how the data is seen and spoken of: cameras and their views, grippers, paraphrases."""
    facts = [[reader.embodiment.to_json(), dict(reader.paraphrases)] for reader in mixture.readers]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """What makes two runs the same run: the recipe without its length, which a resumed run may change."""
    data = checkpoint.config_to_json(replace(recipe, steps=0))
    data.pop("steps")
    return data


def check_fit(recipe: Recipe, embodiment: Embodiment) -> None:
    """Refuse data whose robot is not the one the recipe's shapes are made for. Raises UserError."""
    model = recipe.model
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


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event that the loop reads between two steps, so that what it saves is whole."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss)
    if not np.isfinite(value):
        raise UserError(
            f"The loss became {value} at step {step}: lower the learning rate or look for outliers in the data."
        )
    return value
