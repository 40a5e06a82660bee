"""Exported engines: the control step as a graph in a file, run without PyTorch. `runtime/export.py` writes them.

The weights of a task policy are an input of the graph, so one file serves every task of its backbone, and any number
of them in one call.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import UserError, WeightLayout
from hypervla.runtime.signature import UNSIGNED, is_whole
from hypervla.runtime.task_policy import NamedWeights, Prediction

FORMAT = 1
CARD = "hypervla"
"""Under this name a graph carries its card."""
IMAGES, PROPRIO, WEIGHTS, OUTPUT = "images", "proprio", "weights.", "chunks"
"""Names of a graph's inputs and output; each tensor of the weights has its name in the layout behind WEIGHTS."""
Runtime = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
HINTS: Mapping[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO computes in where it has a choice."""
ENDINGS: Mapping[Runtime, str] = {"onnx": ".onnx", "openvino": ".xml"}


@dataclass(frozen=True)
class EngineCard:
    """Everything about an exported engine but its graph."""

    runtime: Runtime
    precision: Precision
    backbone_digest: str
    checkpoint_digest: str
    layout: WeightLayout
    image_size: int
    cameras: int
    proprio_size: int
    checked: Mapping[str, Any]
    """How far its actions were from those of eager PyTorch when it was built, and on what."""
    versions: Mapping[str, str]
    """Of the packages that wrote it."""
    constants_sha256: str | None = None
    """Of the file with the constants, where the graph does not hold them."""

    @property
    def reads_proprio(self) -> bool:
        return self.proprio_size > 0

    def to_json(self) -> str:
        """JSON with room for the file's own sha256."""
        about = vars(self) | {"layout": self.layout.to_json(), "format": FORMAT, "sha256": UNSIGNED}
        return json.dumps(about, sort_keys=True)

    @staticmethod
    def from_json(text: str, source: Path) -> EngineCard:
        """The inverse of `to_json`. Raises UserError for a card of another version."""
        about = json.loads(text)
        if about.pop("format") != FORMAT:
            raise UserError(f"{source} is an engine of another version of hypervla: export it again.")
        about.pop("sha256")
        return EngineCard(**about | {"layout": WeightLayout.from_json(about["layout"])})


class ExportedEngine:
    """A graph that was opened; an Engine. `infer` runs it on named arrays."""

    def __init__(self, card: EngineCard, infer: Callable[[Mapping[str, np.ndarray]], np.ndarray]) -> None:
        self.card, self._infer = card, infer
        self.backbone_digest, self.layout = card.backbone_digest, card.layout
        self.image_size, self.reads_proprio = card.image_size, card.reads_proprio

    def run(
        self,
        weights: NamedWeights,
        images: UInt8[np.ndarray, "N C h w 3"],
        proprio: Float32[np.ndarray, "N P"] | None,
    ) -> Prediction:
        """Normalised chunks of N task policies, each on its own observation. The graph is one piece, so all of its time
        counts as the backbone's."""
        began = time.perf_counter()
        given = named_inputs(weights, images, proprio)
        chunks = self._infer({name: np.ascontiguousarray(x) for name, x in given.items()})
        return Prediction(chunks, time.perf_counter() - began, 0.0)


def named_inputs(weights: NamedWeights, images: np.ndarray, proprio: np.ndarray | None) -> dict[str, np.ndarray]:
    """By the names of a graph's inputs."""
    named = {IMAGES: images} | {WEIGHTS + name: rows for name, rows in weights.items()}
    return named if proprio is None else named | {PROPRIO: proprio}


def open_engine(path: Path, threads: int | None = None) -> ExportedEngine:
    """The engine in a file that `hypervla export` wrote; `threads` of the processor, or as many as it has.

    Raises UserError for a file that is damaged or no engine, or that the installed runtime cannot run.
    """
    openers = {ENDINGS["onnx"]: _open_onnx, ENDINGS["openvino"]: _open_openvino}
    if path.suffix not in openers:
        raise UserError(f"'{path}' is no engine: the files that hypervla export writes end in {' or '.join(openers)}.")
    if not path.is_file():
        raise UserError(f"There is no engine '{path}': write one with hypervla export.")
    return openers[path.suffix](path, threads)


def _open_onnx(path: Path, threads: int | None) -> ExportedEngine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said below, in one sentence
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a robot's processor has other work too
    if threads is not None:
        options.intra_op_num_threads = threads
    data = _checked(path)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes derive from nothing narrower
        raise _unfit(path, f"ONNX Runtime {onnxruntime.__version__}", error) from error
    card = EngineCard.from_json(session.get_modelmeta().custom_metadata_map[CARD], path)
    return ExportedEngine(card, lambda given: np.asarray(session.run([OUTPUT], dict(given))[0]))


def _open_openvino(path: Path, threads: int | None) -> ExportedEngine:
    import openvino

    _checked(path)
    constants = path.with_suffix(".bin")
    if not constants.is_file():
        raise UserError(f"{constants} is missing: it holds the constants of {path.name}, copy both.")
    core, limits = openvino.Core(), {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    try:
        graph = core.read_model(path)
        card = EngineCard.from_json(graph.get_rt_info([CARD]).astype(str), path)
        _check_constants(constants, card)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[card.precision]} | limits
        request = core.compile_model(graph, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise _unfit(path, f"OpenVINO {openvino.__version__}", error) from error
    return ExportedEngine(card, lambda given: request.infer(dict(given))[0].copy())


def _check_constants(path: Path, card: EngineCard) -> None:
    import hashlib

    if hashlib.sha256(path.read_bytes()).hexdigest() != card.constants_sha256:
        raise UserError(f"{path} is damaged or of another engine: export it again, or copy it once more.")


def _checked(path: Path) -> bytes:
    """The file, if it is all that was written. Raises UserError."""
    data = path.read_bytes()
    if not is_whole(data):
        raise UserError(f"{path} is damaged or no engine of hypervla: export it again, or copy it once more.")
    return data


def _unfit(path: Path, runtime: str, error: Exception) -> UserError:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{runtime} cannot run {path} ({said}): export it again with the versions installed here.")
