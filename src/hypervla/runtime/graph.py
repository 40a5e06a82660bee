"""The control step as an ONNX graph: in float32, and in eight bits."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hypervla.models.diffusion import DiffusionHead
from hypervla.models.folded_backbone import folded as folded_backbone
from hypervla.models.folded_policy import FoldedPolicy
from hypervla.models.generated import fixed_noise
from hypervla.runtime.engines import IMAGES, OUTPUT, PROPRIO, WEIGHTS, EngineCard, named_inputs
from hypervla.runtime.folding import folded_shapes
from hypervla.runtime.frames import Frames
from hypervla.runtime.slots import Form
from hypervla.runtime.torch_engine import TorchEngine

OPSET = 20


class ControlStep(nn.Module):
    """One control step of N task policies on folded weights: what every fast engine runs."""

    def __init__(self, engine: TorchEngine) -> None:
        super().__init__()
        self.backbone, self.policy = folded_backbone(engine.backbone), FoldedPolicy(engine.policy)
        self.head, noise = engine.policy.head, None
        self.noise: Tensor | None
        head = self.head
        if isinstance(head, DiffusionHead):  # a graph draws nothing: the noise that acting always takes is a constant
            noise = torch.randn(head.steps, 1, 1, head.outputs, generator=fixed_noise(torch.device("cpu")))
        self.register_buffer("noise", noise, persistent=False)

    def forward(
        self,
        images: UInt8[Tensor, "N C h w 3"],
        weights: dict[str, Float[Tensor, "N *shape"]],
        proprio: Float[Tensor, "N P"] | None = None,
    ) -> Float[Tensor, "N H A"]:
        """Normalised chunks."""
        features = self.policy.features(weights, self.tokens(images), proprio)
        if self.noise is None or not isinstance(self.head, DiffusionHead):
            return self.head.decode(weights, features)[:, 0]
        return self.head.sample(weights, features, self.noise.expand(-1, images.shape[0], -1, -1))[:, 0]

    def tokens(self, images: UInt8[Tensor, "N C h w 3"]) -> Float[Tensor, "N K Dv"]:
        """What the backbone sees."""
        return self.backbone(images.flatten(0, 1))[0].unflatten(0, images.shape[:2]).flatten(1, 2)


def to_onnx(step: ControlStep, card: EngineCard) -> Any:
    """The control step as an ONNX model with N free, up to the card's limit."""
    weights = {name: torch.zeros(2, *shape) for name, shape in folded_shapes(card.layout, card.heads).items()}
    given = {IMAGES: _no_images(card), "weights": weights}
    names = [IMAGES, *(WEIGHTS + name for name in weights)]
    if card.reads_proprio:
        given[PROPRIO] = torch.zeros(2, card.proprio_size)
        names.append(PROPRIO)
    return _traced(step, given, names, card.most_policies)


def backbone_to_onnx(step: ControlStep, card: EngineCard) -> Any:
    """Only what the task policies share, as an ONNX model: the mean of its tokens, so that writing them all down does
    not count when it is timed."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = step

        def forward(self, images: Tensor) -> Tensor:
            return self.step.tokens(images).mean(1)

    return _traced(Shared(), {IMAGES: _no_images(card)}, [IMAGES], card.most_policies)


def _no_images(card: EngineCard) -> Tensor:
    return torch.zeros(2, card.cameras, card.image_size, card.image_size, 3, dtype=torch.uint8)


def _traced(step: nn.Module, given: dict[str, Any], names: list[str], most_policies: int) -> Any:
    """`given` by the names of the module's own arguments: the exporter would take a last dict among unnamed ones for
    names."""
    count = torch.export.Dim("N", min=1, max=most_policies)
    with torch.inference_mode(), _quiet():
        program = torch.onnx.export(
            step.eval(),
            kwargs=given,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=tree_map(lambda _: {0: count}, given),
            input_names=names,
            output_names=[OUTPUT],
        )
    assert program is not None
    return program.model_proto


def to_openvino(graph: Any) -> Any:
    """An ONNX graph as OpenVINO's."""
    import openvino

    return openvino.Core().read_model(graph.SerializeToString())


def quantised(graph: Any, frames: Frames, form: Form) -> Any:
    """The graph, of ONNX or OpenVINO, with its backbone in eight bits (NNCF, after training). The base policy stays as
    it is: its weights are not known yet, and it is a small part of the work.

    Activations keep the whole range that the frames show: the mean of their extremes, which is NNCF's default, cuts off
    what a few frames need (docs/log.md).
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)
    if hasattr(graph, "graph"):
        nodes, asked = _onnx_nodes(graph), {x.name for x in graph.graph.input}
    else:
        nodes, asked = _openvino_nodes(graph), {x.get_any_name() for x in graph.inputs}
    given = [named_inputs(*frames.row(i, form)) for i in range(len(frames))]
    with _quiet():
        return nncf.quantize(
            graph,
            nncf.Dataset([{name: rows for name, rows in one.items() if name in asked} for one in given]),
            subset_size=len(frames),
            ignored_scope=nncf.IgnoredScope(names=_downstream(nodes), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            ),
        )


Nodes = list[tuple[str, set[str], set[str]]]
"""Name, inputs and outputs of each node, in an order in which they can be computed; without those that ask how many
task policies there are, since the backbone may ask that of any input."""


def _onnx_nodes(graph: Any) -> Nodes:
    inputs: Nodes = [(x.name, set(), {x.name}) for x in graph.graph.input]
    numbers = [node for node in graph.graph.node if node.op_type != "Shape"]
    return inputs + [(node.name, set(node.input), set(node.output)) for node in numbers]


def _openvino_nodes(graph: Any) -> Nodes:
    def before(node: Any) -> set[str]:
        return {x.get_source_output().get_node().get_friendly_name() for x in node.inputs()}

    numbers = [node for node in graph.get_ordered_ops() if node.get_type_name() != "ShapeOf"]
    return [(name, before(node), {name}) for node in numbers if (name := node.get_friendly_name())]


def _downstream(nodes: Nodes) -> list[str]:
    """The nodes that any input but the images reaches."""
    reached, names = set(), []
    for name, inputs, outputs in nodes:
        if name == PROPRIO or name.startswith(WEIGHTS) or reached & inputs:
            names.append(name)
            reached |= outputs
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not installed and on its own insides, and with progress where
    it is in the way of nothing."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
