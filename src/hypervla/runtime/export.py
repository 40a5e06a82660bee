"""Writing engines: the control step as a graph whose inputs are the observation and the weights of the task policy.

Every engine is run beside eager PyTorch when it is built; one whose actions differ too much is not written.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hypervla.contracts import UserError
from hypervla.durable import write_atomically
from hypervla.models.diffusion import DiffusionHead
from hypervla.models.generated import fixed_noise
from hypervla.runtime import engines
from hypervla.runtime.compiler import Compiler
from hypervla.runtime.engines import CARD, ENDINGS, INPUTS, OUTPUT, EngineCard, Precision, Runtime
from hypervla.runtime.frames import Frames
from hypervla.runtime.provenance import version
from hypervla.runtime.signature import sign
from hypervla.runtime.torch_engine import TorchEngine

OPSET = 20
MOST = 4096
"""Task policies that fit one call of an engine."""
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
"""Largest error of an action at the 99th percentile, as a share of the range that the frames' actions span."""
PRECISIONS: dict[Runtime, tuple[Precision, ...]] = {"onnx": ("fp32",), "openvino": ("fp32", "bf16")}
WRITERS: dict[Runtime, tuple[str, ...]] = {
    "onnx": ("hypervla", "torch", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("hypervla", "torch", "onnx", "onnxscript", "openvino"),
}


class ControlStep(nn.Module):
    """One control step of N task policies: what is exported."""

    def __init__(self, engine: TorchEngine) -> None:
        super().__init__()
        self.backbone, self.policy, self.layout = engine.backbone, engine.policy, engine.layout
        self.noise: Tensor | None
        head, noise = self.policy.head, None
        if isinstance(head, DiffusionHead):  # a graph draws nothing: the noise that acting always takes is a constant
            noise = torch.randn(head.steps, 1, 1, head.outputs, generator=fixed_noise(torch.device("cpu")))
        self.register_buffer("noise", noise, persistent=False)

    def forward(
        self,
        images: UInt8[Tensor, "N C h w 3"],
        weights: Float[Tensor, "N W"],
        proprio: Float[Tensor, "N P"] | None = None,
    ) -> Float[Tensor, "N H A"]:
        """Normalised chunks."""
        cells = self.backbone(images.flatten(0, 1))[0]
        tokens = cells.unflatten(0, images.shape[:2]).flatten(1, 2).unsqueeze(1)
        named, state = self.layout.split(weights), None if proprio is None else proprio.unsqueeze(1)
        head = self.policy.head
        if self.noise is None or not isinstance(head, DiffusionHead):
            return self.policy.act(named, tokens, state)[:, 0]
        features = self.policy.features(named, tokens, state)
        return head.sample(named, features, self.noise.expand(-1, images.shape[0], -1, -1))[:, 0]


def export(compiler: Compiler, out: Path, runtime: Runtime, precision: Precision, frames: Frames) -> EngineCard:
    """Write the engine of the compiler's backbone to `out` (OpenVINO: and its constants beside it).

    Raises UserError for a name that does not end as the runtime's files do, a precision that the runtime does not have,
    and an engine whose actions differ too much from eager PyTorch's.
    """
    if out.suffix != ENDINGS[runtime]:
        raise UserError(
            f"An engine for {runtime} is a file that ends in {ENDINGS[runtime]}, but '{out}' was asked for."
        )
    if precision not in PRECISIONS[runtime]:
        raise UserError(
            f"{runtime} has no {precision} engines here, only {', '.join(PRECISIONS[runtime])}: choose one of them."
        )
    reference = compiler.engine
    card = EngineCard(
        runtime=runtime,
        precision=precision,
        backbone_digest=reference.backbone_digest,
        checkpoint_digest=compiler.digest,
        layout=reference.layout,
        image_size=reference.image_size,
        cameras=len(compiler.embodiment.cameras),
        proprio_size=compiler.embodiment.proprio_size if reference.reads_proprio else 0,
        checked={},
        versions={name: found for name in WRITERS[runtime] if (found := version(name))},
    )
    graph = to_onnx(ControlStep(reference).eval(), card)
    write = {"onnx": _write_onnx, "openvino": _write_openvino}[runtime]
    draft = out.with_name(f".{out.stem}.draft{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(graph, card, draft)
        checked = check(engines.open_engine(draft), reference, frames)
        if checked["p99"] > TOLERANCE[precision]:
            raise UserError(
                f"The engine was not written: on {frames.of} its actions differ from eager PyTorch's by "
                f"{checked['p99']:.2%} of their range at the 99th percentile; {TOLERANCE[precision]:.2%} is the most "
                f"for {precision}."
            )
        card = replace(card, checked=checked)
        write(graph, card, out)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_suffix(".bin").unlink(missing_ok=True)
    return card


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not installed and on its own insides."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def to_onnx(step: ControlStep, card: EngineCard) -> Any:
    """The control step as an ONNX model with N free."""
    images = torch.zeros(2, card.cameras, card.image_size, card.image_size, 3, dtype=torch.uint8)
    given = [images, torch.zeros(2, card.layout.size)]
    if card.reads_proprio:
        given.append(torch.zeros(2, card.proprio_size))
    count = torch.export.Dim("N", min=1, max=MOST)
    with torch.inference_mode(), _quiet():
        program = torch.onnx.export(
            step,
            tuple(given),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=tuple({0: count} for _ in given),
            input_names=list(INPUTS[: len(given)]),
            output_names=[OUTPUT],
        )
    assert program is not None
    return program.model_proto


def check(engine: Any, reference: TorchEngine, frames: Frames) -> dict[str, Any]:
    """How far an engine's actions are from the reference's on the same frames, in shares of the range that each action
    dimension spans there."""
    found, wanted = (
        np.concatenate([one.run(*frames.row(i)).chunks for i in range(len(frames))]) for one in (engine, reference)
    )
    span = np.maximum(np.ptp(wanted, axis=(0, 1)), 1e-6)
    error = np.abs(found - wanted) / span
    return {"frames": len(found), "of": frames.of, "p99": float(np.quantile(error, 0.99)), "max": float(error.max())}


def _write_onnx(graph: Any, card: EngineCard, path: Path) -> None:
    model = type(graph)()
    model.CopyFrom(graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD, card.to_json()
    write_atomically(path, sign(model.SerializeToString()))


def _write_openvino(graph: Any, card: EngineCard, path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(graph.SerializeToString())
    constants = path.with_suffix(".bin")
    openvino.save_model(model, path, compress_to_fp16=False)
    card = replace(card, constants_sha256=hashlib.sha256(constants.read_bytes()).hexdigest())
    model.set_rt_info(card.to_json(), [CARD])
    openvino.save_model(model, path, compress_to_fp16=False)
    write_atomically(path, sign(path.read_bytes()))
