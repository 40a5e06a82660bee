"""Weights of the released JAX code, in and out: a flat npz of its parameter tree, names joined by '/' (spec 1.10).

`scripts/hypervla_to_npz.py` makes such a file from a trained run. The tree holds the context encoder, one output head
for each generated tensor (`output_head_NAME/kernel` and `bias`, NAME being the tensor's path joined by '_'), and the
shared DINOv2, each tensor flattened (`encoder_image_encoder_PATH`). The frozen encoders of text and initial image are
not in it: they are the published ones. Actions come out as there only with `DinoV2(position_rule="flax")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from hypervla.contracts import UserError, WeightLayout
from hypervla.models.action_head import ReleasedHead
from hypervla.models.backbones import DinoV2
from hypervla.models.hypernetwork import HypernetworkConfig
from hypervla.models.hypervla import HyperVLA, HyperVLAConfig

Shape = tuple[int, ...]
KERNEL = (1, 0)
"""The order of axes that turns an (in, out) kernel into PyTorch's (out, in) weight."""
CONVOLUTION = (3, 2, 0, 1)
"""(y, x, in, out) → (out, in, y, x)."""
LAYER = {
    "norm1": "LayerNorm_0",
    "query": "MultiHeadDotProductAttention_0/query",
    "key": "MultiHeadDotProductAttention_0/key",
    "value": "MultiHeadDotProductAttention_0/value",
    "out": "MultiHeadDotProductAttention_0/out",
    "norm2": "LayerNorm_1",
    "up": "MlpBlock_0/Dense_0",
    "down": "MlpBlock_0/Dense_1",
}
"""The parts of a transformer layer: our names, the released ones."""
GENERATED = {
    "image": "encoder/image_embedding_projection",
    "norm": "encoder/Transformer_0/encoder_norm",
    "head.arm": "action_head/continuous_head",
    "head.gripper": "action_head/discrete_head",
}
"""What is generated besides layers and position table."""
DINOV2 = {
    ".q_proj.": ".attention.query.",
    ".k_proj.": ".attention.key.",
    ".v_proj.": ".attention.value.",
    ".o_proj.": ".output.dense.",
}
"""What newer versions of transformers call the parts of DINOv2's attention; Flax kept the old names."""


@dataclass(frozen=True)
class Place:
    """Where one released tensor stands among our parameters."""

    name: str
    shape: Shape
    """As it is stored."""
    ours: str
    unfolded: Shape
    """Its axes before flattening, attention heads merged."""
    axes: Shape
    """The order in which our parameter has those axes."""
    rows: tuple[int, int | None] = (0, None)
    """Which rows of our parameter it is: the first, and the one behind the last."""

    def bring(self, array: np.ndarray, parameter: Tensor) -> None:
        """Copy the released tensor into our parameter."""
        target, turned = parameter[slice(*self.rows)], array.reshape(self.unfolded).transpose(self.axes)
        target.copy_(torch.from_numpy(np.ascontiguousarray(turned, np.float32)).reshape(target.shape))

    def take(self, parameter: Tensor) -> np.ndarray:
        """Our parameter as the released tensor."""
        turned = tuple(self.unfolded[axis] for axis in self.axes)
        array = parameter[slice(*self.rows)].detach().to("cpu", torch.float32).numpy().reshape(turned)
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes))).reshape(self.shape)


def from_flax(arrays: Mapping[str, np.ndarray], config: HyperVLAConfig) -> dict[str, Tensor]:
    """The released tree as the `trained_parameters` of this model, in float32.

    Raises UserError for a tree with tensors missing, unknown or of other shapes, and for a model of another kind.
    """
    own, table = trained_shapes(config), {place.name: place for place in places(config)}
    missing, foreign = sorted(table.keys() - arrays.keys()), sorted(arrays.keys() - table.keys())
    if missing or foreign:
        raise UserError(
            f"The file holds another model than the recipe: {len(missing)} tensors are missing {missing[:2]} and "
            f"{len(foreign)} unknown {foreign[:2]}; scripts/hypervla_to_npz.py makes a complete one."
        )
    for name, place in table.items():
        if arrays[name].shape != place.shape:
            raise UserError(
                f"The file holds another model than the recipe: '{name}' has shape {arrays[name].shape}, but the "
                f"recipe is made for {place.shape}."
            )
    parameters = {name: torch.empty(shape) for name, shape in own.items()}
    for name, place in table.items():
        place.bring(arrays[name], parameters[place.ours])
    assert sum(prod(place.shape) for place in table.values()) == sum(value.numel() for value in parameters.values())
    return parameters


def to_flax(parameters: Mapping[str, Tensor], config: HyperVLAConfig) -> dict[str, np.ndarray]:
    """The `trained_parameters` of this model as the released tree, in float32.

    Raises UserError for parameters with tensors missing, unknown or of other shapes, and for a model of another kind.
    """
    own, came = trained_shapes(config), {name: tuple(value.shape) for name, value in parameters.items()}
    if wrong := sorted(name for name in own.keys() | came.keys() if own.get(name) != came.get(name)):
        raise UserError(
            f"The parameters are another model's than the recipe's, {len(wrong)} of them: '{wrong[0]}' came as "
            f"{came.get(wrong[0], 'missing')}, wanted {own.get(wrong[0], 'nothing of that name')}."
        )
    return {place.name: place.take(parameters[place.ours]) for place in places(config)}


def trained_shapes(config: HyperVLAConfig) -> dict[str, Shape]:
    """The names and shapes of this model's `trained_parameters`."""
    with torch.device("meta"):
        model = HyperVLA(config, pretrained=False)
    return {name: tuple(value.shape) for name, value in model.trained_parameters().items()}


def places(config: HyperVLAConfig) -> Iterator[Place]:
    """All released tensors. Raises UserError for a model that the released code has no tree of parameters for."""
    head, backbone = config.head, config.backbone
    wanted = {
        "a DINOv2 that is trained": isinstance(backbone, DinoV2) and not backbone.frozen,
        "a frozen copy of it for the initial image": config.context_image == "frozen copy",
        "its class token": config.context_feature == "class",
        "one camera": config.cameras == 1,
        "no proprio": config.policy.proprio_size == 0,
        "a ReleasedHead with the gripper last": isinstance(head, ReleasedHead)
        and head.gripper_index == head.action_size - 1,
    }
    if lacking := [what for what, there in wanted.items() if not there]:
        raise UserError(
            f"The released code's weights need a model with {', '.join(lacking)}: take the recipe 'paper' or a variant "
            f"of its sizes."
        )
    own = trained_shapes(config)
    yield from context_encoder(config.hypernetwork, own)
    yield from output_heads(config.base_policy().layout, config.hypernetwork.width)
    for name, shape in own.items():
        if name.startswith("backbone."):
            yield backbone_tensor(name, shape)


def context_encoder(config: HypernetworkConfig, own: Mapping[str, Shape]) -> Iterator[Place]:
    """Projections, position tables and the transformer that reads the task context."""
    net, width, split = "hypernetwork", config.width, (config.heads, config.width // config.heads)
    for ours, theirs in (("instruction", "task_token"), ("image", "initial_image")):
        inputs = own[f"{net}.{ours}.weight"][1]
        yield from linear(f"{net}.{ours}", f"{theirs}_projection", (inputs,), (width,))
    tables = {"instruction_position": "task", "image_position": "initial_image", "context_token": "layer"}
    for ours, theirs in tables.items():
        yield plain(f"{net}.{ours}", f"{theirs}_pos_embedding", (1, *own[f"{net}.{ours}"]))
    for i in range(config.layers):
        ours, theirs = f"{net}.encoder.layers.{i}", f"context_encoder/encoderblock_{i}"
        for part in ("query", "key", "value"):
            yield from linear(f"{ours}.{part}", f"{theirs}/{LAYER[part]}", (width,), split)
        yield from linear(f"{ours}.out", f"{theirs}/{LAYER['out']}", split, (width,))
        yield from linear(f"{ours}.up", f"{theirs}/{LAYER['up']}", (width,), (config.mlp,))
        yield from linear(f"{ours}.down", f"{theirs}/{LAYER['down']}", (config.mlp,), (width,))
        for part in ("norm1", "norm2"):
            yield from norm(f"{ours}.{part}", f"{theirs}/{LAYER[part]}", width)
    yield from norm(f"{net}.encoder.norm", "context_encoder/encoder_norm", width)


def output_heads(layout: WeightLayout, width: int) -> Iterator[Place]:
    """One head for each generated tensor: rows of our two stacked matrices."""
    kernels = sum(spec.size for spec in layout.specs if spec.kind == "kernel")
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        name = f"output_head_{generated_name(spec.name).replace('/', '_')}"
        stack, first = ("kernel", offset) if offset < kernels else ("other", offset - kernels)
        rows, heads = (first, first + spec.size), f"hypernetwork.{stack}_heads"
        shape = (width, spec.size)
        yield Place(f"{name}/kernel", shape, f"{heads}.weight", shape, KERNEL, rows)
        yield Place(f"{name}/bias", (spec.size,), f"{heads}.bias", (spec.size,), (0,), rows)


def generated_name(ours: str) -> str:
    """The released path of a generated tensor, such as `layers.0.query.kernel`."""
    if ours == "position":
        return "encoder/pos_embedding"
    part, kind = ours.rsplit(".", 1)
    if part in GENERATED:
        return f"{GENERATED[part]}/{kind}"
    _, number, name = part.split(".")
    return f"encoder/Transformer_0/encoderblock_{number}/{LAYER[name]}/{kind}"


def backbone_tensor(ours: str, shape: Shape) -> Place:
    """A tensor of the shared DINOv2; all are stored flat, in the order of Flax's axes."""
    path, kind = ours.removeprefix("backbone.model.").rsplit(".", 1)
    path = f"{path}."
    for newer, older in DINOV2.items():
        path = path.replace(newer, older)
    if kind == "weight":
        kind = "scale" if len(shape) == 1 else "kernel"
    axes = {2: KERNEL, 4: CONVOLUTION}[len(shape)] if kind == "kernel" else tuple(range(len(shape)))
    unfolded = tuple(shape[axis] for axis in np.argsort(axes))
    name = f"encoder_image_encoder_{path}{kind}".replace(".", "_")
    return Place(name, (prod(shape),), ours, unfolded, axes)


def linear(ours: str, theirs: str, inputs: Shape, outputs: Shape) -> Iterator[Place]:
    """Kernel and bias of a linear map; several axes on a side are attention heads and their width."""
    merged = (prod(inputs), prod(outputs))
    yield Place(f"{theirs}/kernel", inputs + outputs, f"{ours}.weight", merged, KERNEL)
    yield plain(f"{ours}.bias", f"{theirs}/bias", outputs)


def norm(ours: str, theirs: str, width: int) -> Iterator[Place]:
    yield plain(f"{ours}.weight", f"{theirs}/scale", (width,))
    yield plain(f"{ours}.bias", f"{theirs}/bias", (width,))


def plain(ours: str, theirs: str, shape: Shape) -> Place:
    """A tensor whose axes stand as ours do, but for axes of one entry or merged heads."""
    return Place(theirs, shape, ours, shape, tuple(range(len(shape))))
