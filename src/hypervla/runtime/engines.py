"""Exported engines: the control step as a graph in a file, run without PyTorch. `runtime/export.py` writes them.

The weights of a task policy are an input of the graph, so one file serves every task of its backbone, and any number
of them in one call.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hypervla.contracts import UserError, WeightLayout
from hypervla.runtime.folding import folded, folded_shapes
from hypervla.runtime.sessions import (
    Infer,
    OpenVinoGraph,
    Precision,
    Runtime,
    onnx_infer,
    onnx_session,
    tensorrt_session,
)
from hypervla.runtime.signature import UNSIGNED, is_whole
from hypervla.runtime.slots import NamedWeights, Slots
from hypervla.runtime.task_policy import Prediction

FORMAT = 2
CARD = "hypervla"
"""Under this name a graph carries its card."""
IMAGES, PROPRIO, WEIGHTS, OUTPUT = "images", "proprio", "weights.", "chunks"
"""Names of a graph's inputs and output; each tensor of the weights has its name in the layout behind WEIGHTS."""
ENDINGS: Mapping[Runtime, str] = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".onnx"}


@dataclass(frozen=True)
class EngineCard:
    """Everything about an exported engine but its graph."""

    runtime: Runtime
    precision: Precision
    backbone_digest: str
    checkpoint_digest: str
    layout: WeightLayout
    heads: int
    """Of the base policy's attention."""
    most_policies: int
    """In one call."""
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

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each of the graph's inputs, for one task policy."""
        weights = folded_shapes(self.layout, self.heads)
        shapes = {IMAGES: (self.cameras, self.image_size, self.image_size, 3)}
        shapes |= {WEIGHTS + name: shape for name, shape in weights.items()}
        return shapes | ({PROPRIO: (self.proprio_size,)} if self.reads_proprio else {})

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

    takes_views = False

    def __init__(self, card: EngineCard, infer: Infer) -> None:
        self.card, self._infer = card, infer
        self.backbone_digest, self.layout = card.backbone_digest, card.layout
        self.image_size, self.reads_proprio = card.image_size, card.reads_proprio
        self.most_policies = card.most_policies

    def form(self, weights: NamedWeights) -> NamedWeights:
        """In fewer tensors."""
        return folded(weights, self.card.heads)

    def run(
        self,
        slots: Slots,
        images: UInt8[np.ndarray, "N C h w 3"],
        proprio: Float32[np.ndarray, "N P"] | None,
    ) -> Prediction:
        """Normalised chunks of N task policies, each on its own observation. The graph is one piece, so all of its time
        counts as the backbone's."""
        began = time.perf_counter()
        chunks = self._infer(named_inputs(slots, images, proprio))
        return Prediction(chunks, time.perf_counter() - began, 0.0)


def named_inputs(slots: Slots, images: np.ndarray, proprio: np.ndarray | None) -> dict[str, np.ndarray]:
    """By the names of a graph's inputs; C-contiguous."""
    named = {WEIGHTS + name: rows for name, rows in slots.named.items()} | {IMAGES: np.ascontiguousarray(images)}
    return named if proprio is None else named | {PROPRIO: np.ascontiguousarray(proprio)}


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
    """For ONNX Runtime or TensorRT, whichever its card says."""
    import onnxruntime

    data = _checked(path)
    try:
        session = onnx_session(data, threads)
        card = EngineCard.from_json(session.get_modelmeta().custom_metadata_map[CARD], path)
        if card.runtime == "tensorrt":
            session = tensorrt_session(data, card.precision, card.input_shapes(), card.most_policies)
    except UserError:
        raise
    except Exception as error:  # onnxruntime's classes derive from nothing narrower
        raise _unfit(path, f"ONNX Runtime {onnxruntime.__version__}", error) from error
    return ExportedEngine(card, onnx_infer(session))


def _open_openvino(path: Path, threads: int | None) -> ExportedEngine:
    import openvino

    data, constants = _checked(path), path.with_suffix(".bin")
    if not constants.is_file():
        raise UserError(f"{constants} is missing: it holds the constants of {path.name}, copy both.")
    held = constants.read_bytes()  # what was checked is what is run, whatever becomes of the files meanwhile
    try:
        graph = openvino.Core().read_model(data, held)
        card = EngineCard.from_json(graph.get_rt_info([CARD]).astype(str), path)
        if hashlib.sha256(held).hexdigest() != card.constants_sha256:
            raise UserError(f"{constants} is damaged or of another engine: export it again, or copy it once more.")
        opened = OpenVinoGraph(graph, card.precision, threads)
    except RuntimeError as error:
        raise _unfit(path, f"OpenVINO {openvino.__version__}", error) from error
    return ExportedEngine(card, opened.infer)


def _checked(path: Path) -> bytes:
    """The file, if it is all that was written. Raises UserError."""
    data = path.read_bytes()
    if not is_whole(data):
        raise UserError(f"{path} is damaged or no engine of hypervla: export it again, or copy it once more.")
    return data


def _unfit(path: Path, runtime: str, error: Exception) -> UserError:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{runtime} cannot run {path} ({said}): export it again with the versions installed here.")
