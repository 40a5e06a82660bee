"""Writing engines: the control step as a graph whose inputs are the observation and the weights of the task policy.

Every engine is run beside eager PyTorch when it is built; one whose actions differ too much is not written.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from hypervla.contracts import UserError
from hypervla.data.normalize import Normalizer
from hypervla.durable import write_atomically
from hypervla.embodiment import Embodiment
from hypervla.runtime import engines
from hypervla.runtime.engines import CARD, ENDINGS, EngineCard, Precision, Runtime
from hypervla.runtime.frames import Frames
from hypervla.runtime.graph import ControlStep, quantised, to_onnx, to_openvino
from hypervla.runtime.provenance import version
from hypervla.runtime.signature import sign
from hypervla.runtime.task_policy import Engine
from hypervla.runtime.torch_engine import TorchEngine

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2, "int8": 1e-2}
"""Largest error of an action at the 99th percentile, as a share of its range."""
PRECISIONS: dict[Runtime, tuple[Precision, ...]] = {
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
}
"""What each runtime computes in on a CPU."""
WRITERS = ("hypervla", "torch", "onnx", "onnxscript", "nncf", "onnxruntime", "openvino")


@runtime_checkable
class Exportable(Protocol):
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


def export(
    source: Exportable,
    out: Path,
    runtime: Runtime,
    precision: Precision,
    frames: Frames,
    *,
    calibration: Frames | None = None,
    tolerance: float | None = None,
) -> EngineCard:
    """Write the engine of the source's backbone to `out` (OpenVINO: and its constants beside it).

    `frames` are what it is checked on; `calibration` are what "int8" takes the ranges of numbers from. Raises UserError
    for a name that does not end as the runtime's files do, a precision that the runtime does not have, eight bits
    without calibration, and an engine whose actions differ from eager PyTorch's by more than `tolerance`.
    """
    if out.suffix != ENDINGS[runtime]:
        raise UserError(
            f"An engine for {runtime} is a file that ends in {ENDINGS[runtime]}, but '{out}' was asked for."
        )
    if precision not in PRECISIONS[runtime]:
        raise UserError(
            f"{runtime} has no {precision} engines here, only {', '.join(PRECISIONS[runtime])}: choose one of them."
        )
    if precision == "int8" and calibration is None:
        raise UserError("Eight bits need frames to take the ranges of numbers from: give a dataset with --data.")
    reference = source.engine
    card = EngineCard(
        runtime=runtime,
        precision=precision,
        backbone_digest=reference.backbone_digest,
        checkpoint_digest=source.digest,
        layout=reference.layout,
        image_size=reference.image_size,
        cameras=len(source.embodiment.cameras),
        proprio_size=source.embodiment.proprio_size if reference.reads_proprio else 0,
        checked={},
        versions={name: found for name in WRITERS if (found := version(name))},
    )
    graph = to_onnx(ControlStep(reference).eval(), card)
    if runtime == "openvino":
        graph = to_openvino(graph)
    if precision == "int8" and calibration is not None:
        graph = quantised(graph, calibration)
    write = {"onnx": _write_onnx, "openvino": _write_openvino}[runtime]
    draft = out.with_name(f".{out.stem}.draft{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(graph, card, draft)
        checked, most = check(engines.open_engine(draft), source, frames), tolerance or TOLERANCE[precision]
        if checked["p99"] > most:
            raise UserError(
                f"The engine was not written: on {frames.of} its actions differ from eager PyTorch's by "
                f"{checked['p99']:.2%} of their range at the 99th percentile; {most:.2%} is the most."
            )
        card = replace(card, checked=checked)
        write(graph, card, out)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_suffix(".bin").unlink(missing_ok=True)
    return card


def check(engine: Engine, source: Exportable, frames: Frames) -> dict[str, Any]:
    """How far an engine's actions are from eager PyTorch's on the same frames, in shares of the robot's limits."""
    found, wanted = actions(engine, source, frames), actions(source.engine, source, frames)
    body = source.embodiment
    limits = np.asarray(body.action_high, np.float32) - np.asarray(body.action_low, np.float32)
    error = np.abs(found - wanted) / np.where(np.isfinite(limits), limits, np.ptp(wanted, axis=(0, 1)).clip(1e-6))
    return {"frames": len(found), "of": frames.of, "p99": float(np.quantile(error, 0.99)), "max": float(error.max())}


def actions(engine: Engine, source: Exportable, frames: Frames) -> Float32[np.ndarray, "N H A"]:
    """In the robot's units, one frame at a time."""
    chunks = [engine.run(*frames.row(i)).chunks[0] for i in range(len(frames))]
    return np.stack([source.embodiment.clip(source.normalizer.inverse_actions(chunk)).actions for chunk in chunks])


def _write_onnx(graph: Any, card: EngineCard, path: Path) -> None:
    model = type(graph)()
    model.CopyFrom(graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD, card.to_json()
    write_atomically(path, sign(model.SerializeToString()))


def _write_openvino(graph: Any, card: EngineCard, path: Path) -> None:
    import openvino

    model = graph.clone()
    constants = path.with_suffix(".bin")
    half = card.precision == "fp16"
    openvino.save_model(model, path, compress_to_fp16=half)
    card = replace(card, constants_sha256=hashlib.sha256(constants.read_bytes()).hexdigest())
    model.set_rt_info(card.to_json(), [CARD])
    openvino.save_model(model, path, compress_to_fp16=half)
    write_atomically(path, sign(path.read_bytes()))
