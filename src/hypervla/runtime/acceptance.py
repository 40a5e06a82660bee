"""Whether an engine may stand in for eager PyTorch: both act on the same frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import UserError
from hypervla.data.normalize import Normalizer
from hypervla.embodiment import Embodiment
from hypervla.runtime.frames import Frames
from hypervla.runtime.task_policy import Engine
from hypervla.runtime.torch_engine import TorchEngine

TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2, "fp8": 1e-2, "int8": 1e-2}
"""Largest error of an action at the 99th percentile, as a share of its range, by precision."""


@runtime_checkable
class Source(Protocol):
    """A control step and its robot; a Compiler is one."""

    @property
    def engine(self) -> TorchEngine: ...
    @property
    def embodiment(self) -> Embodiment: ...
    @property
    def normalizer(self) -> Normalizer: ...
    @property
    def digest(self) -> str:
        """Of the checkpoint."""
        ...


def accept(
    engine: Engine, source: Source, frames: Frames, precision: str, tolerance: float | None = None
) -> dict[str, Any]:
    """What `compare` finds. Raises UserError for more than `tolerance`, or what the precision is allowed."""
    found, most = compare(engine, source, frames), TOLERANCE[precision] if tolerance is None else tolerance
    if not (found["p99"] <= most and np.isfinite(found["max"])):
        raise UserError(
            f"The engine is refused: on {frames.of} its actions differ from eager PyTorch's by {found['p99']:.2%} of "
            f"their range at the 99th percentile, {found['max']:.2%} at most; {most:.2%} is allowed at the former."
        )
    return found


def compare(engine: Engine, source: Source, frames: Frames) -> dict[str, Any]:
    """How far an engine's actions are from eager PyTorch's on the same frames, in shares of the robot's limits."""
    found, wanted = _actions(engine, source, frames), _actions(source.engine, source, frames)
    body = source.embodiment
    limits = np.asarray(body.action_high, np.float32) - np.asarray(body.action_low, np.float32)
    error = np.abs(found - wanted) / np.where(np.isfinite(limits), limits, np.ptp(wanted, axis=(0, 1)).clip(1e-6))
    return {"frames": len(found), "of": frames.of, "p99": float(np.quantile(error, 0.99)), "max": float(error.max())}


def _actions(engine: Engine, source: Source, frames: Frames) -> Float32[np.ndarray, "N H A"]:
    """In the robot's units, one frame at a time."""
    chunks = [engine.run(*frames.row(i, engine.form)).chunks[0] for i in range(len(frames))]
    return np.stack([source.embodiment.clip(source.normalizer.inverse_actions(chunk)).actions for chunk in chunks])
