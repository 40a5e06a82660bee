"""Engines by the name a user gives: the file of an exported one, or cuda:PRECISION for the fast path of a GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from hypervla.runtime.engines import open_engine
from hypervla.runtime.task_policy import Engine

if TYPE_CHECKING:
    from hypervla.runtime.compiler import Compiler
    from hypervla.runtime.monolithic import Teller

FAST = "cuda:"
FRAMES = 16
"""Images of noise that the fast path is checked on."""


def load_on(
    checkpoint: Path, device: str, robot: str | None, engine: str | None, middle: float = 1.0
) -> Compiler | Teller:
    """A checkpoint; its task policies act on the engine of that name, if one is given, and look at so much of the
    middle of the cameras' views. Raises UserError."""
    import torch

    from hypervla.runtime import compiler

    if engine is None:
        found = compiler.load(checkpoint, device, robot)
        found.see_middle(middle)
        return found
    loaded = compiler.load_compiler(checkpoint, device, robot)
    loaded.see_middle(middle)
    loaded.use(engine_named(engine, loaded, torch.get_num_threads()))
    return loaded


def engine_named(name: str, compiler: Compiler, threads: int) -> Engine:
    """The engine, for this compiler's task policies. Raises UserError."""
    if not name.startswith(FAST):
        return open_engine(Path(name), threads)
    from hypervla.runtime.cuda_engine import check_precision, fast_engine
    from hypervla.runtime.frames import random_frames

    precision = check_precision(name.removeprefix(FAST), compiler.engine.device)
    return fast_engine(compiler, precision, random_frames(compiler, FRAMES))


def describe(name: str) -> str:
    """Runtime, precision and sha256 of an engine. Raises UserError for a damaged one."""
    if name.startswith(FAST):
        return name
    path = Path(name)
    card = open_engine(path).card
    return f"{card.runtime} {card.precision} {hashlib.sha256(path.read_bytes()).hexdigest()}"
