"""PointWorld as a suite with a compiler that needs no network: what the tests of evaluation roll out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from tests.fakes import POINT, SAYINGS, PointWorld, SituatedWorld, make_point_world, seek_goal

from hypervla.contracts import ActionChunk, Observation, TaskContext, Unusable, UserError
from hypervla.evaluation.suites import Suite
from hypervla.runtime.task_policy import Timing

DIGEST = "0123456789abcdef"


class TroubledWorld(PointWorld):
    """PointWorld that fails over some scenes: raises in reset, kills its process, or takes its time over each step."""

    def __init__(self, task: str, crash: tuple[int, ...], die: tuple[int, ...], pause: float) -> None:
        super().__init__(task)
        self.crash, self.die, self.pause = crash, die, pause

    def reset(self, seed: int) -> None:
        super().reset(seed)
        if seed in self.crash:
            raise FloatingPointError("the simulation diverged")
        if seed in self.die:
            os._exit(9)

    def execute(self, chunk: ActionChunk):
        time.sleep(self.pause)
        return super().execute(chunk)


class PointPolicy:
    """Goes where its instruction says; a sentence it was not compiled for leads nowhere."""

    def __init__(self, instruction: str) -> None:
        self.instruction, self.last_timing = instruction, Timing(preprocessing=0.001, backbone=0.002, policy=0.003)

    def act(self, observation: Observation) -> ActionChunk:
        if self.instruction in SAYINGS["find"]:
            action = seek_goal(observation)
        elif self.instruction in SAYINGS["flee"]:
            action = np.array([[0.1, 0.1, -1.0]], np.float32)
        else:
            action = np.zeros((1, 3), np.float32)
        return ActionChunk(np.repeat(action, 2, axis=0))


class PointCompiler:
    embodiment = POINT
    digest = DIGEST
    provenance: Mapping[str, object] = {"recipe": "scripted", "steps": 0, "dataset": "none"}

    def compile(self, instruction: str, images: Mapping[str, np.ndarray]) -> PointPolicy:
        TaskContext(instruction, images)
        return PointPolicy(instruction)


def load_point(checkpoint: Path, device: str) -> PointCompiler:
    return PointCompiler()


class GoingCompiler(PointCompiler):
    """What it is after two policies is gone."""

    left = 2

    def compile(self, instruction: str, images: Mapping[str, np.ndarray]) -> PointPolicy:
        self.left -= 1
        if self.left < 0:
            raise Unusable("The policy server is gone.")
        return super().compile(instruction, images)


def load_going(checkpoint: Path, device: str) -> PointCompiler:
    return GoingCompiler()


def refuse_to_load(checkpoint: Path, device: str) -> PointCompiler:
    raise UserError(f"There is no checkpoint called {checkpoint.name}.")


def die_loading(checkpoint: Path, device: str) -> PointCompiler:
    os._exit(3)


def troubled(task: str, crash: tuple[int, ...], die: tuple[int, ...], pause: float) -> TroubledWorld:
    return TroubledWorld(task, crash, die, pause)


def sentences(task: str, instructions: str) -> tuple[str, ...]:
    return {"canonical": SAYINGS[task][:1], "train": SAYINGS[task], "held_out": ("dance",)}[instructions]


def point_suite(
    crash: tuple[int, ...] = (),
    die: tuple[int, ...] = (),
    pause: float = 0.0,
    max_steps: int = 30,
    demonstrated: bool = False,
    situated: bool = False,
) -> Suite:
    return Suite(
        name="point",
        tasks=("find", "flee"),
        embodiment=POINT,
        environment=SituatedWorld if situated else partial(troubled, crash=crash, die=die, pause=pause),
        sentences=sentences,
        success_rule="The dot touches its goal.",
        max_steps=max_steps,
        make=make_point_world if demonstrated else None,
    )
