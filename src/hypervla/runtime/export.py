"""Writing engines: the control step as a graph whose inputs are the observation and the weights of the task policy.

Every engine is run beside eager PyTorch when it is built; one whose actions differ too much is not written.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.runtime import engines
from hypervla.runtime.acceptance import Source, accept
from hypervla.runtime.engines import CARD, ENDINGS, EngineCard, Precision, Runtime
from hypervla.runtime.folding import folded
from hypervla.runtime.frames import Frames
from hypervla.runtime.graph import ControlStep, quantised, to_onnx, to_openvino
from hypervla.runtime.provenance import version
from hypervla.runtime.sessions import check_tensorrt
from hypervla.runtime.signature import sign

MOST_POLICIES, MOST_ON_TENSORRT = 4096, 64
"""In one call of an engine, when nothing else is said; TensorRT keeps memory for as many."""
PRECISIONS: dict[Runtime, tuple[Precision, ...]] = {
    "onnx": ("fp32", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
}
"""What each runtime computes in: the first two on a CPU."""
WRITERS = ("hypervla", "torch", "onnx", "onnxscript", "nncf", "onnxruntime", "openvino")


def export(
    source: Source,
    out: Path,
    runtime: Runtime,
    precision: Precision,
    frames: Frames,
    *,
    calibration: Frames | None = None,
    tolerance: float | None = None,
    most_policies: int = MOST_POLICIES,
) -> EngineCard:
    """Write the engine of the source's backbone to `out` (OpenVINO: and its constants beside it).

    `frames` are what it is checked on; `calibration` are what "int8" takes the ranges of numbers from. Raises UserError
    for a name that does not end as the runtime's files do, a precision that the runtime does not have, a runtime that
    is not to be had here, eight bits without calibration, less than one task policy in a call, and an engine whose
    actions differ from eager PyTorch's by more than `tolerance`.
    """
    if out.suffix != ENDINGS[runtime]:
        raise UserError(
            f"An engine for {runtime} is a file that ends in {ENDINGS[runtime]}, but '{out}' was asked for."
        )
    if precision not in PRECISIONS[runtime]:
        raise UserError(
            f"{runtime} has no {precision} engines here, only {', '.join(PRECISIONS[runtime])}: choose one of them."
        )
    if most_policies < 1:
        raise UserError(f"An engine wants to take at least 1 task policy in a call, but {most_policies} came.")
    if precision == "int8" and calibration is None:
        raise UserError("Eight bits need frames to take the ranges of numbers from: give a dataset with --data.")
    if runtime == "tensorrt":
        check_tensorrt()
    reference = source.engine
    card = EngineCard(
        runtime=runtime,
        precision=precision,
        backbone_digest=reference.backbone_digest,
        checkpoint_digest=source.digest,
        layout=reference.layout,
        heads=reference.policy.heads,
        most_policies=most_policies,
        image_size=reference.image_size,
        cameras=len(source.embodiment.cameras),
        proprio_size=source.embodiment.proprio_size if reference.reads_proprio else 0,
        checked={},
        versions={name: found for name in WRITERS if (found := version(name))},
    )
    graph = to_onnx(ControlStep(reference), card)
    if runtime == "openvino":
        graph = to_openvino(graph)
    if precision == "int8" and calibration is not None:
        graph = quantised(graph, calibration, lambda weights: folded(weights, card.heads))
    write = _write_openvino if runtime == "openvino" else _write_onnx
    draft = out.with_name(f".{out.stem}.draft{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(graph, card, draft)
        checked = accept(engines.open_engine(draft), source, frames, precision, tolerance)
        card = replace(card, checked=checked)
        write(graph, card, out)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_suffix(".bin").unlink(missing_ok=True)
    return card


def _write_onnx(graph: Any, card: EngineCard, path: Path) -> None:
    model = type(graph)()
    model.CopyFrom(graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD, card.to_json()
    write_atomically(path, sign(model.SerializeToString()))


def _write_openvino(graph: Any, card: EngineCard, path: Path) -> None:
    import openvino

    model, half = graph.clone(), card.precision == "fp16"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        file = Path(folder) / path.name
        constants = file.with_suffix(".bin")
        openvino.save_model(model, file, compress_to_fp16=half)
        card = replace(card, constants_sha256=hashlib.sha256(constants.read_bytes()).hexdigest())
        model.set_rt_info(card.to_json(), [CARD])
        openvino.save_model(model, file, compress_to_fp16=half)
        os.replace(constants, path.with_suffix(".bin"))
        write_atomically(path, sign(file.read_bytes()))
