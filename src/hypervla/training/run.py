"""A training run, whatever it learns from: `learn` is the loop, `Run` is what it works on."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypervla import checkpoint
from hypervla.alone import alone_in
from hypervla.contracts import UserError
from hypervla.data.normalize import Robot
from hypervla.models.interface import Model
from hypervla.runtime.provenance import code_commit, machine
from hypervla.training import resume as resuming
from hypervla.training.batches import batches
from hypervla.training.initial import start_from, with_sources
from hypervla.training.metrics import Metrics, reports
from hypervla.training.optimizer import make_optimizer, rate_factor, set_rates, update_average
from hypervla.training.recipe import Settings

REPORT_EVERY, VALIDATE_EVERY, SAVE_EVERY = 50, 100, 500
VALIDATION_BATCHES = 4

OnStep = Callable[[int, Model], None]
MakeBatch = Callable[[int], Any]
"""The batch of a step, the same whenever it is asked for, in tensors, with `to(device)`."""


@dataclass
class Run:
    """A training run in progress: model, data and everything that changes from step to step."""

    settings: Settings
    out: Path
    model: Any
    """A Model, which is an nn.Module too."""
    loss_of: Callable[[Any], Tensor]
    """The model's loss of a batch."""
    measures_of: Callable[[Any], Mapping[str, Tensor]]
    """What is reported of the model on a batch that is held back."""
    training: MakeBatch
    validation: MakeBatch | None
    """Batches of what is held back from training."""
    samples: int
    """In a batch, as the speed is reported."""
    robots: Mapping[str, Robot]
    """Those it learns to move."""
    identity: Mapping[str, Any]
    """What must be the same for a run to be resumed."""
    facts: Mapping[str, Any]
    """More for the checkpoint's provenance."""
    device: torch.device
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] = field(default_factory=dict)
    """Moving average of the weights, empty as long as it is a plain copy."""
    step: int = 0
    loss: float = float("nan")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    @torch.no_grad()
    def validate(self) -> Mapping[str, float]:
        """Means of the measures of the present weights on what is held back, without touching the random state."""
        assert self.validation is not None
        held_back = (self.validation(i) for i in range(VALIDATION_BATCHES))
        self.model.eval()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.autocast():
            torch.manual_seed(0)  # the same contexts lose their image each time, so that two losses can be compared
            measured = [self.measures_of(batch.to(self.device)) for batch in held_back]
        self.model.train()
        return {name: float(torch.stack([found[name] for found in measured]).mean()) for name in measured[0]}

    def is_kept(self) -> bool:
        """Whether the checkpoint is that of the present step, and whole."""
        try:
            card = checkpoint.read_card(self.out)
            checkpoint.read_weights(self.out / checkpoint.WEIGHTS, card.digest)
        except UserError:
            return False
        return card.provenance.get("step") == self.step

    def save(self) -> None:
        """The state to resume from, and a checkpoint of the averaged weights."""
        resuming.save(self.out, self.step, self.model, self.average, self.optimizer, self.identity)
        checkpoint.save(
            self.out,
            self.average or self.model.trained_parameters(),
            config=self.settings.model,
            robots={name: robot.to_json() for name, robot in self.robots.items()},
            provenance={
                "recipe": self.identity["recipe"] | {"steps": self.settings.steps},
                "step": self.step,
                "samples": self.step * self.samples,
                "loss": self.loss,
                **self.facts,
                "initial_checkpoint": self.identity["initial"],
                "command": ["hypervla", *sys.argv[1:]],
                "commit": code_commit(),
                "machine": machine(),
            },
            dtype=getattr(torch, self.settings.checkpoint_dtype),
        )


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds another run. Raises UserError."""
    exists = (out / resuming.FOLDER).exists() or (out / checkpoint.CARD).exists()
    if exists and not resume:
        raise UserError(f"{out} already holds a run: continue it with --resume, or choose another --out.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder for the run with --out.")


def begin(
    settings: Settings,
    out: Path,
    *,
    loss_of: Callable[[Any, Any], Tensor],
    measures_of: Callable[[Any, Any], Mapping[str, Tensor]],
    identity: Mapping[str, Any],
    resume: bool,
    initial: Path | None,
    device: str,
    vision_only: bool = False,
    **data: Any,
) -> Run:
    """Model and optimizer in place for the first step, or for the next one of an interrupted run.

    `loss_of` and `measures_of` get the model and a batch; `vision_only` takes the initial checkpoint's shared vision
    backbone alone; `data` are Run's fields of what is learned from. Raises
    UserError for what does not fit.
    """
    if getattr(settings.model, "frozen_vision", False) and initial is None and not resume:
        raise UserError(
            f"{settings.name} does not train its vision, which would stay random: start from a checkpoint with --init, "
            f"such as hypervla weights import makes of published parts."
        )
    if initial is not None:
        settings = replace(settings, model=with_sources(settings.model, initial))
    torch.manual_seed(settings.seed)
    model = settings.model.build().to(device).train()
    if initial is not None:
        print(start_from(initial, model, vision_only=vision_only))
    run = Run(
        settings=settings,
        out=out,
        model=model,
        loss_of=lambda batch: loss_of(model, batch),
        measures_of=lambda batch: measures_of(model, batch),
        identity={
            "recipe": settings_to_json(settings),
            **identity,
            "initial": None if initial is None else checkpoint.read_card(initial).digest,
            **({"initial_part": "vision"} if vision_only else {}),
        },
        device=torch.device(device),
        optimizer=make_optimizer(model, settings.optimizer),
        **data,
    )
    if resume:
        run.step = resuming.load(out, model, run.average, run.optimizer, run.identity)
        if run.step >= settings.steps:
            print(f"{out} is at step {run.step} of {settings.steps} already: nothing is left to do.")
    if settings.trace:
        model.trace()
    out.mkdir(parents=True, exist_ok=True)
    return run


def learn(run: Run, *, workers: int, save_every: int, on_step: OnStep | None, minutes: float | None = None) -> None:
    """The steps that are left, or as many as fit into `minutes` of processor time, those before included, decoding in
    processes beside this one and validation left out. Raises UserError for damaged data and a loss that is not finite;
    Ctrl-C saves and raises KeyboardInterrupt."""
    settings, model, optimizer = run.settings, run.model, run.optimizer
    parameters = model.trained_parameters()
    losses: list[Tensor] = []
    with (
        alone_in(run.out),
        Metrics(run.out, settings.steps, run.step, minutes) as metrics,
        stop_on_interrupt() as stop,
        batches(run.training, range(run.step, settings.steps), workers) as stream,
    ):
        if run.step and not run.is_kept():  # a kill came between the state and the checkpoint
            if said := reports(run.out):
                run.loss = said[-1]["loss"]
            run.save()
        if minutes is not None and run.step and metrics.processor_seconds >= 60 * minutes:
            print(f"{run.out} has had its {minutes:g} minutes already: nothing is left to do.")
            return
        began, worked = time.monotonic(), time.process_time()
        for step, batch in enumerate(stream, start=run.step + 1):
            batch = batch.to(run.device)
            set_rates(optimizer, rate_factor(settings.optimizer, step - 1, settings.steps))
            with run.autocast():
                loss = run.loss_of(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.optimizer.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            update_average(run.average, parameters, settings.optimizer, step)
            run.step = step

            losses.append(loss.detach())
            stopping = stop.is_set()
            taken = metrics.processor_seconds + time.process_time() - worked
            over = minutes is not None and taken >= 60 * minutes
            saving = step % save_every == 0 or step == settings.steps or stopping or over
            if saving or step % REPORT_EVERY == 0:
                run.loss = _finite("loss", torch.stack(losses).mean(), step)
                _finite("gradient", norm, step)
                speed = {
                    "samples_per_second": len(losses) * run.samples / (time.monotonic() - began),
                    "processor_seconds": time.process_time() - worked,
                }
                validating = run.validation is not None and (saving or step % VALIDATE_EVERY == 0)
                measured = run.validate() if validating else {}
                metrics.report(step, loss=run.loss, gradient_norm=float(norm), **speed, **measured)
                losses, began, worked = [], time.monotonic(), time.process_time()
            if on_step is not None:
                on_step(step, model)
            if saving:
                run.save()
            if stopping:
                raise KeyboardInterrupt(f"Stopped after step {step}; the same command with --resume continues.")
            if over:
                break


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """What makes two runs the same run: all but the length, which a resumed run may change."""
    data = checkpoint.config_to_json(replace(settings, steps=0))
    data.pop("steps")
    return data


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


def _finite(what: str, number: Tensor, step: int) -> float:
    value = float(number)
    if not np.isfinite(value):
        raise UserError(
            f"The {what} became {value} at step {step}: lower the learning rate or look for outliers in the data."
        )
    return value
